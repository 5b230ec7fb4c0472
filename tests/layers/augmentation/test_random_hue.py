"""RandomHue against Keras."""

import keras
import numpy as np
import pytest

from tf_tricks.layers import augmentation as layers


def images(high=255, dtype="float32"):
    return np.random.default_rng(0).uniform(0, high, (4, 6, 5, 3)).astype(dtype)


def numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def same(name, x, arguments, atol):
    got, theirs = (getattr(each, name)(**arguments)(x, training=True) for each in (layers, keras.layers))
    np.testing.assert_allclose(numpy(got), numpy(theirs), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("high", [1, 255])
def test_hue_is_that_of_keras(high):
    x = images(high)
    for factor in (0.0, 1.0):  # half a turn is the same in both directions
        same("RandomHue", x, {"factor": (factor, factor), "value_range": (0, high)}, 3e-6 * high)
    got = numpy(layers.RandomHue((0.6, 0.6), value_range=(0, high), seed=1)(x, training=True))
    theirs = keras.layers.RandomHue((0.6, 0.6), value_range=(0, high))
    either = [
        numpy(theirs.transform_images(keras.ops.convert_to_tensor(x), {"factor": np.full((4,), turns, "float32")}))
        for turns in (-0.3, 0.3)
    ]
    which = [[np.abs(got[i] - each[i]).max() < 1e-5 * high for each in either] for i in range(4)]
    assert all(sum(row) == 1 for row in which) and len({row.index(True) for row in which}) == 2
