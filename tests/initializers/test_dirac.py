"""A convolution that begins as the identity, whatever its window, groups and dimensions."""

import keras
import numpy as np
import pytest

from tf_tricks.initializers import Dirac

ops = keras.ops
LAYERS = [keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D]


@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_input_passes(dimensions, window):
    x = np.random.default_rng(0).normal(size=(2, *[5] * dimensions, 4)).astype("float32")
    layer = LAYERS[dimensions - 1](4, window, padding="same", kernel_initializer=Dirac())
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), x, atol=1e-6)


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 5), (5, 3)])
def test_numbers_of_channels_may_differ(inputs, outputs):
    x = np.random.default_rng(0).normal(size=(2, 6, inputs)).astype("float32")
    got = ops.convert_to_numpy(keras.layers.Conv1D(outputs, 3, padding="same", kernel_initializer=Dirac())(x))
    common = min(inputs, outputs)
    np.testing.assert_allclose(got[..., :common], x[..., :common], atol=1e-6)
    assert not got[..., common:].any()


def test_groups():
    kernel = ops.convert_to_numpy(Dirac(groups=2)((3, 2, 6)))  # 4 inputs in 2 groups, 6 outputs
    expected = np.zeros((3, 2, 6))
    expected[1] = [[1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0]]
    np.testing.assert_array_equal(kernel, expected)


def test_a_grouped_layer_passes_its_input(backend):
    if backend == "tensorflow":
        pytest.skip("TensorFlow has no grouped convolutions on the CPU outside of XLA")
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 4)).astype("float32")
    layer = keras.layers.Conv2D(4, 3, padding="same", groups=2, kernel_initializer=Dirac(groups=2))
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), x, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_and_config(dtype):
    assert keras.backend.standardize_dtype(Dirac()((3, 2, 2), dtype=dtype).dtype) == dtype
    serialized = keras.initializers.serialize(Dirac(groups=2))
    assert keras.initializers.deserialize(serialized).get_config() == {"groups": 2}


def test_what_is_refused():
    with pytest.raises(ValueError, match="`groups` must be an int >= 1. Received: groups=0"):
        Dirac(groups=0)
    with pytest.raises(TypeError, match="`groups` must be an int >= 1. Received: groups='2'"):
        Dirac(groups="2")
    with pytest.raises(ValueError, match="three axes or more. Received: .4, 4."):
        Dirac()((4, 4))
    with pytest.raises(ValueError, match="`groups` must divide the number of outputs. Received: groups=4"):
        Dirac(groups=4)((3, 2, 6))
