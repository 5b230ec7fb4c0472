"""RandomContrast against the formula and Keras."""

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation import RandomContrast
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_values_are_those_of_keras_at_the_same_factor(dtype):
    x = np.random.default_rng(0).uniform(0, 255, (3, 5, 4, 3)).astype(dtype)
    layer, theirs = RandomContrast((0.7, 0.9), seed=1), keras.layers.RandomContrast(0.5)
    drawn = layer.draw(OPS, Draws(OPS, keras.ops.convert_to_tensor([5, 6], "int32"), 3), (5, 4))
    factor = keras.ops.reshape(drawn["contrast"], (3, 1, 1, 1))
    expected = theirs.transform_images(
        keras.ops.convert_to_tensor(x.astype("float32")), {"contrast_factor": factor}, training=True
    )
    got = layer.transform(OPS, keras.ops.convert_to_tensor(x), drawn)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(got), keras.ops.convert_to_numpy(expected), rtol=1e-5, atol=1e-3
    )


def test_a_number_lowers_the_contrast_as_often_as_it_raises_it_and_a_pair_is_not_sorted():
    assert RandomContrast(0.5).factor == (0.5, 0.5)  # Keras 3.15 draws from [1, 1.5] here
    assert RandomContrast((0.5, 0.2)).factor == (0.5, 0.2)  # and from [0.8, 1.5] here


def test_the_result_of_bytes_is_rounded_and_clipped():
    x = np.array([10, 20, 240, 250], "uint8").reshape(1, 2, 2, 1)
    layer = RandomContrast((0.0, 1.0), dtype="uint8", seed=1)
    got = keras.ops.convert_to_numpy(layer(x, training=True)).ravel()
    assert got[0] < 10 and got[3] > 250 and np.ptp(got.astype(int)) <= 255
