"""asinh and the signed logarithm beside NumPy's."""

import keras
import numpy as np
import pytest

from tf_tricks.layers import SignedLogScale

to_numpy = keras.ops.convert_to_numpy
FORMULAS = {"asinh": np.arcsinh, "log1p": lambda x: np.sign(x) * np.log1p(np.abs(x))}


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("scale", [1.0, 1e-3, [1.0, 1e6]])
def test_given_scale(kind, scale):
    size = 10.0 ** np.linspace(-8, 30, 60)
    x = np.stack([np.concatenate([-size, [0.0], size])] * 2, axis=1)
    layer = SignedLogScale(kind, scale)
    expected = FORMULAS[kind](x / np.array(scale))
    for inputs in (x, x.astype("float32")):
        np.testing.assert_allclose(to_numpy(layer(inputs)), expected, rtol=2e-6)
    np.testing.assert_allclose(to_numpy(layer.inverse(layer(x))), x, rtol=2e-5)
    np.testing.assert_array_equal(to_numpy(SignedLogScale.from_config(layer.get_config())(x)), to_numpy(layer(x)))


@pytest.mark.parametrize("kind", FORMULAS)
def test_the_scale_is_the_median_of_the_sizes(kind):
    x = np.random.default_rng(0).lognormal(3, 4, (1001, 2)) * [1, -1]
    layer = SignedLogScale(kind)
    layer.adapt(x)
    np.testing.assert_allclose(to_numpy(layer(x)), FORMULAS[kind](x / np.median(np.abs(x), axis=0)), atol=1e-5)


def test_zeros_do_not_set_the_scale():
    x = np.zeros((100, 2))
    x[:30, 0] = 1e5
    layer = SignedLogScale()
    layer.adapt(x)
    np.testing.assert_allclose(to_numpy(layer(x)), np.arcsinh(x / 1e5), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "log"}, ValueError, "`kind` must be one of 'asinh', 'log1p'. Received: kind='log'"),
        ({"scale": 0}, ValueError, "`scale` must be finite and > 0. Received: scale=0"),
        ({"scale": np.inf}, ValueError, "`scale` must be finite and > 0. Received: scale=inf"),
        ({"scale": "auto"}, TypeError, "`scale` must be a number or an array of numbers"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SignedLogScale(**arguments)
