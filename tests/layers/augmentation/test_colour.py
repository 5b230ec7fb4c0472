"""The arithmetic of colours against `colorsys` and matrices worked out by hand."""

import colorsys

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation import _colour
from tf_tricks.layers.augmentation._namespaces import OPS


def tensor(x):
    return keras.ops.convert_to_tensor(np.asarray(x, "float32"))


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def pixels(count=40):
    """Random colours, and the corners of the cube, grays and ties between channels among them."""
    corners = np.array(np.meshgrid([0, 0.5, 1], [0, 0.5, 1], [0, 0.5, 1])).reshape(3, -1).T
    return np.concatenate([corners, np.random.default_rng(0).uniform(0, 1, (count, 3))])[None, None].astype("float32")


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)], ids=str)
@pytest.mark.parametrize("turns", [None, 0.0, 0.21, -0.5, 0.5])
@pytest.mark.parametrize("saturation", [None, 0.0, 0.6, 1.0, 3.0])
def test_hue_and_saturation_are_those_of_colorsys(value_range, turns, saturation):
    expected = []
    for red, green, blue in pixels()[0, 0].astype("float64"):
        h, s, v = colorsys.rgb_to_hsv(red, green, blue)
        s = min(s * (1.0 if saturation is None else saturation), 1.0)
        expected.append(colorsys.hsv_to_rgb((h + (turns or 0.0)) % 1.0, s, v))
    low, high = value_range
    drawn = [None if each is None else tensor([each]) for each in (turns, saturation)]
    got = numpy(_colour.hue_and_saturation(OPS, tensor(pixels() * (high - low) + low), *drawn, value_range))
    np.testing.assert_allclose((got[0, 0] - low) / (high - low), expected, atol=3e-6)


def gradient(function, x):
    """Of the sum of a function of a tensor, on each backend."""
    if keras.backend.backend() == "jax":
        import jax

        return numpy(jax.grad(lambda x: function(x).sum())(tensor(x)))
    if keras.backend.backend() == "torch":
        x = tensor(x).requires_grad_()
        function(x).sum().backward()
        return x.grad.numpy()
    import tensorflow as tf

    x = tensor(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(function(x))
    return tape.gradient(y, x).numpy()


TIES = [(200, 80, 80), (100, 60, 60), (80, 200, 200), (200, 200, 80), (200, 80, 200), (80, 80, 200), (80, 200, 80)]


@pytest.mark.parametrize("channel", range(3))
@pytest.mark.parametrize("colour", [*TIES, (10, 250, 30), (90, 90.5, 200)], ids=str)
def test_the_gradient_of_a_hue_is_that_of_colorsys_also_where_two_channels_are_equal(colour, channel):
    def turned(colour):
        h, s, v = colorsys.rgb_to_hsv(*(each / 255 for each in colour))
        return 255 * colorsys.hsv_to_rgb((h + 0.23) % 1.0, s, v)[channel]

    def differences(colour):
        return [(turned(colour + step) - turned(colour - step)) / 2e-5 for step in 1e-5 * np.eye(3)]

    # Where two channels are equal there is a bend: a gradient is that of one of the sides, or between them.
    sides = [differences(np.array(colour) + sign * away) for away in 1e-3 * np.eye(3) for sign in (-1, 1)]
    x = np.array(colour, "float32")[None, None, None]
    ours = lambda x: _colour.hue_and_saturation(OPS, x, tensor([0.23]), None, (0, 255))[..., channel]  # noqa: E731
    found = gradient(ours, x)[0, 0, 0]
    assert (np.min(sides, axis=0) - 1e-3 <= found).all() and (found <= np.max(sides, axis=0) + 1e-3).all()


def test_differences_too_small_to_be_divided_by_are_no_hue():
    black = tensor([[[[1e-39, 0.0, 0.0], [0.0, 2e-38, 0.0]]]])
    for drawn in ([tensor([0.3]), None], [None, tensor([0.5])]):
        got = numpy(_colour.hue_and_saturation(OPS, black, *drawn, (0.0, 1.0)))
        np.testing.assert_allclose(got, 0.0, atol=1e-37)


def test_a_chain_of_matrices_is_the_steps_one_after_the_other():
    x = np.random.default_rng(1).uniform(0, 1, (2, 3, 4, 3))
    shift, factor, saturation, turns = [0.1, -0.2], [0.5, 1.5], [0.3, 2.0], [0.1, -0.4]
    centre = x.mean((1, 2)) + np.array(shift)[:, None]
    matrix = _colour.chain(
        OPS,
        _colour.shift_matrix(OPS, tensor(shift)),
        _colour.contrast_matrix(OPS, tensor(factor), tensor(centre)),
        _colour.saturation_matrix(OPS, tensor(saturation)),
        _colour.hue_matrix(OPS, tensor(turns)),
    )
    got = numpy(_colour.apply(OPS, tensor(x), matrix))

    to_yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    for i, image in enumerate(x):
        image = image + shift[i]
        image = (image - centre[i]) * factor[i] + centre[i]
        gray = image @ to_yiq[0]
        image = gray[..., None] + saturation[i] * (image - gray[..., None])
        y, a, b = np.moveaxis(image @ to_yiq.T, -1, 0)
        turned = (a + 1j * b) * np.exp(-2j * np.pi * turns[i])
        image = np.stack([y, turned.real, turned.imag], -1) @ np.linalg.inv(to_yiq).T
        np.testing.assert_allclose(got[i], image, atol=2e-3)  # the table of YIQ has four digits


def test_the_hue_matrix_turns_in_the_direction_of_hsv_and_leaves_gray_alone():
    matrix = _colour.hue_matrix(OPS, tensor([1 / 3]))
    red, gray = numpy(_colour.apply(OPS, tensor([[[[1, 0, 0], [0.4, 0.4, 0.4]]]]), matrix))[0, 0]
    assert red.argmax() == 1  # a third of a turn from red is green
    np.testing.assert_allclose(gray, 0.4, atol=1e-5)


def test_a_shift_of_each_channel():
    matrix = _colour.shift_matrix(OPS, tensor([[1.0, 2.0, 3.0]]))
    np.testing.assert_allclose(numpy(_colour.apply(OPS, tensor(np.zeros((1, 1, 1, 3))), matrix))[0, 0, 0], [1, 2, 3])


@pytest.mark.parametrize("height", [1, 15, 16, 23, 40])
def test_the_mean_is_that_of_numpy_whatever_the_number_of_rows(height):
    x = np.random.default_rng(3).uniform(0, 255, (2, height, 5, 3))
    np.testing.assert_allclose(numpy(_colour.mean(OPS, tensor(x)))[:, 0, 0], x.mean((1, 2)), rtol=1e-5)


def test_the_quick_mean_is_the_mean_of_small_images_and_close_to_that_of_large_ones():
    small = np.random.default_rng(2).uniform(0, 1, (2, 32, 20, 3))
    np.testing.assert_allclose(numpy(_colour.quick_mean(OPS, tensor(small))), small.mean((1, 2)), atol=1e-6)
    y, x = np.mgrid[:64, :80]
    smooth = np.stack([y / 64, x / 80, np.sin(x / 9)], -1)[None]
    np.testing.assert_allclose(numpy(_colour.quick_mean(OPS, tensor(smooth))), smooth.mean((1, 2)), atol=0.03)
