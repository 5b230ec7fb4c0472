"""The tables against NumPy, image by image."""

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation import _tables
from tf_tricks.layers.augmentation._compiled import Compiled
from tf_tricks.layers.augmentation._namespaces import OPS

RANGES = pytest.mark.parametrize("value_range", [(0.0, 255.0), (-1.0, 1.0)], ids=str)


def levels(shape=(3, 9, 8, 3)):
    return np.random.default_rng(0).integers(20, 200, shape)


def scaled(levels, value_range):
    low, high = value_range
    return (np.asarray(levels, "float64") / 255 * (high - low) + low).astype("float32")


def run(function, pixels, amount, value_range):
    amount = np.broadcast_to(np.asarray(amount, "float32"), pixels.shape[:1])
    compiled = Compiled(lambda xp, pixels, amount: function(xp, pixels, amount, value_range))
    return keras.ops.convert_to_numpy(compiled(OPS, *map(keras.ops.convert_to_tensor, (pixels, amount))))


def check(function, amount, expected, value_range=(0.0, 255.0), whole=None):
    """`expected` maps (levels of one image, its amount) to levels."""
    whole = levels() if whole is None else whole
    amounts = np.broadcast_to(amount, len(whole))
    want = scaled([expected(image, each) for image, each in zip(whole, amounts, strict=True)], value_range)
    got = run(function, scaled(whole, value_range), amount, value_range)
    assert got.dtype == "float32"
    np.testing.assert_allclose(got, want, atol=1e-5 * (value_range[1] - value_range[0]))


@RANGES
def test_posterise_keeps_the_upper_bits_of_each_level(value_range):
    whole = np.arange(256).reshape(1, 16, 16, 1).repeat(8, axis=0)
    check(_tables.posterise, np.arange(1, 9), lambda x, bits: x >> (8 - bits) << (8 - bits), value_range, whole)


@RANGES
def test_solarise_inverts_from_the_threshold_on(value_range):
    thresholds = np.array([0.0, 100.5 / 255, 1.1])
    check(_tables.solarise, thresholds, lambda x, t: np.where(x < t * 255, x, 255 - x), value_range)


@RANGES
def test_auto_contrast_stretches_each_channel_of_each_image(value_range):
    def stretched(image, amount):
        least, most = image.min((0, 1)), image.max((0, 1))
        return image + amount * ((image - least) * 255.0 / (most - least) - image)

    check(_tables.auto_contrast, [1.0, 0.5, 0.0], stretched, value_range)


def equalised(image):
    """The textbook formula (Gonzalez and Woods 2018, section 3.3), as Keras rounds it."""
    result = np.empty(image.shape)
    for channel in range(image.shape[-1]):
        below = np.cumsum(np.bincount(image[..., channel].ravel(), minlength=256))
        first = below[below > 0][0]
        table = np.round((below - first) * 255 / max(below[-1] - first, 1))
        result[..., channel] = table[image[..., channel]] if first < below[-1] else image[..., channel]
    return result


@RANGES
def test_equalise_spreads_the_levels_of_each_channel_of_each_image(value_range):
    whole = levels()
    whole[1] //= 4  # a dark image next to bright ones
    whole[2, ..., 1] = 77  # one level only
    check(_tables.equalise, 1.0, lambda x, _: equalised(x), value_range, whole)
    check(_tables.equalise, [0.0, 0.5, 1.0], lambda x, a: x + a * (equalised(x) - x), value_range, whole)


@pytest.mark.filterwarnings("ignore:Tensor.T is deprecated")  # in Keras, on Torch
def test_equalise_agrees_with_keras_on_a_batch_of_one_and_with_itself_whatever_the_neighbours():
    whole = levels((2, 16, 16, 3)).astype("float32")
    whole[1] //= 8
    together = run(_tables.equalise, whole, 1.0, (0.0, 255.0))
    for i in range(2):
        theirs = keras.ops.convert_to_numpy(keras.layers.Equalization()(whole[i : i + 1], training=True))
        np.testing.assert_array_equal(together[i], theirs[0])


def pillow_sharpness(image, amount):
    result = image.astype("float64")
    for y in range(1, image.shape[0] - 1):
        for x in range(1, image.shape[1] - 1):
            smooth = (image[y - 1 : y + 2, x - 1 : x + 2].sum((0, 1)) + 4 * image[y, x]) / 13
            result[y, x] = np.clip(smooth + amount * (image[y, x] - smooth), 0, 255)
    return result


@RANGES
def test_sharpness_moves_away_from_the_smoothed_image_and_leaves_the_border(value_range):
    whole = np.random.default_rng(1).integers(0, 256, (4, 6, 7, 3))
    check(_tables.sharpness, [0.0, 0.5, 1.0, 2.0], pillow_sharpness, value_range, whole)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2), (3, 2)], ids=str)
def test_sharpness_of_images_without_an_inside_is_the_image(size):
    whole = levels((2, *size, 3)).astype("float32")
    np.testing.assert_array_equal(run(_tables.sharpness, whole, 2.0, (0.0, 255.0)), whole)


@pytest.mark.parametrize("name", ["posterise", "solarise", "auto_contrast", "equalise", "sharpness"])
def test_an_image_does_not_depend_on_its_neighbours_and_stays_in_the_range(name):
    function = getattr(_tables, name)
    amount = 2.0 if name in ("posterise", "sharpness") else 1.0
    pixels = np.random.default_rng(2).uniform(-1, 1, (3, 8, 8, 3)).astype("float32")
    together = run(function, pixels, amount, (-1.0, 1.0))
    assert together.min() >= -1.0 and together.max() <= 1.0
    np.testing.assert_allclose(run(function, pixels[1:2], amount, (-1.0, 1.0))[0], together[1], atol=1e-6)
    flat = run(function, np.full((1, 4, 4, 1), 0.5, "float32"), amount, (-1.0, 1.0))
    assert np.isfinite(flat).all() and np.ptp(flat) == 0
    assert run(function, pixels[:0], amount, (-1.0, 1.0)).shape == (0, 8, 8, 3)
