"""RandomResizedCrop: the distribution of its windows as torchvision defines it, and what it shows of them."""

import math

import keras
import numpy as np
import pytest
import scipy.stats

from tf_tricks.layers.augmentation import RandomResizedCrop
from tf_tricks.layers.augmentation._compiled import Compiled
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws

pytestmark = pytest.mark.usefixtures("uncompiled")


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def windows(layer, size, count=10_000):
    size = tuple(np.array(size, "float32"))
    draw = Compiled(lambda xp, key, _: layer.window(xp, Draws(xp, key, count), size))
    found = draw(OPS, keras.ops.array(np.array([1, 2], "int32")), keras.ops.zeros((1,)))
    return np.stack([numpy(each) for each in found], axis=-1)


def reference(rng, size, scale, ratio):
    """One window (left, top, width, height), the way of torchvision's documentation: ten attempts, then the middle."""
    height, width = size
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return rng.integers(0, width - w + 1), rng.integers(0, height - h + 1), w, h
    w = min(width, round(height * ratio[1]))
    h = min(height, round(width / ratio[0]))
    return (width - w) // 2, (height - h) // 2, w, h


@pytest.mark.parametrize("size", [(224, 224), (100, 300)])
def test_windows_are_distributed_as_those_of_a_loop(size):
    got = windows(RandomResizedCrop(32, 32), size)
    rng = np.random.default_rng(0)
    expected = np.array([reference(rng, size, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(10_000)])
    for column in range(4):
        assert scipy.stats.ks_2samp(got[:, column], expected[:, column]).pvalue > 0.001
    left, top, width, height = got.T
    assert (left >= 0).all() and (top >= 0).all() and (width >= 1).all() and (height >= 1).all()
    assert (left + width <= size[1]).all() and (top + height <= size[0]).all()


def test_where_no_window_fits_the_middle_of_an_allowed_aspect_is_shown():
    for size, expected in (((10, 100), (43, 0, 13, 10)), ((100, 10), (0, 43, 10, 13))):
        got = windows(RandomResizedCrop(8, 8, scale=(0.9, 1.0)), size, count=5)
        np.testing.assert_array_equal(got, [expected] * 5)
    one_pixel = windows(RandomResizedCrop(8, 8, ratio=(1.0, 1.0)), (1, 1), count=3)
    np.testing.assert_array_equal(one_pixel, [[0, 0, 1, 1]] * 3)


def test_it_shows_the_window_resized():
    images = np.random.default_rng(0).uniform(0, 255, (4, 24, 30, 3)).astype("float32")
    layer = RandomResizedCrop(16, 20, scale=(0.2, 0.5))
    places = windows(layer, (24, 30), count=4).astype(int)
    draw = Compiled(lambda xp, key, images: layer.transform(xp, images, layer.draw(xp, Draws(xp, key, 4), (24, 30))))
    got = numpy(draw(OPS, keras.ops.array(np.array([1, 2], "int32")), keras.ops.array(images)))
    for image, seen, (left, top, width, height) in zip(images, got, places, strict=True):
        part = image[None, top : top + height, left : left + width]
        expected = numpy(keras.ops.image.resize(part, (16, 20), antialias=False))[0]
        # At the edges Keras cannot see the pixels beyond.
        np.testing.assert_allclose(seen[2:-2, 2:-2], expected[2:-2, 2:-2], atol=0.05)


def test_when_not_training_the_middle_is_resized():
    images = np.random.default_rng(0).uniform(0, 255, (2, 12, 20, 3)).astype("float32")
    got = numpy(RandomResizedCrop(6, 6)(images, training=False))
    expected = numpy(keras.ops.image.resize(images[:, :, 4:16], (6, 6), antialias=False))
    np.testing.assert_allclose(got, expected, atol=0.05)
