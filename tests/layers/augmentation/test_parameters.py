"""The distribution of 1e4 draws of parameters that no other test here looks at, by Kolmogorov and Smirnov."""

import keras
import numpy as np
import pytest

from tf_tricks.layers import augmentation as layers
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws
from tf_tricks.layers.augmentation.rand_augment import OPERATIONS

stats = pytest.importorskip("scipy.stats")
COUNT = 10_000


def numpy(x):
    return keras.ops.convert_to_numpy(x).astype("float64")


def drawn(layer, size=(40, 50)):
    key = keras.ops.convert_to_tensor(np.array([11, 3], "int32"))
    return layer.draw(OPS, Draws(OPS, key, COUNT), size)


def is_uniform(values, low, high):
    return stats.kstest(values, "uniform", (low, high - low)).pvalue > 0.001


def share(saturation):
    """The factor that a saturation comes from."""
    return saturation / (1.0 + saturation)


def test_saturation():
    assert is_uniform(share(numpy(drawn(layers.RandomSaturation((0.2, 0.7)))["saturation"])), 0.2, 0.7)
    assert is_uniform(share(numpy(drawn(layers.RandomSaturation(0.6))["saturation"])), 0.0, 0.6)


@pytest.mark.parametrize("mode", ["exact", "matrix"])
def test_colour_jitter(mode):
    layer = layers.RandomColorJitter(
        brightness_factor=0.2, contrast_factor=(0.3, 0.5), saturation_factor=(0.1, 0.6), hue_factor=0.4, mode=mode
    )
    found = {name: numpy(each) for name, each in drawn(layer).items()}
    assert is_uniform(found["shift"], -51, 51)
    assert is_uniform(found["contrast"], 0.7, 1.5)
    assert is_uniform(share(found["saturation"]), 0.1, 0.6)
    assert is_uniform(found["turns"], -0.2, 0.2)
    assert np.abs(np.corrcoef(list(found.values())) - np.eye(4)).max() < 0.04


def test_grid_mask():
    found = drawn(layers.RandomGridMask((0.3, 0.6), rotation_factor=(-0.1, 0.2), probability=0.7))
    values = [numpy(found["unit"]) / 40, *map(numpy, found["offset"]), numpy(found["angle"]) / (2 * np.pi)]
    for each, limits in zip(values, ((0.3, 0.6), (0, 1), (0, 1), (-0.1, 0.2)), strict=True):
        assert is_uniform(each, *limits)
    assert np.abs(np.corrcoef(values) - np.eye(4)).max() < 0.04
    assert stats.binomtest(int(numpy(found["kept"]).sum()), COUNT, 0.7).pvalue > 0.001


def test_grayscale_and_flips_are_chosen_as_often_as_asked_for():
    assert stats.binomtest(int(numpy(drawn(layers.RandomGrayscale(0.3))["gray"]).sum()), COUNT, 0.3).pvalue > 0.001
    matrix = numpy(drawn(layers.RandomFlip())["matrix"])
    outcomes = (matrix[:, 0, 0] < 0) + 2 * (matrix[:, 1, 1] < 0)
    assert stats.chisquare(np.bincount(outcomes, minlength=4)).pvalue > 0.001


@pytest.mark.parametrize("name", ["MixUp", "CutMix"])
def test_partners_come_from_anywhere_in_the_batch(name):
    order = numpy(drawn(getattr(layers, name)())["order"])
    assert np.array_equal(np.sort(order), np.arange(COUNT))
    assert is_uniform((order - np.arange(COUNT)) % COUNT / COUNT, 0, 1)
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.04


def test_what_fills_an_erased_rectangle_differs_between_images():
    for layer in (layers.RandomErasing((1.0, 1.0)), layers.RandomGridMask(fill_value=None)):
        assert is_uniform(numpy(drawn(layer)["salt"]) / 2**31, -1, 1)


def test_the_motions_of_rand_augment():
    class Always(layers.RandAugment):
        """Nothing but the operation `name`."""

        def draw(self, xp, draws, size):
            draws.integers = lambda low, high: xp.cast(draws.uniform(0.0, 0.0), "int32") + OPERATIONS.index(self.which)
            return super().draw(xp, draws, size)

    layer = Always(factor=0.4, num_ops=1)
    found = {}
    for layer.which in ("rotation", "translation", "shear"):
        found[layer.which] = numpy(drawn(layer)["matrix"])
    matrix = found["rotation"]
    assert is_uniform(np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0]) / (2 * np.pi), -0.4, 0.4)
    matrix = found["translation"]
    assert is_uniform(matrix[:, 0, 2] / 50, -0.4, 0.4) and is_uniform(matrix[:, 1, 2] / 40, -0.4, 0.4)
    matrix = found["shear"]
    assert is_uniform(matrix[:, 0, 1], -0.4, 0.4) and is_uniform(matrix[:, 1, 0], -0.4, 0.4)


def test_the_strengths_of_trivial_augment_are_the_bins_of_the_paper():
    layer = layers.TrivialAugment(num_magnitude_bins=31)
    strength = numpy(layer.strength(OPS, Draws(OPS, keras.ops.convert_to_tensor([11, 3], "int32"), COUNT)))
    counts = np.bincount(np.round(strength * 30).astype(int), minlength=31)
    assert len(counts) == 31 and stats.chisquare(counts).pvalue > 0.001
