"""Beside scikit-learn on real data, and beside keras.layers.Normalization in every case where that one is right."""

import keras
import numpy as np
import pytest
from sklearn import datasets, preprocessing

from tf_tricks.layers import Standardize

to_numpy = keras.ops.convert_to_numpy
REAL = {
    "breast cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
    "wine": datasets.load_wine,
    "digits": datasets.load_digits,
}


def real(name):
    return REAL[name]().data.astype("float64")


@pytest.mark.parametrize("name", REAL)
def test_real_data_beside_scikit_learn(name):
    x = real(name)
    layer = Standardize()
    layer.adapt(x)
    scaler = preprocessing.StandardScaler().fit(x)
    np.testing.assert_allclose(to_numpy(layer(x)), scaler.transform(x), atol=1e-5)
    np.testing.assert_allclose(layer.mean[0], scaler.mean_, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(layer.variance[0], scaler.var_, rtol=1e-9, atol=1e-12)


CASES = [
    ((32, 4), -1),
    ((32, 4), None),
    ((32, 4), 1),
    ((32, 4, 3, 5), (1, 2)),
    ((32, 4, 3, 5), 1),
    ((32, 4, 3, 5), [-1]),
    ((8, 6), (0, 1)),
]


@pytest.mark.parametrize(("shape", "axis"), CASES)
@pytest.mark.parametrize("invert", [False, True])
def test_adapt_beside_keras(shape, axis, invert):
    x = np.random.default_rng(0).normal(3, 2, shape).astype("float32")
    ours, theirs = (cls(axis=axis, invert=invert) for cls in (Standardize, keras.layers.Normalization))
    if axis == (0, 1):  # each value is a feature of its own: no variance
        x = np.concatenate([x, x + 1])
        for layer in (ours, theirs):
            layer.build((16, 6))
    for layer in (ours, theirs):
        layer.adapt(x)
    assert ours.mean.shape == tuple(theirs.mean.shape)
    np.testing.assert_allclose(ours.mean, to_numpy(theirs.mean), rtol=1e-5)
    if axis != (0, 1):
        np.testing.assert_allclose(to_numpy(ours(x)), to_numpy(theirs(x)), atol=1e-5)
    assert ours.compute_output_shape(shape) == shape


@pytest.mark.parametrize(
    ("shape", "axis", "mean", "variance"),
    [
        ((2, 3), -1, [0.5, 0.2, -0.1], [0.1, 0.2, 0.3]),
        ((2, 3), -1, 3.0, 2.0),
        ((1, 3), -1, [3.0], [2.0]),
        ((2, 3), None, 3.0, 2.0),
        ((2, 4, 5, 3), 2, np.arange(1, 6), np.ones(5)),
        ((2, 7, 5, 3), (1, 2), np.zeros((7, 5)), np.full((7, 5), 4.0)),
        ((2, 7, 5, 3), (1, 2), np.arange(5.0), np.ones(5)),
    ],
)
@pytest.mark.parametrize("invert", [False, True])
def test_given_mean_and_variance_beside_keras(shape, axis, mean, variance, invert):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    arguments = {"axis": axis, "mean": mean, "variance": variance, "invert": invert}
    ours, theirs = Standardize(**arguments), keras.layers.Normalization(**arguments)
    for layer in (ours, theirs):
        layer.build(shape)
    assert ours.mean.shape == tuple(theirs.mean.shape)
    np.testing.assert_allclose(to_numpy(ours(x)), to_numpy(theirs(x)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_numpy(ours.inverse(ours(x))), x, rtol=1e-5, atol=1e-5)
    again = Standardize.from_config(ours.get_config())
    np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(ours(x)))
    with pytest.raises(ValueError, match="the constants were given"):
        ours.adapt(x)
    with pytest.raises(ValueError, match="the constants were given"):
        Standardize.from_statistics(None, mean=0, variance=1)


def test_a_batch_of_scalars_is_one_feature():
    """Keras takes each row for a feature here, and gives 0 for everything."""
    x = np.arange(5.0, dtype="float32")
    layer = Standardize()
    layer.adapt(x)
    expected = (x - 2) / np.sqrt(2)
    np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=1e-6)
    theirs = keras.layers.Normalization(axis=None)
    theirs.adapt(x)
    np.testing.assert_allclose(to_numpy(theirs(x)), expected, atol=1e-6)


def test_statistics_are_exact_where_those_of_keras_are_not():
    rng = np.random.default_rng(0)
    batches = [(1e8 + rng.normal(size=(1000, 2))).astype("float64") for _ in range(20)]
    layer = Standardize()
    layer.adapt(iter(batches))
    x = np.concatenate(batches)
    np.testing.assert_allclose(layer.variance[0], x.var(axis=0), rtol=1e-6)
    np.testing.assert_allclose(to_numpy(layer(x)), (x - x.mean(axis=0)) / x.std(axis=0), atol=1e-5)
    theirs = keras.layers.Normalization()
    theirs.adapt(iter(batches))
    assert np.abs(to_numpy(theirs.variance) - 1).max() > 0.1  # why there is a layer of our own


def test_a_constant_feature_of_unseen_values():
    layer = Standardize()
    layer.adapt(np.full((9, 1), 0.1))
    np.testing.assert_array_equal(to_numpy(layer(np.array([[0.1], [0.2], [-1e30]]))), 0)
    np.testing.assert_allclose(to_numpy(layer.inverse(np.array([[0.0], [5.0]]))), 0.1, rtol=1e-6)


def test_values_are_known_after_adapt_only():
    layer = Standardize()
    assert layer.mean is None and layer.variance is None and layer.statistics is None
    layer.build((None, 2))
    assert layer.mean is None
    layer.adapt(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert (layer.mean.tolist(), layer.variance.tolist()) == ([[2.0, 5.0]], [[1.0, 0.0]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mean": 0.5}, ValueError, "both `mean` and `variance` must be set"),
        ({"variance": 0.1}, ValueError, "both `mean` and `variance` must be set"),
        (
            {"mean": "a", "variance": 1.0},
            TypeError,
            "`mean` must be a number or an array of numbers. Received: mean='a'",
        ),
        ({"mean": np.nan, "variance": 1.0}, ValueError, "`mean` must be finite. Received: mean=nan"),
        ({"mean": 0.0, "variance": -1.0}, ValueError, "`variance` must be finite and >= 0. Received: variance=-1.0"),
        ({"mean": [0.0, 1.0], "variance": 1.0}, ValueError, "`mean` must have the same shape as `variance`"),
        ({"mean": [[0.0]], "variance": [[1.0]]}, ValueError, "`mean` must have at most one axis for each entry"),
        ({"mean": [0.0], "variance": [1.0], "axis": None}, ValueError, "`mean` must have at most one axis"),
        ({"invert": 1}, TypeError, "`invert` must be True or False. Received: invert=1"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Standardize(**arguments)


def test_given_values_of_another_number():
    with pytest.raises(ValueError, match=r"`mean` must broadcast to \(3,\).*Received: mean=\[1.0, 2.0\]"):
        Standardize(mean=[1, 2], variance=[1, 1])(np.zeros((2, 3)))
