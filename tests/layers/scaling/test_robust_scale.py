"""Beside scikit-learn's RobustScaler on real data."""

import keras
import numpy as np
import pytest
from sklearn import datasets, preprocessing

from tf_tricks.layers import RobustScale

to_numpy = keras.ops.convert_to_numpy


@pytest.mark.parametrize("load", ["breast_cancer", "diabetes", "wine", "digits"])
@pytest.mark.parametrize("quantile_range", [(0.25, 0.75), (0.1, 0.95)])
def test_real_data_beside_scikit_learn(load, quantile_range):
    x = getattr(datasets, f"load_{load}")().data
    layer = RobustScale(quantile_range)
    layer.adapt(x)
    scaler = preprocessing.RobustScaler(quantile_range=tuple(100 * q for q in quantile_range)).fit(x)
    low, high = np.quantile(x, quantile_range, axis=0)
    spread = high > low  # the others are divided by 1 there
    np.testing.assert_allclose(to_numpy(layer(x))[:, spread], scaler.transform(x)[:, spread], atol=1e-5)


def test_where_most_values_are_equal_the_standard_deviation_is_taken():
    x = np.zeros((100, 1))
    x[:10] = 1e8
    layer = RobustScale()
    layer.adapt(x)
    np.testing.assert_allclose(to_numpy(layer(x)), x / x.std(), rtol=1e-6)


def test_outliers_do_not_move_it():
    x = np.random.default_rng(0).normal(size=(1000, 1))
    clean, dirty = RobustScale(), RobustScale()
    clean.adapt(x)
    dirty.adapt(np.concatenate([x, np.full((20, 1), 1e12)]))
    np.testing.assert_allclose(to_numpy(dirty(x)), to_numpy(clean(x)), atol=0.1)


@pytest.mark.parametrize(
    ("quantile_range", "error"),
    [(0.5, TypeError), ((0.75, 0.25), ValueError), ((25, 75), ValueError), ((0, 1), ValueError)],
)
def test_bad_arguments(quantile_range, error):
    message = (
        r"`quantile_range` must be a pair \(low, high\) of numbers in \(0, 1\), low < high. Received: quantile_range="
    )
    with pytest.raises(error, match=message):
        RobustScale(quantile_range)
