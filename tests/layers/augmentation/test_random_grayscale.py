"""RandomGrayscale against Keras."""

import keras
import numpy as np

from tf_tricks.layers import augmentation as layers


def images(high=255, dtype="float32"):
    return np.random.default_rng(0).uniform(0, high, (4, 6, 5, 3)).astype(dtype)


def numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def test_grayscale_is_that_of_keras_in_all_channels_and_needs_no_range():
    x = images() - 128
    got = numpy(layers.RandomGrayscale(factor=1.0)(x, training=True))
    theirs = numpy(keras.ops.image.rgb_to_grayscale(x, data_format="channels_last"))
    np.testing.assert_allclose(got, np.repeat(theirs, 3, axis=-1), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(numpy(layers.RandomGrayscale(factor=0.0)(x, training=True)), x)
    members = [layers.RandomGrayscale(factor=1.0), layers.RandomBrightness(0.1, value_range=(0, 1))]
    assert layers.Augmentation(members).value_range == (0, 1)
