"""The variance of every kind of kernel, and the second moment of a signal after 50 layers."""

import random

import keras
import numpy as np
import pytest

from tf_tricks.initializers import ActivationScaling
from tf_tricks.initializers.activation_scaling import DISTRIBUTIONS, fans

ops = keras.ops
DEPTH = 50


def values(initializer, shape, dtype="float32"):
    return ops.convert_to_numpy(initializer(shape, dtype=dtype))


@keras.saving.register_keras_serializable(package="tests")
def bent(x):
    return ops.where(x > 0, x, 0.3 * x)


# --- fans and variance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kind", "axes", "expected"),
    [
        ((64, 32), "auto", (), (64, 32)),
        ((5, 8, 16), "auto", (), (40, 80)),
        ((3, 3, 8, 16), "auto", (), (72, 144)),
        ((3, 3, 3, 8, 16), "auto", (), (216, 432)),
        ((3, 3, 8, 2), "depthwise", (), (9, 18)),
        ((5, 8, 1), "depthwise", (), (5, 5)),
        ((3, 3, 16, 64), "transposed", (), (576, 144)),
        ((1000, 64), "embedding", (), (1, 64)),
        ((64, 4, 16), "attention", (), (64, 64)),
        ((4, 16, 64), "attention", (), (64, 64)),
        ((48, 4, 16), "auto", ([0], [1, 2]), (48, 64)),
        ((4, 16, 48), "attention", ([0, 1], [2]), (64, 48)),
        ((7,), "auto", (), (7, 7)),
        ((), "auto", (), (1, 1)),
    ],
)
def test_fans(shape, kind, axes, expected):
    assert fans(shape, kind, *axes) == expected


KERNELS = [
    ((300, 400), "auto", 300),
    ((400, 300), "auto", 400),
    ((3, 3, 64, 128), "auto", 576),
    ((3, 3, 600, 9), "depthwise", 9),
    ((5, 4000, 2), "depthwise", 5),
    ((2000, 50), "embedding", 1),
    ((256, 4, 64), "attention", 256),
    ((4, 64, 256), "attention", 256),
]


EVERY = [(*kernel, "uniform") for kernel in KERNELS] + [((3, 3, 32, 64), "auto", 288, each) for each in DISTRIBUTIONS]


@pytest.mark.parametrize(("shape", "kind", "fan", "distribution"), EVERY)
def test_variance_of_every_kernel_and_distribution(shape, kind, fan, distribution):
    kernel = values(ActivationScaling("relu", distribution=distribution, kind=kind, seed=1), shape)
    size = kernel.size
    assert np.mean(kernel**2) * fan / 2 == pytest.approx(1, abs=6 * np.sqrt(2 / size))
    assert abs(kernel.mean()) < 6 * kernel.std() / np.sqrt(size)
    if distribution == "delta_orthogonal":
        assert np.count_nonzero(kernel) == np.count_nonzero(kernel[1, 1]) == shape[2] * shape[3]
    if distribution == "truncated_normal":
        assert np.abs(kernel).max() <= 2.0001 * np.sqrt(2 / fan) / 0.8796256


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 60), ("fan_out", 240), ("fan_avg", 150)])
def test_modes(mode, fan):
    kernel = values(ActivationScaling("linear", mode=mode, distribution="orthogonal", seed=1), (60, 240))
    assert np.mean(kernel**2) == pytest.approx(1 / fan, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "shape", "order"),
    [
        ({}, (20, 30), (20, 30)),
        ({}, (3, 3, 4, 8), (36, 8)),
        ({"kind": "embedding"}, (50, 8), (50, 8)),
        ({"kind": "attention"}, (24, 4, 6), (24, 24)),
        ({"input_axes": (0, 1), "output_axes": (-1,)}, (4, 6, 10), (24, 10)),
    ],
)
def test_orthogonal_kernels_are_orthogonal(arguments, shape, order):
    kernel = values(ActivationScaling("linear", distribution="orthogonal", seed=3, **arguments), shape).reshape(order)
    gram = kernel @ kernel.T if order[0] < order[1] else kernel.T @ kernel
    fan_in = 1 if "kind" in arguments and arguments["kind"] == "embedding" else order[0]
    assert np.mean(kernel**2) == pytest.approx(1 / fan_in, rel=1e-4)
    np.testing.assert_allclose(gram, np.eye(min(order)) * gram[0, 0], atol=2e-5 * gram[0, 0])


def test_an_orthogonal_depthwise_kernel_has_orthogonal_filters_per_channel():
    kernel = values(ActivationScaling("linear", distribution="orthogonal", kind="depthwise", seed=3), (3, 3, 5, 4))
    for channel in range(5):
        filters = kernel[:, :, channel].reshape(9, 4)
        np.testing.assert_allclose(filters.T @ filters, np.eye(4), atol=1e-5)  # sqrt(9 / 9)


@pytest.mark.parametrize("distribution", ["uniform", "orthogonal", "delta_orthogonal"])
def test_transposed_convolutions_keep_the_second_moment(distribution):
    """Their kernels are `(*window, out, in)`."""
    initializer = ActivationScaling("linear", distribution=distribution, kind="transposed", seed=1)
    layer = keras.layers.Conv2DTranspose(16, 3, padding="same", kernel_initializer=initializer)
    y = ops.convert_to_numpy(layer(np.random.default_rng(0).normal(size=(4, 8, 8, 64)).astype("float32")))
    assert np.mean(y[:, 1:-1, 1:-1] ** 2) == pytest.approx(1, abs=0.1)
    kernel = ops.convert_to_numpy(layer.kernel).swapaxes(-2, -1).reshape(-1, 16)
    if distribution != "uniform":
        gram = kernel.T @ kernel
        np.testing.assert_allclose(gram, gram[0, 0] * np.eye(16), atol=2e-5 * gram[0, 0])


def test_orthogonal_matrices_are_uniformly_distributed():
    """Without the correction of the signs the diagonal of Q has a preferred sign."""
    initializer = ActivationScaling("linear", distribution="orthogonal", seed=keras.random.SeedGenerator(1))
    traces = [np.trace(values(initializer, (3, 3))) for _ in range(300)]
    assert np.mean(traces) == pytest.approx(0, abs=0.25)  # its stddev is 1 / sqrt(300)
    assert np.var(traces) == pytest.approx(1, abs=0.35)


@pytest.mark.parametrize("distribution", ["truncated_normal", "orthogonal"])
def test_attention_layers_hand_over_their_axes(distribution):
    if "input_axes" not in keras.initializers.VarianceScaling().get_config():
        pytest.skip("this Keras does not tell an initializer which axes an einsum sums over")
    initializer = ActivationScaling("linear", distribution=distribution, seed=1)
    layer = keras.layers.MultiHeadAttention(4, 24, kernel_initializer=initializer)
    x = np.ones((1, 3, 80), "float32")
    layer(x, x)
    kernels = {w.path.split("/")[-2]: ops.convert_to_numpy(w) for w in layer.trainable_weights if w.name == "kernel"}
    for name, fan in [("query", 80), ("key", 80), ("value", 80), ("attention_output", 96)]:
        assert np.mean(kernels[name] ** 2) * fan == pytest.approx(1, abs=0.1), name


@pytest.mark.parametrize("activation", [bent, "gelu", keras.layers.LeakyReLU()])
def test_attention_layers_copy_it_by_its_config(activation):
    layer = keras.layers.MultiHeadAttention(2, 4, kernel_initializer=ActivationScaling(activation))
    x = np.ones((1, 3, 8), "float32")
    assert tuple(layer(x, x).shape) == (1, 3, 8)


# --- the signal -------------------------------------------------------------------------------------------------------

HELD = ["relu", "tanh", "gelu", "selu", "silu", "elu", "mish", "leaky_relu"]


def dense(signal, kernel):
    return ops.matmul(signal, kernel)


def convolution(signal, kernel):
    return ops.conv(signal, kernel, padding="same", data_format="channels_last")


def moments(activation, apply, shape, input_shape, **arguments):
    """Second moment of the pre-activations of each of 50 layers; that of the input is 1."""
    f, mirrored = keras.activations.get(activation), "mirrored" in arguments
    seed = keras.random.SeedGenerator(1)
    first = ActivationScaling("linear", **{**arguments, "mirrored": "outputs" if mirrored else None}, seed=seed)
    middle = ActivationScaling(activation, **arguments, seed=seed)
    x = np.random.default_rng(0).normal(size=input_shape).astype("float32")
    signal = apply(ops.convert_to_tensor(x / np.sqrt(np.mean(x**2))), first(shape))
    found = [ops.mean(ops.square(signal))]
    for _ in range(DEPTH):
        signal = apply(f(signal), middle(shape))
        found.append(ops.mean(ops.square(signal)))
    return ops.convert_to_numpy(ops.stack(found))


# The width: with a pair per unit, what a layer adds to the error is some 0.3 / sqrt(width / 2) where the activation is
# not linear in pairs (tanh, selu, elu, mish), and those pull it back; 128 units keep it below 5 % with room to spare.
@pytest.mark.parametrize("activation", HELD)
def test_50_dense_layers_keep_the_second_moment(activation):
    found = moments(activation, dense, (256, 256), (64, 256), distribution="orthogonal", mirrored="both")
    np.testing.assert_allclose(found, 1, atol=0.05)


@pytest.mark.parametrize("activation", HELD)
def test_50_convolutional_layers_keep_the_second_moment(activation):
    arguments = {"distribution": "delta_orthogonal", "mirrored": "both"}
    found = moments(activation, convolution, (3, 3, 128, 128), (4, 4, 4, 128), **arguments)
    np.testing.assert_allclose(found, 1, atol=0.05)


@pytest.mark.parametrize("activation", ["tanh", "selu"])
def test_50_dense_layers_of_a_stable_activation_need_no_mirror(activation):
    found = moments(activation, dense, (512, 512), (64, 512), distribution="normal")
    np.testing.assert_allclose(found, 1, atol=0.05)


def test_a_mirrored_network_begins_as_a_linear_one():
    seed = keras.random.SeedGenerator(0)
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    for activation in ("relu", "gelu", "silu"):
        f = keras.activations.get(activation)
        kernels = [
            ActivationScaling("linear", mirrored="outputs", seed=seed)((6, 8)),
            ActivationScaling(activation, mirrored="both", seed=seed)((8, 4)),
            ActivationScaling(activation, mirrored="inputs", seed=seed)((4, 3)),
        ]
        got = dense(f(dense(f(dense(ops.convert_to_tensor(x), kernels[0])), kernels[1])), kernels[2])
        first, second, last = map(ops.convert_to_numpy, kernels)
        np.testing.assert_array_equal(first[:, 4:], -first[:, :4])
        np.testing.assert_array_equal(second[4:], -second[:4])
        np.testing.assert_array_equal(last[2:], -last[:2])
        expected = x @ first[:, :4] @ second[:4, :2] @ last[:2]
        np.testing.assert_allclose(ops.convert_to_numpy(got), expected, rtol=1e-4, atol=1e-5)


# --- seeds, dtype, configuration --------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_seeds_are_what_they_are_in_keras(distribution):
    def make(seed):
        return ActivationScaling("tanh", distribution=distribution, seed=seed)

    fixed = make(7)
    np.testing.assert_array_equal(values(fixed, (3, 4, 4)), values(fixed, (3, 4, 4)))
    np.testing.assert_array_equal(values(fixed, (3, 4, 4)), values(make(7), (3, 4, 4)))
    assert not np.array_equal(values(make(7), (3, 4, 4)), values(make(8), (3, 4, 4)))
    assert not np.array_equal(values(make(None), (3, 4, 4)), values(make(None), (3, 4, 4)))
    stream = make(keras.random.SeedGenerator(7))
    assert not np.array_equal(values(stream, (3, 4, 4)), values(stream, (3, 4, 4)))
    keras.utils.set_random_seed(3)
    first = values(make(None), (3, 4, 4))
    keras.utils.set_random_seed(3)
    np.testing.assert_array_equal(first, values(make(None), (3, 4, 4)))


def test_a_given_seed_leaves_python_s_generator():
    before = random.getstate()
    ActivationScaling("relu", seed=3)
    assert random.getstate() == before


def test_truncated_normal_is_keras_s_own_draw():
    ours = values(ActivationScaling("relu", seed=5), (30, 20))
    np.testing.assert_allclose(ours, values(keras.initializers.HeNormal(seed=5), (30, 20)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", None])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_dtype(distribution, dtype):
    kernel = ActivationScaling("relu", distribution=distribution)((3, 8, 8), dtype=dtype)
    assert keras.backend.standardize_dtype(kernel.dtype) == (dtype or "float32")
    assert np.isfinite(ops.convert_to_numpy(ops.cast(kernel, "float32"))).all()


def test_file_round_trip_with_activations_of_one_s_own(tmp_path):
    layers = keras.layers
    initializers = [
        ActivationScaling(bent, distribution="orthogonal", seed=3),
        ActivationScaling(layers.LeakyReLU(negative_slope=0.1), mode="fan_avg", mirrored="both"),
        ActivationScaling("gelu", seed=keras.random.SeedGenerator(3)),
    ]
    model = keras.Sequential([keras.Input((4,)), *(layers.Dense(4, kernel_initializer=i) for i in initializers)])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for layer, expected in zip(again.layers, initializers, strict=True):
        assert type(layer.kernel_initializer) is ActivationScaling
        assert layer.kernel_initializer.gain == pytest.approx(expected.gain, rel=1e-12)
        assert layer.kernel_initializer.mode == expected.mode
    np.testing.assert_array_equal(values(again.layers[0].kernel_initializer, (4, 4)), values(initializers[0], (4, 4)))
    for initializer in initializers:
        clone = initializer.clone()
        assert set(clone.get_config()) == set(initializer.get_config())
        assert clone.gain == initializer.gain


class MadeInBuild(keras.layers.Layer):
    """A layer whose `build` may run while it is traced, which is when the gain has to be computed all the same."""

    def build(self, input_shape):
        activation = lambda x: ops.tanh(x) + 0.1 * x  # noqa: E731 - a new one each time: nothing is cached
        self.dense = keras.layers.Dense(4, kernel_initializer=ActivationScaling(activation, distribution="orthogonal"))
        self.dense.build(input_shape)

    def call(self, inputs):
        return self.dense(inputs)


class Outer(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = MadeInBuild()

    def call(self, inputs):
        return self.inner(inputs)


def test_it_can_be_made_while_a_model_is_traced():
    model = Outer()
    model.compile("sgd", "mse")
    x = np.ones((8, 4), "float32")
    model.fit(x, x, verbose=0)
    outputs = Outer()(keras.Input((4,)))
    assert tuple(outputs.shape) == (None, 4)


# --- what users do wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "pattern"),
    [
        ({"activation": "rleu"}, ValueError, "`activation` must be None, the name of a Keras activation.*'rleu'"),
        ({"activation": 3}, TypeError, "`activation` must be .*Received: activation=3"),
        ({"activation": "softmax"}, ValueError, "`activation` must act on each entry by itself"),
        ({"mode": "fan"}, ValueError, "`mode` must be one of 'fan_in', 'fan_out', 'fan_avg'. Received: mode='fan'"),
        ({"distribution": "gaussian"}, ValueError, "`distribution` must be one of .*'gaussian'"),
        (
            {"kind": "conv"},
            ValueError,
            "`kind` must be one of 'auto', 'attention', 'depthwise', 'embedding', 'transposed'",
        ),
        ({"mirrored": True}, ValueError, "`mirrored` must be one of None, 'outputs', 'inputs', 'both'"),
        ({"mirrored": "both", "kind": "depthwise"}, ValueError, '`mirrored` must be None where `kind` is not "auto"'),
        ({"input_axes": 0}, TypeError, "`input_axes` must be None or a sequence of ints. Received: input_axes=0"),
        ({"output_axes": ["a"]}, TypeError, "`output_axes` must be None or a sequence of ints"),
        ({"input_axes": [0]}, ValueError, "`input_axes` must be given together with `output_axes`"),
        ({"seed": 1.5}, TypeError, "`seed` must be None, an int or a keras.random.SeedGenerator. Received: seed=1.5"),
        ({"seed": True}, TypeError, "`seed` must be"),
    ],
)
def test_bad_arguments(arguments, error, pattern):
    with pytest.raises(error, match=pattern):
        ActivationScaling(**{"activation": "relu", **arguments})


def test_kernels_that_do_not_fit():
    with pytest.raises(
        ValueError, match="needs an even number of inputs and of outputs. Received: a kernel of shape .3, 4."
    ):
        ActivationScaling("relu", mirrored="both")((3, 4))
    with pytest.raises(ValueError, match="cannot tell inputs from outputs.*give `input_axes` and `output_axes`"):
        ActivationScaling("relu", kind="attention")((7, 4, 16))
    with pytest.raises(ValueError, match="an orthogonal kernel needs two axes"):
        ActivationScaling("relu", distribution="orthogonal")((7,))
    for shape, kind in [((4, 4), "auto"), ((3, 3, 4, 1), "depthwise")]:
        with pytest.raises(ValueError, match='"delta_orthogonal" is for convolution kernels'):
            ActivationScaling("relu", distribution="delta_orthogonal", kind=kind)(shape)
    for axes in ([2], [1], [-3]):
        with pytest.raises(ValueError, match="must be axes of the kernel, none twice. Received: input_axes="):
            ActivationScaling("relu", input_axes=axes, output_axes=[1])((4, 4))
    with pytest.raises(ValueError, match="`mirrored` is for dense and convolution kernels"):
        ActivationScaling("relu", mirrored="both", input_axes=[0], output_axes=[1])((4, 4))
