"""In an Augmentation the dtype of a member plays no part: the pixels are finished once, at the end."""

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation import (
    Augmentation,
    MixUp,
    RandomBrightness,
    RandomCrop,
    RandomFlip,
    _loops,
)
from tf_tricks.layers.augmentation._policy import Policy


class Brighter(Policy):
    """A policy of one operation, which is soon compiled."""

    def __init__(self, num_ops=1, **kwargs):
        super().__init__(("brightness",), num_ops, **kwargs)

    def strength(self, xp, draws):
        return draws.uniform(0.0, 0.1)

    def amount(self, xp, name, strength):
        return strength


def images(dtype="float32"):
    return np.random.default_rng(0).uniform(20, 230, (4, 10, 12, 3)).astype(dtype)


def augmented(layer, x, training=True):
    return keras.ops.convert_to_numpy(layer(x, training=training)).astype("float32")


@pytest.fixture
def turns(monkeypatch):
    """Have XLA loop over images as small as these."""
    monkeypatch.setattr(_loops, "LEAST_VALUES", 1)
    monkeypatch.setattr(_loops, "MOST_VALUES", 360)


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize(("dtype", "end"), [("float16", MixUp), ("uint8", lambda: keras.layers.Rescaling(1.0))])
def test_a_policy_before_another_group_gives_what_it_gives_in_float32(dtype, end):
    def make(dtype):
        policy = Brighter(dtype=dtype)
        return Augmentation([RandomBrightness(0.1), policy, end()], seed=1, dtype="float32")

    expected = augmented(make("float32"), images())
    assert 0 <= expected.min() and expected.max() <= 255
    np.testing.assert_allclose(augmented(make(dtype), images()), expected, atol=1e-2)


@pytest.mark.usefixtures("turns")
def test_a_policy_among_others_under_mixed_precision():
    def make():
        return Augmentation([RandomBrightness(0.1), Brighter(), MixUp()], seed=1)

    expected = augmented(make(), images())
    keras.config.set_dtype_policy("mixed_float16")
    found = make()(images(), training=True)
    assert keras.backend.standardize_dtype(found.dtype) == "float16"
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found).astype("float32"), expected, atol=0.1)


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize(("num_ops", "dtype"), [(0, "uint8"), (1, "uint8"), (1, "float16")])
def test_a_policy_alone_gives_its_own_dtype(dtype, num_ops):
    found = Brighter(num_ops, dtype=dtype, seed=1)(images(), training=True)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    exact = augmented(Brighter(num_ops, seed=1), images())
    assert np.abs(keras.ops.convert_to_numpy(found).astype("float32") - exact).max() <= 0.51


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "member",
    [
        lambda dtype: RandomFlip(dtype=dtype),
        lambda dtype: RandomCrop(6, 5, dtype=dtype),
        lambda dtype: MixUp(dtype=dtype),
        lambda dtype: Brighter(value_range=(0, 4), dtype=dtype),
        lambda dtype: Augmentation([RandomFlip()], value_range=(0, 4), dtype=dtype),
    ],
    ids=["RandomFlip", "RandomCrop", "MixUp", "Policy", "Augmentation"],
)
def test_pixels_between_0_and_4_are_not_rounded_by_a_member_in_bytes(member, training):
    x = images() / 64
    found, expected = (
        augmented(Augmentation([member(dtype)], seed=1, dtype="float32", value_range=(0, 4)), x, training)
        for dtype in ("uint8", "float32")
    )
    assert found.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_at_rest_the_outer_dtype_is_that_of_the_images():
    for layer in (Augmentation([RandomCrop(6, 5, dtype="float32")], dtype="uint8"), RandomCrop(6, 5, dtype="uint8")):
        found = layer(images(), training=False)
        assert keras.backend.standardize_dtype(found.dtype) == "uint8"
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(found), np.round(images()[:, 2:8, 3:8]))
