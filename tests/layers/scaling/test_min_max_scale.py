"""Beside scikit-learn's MinMaxScaler on real data."""

import keras
import numpy as np
import pytest
from sklearn import datasets, preprocessing

from tf_tricks.layers import MinMaxScale

to_numpy = keras.ops.convert_to_numpy


@pytest.mark.parametrize("load", ["breast_cancer", "diabetes", "wine", "digits"])
@pytest.mark.parametrize(("range", "clip"), [((0, 1), False), ((-1, 3), True)])
def test_real_data_beside_scikit_learn(load, range, clip):
    x = getattr(datasets, f"load_{load}")().data
    layer = MinMaxScale(range, clip)
    layer.adapt(x[:100])
    scaler = preprocessing.MinMaxScaler(feature_range=range, clip=clip).fit(x[:100])
    varies = np.ptp(x[:100], axis=0) > 0  # a constant feature stays constant here, and not there
    np.testing.assert_allclose(to_numpy(layer(x))[:, varies], scaler.transform(x)[:, varies], atol=1e-5)
    assert (to_numpy(layer(x))[:, ~varies] == range[0]).all()


def test_inverse_of_clipped_values_is_the_end_of_the_range():
    layer = MinMaxScale(clip=True)
    layer.adapt(np.array([[10.0], [30.0]]))
    assert to_numpy(layer.inverse(layer(np.array([[0.0], [15.0], [99.0]])))).ravel().tolist() == [10, 15, 30]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"range": 1}, TypeError, r"`range` must be a pair \(low, high\).*Received: range=1"),
        ({"range": (0, "b")}, TypeError, "`range` must be a pair"),
        ({"range": (1, 0)}, ValueError, r"`range` must be a pair.*low < high. Received: range=\(1, 0\)"),
        ({"range": (0, np.inf)}, ValueError, "`range` must be a pair"),
        ({"clip": None}, TypeError, "`clip` must be True or False"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        MinMaxScale(**arguments)
