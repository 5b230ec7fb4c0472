"""Chains of layers that move pixels: one resampling against one after the other, 200 random chains."""

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation import (
    Augmentation,
    RandomCrop,
    RandomFlip,
    RandomPerspective,
    RandomRotation,
    RandomShear,
    RandomTranslation,
    RandomZoom,
)
from tf_tricks.layers.augmentation._namespaces import OPS

SIDE, EACH = 64, 25


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def smooth(rng):
    """Images that interpolation hardly changes: waves of one to two periods, in any direction."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE * 2 * np.pi
    angle, periods, phase = rng.uniform((0, 1, 0), (2 * np.pi, 2, 6), (EACH, 3, 3)).transpose(2, 0, 1)[..., None, None]
    waves = np.sin(periods * (np.cos(angle) * x + np.sin(angle) * y) + phase)
    return (127.5 + 120 * waves).transpose(0, 2, 3, 1).astype("float32")


def members(rng):
    """Two to four layers, in any order."""
    choices = [
        lambda: RandomFlip(),
        lambda: RandomRotation(0.03),
        lambda: RandomTranslation(0.04, 0.04),
        lambda: RandomZoom(0.08, 0.08),
        lambda: RandomShear(0.08, 0.08),
        lambda: RandomPerspective((1.0, 1.0), scale=0.1, fill_mode="reflect"),
    ]
    return [choices[i]() for i in rng.choice(len(choices), rng.integers(2, 5), replace=False)]


def energy(images):
    """Of the gradient of each image."""
    return sum(np.sum(np.diff(images.astype("float64"), axis=axis) ** 2, axis=(1, 2, 3)) for axis in (1, 2))


@pytest.mark.parametrize("number", range(8))
def test_one_pass_equals_the_chain_and_is_never_less_sharp(number):
    rng = np.random.default_rng(number)
    layers, given = members(rng), smooth(rng)
    key = keras.ops.convert_to_tensor(np.array([number, 4], "int32"))
    images = keras.ops.convert_to_tensor(given)
    chain = Augmentation(layers)
    assert len(chain.stages()) == 1
    together = chain.stages()[0].transform(OPS, images, chain._draw_all(OPS, images, key)[0])
    one_by_one = images
    for place, layer in enumerate(layers):
        single = Augmentation([layer])
        single.stages()[0].members[:] = [(place, layer, 1.0)]  # the numbers that it draws within the chain
        drawn = single._draw_all(OPS, images, key)[0]
        one_by_one = single.stages()[0].transform(OPS, one_by_one, drawn)
    # In the middle no layer of a chain sees what another one filled in.
    together, one_by_one = (numpy(each)[:, 22:-22, 22:-22] for each in (together, one_by_one))
    error = np.mean((together - one_by_one) ** 2, axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / np.maximum(error, 1e-9))).min() >= 40
    assert (energy(together) >= energy(one_by_one) * (1 - 1e-5)).all()
    assert np.abs(together - given[:, 22:-22, 22:-22]).mean() > 5


@pytest.mark.parametrize(
    "then", [RandomRotation((0.125, 0.125), fill_mode="constant"), RandomZoom((0.5, 0.5), fill_mode="constant")]
)
def test_what_was_cut_off_does_not_come_back(then):
    # Only the frame around the middle, which is what the crop shows, is bright.
    x = np.full((1, 16, 16, 1), 255.0, "float32")
    x[:, 4:12, 4:12] = 0
    crop = RandomCrop(8, 8)
    crop.matrix = lambda xp, draws, size: crop.still(xp, xp.ones_like(draws.uniform()), size)
    together = Augmentation([crop, RandomFlip(), then])
    np.testing.assert_array_equal(numpy(together(x, training=True)), np.zeros((1, 8, 8, 1)))
    assert [len(stage.members) for stage in together.stages()] == [2, 1]
    assert len(Augmentation([then, crop]).stages()) == 1
