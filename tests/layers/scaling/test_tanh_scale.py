"""tanh(x / C) beside NumPy's quantiles."""

import math

import keras
import numpy as np
import pytest

from tf_tricks.layers import TanhScale

to_numpy = keras.ops.convert_to_numpy


@pytest.mark.parametrize(("quantile", "at"), [(0.9, 0.9), (0.5, 0.2), (0.99, 0.999)])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("shift", [0.0, -1e3])
def test_the_quantile_lands_where_it_should(quantile, at, center, shift):
    x = np.random.default_rng(0).lognormal(5, 2, (1001, 3)) + shift
    layer = TanhScale(quantile=quantile, at=at, center=center)
    layer.adapt(x)
    distance = x - np.median(x, axis=0) if center else x
    C = np.quantile(np.abs(distance), quantile, axis=0) / math.atanh(at)
    # The quantiles of |x| come from 2001 of x, which leaves an error of the rank of 1 / 2000.
    np.testing.assert_allclose(to_numpy(layer(x)), np.tanh(distance / C), atol=5e-3)
    assert np.mean(np.abs(to_numpy(layer(x))) <= at, axis=0) == pytest.approx([quantile] * 3, abs=2e-3)


def test_without_negative_values_it_is_exact():
    x = np.random.default_rng(0).uniform(0, 1.4e8, (1001, 2))
    layer = TanhScale()
    layer.adapt(x)
    expected = np.tanh(x * math.atanh(0.9) / np.quantile(x, 0.9, axis=0))
    np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=1e-6)


@pytest.mark.parametrize("C", [3.0, [1.0, 140e6]])
def test_given_c(C):
    x = np.array([[0.5, 1e8], [-2.0, 1.4e8], [2.0, -7e7]], "float32")
    layer = TanhScale(C=C)
    np.testing.assert_allclose(to_numpy(layer(x)), np.tanh(x / np.array(C)), rtol=1e-5)
    again = TanhScale.from_config(layer.get_config())
    np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(layer(x)))
    with pytest.raises(ValueError, match="the constants were given"):
        layer.adapt(x)


def test_a_feature_that_is_mostly_zero_is_measured_by_the_rest():
    x = np.zeros((1000, 2))
    x[:20, 0] = np.linspace(1e6, 2e6, 20)
    layer = TanhScale()
    layer.adapt(x)
    y = to_numpy(layer(x))
    assert 0.5 < y[:20, 0].min() and y[:18, 0].max() < 0.92
    assert (y[:, 1] == 0).all()


def test_saturated_outputs_come_back_finite():
    layer = TanhScale(C=2.0, axis=None)
    back = to_numpy(layer.inverse(np.array([[1.0, -1.0, 0.5]], "float32")))
    np.testing.assert_allclose(
        back[0], [2 * math.atanh(1 - 2**-24), -2 * math.atanh(1 - 2**-24), 2 * math.atanh(0.5)], rtol=1e-3
    )
    assert np.isfinite(to_numpy(layer.inverse(layer(np.array([[1e30, -1e30]], "float32"))))).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"C": 0.0}, ValueError, "`C` must be finite and > 0. Received: C=0.0"),
        ({"C": -1.0}, ValueError, "`C` must be finite and > 0. Received: C=-1.0"),
        ({"C": "big"}, TypeError, "`C` must be a number or an array of numbers. Received: C='big'"),
        ({"C": "3"}, TypeError, "`C` must be a number or an array of numbers. Received: C='3'"),
        ({"C": []}, TypeError, r"`C` must be a number or an array of numbers. Received: C=\[\]"),
        ({"C": [[1.0]]}, ValueError, "`C` must have at most one axis"),
        ({"quantile": 1.0}, ValueError, r"`quantile` must lie in \(0, 1\). Received: quantile=1.0"),
        ({"at": 0}, ValueError, r"`at` must lie in \(0, 1\). Received: at=0"),
        ({"center": 1}, TypeError, "`center` must be True or False"),
        ({"C": 1.0, "center": True}, ValueError, "`center` must be False where `C` is given"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        TanhScale(**arguments)
