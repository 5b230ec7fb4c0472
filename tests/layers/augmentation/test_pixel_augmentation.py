"""What all layers that change values have in common."""

import functools

import keras
import numpy as np
import pytest

from tf_tricks.layers import augmentation as layers
from tf_tricks.layers.augmentation._compiled import Compiled
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation

ALL = {
    "RandomBrightness": {"factor": 0.5},
    "RandomColorJitter": {"brightness_factor": 0.5, "contrast_factor": 0.9, "saturation_factor": 1, "hue_factor": 0.9},
    "RandomContrast": {"factor": (0.9, 1.0)},
    "RandomErasing": {"factor": (0.9, 1.0), "scale": (0.3, 0.6), "fill_value": None},
    "RandomGaussianBlur": {"factor": (0.9, 1.0), "kernel_size": (3, 5), "sigma": (0.5, 2.0)},
    "RandomGaussianNoise": {"factor": 0.5},
    "RandomGrayscale": {"factor": 0.5},
    "RandomGridMask": {"unit": (0.3, 0.8), "rotation_factor": 0.2, "fill_value": 7.0},
    "RandomHue": {"factor": 0.9},
    "RandomRGBShift": {"factor": 0.5},
    "RandomSaltAndPepper": {"factor": 0.5, "salt": 0.25},
    "RandomSaturation": {"factor": (0.4, 1.0)},
    "RandomShotNoise": {"factor": (0.1, 0.5)},
}
EVERY = pytest.mark.parametrize("name", ALL)
RGB_ONLY = ("RandomColorJitter", "RandomHue", "RandomRGBShift", "RandomSaturation", "RandomGrayscale")


@pytest.fixture
def uncompiled(monkeypatch, backend):
    """Run a pass operation by operation: where the test is about its results, compiling is nine tenths of the time."""
    if backend == "tensorflow":  # operation by operation JAX compiles each of them
        monkeypatch.setattr(Compiled, "__call__", lambda self, xp, *arguments: self._function(xp, *arguments))


def make(name, **kwargs):
    return getattr(layers, name)(**{**ALL[name], "seed": 3, **kwargs})


def images(shape=(4, 6, 5, 3), dtype="float32", low=0, high=255):
    values = np.random.default_rng(0).uniform(low, high, shape)
    return np.round(values).astype(dtype) if dtype == "uint8" else values.astype(dtype)


@functools.cache
def expected(name):
    """What a layer makes of `images(dtype="uint8")`, in float32."""
    return numpy(make(name)(images(dtype="uint8"), training=True))


def numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


@EVERY
def test_the_config_holds_every_argument_and_makes_the_same_layer(name, uncompiled):
    layer = make(name, bounding_box_format="xyxy")
    config = layer.get_config()
    assert {*ALL[name], "seed", "value_range", "data_format", "bounding_box_format"} <= set(config)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == config
    np.testing.assert_allclose(numpy(copy(images(dtype="uint8"), training=True)), expected(name), rtol=1e-5, atol=1e-3)


@EVERY
def test_stays_in_the_range_and_changes_each_image_in_its_own_way(name, uncompiled):
    one = images((1, 8, 9, 3), low=-1, high=1)
    layer = make(name, value_range=(-1, 1))
    got = numpy(layer(np.repeat(one, 8, axis=0), training=True))
    assert got.min() >= -1 - 1e-6 and got.max() <= 1 + 1e-6
    different = {image.tobytes() for image in got}
    assert len(different) >= 2 if name == "RandomGrayscale" else len(different) >= 6
    np.testing.assert_array_equal(numpy(layer(one, training=False)), one)


@EVERY
def test_bytes_come_out_as_rounded_and_clipped_floats(name, uncompiled):
    got = make(name, dtype="uint8")(images(dtype="uint8"), training=True)
    assert keras.backend.standardize_dtype(got.dtype) == "uint8"
    # Compiled, the two are fused in different ways; a value next to .5 may round to either side.
    rounded = np.clip(np.round(expected(name)), 0, 255)
    np.testing.assert_allclose(numpy(got), rounded, atol=1)
    assert np.mean(numpy(got) != rounded) < 0.01


@pytest.mark.parametrize(("name", "dtype"), [*((name, "bfloat16") for name in ALL), ("RandomColorJitter", "float16")])
def test_half_precision_is_computed_in_float32(name, dtype, uncompiled):
    x = keras.ops.cast(images(dtype="uint8"), dtype)  # whole numbers up to 255 exist in both
    got = make(name, dtype=dtype)(x, training=True)
    assert keras.backend.standardize_dtype(got.dtype) == dtype
    np.testing.assert_allclose(numpy(got), expected(name), rtol=0.01, atol=0.05)


@EVERY
def test_channels_first_and_a_single_image_give_the_same_numbers(name, uncompiled):
    x = images(dtype="uint8")
    moved = make(name, data_format="channels_first")(np.moveaxis(x, -1, 1), training=True)
    np.testing.assert_allclose(np.moveaxis(numpy(moved), 1, -1), expected(name), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(numpy(make(name)(x[0], training=True)), expected(name)[0], rtol=1e-5, atol=1e-3)


@EVERY
@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (2, 1, 1, 3)], ids=["none", "one_pixel"])
def test_odd_sizes(name, shape, uncompiled):
    got = numpy(make(name)(images(shape), training=True))
    assert got.shape == shape and np.isfinite(got).all()


@EVERY
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_work_or_are_refused_by_name(name, channels, uncompiled):
    x = images((2, 5, 5, channels))
    if name in RGB_ONLY and not (name == "RandomGrayscale" and channels == 1):
        with pytest.raises(ValueError, match=rf"{name}: images must have 3 channels.*Received: {channels} channels"):
            make(name)(x, training=True)
    else:
        assert numpy(make(name)(x, training=True)).shape == x.shape


@EVERY
def test_within_tf_data_the_numbers_are_those_of_the_backend(name):
    tf = pytest.importorskip("tensorflow")
    x = images(dtype="uint8")
    data = tf.data.Dataset.from_tensor_slices({"images": x, "labels": np.arange(4)}).batch(4).map(make(name))
    got = next(iter(data))
    np.testing.assert_allclose(got["images"].numpy(), expected(name), rtol=1e-4, atol=1e-2)
    np.testing.assert_array_equal(got["labels"].numpy(), np.arange(4))


@pytest.mark.parametrize("name", ["RandomColorJitter", "RandomErasing", "RandomGaussianBlur", "RandomGaussianNoise"])
def test_unknown_sizes_in_tf_data(name, uncompiled):
    tf = pytest.importorskip("tensorflow")
    sizes = [(5, 4), (1, 1), (2, 7)]
    signature = tf.TensorSpec((None, None, 3), tf.uint8)
    data = tf.data.Dataset.from_generator(
        lambda: (images((*size, 3), "uint8") for size in sizes), output_signature=signature
    )
    assert [tuple(image.shape) for image in data.map(make(name))] == [(*size, 3) for size in sizes]


@EVERY
def test_keeps_its_place_in_a_composition(name, uncompiled):
    dark = layers.RandomBrightness((-1.0, -1.0))  # everything black
    x = images((2, 8, 8, 3), low=100)
    last = numpy(layers.Augmentation([make(name), dark], seed=1)(x, training=True))
    np.testing.assert_array_equal(last, 0.0)
    if name in ("RandomErasing", "RandomGaussianNoise", "RandomGridMask", "RandomSaltAndPepper"):  # seen on black
        first = numpy(layers.Augmentation([dark, make(name)], seed=1)(x, training=True))
        assert (first > 0).any()


def test_only_layers_that_look_at_one_pixel_share_a_pass():
    assert {name for name in ALL if not issubclass(getattr(layers, name), PixelAugmentation)} == {"RandomGaussianBlur"}


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("RandomBrightness", {"factor": 1.1}, ValueError, r"`factor` must lie in \[-1, 1\]. Received: factor=1.1"),
        ("RandomBrightness", {"factor": (0.1,)}, ValueError, r"`factor` must be a number or a pair"),
        ("RandomBrightness", {"factor": "much"}, TypeError, r"`factor` must be a number in \[-1, 1\]"),
        ("RandomContrast", {"factor": -0.1}, ValueError, r"`factor` must lie in \[0, 1\]"),
        ("RandomContrast", {"factor": (0.1, 1.5)}, ValueError, r"`factor` must lie in \[0, 1\]"),
        ("RandomHue", {"factor": 2}, ValueError, r"`factor` must lie in \[0, 1\]"),
        ("RandomSaturation", {"factor": -0.5}, ValueError, r"`factor` must lie in \[0, 1\]"),
        ("RandomColorJitter", {"hue_factor": 3}, ValueError, r"`hue_factor` must lie in \[0, 1\]"),
        ("RandomColorJitter", {"mode": "fast"}, ValueError, r"`mode` must be one of 'exact', 'matrix'"),
        ("RandomGrayscale", {"factor": -0.1}, ValueError, r"`factor` must lie in \[0, 1\]"),
        ("RandomErasing", {"fill_value": "red"}, ValueError, r"`fill_value` must be None \(noise\), a number"),
        ("RandomErasing", {"scale": 1.5}, ValueError, r"`scale` must lie in \[0, 1\]"),
        ("RandomGridMask", {"unit": 0}, ValueError, r"`unit` must lie in \(0, 1\]"),
        ("RandomGridMask", {"ratio": 1.5}, ValueError, r"`ratio` must lie in \[0, 1\]"),
        ("RandomGaussianBlur", {"kernel_size": 4}, ValueError, r"`kernel_size` must be an odd int"),
        ("RandomGaussianBlur", {"kernel_size": (3, 5, 7)}, ValueError, r"`kernel_size` must be an odd int or a pair"),
        ("RandomGaussianBlur", {"sigma": -1.0}, ValueError, r"`sigma` must lie in \[0, inf\)"),
        ("RandomSaltAndPepper", {"salt": 2}, ValueError, r"`salt` must lie in \[0, 1\]"),
        ("RandomGaussianNoise", {"factor": 1.5}, ValueError, r"`factor` must lie in \[0, 1\]"),
    ],
)
def test_bad_arguments_are_named(name, arguments, error, message):
    with pytest.raises(error, match=message):
        make(name, **arguments)


def draws(count=10_000, seed=1):
    """The numbers of one call for many images."""
    return Draws(OPS, keras.ops.convert_to_tensor([seed, 0], "int32"), count)


@pytest.mark.parametrize(
    ("name", "arguments", "parameter", "low", "high"),
    [
        ("RandomBrightness", {"factor": 0.3}, "shift", -0.3, 0.3),
        ("RandomContrast", {"factor": (0.2, 0.6)}, "contrast", 0.8, 1.6),
        ("RandomHue", {"factor": 0.5}, "turns", -0.25, 0.25),
        ("RandomGaussianNoise", {"factor": 0.4}, "stddev", 0.0, 0.4),
        ("RandomShotNoise", {"factor": (0.1, 0.2)}, "stddev", 0.1, 0.2),
        ("RandomSaltAndPepper", {"factor": 0.2}, "share", 0.0, 0.2),
        ("RandomRGBShift", {"factor": (-0.1, 0.2)}, "shift", -0.1, 0.2),
    ],
)
def test_parameters_are_uniform(name, arguments, parameter, low, high):
    stats = pytest.importorskip("scipy.stats")
    drawn = numpy(make(name, **arguments).draw(OPS, draws(), (8, 8))[parameter])
    for column in np.reshape(drawn, (10_000, -1)).T:
        assert stats.kstest(column, "uniform", (low, high - low)).pvalue > 0.001
    if drawn.ndim == 2:  # red, green and blue are independent
        assert np.abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.04
