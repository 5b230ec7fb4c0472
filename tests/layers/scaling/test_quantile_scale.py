"""Beside scikit-learn's QuantileTransformer on real data, and the normal quantiles beside SciPy's."""

import keras
import numpy as np
import pytest
import scipy.stats
from sklearn import datasets, preprocessing

from tf_tricks.layers import QuantileScale
from tf_tricks.layers.scaling._namespaces import NUMPY, OPS
from tf_tricks.layers.scaling.quantile_scale import count_up_to, normal_quantile, tie_ranks

to_numpy = keras.ops.convert_to_numpy


@pytest.mark.parametrize("load", ["breast_cancer", "diabetes", "wine", "digits"])
@pytest.mark.parametrize("output", ["uniform", "normal"])
def test_real_data_beside_scikit_learn(load, output):
    """With as many quantiles as rows both are exact; ties, too, of which digits is full.

    Its quantiles fall beside the values by a rounding, and the rank of a tie moves by half a row then: it gets the
    exact ones, which are the sorted values.
    """
    x = getattr(datasets, f"load_{load}")().data
    rows = len(x)
    new = x[::3] + np.random.default_rng(0).normal(size=x[::3].shape) * x.std(axis=0) * 0.01
    layer = QuantileScale(output, num_quantiles=rows)
    layer.adapt(x)
    scaler = preprocessing.QuantileTransformer(n_quantiles=rows, output_distribution=output, subsample=None).fit(x)
    scaler.quantiles_ = np.sort(x, axis=0)
    varies = np.ptp(x, axis=0) > 0
    for inputs in (x, new):
        y, expected = to_numpy(layer(inputs)), scaler.transform(inputs)
        # Near +-5.2 the normal quantile of float32 shares differs in the fifth digit.
        np.testing.assert_allclose(y[:, varies], expected[:, varies], atol=1e-5, rtol=1e-5 if output == "normal" else 0)
        assert (y[:, ~varies] == (0.5 if output == "uniform" else 0)).all()


def test_a_large_sample_is_within_the_error_of_the_sketch():
    x = np.random.default_rng(0).lognormal(0, 3, (200_000, 1))
    layer = QuantileScale()
    layer.adapt(x[i : i + 10_000] for i in range(0, len(x), 10_000))
    probe = x[:5000]
    rank = np.searchsorted(np.sort(x[:, 0]), probe[:, 0]) / len(x)
    assert np.abs(to_numpy(layer(probe))[:, 0] - rank).max() < 0.005 + 1 / 1000


def test_normal_quantiles():
    p = np.concatenate([10.0 ** np.linspace(-6.99, -1, 200), np.linspace(0.1, 0.5, 200)])
    for xp, dtype, atol in ((NUMPY, "float64", 3e-7), (OPS, "float32", 4e-6)):
        below, above = np.concatenate([p, 1 - p]), np.concatenate([1 - p, p])
        z = normal_quantile(xp, xp.cast(below, dtype), xp.cast(above, dtype))
        expected = np.concatenate([scipy.stats.norm.ppf(p), -scipy.stats.norm.ppf(p)])
        np.testing.assert_allclose(to_numpy(z) if xp is OPS else z, expected, atol=atol)


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8, 9, 100])
def test_the_binary_search_beside_numpy(n):
    rng = np.random.default_rng(n)
    tables = np.sort(rng.integers(0, 20, (3, n)), axis=1).astype("float32")
    x = rng.integers(-2, 23, (50, 3)).astype("float32")
    start = (np.arange(3) * n).astype("int32")
    expected = np.stack([np.searchsorted(tables[i], x[:, i], "right") for i in range(3)], axis=1)
    np.testing.assert_array_equal(count_up_to(NUMPY, x, tables.ravel(), start, n), expected)
    tensors = [keras.ops.convert_to_tensor(each) for each in (x, tables.ravel(), start)]
    np.testing.assert_array_equal(to_numpy(count_up_to(OPS, *tensors, n)), expected)


def test_ties():
    column = np.array([[1.0, 1, 2, 3, 3, 3, 4, 5, 5]]).T
    np.testing.assert_allclose(tie_ranks(column)[:, 0] * 8, [0, 0, 2, 4, 4, 4, 6, 8, 8])
    np.testing.assert_allclose(tie_ranks(np.full((5, 1), 3.0)), 0.5)


def test_values_beyond_the_training_data_are_its_ends():
    layer, normal = QuantileScale(num_quantiles=9), QuantileScale("normal", num_quantiles=9)
    for each in (layer, normal):
        each.adapt(np.linspace(0, 8, 9)[:, None])
    x = np.array([[-np.inf], [-1.0], [0.0], [4.0], [8.0], [9.0], [np.inf]], "float32")
    assert to_numpy(layer(x)).ravel().tolist() == [0, 0, 0, 0.5, 1, 1, 1]
    end = -scipy.stats.norm.ppf(1e-7)
    np.testing.assert_allclose(to_numpy(normal(x)).ravel(), [-end, -end, -end, 0, end, end, end], rtol=1e-6, atol=1e-6)
    assert to_numpy(layer.inverse(np.array([[-1.0], [0.0], [0.25], [2.0]]))).ravel().tolist() == [0, 0, 2, 8]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"output": "gaussian"},
            ValueError,
            "`output` must be one of 'uniform', 'normal'. Received: output='gaussian'",
        ),
        ({"num_quantiles": 1}, ValueError, "`num_quantiles` must be an int >= 2. Received: num_quantiles=1"),
        ({"num_quantiles": 10.0}, TypeError, "`num_quantiles` must be an int >= 2"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        QuantileScale(**arguments)
