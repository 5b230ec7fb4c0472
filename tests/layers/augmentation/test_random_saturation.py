"""RandomSaturation against Keras, where Keras is right."""

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
@pytest.mark.parametrize("factor", [0.0, 0.25, 0.5])
def test_saturation_is_keras_where_keras_is_right(high, factor):
    same("RandomSaturation", images(high), {"factor": (factor, factor), "value_range": (0, high)}, 2e-6 * high)


def test_saturation_stops_at_full_colour_where_keras_leaves_the_range():
    x, arguments = images(), {"factor": (0.9, 0.9), "value_range": (0, 255)}
    assert numpy(keras.layers.RandomSaturation(**arguments)(x, training=True)).min() < 0
    got = numpy(layers.RandomSaturation(**arguments)(x, training=True))
    assert got.min() >= 0
    np.testing.assert_allclose(got.max(-1), x.max(-1), atol=1e-4)  # the value of HSV stays
    full = np.minimum(1 - x.min(-1) / x.max(-1), 1 / 9) * 9
    np.testing.assert_allclose(1 - got.min(-1) / got.max(-1), full, atol=1e-5)


def test_saturation_of_bytes_is_that_of_floats():
    x = images(dtype="uint8")
    layer = layers.RandomSaturation((0.3, 0.3), dtype="uint8")
    expected = numpy(keras.layers.RandomSaturation((0.3, 0.3))(x.astype("float32"), training=True))
    np.testing.assert_allclose(numpy(layer(x, training=True)), np.round(expected), atol=1)
