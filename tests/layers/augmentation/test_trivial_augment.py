"""TrivialAugment: one operation out of fourteen, strengths from the paper's table."""

import keras
import numpy as np
import pytest
from scipy import stats

from tf_tricks.layers.augmentation import TrivialAugment
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws
from tf_tricks.layers.augmentation.trivial_augment import OPERATIONS


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def test_operations_and_strengths_are_those_of_the_paper():
    draws = Draws(OPS, keras.ops.convert_to_tensor(np.array([5, 6], "int32")), 28000)
    drawn = TrivialAugment().draw(OPS, draws, (64, 64))
    steps, amounts, matrix = (numpy(drawn[name]) for name in ("steps", "amounts", "matrix"))
    steps, amounts = steps[:, 0], amounts[:, 0]
    assert len(OPERATIONS) == 14
    assert abs(np.mean(steps == 0) - 1 / 14) < 0.01
    assert abs(np.mean(steps == 1) - 5 / 14) < 0.01
    assert stats.chisquare(np.bincount(steps)[2:]).pvalue > 1e-3
    enhanced = np.unique(np.round(amounts[steps == 2], 3))
    np.testing.assert_allclose(enhanced, np.round(1 + 0.99 * np.linspace(-1, 1, 61), 3), atol=1e-3)
    assert set(np.unique(amounts[steps == 2 + 4])) == {2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}  # bits
    moved = matrix[steps == 1]
    shifted = moved[np.abs(moved[:, :2, :2] - np.eye(2)).max((1, 2)) < 1e-6]
    np.testing.assert_allclose(np.abs(shifted[:, :2, 2]).max(axis=0), 32.0, rtol=1e-5)
    alone = moved[np.abs(moved[:, 0, 1] * moved[:, 1, 0]) < 1e-9]
    assert abs(np.abs(alone[:, 0, 1]).max() - 0.99) < 1e-3
    cos = moved[np.abs(moved[:, 0, 1] + moved[:, 1, 0]) < 1e-6][:, 0, 0]
    assert abs(cos.min() - np.cos(np.radians(135))) < 1e-3


def test_images_keep_their_shape_and_range_and_half_of_them_differ():
    x = np.random.default_rng(0).uniform(0, 1, (16, 8, 8, 1)).astype("float32")
    layer = TrivialAugment(value_range=(0, 1), seed=1)
    got = numpy(layer(x, training=True))
    assert got.shape == x.shape
    assert got.min() >= 0
    assert got.max() <= 1
    assert np.mean(np.abs(got - x).max((1, 2, 3)) > 1e-3) > 0.3
    np.testing.assert_array_equal(numpy(layer(x, training=False)), x)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`num_magnitude_bins` must be an int >= 2"):
        TrivialAugment(num_magnitude_bins=1)
    layer = TrivialAugment(num_magnitude_bins=11, seed=2)
    assert TrivialAugment.from_config(layer.get_config()).get_config() == layer.get_config()
