"""Sub-pixel upsampling that begins as nearest-neighbour resizing of an ordinary convolution."""

import keras
import numpy as np
import pytest

from tf_tricks.initializers import ICNR

ops = keras.ops


def depth_to_space(x, scale):
    """What `tf.nn.depth_to_space` does, in NumPy."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, scale, scale, c // scale**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, h * scale, w * scale, c // scale**2)


def pixel_shuffle(x, scale):
    """What `torch.nn.PixelShuffle` does, with the channels last."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, c // scale**2, scale, scale).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(n, h * scale, w * scale, c // scale**2)


@pytest.mark.parametrize(("order", "arrange"), [("depth_to_space", depth_to_space), ("pixel_shuffle", pixel_shuffle)])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_each_square_begins_with_one_value(scale, order, arrange):
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
    inner = keras.initializers.HeNormal(seed=1)
    layer = keras.layers.Conv2D(5 * scale**2, 3, padding="same", kernel_initializer=ICNR(scale, inner, order))
    plain = keras.layers.Conv2D(5, 3, padding="same", kernel_initializer=inner)
    expected = ops.convert_to_numpy(plain(x)).repeat(scale, axis=1).repeat(scale, axis=2)
    np.testing.assert_allclose(arrange(ops.convert_to_numpy(layer(x)), scale), expected, atol=1e-5)


def test_the_two_orders_are_those_of_the_backends(backend):
    x = np.arange(2 * 3 * 3 * 8, dtype="float32").reshape(2, 3, 3, 8)
    if backend == "tensorflow":
        import tensorflow as tf

        np.testing.assert_array_equal(tf.nn.depth_to_space(x, 2).numpy(), depth_to_space(x, 2))
    if backend == "torch":
        import torch

        theirs = torch.nn.PixelShuffle(2)(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
        np.testing.assert_array_equal(theirs.transpose(0, 2, 3, 1), pixel_shuffle(x, 2))


@pytest.mark.parametrize(("shape", "repeats"), [((3, 2, 6), 2), ((3, 3, 2, 8), 4), ((3, 3, 3, 2, 8), 8)])
def test_dimensions(shape, repeats):
    kernel = ops.convert_to_numpy(ICNR(2, "he_normal")(shape))
    blocks = np.split(kernel, repeats, axis=-1)
    assert kernel.shape == shape and all(np.array_equal(block, blocks[0]) for block in blocks)


def test_config_and_file(tmp_path):
    initializer = ICNR(2, keras.initializers.HeNormal(seed=3), "pixel_shuffle")
    layer = keras.layers.Conv2D(8, 3, kernel_initializer=initializer)
    keras.Sequential([keras.Input((8, 8, 4)), layer]).save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras").layers[0].kernel_initializer
    assert again.get_config() == initializer.get_config()
    kernels = [ops.convert_to_numpy(each((3, 3, 4, 8), dtype="float32")) for each in (again, initializer)]
    np.testing.assert_array_equal(*kernels)
    assert keras.backend.standardize_dtype(initializer((3, 4, 4), dtype="bfloat16").dtype) == "bfloat16"


@pytest.mark.parametrize(
    ("arguments", "error", "pattern"),
    [
        ({"scale": 0}, ValueError, "`scale` must be an int >= 1. Received: scale=0"),
        ({"scale": 2.0}, TypeError, "`scale` must be an int >= 1. Received: scale=2.0"),
        ({"initializer": "he"}, ValueError, "`initializer` must be the name of a Keras initializer.*'he'"),
        ({"initializer": 3}, TypeError, "`initializer` must be .*Received: initializer=3"),
        ({"order": "nchw"}, ValueError, "`order` must be one of 'depth_to_space', 'pixel_shuffle'"),
    ],
)
def test_bad_arguments(arguments, error, pattern):
    with pytest.raises(error, match=pattern):
        ICNR(**{"scale": 2, **arguments})


@pytest.mark.parametrize("shape", [(3, 3, 4, 6), (4, 4)])
def test_kernels_that_do_not_fit(shape):
    with pytest.raises(ValueError, match="ICNR: a convolution kernel with a multiple of scale"):
        ICNR(2)(shape)
