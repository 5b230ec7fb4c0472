"""RandomGaussianBlur against scipy and Keras."""

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation import Augmentation, RandomBrightness, RandomGaussianBlur
from tf_tricks.layers.augmentation._compiled import Compiled
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws
from tf_tricks.layers.augmentation.random_gaussian_blur import gaussian_weights, smooth


def numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def images(shape=(3, 12, 10, 3)):
    return np.random.default_rng(0).uniform(0, 255, shape).astype("float32")


def kernel(size, sigma):
    weights = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("kernel_size", "shape"), [((3, 3), (3, 12, 10, 3)), ((1, 7), (3, 12, 10, 3)), ((9, 5), (2, 2, 3, 1))], ids=str
)
def test_each_image_is_blurred_with_its_own_gaussian(kernel_size, shape):
    ndimage = pytest.importorskip("scipy.ndimage")
    sigmas, x = [np.linspace(0.4, 2.0, shape[0]), np.linspace(1.5, 0.5, shape[0])], images(shape)

    def blur(xp, pixels, sigmas):
        for axis, sigma, size in zip((1, 2), sigmas, kernel_size, strict=True):
            pixels = smooth(xp, pixels, gaussian_weights(xp, sigma, size), axis)
        return pixels

    tensors = [keras.ops.convert_to_tensor(sigma, "float32") for sigma in sigmas]
    got = Compiled(blur)(OPS, keras.ops.convert_to_tensor(x), tensors)
    for i, image in enumerate(x):
        expected = image.astype("float64")
        for axis in (0, 1):
            taps = kernel(kernel_size[axis], sigmas[axis][i])
            expected = ndimage.correlate1d(expected, taps, axis=axis, mode="nearest")
        np.testing.assert_allclose(numpy(got)[i], expected, atol=1e-3)


def test_the_inside_is_that_of_keras_and_the_border_does_not_darken():
    x = images()
    got = numpy(RandomGaussianBlur((1.0, 1.0), kernel_size=3, sigma=(0.8, 0.8))(x, training=True))
    theirs = numpy(keras.ops.image.gaussian_blur(x, (3, 3), (0.8, 0.8), data_format="channels_last"))
    np.testing.assert_allclose(got[:, 1:-1, 1:-1], theirs[:, 1:-1, 1:-1], rtol=1e-4, atol=1e-3)
    bright = np.full((1, 6, 6, 3), 200.0, "float32")
    np.testing.assert_allclose(
        numpy(RandomGaussianBlur((1.0, 1.0), kernel_size=5, sigma=2.0)(bright, training=True)), 200.0, rtol=1e-5
    )


def test_the_probability_and_the_deviations_are_drawn_for_each_image():
    stats = pytest.importorskip("scipy.stats")
    draws = Draws(OPS, keras.ops.convert_to_tensor([1, 2], "int32"), 10_000)
    rows, columns = map(numpy, RandomGaussianBlur(0.8, sigma=(0.3, 1.0)).draw(OPS, draws, (8, 8))["weights"])
    blurred = rows[:, 1] < 1
    assert abs(blurred.mean() - 0.4) < 0.02 and ((columns[:, 1] < 1) == blurred).all()
    for weights in (rows[blurred], columns[blurred]):
        sigma = np.sqrt(-0.5 / np.log(weights[:, 0] / weights[:, 1]))
        assert stats.kstest(sigma, "uniform", (0.3, 0.7)).pvalue > 0.001
    assert abs(np.corrcoef(rows[blurred, 1], columns[blurred, 1])[0, 1]) < 0.06


def test_images_that_are_not_blurred_stay_bit_for_bit():
    np.testing.assert_array_equal(numpy(RandomGaussianBlur(0.0)(images(), training=True)), images())


def test_in_a_composition_it_blurs_what_came_before_it():
    x = images()
    blur = {"factor": (1.0, 1.0), "sigma": (1.0, 1.0)}
    members = [RandomBrightness((0.5, 0.5)), RandomGaussianBlur(**blur), RandomBrightness((-0.5, -0.5))]
    got = numpy(Augmentation(members)(x, training=True))
    expected = x
    for layer in (RandomBrightness((0.5, 0.5)), RandomGaussianBlur(**blur), RandomBrightness((-0.5, -0.5))):
        expected = layer(expected, training=True)
    np.testing.assert_allclose(got, numpy(expected), atol=1e-2)


def test_an_image_without_columns_stays_one():
    got = RandomGaussianBlur((1.0, 1.0), kernel_size=5)(np.zeros((2, 5, 0, 3), "float32"), training=True)
    assert tuple(got.shape) == (2, 5, 0, 3)
