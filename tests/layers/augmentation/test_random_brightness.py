"""RandomBrightness against the formula and Keras."""

import keras
import numpy as np

from tf_tricks.layers.augmentation import RandomBrightness


def test_values_are_those_of_keras_at_a_fixed_factor():
    x = np.random.default_rng(0).uniform(0, 255, (2, 5, 4, 3)).astype("float32")
    for factor in (-0.3, 0.6, 1.0, -1.0):
        arguments = {"factor": (factor, factor), "value_range": (0, 255)}
        classes = RandomBrightness, keras.layers.RandomBrightness
        got, theirs = (each(**arguments)(x, training=True) for each in classes)
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(got), keras.ops.convert_to_numpy(theirs), rtol=1e-6, atol=1e-4
        )


def test_bytes_do_not_wrap():
    x = np.array([0, 100, 200, 255], "uint8").reshape(1, 1, 4, 1)
    for factor, expected in ((0.5, [128, 228, 255, 255]), (-0.5, [0, 0, 72, 128])):
        got = keras.ops.convert_to_numpy(RandomBrightness((factor, factor), dtype="uint8")(x, training=True))
        np.testing.assert_array_equal(got.ravel(), expected)
