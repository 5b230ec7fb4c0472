"""Unit variance of each layer's pre-activations, counted again in NumPy, on every kind of model."""

import random

import keras
import numpy as np
import pytest

from tf_tricks.debug import signal_propagation
from tf_tricks.initializers import lsuv

ops, layers = keras.ops, keras.layers
X = (3.0 * np.random.default_rng(0).normal(size=(256, 12)) + 5).astype("float32")


def state(model):
    """All variables as arrays, by path."""
    return {v.path: np.array(ops.convert_to_numpy(v)) for v in model.variables}


def plain(activation="relu"):
    model = keras.Sequential(
        [
            keras.Input((12,)),
            layers.Dense(32, activation=activation, kernel_initializer="zeros"),  # orthonormal ones take their place
            layers.Dense(16, activation=activation, bias_initializer="ones"),
            layers.Dense(8),
        ]
    )
    model.layers[1].kernel.assign(100 * model.layers[1].kernel)
    return model


def relu(x):
    return np.maximum(x, 0)


@pytest.mark.parametrize(("activation", "f"), [("relu", relu), ("tanh", np.tanh)])
def test_pre_activations_of_all_layers_have_unit_variance(activation, f):
    model = plain(activation)
    report = lsuv(model, X, seed=1)
    (w1, b1), (w2, b2), (w3, b3) = (layer.get_weights() for layer in model.layers)
    z1 = X @ w1 + b1
    z2 = f(z1) @ w2 + b2
    z3 = f(z2) @ w3 + b3
    for z, row in zip((z1, z2, z3), report.rows, strict=True):
        assert z.std() == pytest.approx(1, abs=0.05)
        assert row.stddev == pytest.approx(z.std(), rel=1e-4)
        assert row.converged
    assert [row.kernel for row in report.rows] == [layer.kernel.path for layer in model.layers]
    assert report.skipped == []
    for w in (w1, w2, w3):  # orthonormal but for their scale
        gram = w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T
        np.testing.assert_allclose(gram, gram[0, 0] * np.eye(len(gram)), atol=1e-4 * gram[0, 0])
    np.testing.assert_array_equal(b2, np.ones(16))
    assert report.rows[0].stddev_before == 0


def test_directions_may_be_kept():
    model = plain()
    model.layers[0].kernel.assign(np.random.default_rng(1).normal(size=(12, 32)))
    before = [
        layer.kernel.numpy() if hasattr(layer.kernel, "numpy") else layer.get_weights()[0] for layer in model.layers
    ]
    lsuv(model, X, orthonormal=False)
    for layer, old in zip(model.layers, before, strict=True):
        ratio = layer.get_weights()[0] / old
        np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-4)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.twice, self.out = layers.Dense(16), layers.Dense(16, activation="tanh"), layers.Dense(3)

    def call(self, inputs):
        return self.out(self.twice(self.twice(self.first(inputs))))


class Scaled(layers.Layer):
    """A layer of one's own with a kernel."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 5), initializer="ones", name="kernel")

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel)


def images():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, activation="relu", padding="same"),
            layers.BatchNormalization(),
            layers.SeparableConv2D(8, 3, activation="gelu"),
            layers.DepthwiseConv2D(3),
            layers.Dropout(0.3, seed=1),
            layers.Flatten(),
            layers.Dense(4),
        ]
    )
    return model, np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("float32"), 4


def tokens():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(20, 16)(inputs)
    x = x + layers.MultiHeadAttention(2, 8)(x, x)
    x = layers.LSTM(8)(x)
    return keras.Model(inputs, layers.Dense(2)(x)), np.random.default_rng(0).integers(0, 20, (32, 6)), 5


def nested():
    inner = keras.Sequential([keras.Input((12,)), layers.Dense(12), Scaled()])
    inputs = {"a": keras.Input((12,), name="a"), "b": keras.Input((12,), name="b")}
    outputs = layers.Dense(2)(layers.Concatenate()([inner(inputs["a"]), inner(inputs["b"])]))
    return keras.Model(inputs, outputs), {"a": X, "b": 2 * X}, 3


def unbuilt():
    return keras.Sequential([layers.Dense(16), layers.Dense(3)]), X, 2


KINDS = {"images": images, "tokens": tokens, "nested": nested, "unbuilt": unbuilt}
KINDS["subclassed"] = lambda: (Subclassed(), X, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model(kind):
    model, x, count = KINDS[kind]()
    model.compile("adam", "mse")
    door, built = keras.Operation.__call__, model.built
    before = state(model)
    report = lsuv(model, x, seed=2)
    assert len(report.rows) == count
    assert all(row.converged and abs(row.stddev - 1) <= 0.05 for row in report.rows), str(report)
    assert keras.Operation.__call__ is door
    changed = {row.kernel for row in report.rows}
    if built:
        after = state(model)
        assert all(np.array_equal(before[path], after[path]) == (path not in changed) for path in before)
    if kind == "tokens":
        assert [path.split("/")[-2:] for path in report.skipped] == [
            [model.layers[1].name, "embeddings"],
            ["lstm_cell", "kernel"],
            ["lstm_cell", "recurrent_kernel"],
        ]
    activations = [
        layer.activation.__name__ for layer in model.layers if getattr(layer, "activation", None) is not None
    ]
    assert (
        activations
        == {
            "images": ["relu", "gelu", "linear", "linear"],
            "tokens": ["tanh", "linear"],
            "nested": ["linear"],
            "unbuilt": ["linear", "linear"],
            "subclassed": ["linear", "tanh", "linear"],
        }[kind]
    )
    out = model(x)  # still runs
    assert np.isfinite(ops.convert_to_numpy(out)).all()


class Raises(layers.Layer):
    """Raises `error` in call number `number`, where lsuv may be halfway through the kernel."""

    def __init__(self, error, number):
        super().__init__()
        self.error, self.left = error, number

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 4), name="kernel")

    def call(self, inputs):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return ops.matmul(inputs, self.kernel)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt("no")], ids=["error", "ctrl_c"])
def test_it_leaves_what_the_user_had_when_the_model_raises(error, number):
    first, normalisation, last = layers.Dense(4, activation="relu"), layers.BatchNormalization(), Raises(error, number)
    model = keras.Sequential([first, normalisation, last])
    first.build((None, 12))
    normalisation.build((None, 4))
    last.build((None, 4))
    model.built = True
    door, before = keras.Operation.__call__, state(model)
    with pytest.raises(type(error), match="no"):
        lsuv(model, X)
    assert keras.Operation.__call__ is door
    assert first.activation is keras.activations.relu
    assert len(before) == 7
    for path, value in state(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_frozen_kernels_stay():
    base = keras.Sequential([keras.Input((12,)), layers.Dense(8, activation="relu", name="pretrained")])
    base.trainable = False
    model = keras.Sequential([keras.Input((12,)), base, layers.Dense(3, name="head")])
    before = base.get_weights()[0]
    report = lsuv(model, X)
    np.testing.assert_array_equal(base.get_weights()[0], before)
    assert [row.kernel.split("/")[-2] for row in report.rows] == ["head"]
    assert [path.split("/")[-2] for path in report.skipped] == ["pretrained"]
    assert "pretrained/kernel" in str(report).splitlines()[-1]


class Positions(layers.Layer):
    def build(self, input_shape):
        self.table = self.add_weight(shape=input_shape[1:], initializer="ones", name="table")

    def call(self, inputs):
        return inputs + self.table


class Residual(layers.Layer):
    """A block whose one weight belongs to the layer inside; it has its attribute, too."""

    def build(self, input_shape):
        self.inner = layers.Dense(input_shape[-1], use_bias=False, kernel_initializer="ones")
        self.inner.build(input_shape)
        self.kernel = self.inner.kernel

    def call(self, inputs):
        return inputs + self.inner(inputs)


def test_only_kernels_and_only_at_the_layer_they_belong_to():
    residual = Residual()
    model = keras.Sequential([keras.Input((4, 3)), Positions(), layers.PReLU(), residual])
    before, x = state(model), X.reshape(-1, 4, 3)
    report = lsuv(model, x)
    assert [path.split("/")[-1] for path in report.skipped] == ["table", "alpha"]
    for path in report.skipped:
        np.testing.assert_array_equal(state(model)[path], before[path])
    assert [row.kernel for row in report.rows] == [residual.inner.kernel.path]
    assert (relu(x + 1) @ residual.get_weights()[0]).std() == pytest.approx(1, abs=0.05)


def test_a_kernel_in_time_distributed():
    """`TimeDistributed` calls `layer.call`, which nobody sees."""
    wrapped = layers.TimeDistributed(layers.Dense(6, activation="relu"))
    model, x = keras.Sequential([keras.Input((4, 3)), wrapped, layers.Dense(2)]), X.reshape(-1, 4, 3)
    report = lsuv(model, x)
    kernel, bias = wrapped.get_weights()
    assert [row.kernel for row in report.rows] == [wrapped.layer.kernel.path, model.layers[1].kernel.path]
    assert (x @ kernel + bias).std() == pytest.approx(1, abs=0.05)
    assert (relu(x @ kernel + bias) @ model.layers[1].get_weights()[0]).std() == pytest.approx(1, abs=0.05)
    assert wrapped.layer.activation is keras.activations.relu


def test_orthonormal_is_per_channel_and_over_the_axes_of_an_einsum():
    inputs = keras.Input((8, 8, 5))
    x = layers.DepthwiseConv2D(3, depth_multiplier=4, name="depthwise")(inputs)
    x = layers.Reshape((36, 20))(x)
    attention = layers.MultiHeadAttention(4, 5, name="attention")
    model = keras.Model(inputs, attention(x, x))
    report = lsuv(model, np.random.default_rng(0).normal(size=(16, 8, 8, 5)).astype("float32"))
    kernels = {row.kernel.split("/")[-2]: value for row in report.rows for value in [state(model)[row.kernel]]}
    matrices = [kernels["depthwise"][:, :, channel].reshape(9, 4) for channel in range(5)]
    matrices += [kernels[name].reshape(20, 20) for name in ("query", "key", "value", "attention_output")]
    transposed = layers.Conv2DTranspose(7, 2)
    lsuv(keras.Sequential([keras.Input((4, 4, 5)), transposed]), np.ones((8, 4, 4, 5), "float32"))
    matrices.append(transposed.get_weights()[0].swapaxes(2, 3).reshape(20, 7))
    for matrix in matrices:
        gram = matrix.T @ matrix
        np.testing.assert_allclose(gram, gram[0, 0] * np.eye(len(gram)), atol=1e-4 * gram[0, 0])


def test_a_given_seed_leaves_python_s_generator():
    model, before = plain(), random.getstate()
    lsuv(model, X, seed=1)
    assert random.getstate() == before


def test_seeds():
    models = [plain() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        lsuv(model, X, seed=seed)
    first, same, other = (model.layers[1].get_weights()[0] for model in models)
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    square = keras.Sequential([keras.Input((12,)), layers.Dense(12), layers.Dense(12)])
    lsuv(square, X, seed=1)
    one, two = (layer.get_weights()[0] / layer.get_weights()[0].std() for layer in square.layers)
    assert not np.allclose(one, two, atol=0.1)


def test_mixed_precision_keeps_single_precision_kernels():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((12,)), layers.Dense(16, kernel_initializer="he_normal")])
    before = model.layers[0].get_weights()[0]
    report = lsuv(model, X, orthonormal=False)
    after = model.layers[0].get_weights()[0]
    assert report.rows[0].converged
    np.testing.assert_allclose(after / before, (after / before)[0, 0], rtol=1e-6)


def test_what_cannot_be_scaled_is_reported():
    model = plain()
    before = state(model)
    report = lsuv(model, np.zeros((8, 12), "float32"))
    for row in report.rows[:2]:  # no use made of them: the old values
        np.testing.assert_array_equal(state(model)[row.kernel], before[row.kernel])
        assert row.stddev == row.stddev_before
    assert [row.converged for row in report.rows] == [False, False, True]  # there is a bias before the last one
    text = str(report)
    assert text.splitlines()[0].split("  ")[0] == "kernel" and "False" in text
    slow = keras.Sequential(
        [keras.Input((12,)), layers.Dense(4, bias_initializer=keras.initializers.RandomNormal(stddev=5.0))]
    )
    before = slow.get_weights()[0]
    assert lsuv(slow, X, max_divisions=1).rows[0].divisions == 1
    np.testing.assert_array_equal(slow.get_weights()[0], before)


@pytest.mark.parametrize(
    ("arguments", "error", "pattern"),
    [
        ({"model": "model"}, TypeError, "`model` must be a keras.Model. Received: model='model'"),
        ({"tolerance": 0}, ValueError, r"`tolerance` must lie in \(0, inf\)"),
        ({"max_divisions": 0}, ValueError, "`max_divisions` must be an int >= 1"),
        ({"orthonormal": 1}, TypeError, "`orthonormal` must be True or False"),
        ({"seed": "a"}, TypeError, "`seed` must be None, an int or"),
        ({"x": "x"}, TypeError, "`x` must be a batch as `model` takes it: an array .*Received: x='x'"),
        ({"x": None}, TypeError, "`x` must be a batch as `model` takes it.*Received: x=None"),
        ({"x": []}, ValueError, r"`x` must be a batch as `model` takes it.*Received: x=\[\]"),
        ({"x": X[:0]}, ValueError, "`x` must have a sample at least. Received: x with a part of shape"),
    ],
)
def test_bad_arguments(arguments, error, pattern):
    with pytest.raises(error, match=pattern):
        lsuv(**{"model": plain(), "x": X, **arguments})


def test_a_model_without_kernels():
    model = keras.Sequential([keras.Input((12,)), layers.BatchNormalization()])
    with pytest.raises(ValueError, match="`model` must have a kernel in a layer that runs eagerly"):
        lsuv(model, X)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_is_refused_and_nothing_changes(value):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    before, x = model.get_weights(), np.zeros((8, 4), "float32")
    x[5, 2] = value
    for function in (lsuv, signal_propagation):
        with pytest.raises(ValueError, match=r"`x` must be finite. Received: NaN or an infinity at \[5, 2\]"):
            function(model, x)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
