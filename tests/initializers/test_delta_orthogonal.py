"""A 500-layer tanh network with ordinary padding passes a signal; with Keras's initializers nothing arrives."""

import keras
import numpy as np
import pytest

from tf_tricks.initializers import DeltaOrthogonal

ops = keras.ops


def values(initializer, shape, dtype="float32"):
    return ops.convert_to_numpy(initializer(shape, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 3, 4, 6), (5, 2, 3, 3), (3, 3, 3, 2, 4), (1, 1, 2, 2)])
def test_orthogonal_at_the_centre_and_zero_elsewhere(shape):
    kernel = values(DeltaOrthogonal(gain=2.0, seed=1), shape)
    assert kernel.shape == shape
    centre = tuple((size - 1) // 2 for size in shape[:-2])
    np.testing.assert_allclose(kernel[centre] @ kernel[centre].T, 4 * np.eye(shape[-2]), atol=1e-5)
    assert np.count_nonzero(kernel) == np.count_nonzero(kernel[centre])


@pytest.mark.parametrize("window", [3, 4])
def test_the_norm_of_each_pixel_is_kept(window):
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype("float32")
    layer = keras.layers.Conv2D(8, window, padding="same", kernel_initializer=DeltaOrthogonal(seed=1))
    norms = np.linalg.norm(ops.convert_to_numpy(layer(x)), axis=-1)
    np.testing.assert_allclose(norms, np.linalg.norm(x, axis=-1), rtol=1e-5)


def run(initializer, depth, x, change):
    """(mean square of the outputs, growth of a small change of the input) of a tanh network with 3x3 windows."""
    both = ops.convert_to_tensor(np.concatenate([x, x + change]).astype("float32"))
    for _ in range(depth):
        both = ops.tanh(ops.conv(both, initializer((3, 3, 8, 8)), padding="same", data_format="channels_last"))
    out = ops.convert_to_numpy(both).astype("float64")
    return np.mean(out**2), np.linalg.norm(out[1:] - out[:1]) / np.linalg.norm(change)


def test_500_tanh_layers_pass_a_signal():
    rng = np.random.default_rng(0)
    x, change = rng.normal(size=(2, 1, 5, 5, 8))
    moment, growth = run(DeltaOrthogonal(seed=keras.random.SeedGenerator(1)), 500, x, 0.01 * change)
    # Mean field at gain 1: q -> q - 2 q^2, and so 1 / (2 * 500) after 500 layers, whatever comes in; a change shrinks
    # by 1 - q in each, and so by 1 / sqrt(2 * 500) or somewhat more.
    assert 5e-4 < moment < 2e-3
    assert 0.01 < growth < 0.2
    for name in ("GlorotUniform", "Orthogonal"):
        keras_s = getattr(keras.initializers, name)(seed=keras.random.SeedGenerator(1))
        assert run(keras_s, 50, x, 0.01 * change)[1] < 0.01  # gone after a tenth of the depth


def test_seed_dtype_and_file(tmp_path):
    initializer = DeltaOrthogonal(gain=1.5, seed=3)
    np.testing.assert_array_equal(values(initializer, (3, 4, 4)), values(initializer.clone(), (3, 4, 4)))
    assert initializer.get_config() == {"gain": 1.5, "seed": 3}
    for dtype in ("float16", "bfloat16"):
        assert keras.backend.standardize_dtype(initializer((3, 4, 4), dtype=dtype).dtype) == dtype
    layer = keras.layers.Conv1D(4, 3, kernel_initializer=initializer)
    model = keras.Sequential([keras.Input((8, 4)), layer])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras").layers[0].kernel_initializer
    assert again.get_config() == initializer.get_config()
    stream = DeltaOrthogonal(seed=keras.random.SeedGenerator(4))
    assert not np.array_equal(values(stream, (3, 4, 4)), values(stream, (3, 4, 4)))
    assert DeltaOrthogonal.from_config(stream.get_config()).get_config().keys() == stream.get_config().keys()


@pytest.mark.parametrize(
    ("arguments", "error", "pattern"),
    [
        ({"gain": 0}, ValueError, r"`gain` must lie in \(0, inf\). Received: gain=0"),
        ({"gain": "relu"}, TypeError, "`gain` must be a number in .*Received: gain='relu'"),
        ({"seed": "1"}, TypeError, "`seed` must be None, an int or"),
    ],
)
def test_bad_arguments(arguments, error, pattern):
    with pytest.raises(error, match=pattern):
        DeltaOrthogonal(**arguments)


def test_kernels_that_do_not_fit():
    with pytest.raises(ValueError, match="more inputs than outputs cannot keep the norm. Received: .3, 3, 8, 4."):
        DeltaOrthogonal()((3, 3, 8, 4))
    with pytest.raises(ValueError, match="three axes or more. Received: .8, 8."):
        DeltaOrthogonal()((8, 8))
