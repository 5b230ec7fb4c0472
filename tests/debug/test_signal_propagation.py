"""Statistics and gradients counted again in NumPy, verdicts on networks whose fate is known, and no traces."""

import random

import keras
import numpy as np
import pytest

from tf_tricks.debug import signal_propagation
from tf_tricks.debug._layer_signals import limits

ops, layers = keras.ops, keras.layers
X = np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
Y = np.random.default_rng(1).normal(size=(64, 3)).astype("float32")


def compiled(model, **kwargs):
    model.compile("adam", "mse", **{"jit_compile": False, **kwargs})
    return model


def deep(stddev, depth=12, normalisation=False, activation="relu"):
    blocks = []
    for _ in range(depth):
        blocks.append(layers.Dense(32, kernel_initializer=keras.initializers.RandomNormal(stddev=stddev)))
        blocks += [layers.BatchNormalization()] * normalisation
        blocks[-1] = layers.BatchNormalization() if normalisation else blocks[-1]
        blocks.append(layers.Activation(activation))
    return compiled(keras.Sequential([keras.Input((16,)), *blocks, layers.Dense(3)]))


def state(model):
    return [np.array(ops.convert_to_numpy(v)) for v in [*model.variables, *model.optimizer.variables]]


def test_statistics_and_gradients_are_those_of_numpy():
    model = compiled(keras.Sequential([keras.Input((16,)), layers.Dense(8, activation="tanh"), layers.Dense(3)]))
    (w1, b1), (w2, b2) = (layer.get_weights() for layer in model.layers)
    hidden = np.tanh(X @ w1 + b1)
    out = hidden @ w2 + b2
    out_gradient = 2 * (out - Y) / out.size
    hidden_gradient = out_gradient @ w2.T
    result = signal_propagation(model, X, Y)
    for row, values, gradient in zip(result.rows, (hidden, out), (out_gradient @ w2.T, out_gradient), strict=True):
        assert row.mean == pytest.approx(values.mean(), abs=1e-5)
        assert row.stddev == pytest.approx(values.std(), rel=1e-4)
        assert row.sample_stddev == pytest.approx(np.sqrt(values.var(axis=0).mean()), rel=1e-4)
        assert row.gradient_stddev == pytest.approx(gradient.std(), rel=1e-3)
    assert hidden_gradient.shape == hidden.shape
    assert result.rows[0].saturated == pytest.approx(np.mean(np.abs(hidden) > 0.98), abs=1e-3)
    assert (result.rows[1].saturated, result.without_batch_norm) == (None, None)


def test_gradients_behind_integers_are_those_of_floats():
    """What is computed from integers depends on nothing that a gradient goes to, and yet takes part."""
    x = np.random.default_rng(2).integers(0, 256, (64, 16)).astype("uint8")
    blocks = [layers.Rescaling(1 / 255), layers.Dense(8, activation="tanh"), layers.Dense(3)]
    model = compiled(keras.Sequential([keras.Input((16,)), *blocks]))
    (w1, b1), (w2, b2) = (layer.get_weights() for layer in model.layers[1:])
    out_gradient = 2 * (np.tanh(x / 255 @ w1 + b1) @ w2 + b2 - Y) / Y.size
    rows = signal_propagation(model, x, Y).rows
    assert rows[-2].gradient_stddev == pytest.approx((out_gradient @ w2.T).std(), rel=1e-3)
    assert rows[-1].gradient_stddev == pytest.approx(out_gradient.std(), rel=1e-3)


@pytest.mark.parametrize(
    ("stddev", "signal", "gradient"),
    [
        (np.sqrt(2 / 32), "healthy", None),
        (0.05, "the signal vanishes", "the gradient vanishes"),
        (1.0, "explodes", "explodes"),
    ],
)
def test_verdicts(stddev, signal, gradient):
    result = signal_propagation(deep(stddev), X, Y)
    parts = result.verdict.split("; ")
    assert signal in parts[0], str(result)
    if gradient:
        assert gradient in parts[1]
        start = parts[0].split("`")[1]
        by_name = {row.layer: row.stddev for row in result.rows}
        kernels = [row.layer for row in result.rows if row.has_kernel]
        reference = by_name[kernels[0]]
        at = kernels.index(start)
        assert all(abs(np.log(by_name[name] / reference)) > np.log(20) for name in kernels[at:-1])
        assert abs(np.log(by_name[kernels[at - 1]] / reference)) <= np.log(20)


def transformer(embeddings):
    inputs = keras.Input((16,), dtype="int32")
    x = layers.Embedding(50, 32, embeddings_initializer=embeddings)(inputs)
    for _ in range(2):
        y = layers.LayerNormalization()(x)
        x = x + layers.MultiHeadAttention(2, 16)(y, y)
        y = layers.LayerNormalization()(x)
        x = x + layers.Dense(32)(layers.Dense(64, activation="gelu")(y))
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return compiled(keras.Model(inputs, layers.Dense(3)(x)))


def test_a_small_embedding_that_is_normalised_is_healthy():
    x = np.random.default_rng(0).integers(0, 50, (64, 16))
    result = signal_propagation(transformer("uniform"), x, Y)
    assert not result.rows[0].has_kernel and result.rows[0].stddev < 0.05
    assert result.verdict.startswith("healthy: the stddev of the layers' outputs and of their gradients"), str(result)


def convolutions(last=()):
    blocks = []
    for _ in range(4):
        convolution = layers.Conv2D(8, 3, padding="same", use_bias=False)
        blocks += [convolution, layers.BatchNormalization(), layers.ReLU()]
    blocks += [layers.GlobalAveragePooling2D(), *last, layers.Dense(3)]
    return compiled(keras.Sequential([keras.Input((8, 8, 3)), *blocks]))


def test_inputs_of_any_scale_before_a_normalisation_are_healthy():
    x = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype("float32")
    result = signal_propagation(convolutions(), x, Y)
    assert result.rows[0].stddev > 20 * result.rows[3].stddev
    assert result.verdict.startswith("healthy"), str(result)


@pytest.mark.parametrize(("stddev", "fate"), [(0.01, "vanishes"), (3.0, "explodes")])
def test_what_is_lost_after_the_last_normalisation_is_found(stddev, fate):
    x = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype("float32")
    kernel = keras.initializers.RandomNormal(stddev=stddev)
    result = signal_propagation(convolutions([layers.Dense(32, kernel_initializer=kernel) for _ in range(6)]), x, Y)
    assert f"the signal {fate} from `dense" in result.verdict and f"the gradient {fate}" in result.verdict, str(result)


def test_an_exploded_signal_is_no_number():
    keras.utils.set_random_seed(1)
    with np.errstate(all="ignore"):
        result = signal_propagation(deep(1e6, activation="linear"), X)
    assert "the signal explodes from `dense" in result.verdict
    assert not np.isfinite(result.rows[-1].stddev)
    result.plot()


def test_zeros_and_saturation():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(64, activation="relu"), layers.Dense(64)])
    model.add(layers.Activation("sigmoid"))
    model.layers[1].kernel.assign(100 * model.layers[1].kernel)
    result = signal_propagation(model, X)
    first, _, last = result.rows
    values = ops.convert_to_numpy(model.layers[0](X))
    assert first.zeros == pytest.approx(np.mean(values == 0), abs=1e-6)
    assert first.saturated is None and last.saturated > 0.8
    text = str(result)
    assert "zeros" in text.splitlines()[0] and "gradient" not in text.splitlines()[0]


def test_limits_of_activations():
    found = {
        name: limits(keras.activations.get(name)) for name in ("tanh", "sigmoid", "relu", "relu6", "gelu", "linear")
    }
    assert found["tanh"] == (-1, 1) and found["sigmoid"] == (0, 1) and found["relu6"] == (0, 6)
    assert all(None in found[name] for name in ("relu", "gelu", "linear"))
    assert limits(None) == (None, None)
    assert limits(keras.activations.glu) == (None, None)  # it halves the axis: not elementwise
    model = keras.Sequential([keras.Input((16,)), layers.Dense(8, activation="glu")])
    assert signal_propagation(model, X).rows[0].saturated is None


@pytest.mark.parametrize("stddev", [0.01, 1.0])
def test_what_batch_normalisation_hides(stddev):
    model = deep(stddev, normalisation=True)
    result = signal_propagation(model, X)
    assert result.verdict.startswith("healthy")
    fate = "vanishes" if stddev < 0.1 else "explodes"
    assert f"Normalisation hides a bad initialisation: without it the signal {fate} from `dense" in result.verdict
    assert fate in result.without_batch_norm.verdict
    # The same kernels in a network without normalisation: the same numbers.
    kernels = [layer for layer in model.layers if isinstance(layer, layers.Dense)]
    bare = keras.Sequential([keras.Input((16,))])
    for layer in kernels:
        bare.add(layers.Dense(layer.units, activation="relu" if layer is not kernels[-1] else None))
        bare.layers[-1].set_weights(layer.get_weights())
    expected = signal_propagation(bare, X).rows
    got = [row for row in result.without_batch_norm.rows if "activation" in row.layer] + result.without_batch_norm.rows[
        -1:
    ]
    np.testing.assert_allclose([row.stddev for row in got], [row.stddev for row in expected], rtol=1e-3)
    assert not [row for row in result.without_batch_norm.rows if "normalization" in row.layer]


def test_a_good_initialisation_has_nothing_to_hide():
    result = signal_propagation(deep(np.sqrt(2 / 32), depth=6, normalisation=True), X, Y)
    assert result.verdict.startswith("healthy") and result.without_batch_norm.verdict.startswith("healthy")
    assert "hides" not in result.verdict


def test_other_normalisations_are_bypassed_on_request():
    blocks = [
        layer for _ in range(4) for layer in (layers.Dense(16, kernel_initializer="zeros"), layers.LayerNormalization())
    ]
    model = keras.Sequential([keras.Input((16,)), *blocks])
    assert signal_propagation(model, X).without_batch_norm is None
    assert signal_propagation(model, X, bypass=(layers.LayerNormalization,)).without_batch_norm is not None


def test_a_normalisation_in_time_distributed_is_bypassed_too():
    """`TimeDistributed` calls `layer.call`, which nobody sees."""
    kernel = keras.initializers.RandomNormal(stddev=0.01)
    model = keras.Sequential([keras.Input((2, 16))])
    for _ in range(4):
        model.add(layers.Dense(16, kernel_initializer=kernel))
        model.add(layers.TimeDistributed(layers.BatchNormalization()))
    model.add(layers.Dense(3))
    result = signal_propagation(model, X.reshape(32, 2, 16))
    assert "Normalisation hides a bad initialisation: without it the signal vanishes" in result.verdict
    assert [row.normalizes for row in result.rows] == [False, True] * 4 + [False]
    assert len(result.without_batch_norm.rows) == 5


def test_nothing_of_the_user_s_changes():
    model = compiled(
        keras.Sequential(
            [
                keras.Input((16,)),
                layers.Dense(16, activity_regularizer="l2"),
                layers.BatchNormalization(),
                layers.Dropout(0.5),
                layers.GaussianNoise(0.1),
                layers.Dense(3),
            ]
        ),
        metrics=["mae"],
    )
    model.fit(X, Y, verbose=0)
    before, attributes = state(model), [sorted(vars(layer)) for layer in [model, *model.layers]]
    metrics = [np.array(ops.convert_to_numpy(v)) for v in model.metrics_variables]
    random.seed(1)
    np.random.seed(1)
    door = keras.Operation.__call__
    result = signal_propagation(model, X, Y)
    drawn = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    assert drawn == (random.random(), np.random.rand())
    assert keras.Operation.__call__ is door
    assert [sorted(vars(layer)) for layer in [model, *model.layers]] == attributes
    for old, new in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(old, new)
    for old, new in zip(metrics, model.metrics_variables, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(new))
    again = signal_propagation(model, X, Y)
    assert again == result  # dropout draws the same numbers, because its state was given back
    model.fit(X, Y, verbose=0)


class Shared(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.twice, self.out = layers.Dense(8, name="first"), layers.Dense(8, name="twice"), layers.Dense(3)
        self.normalisation = layers.BatchNormalization()

    def call(self, inputs):
        return self.out(self.twice(ops.tanh(self.twice(self.normalisation(self.first(inputs))))))


def test_subclassed_and_shared_and_not_yet_built():
    model = compiled(Shared())
    result = signal_propagation(model, X, Y)
    assert [row.layer for row in result.rows][:4:3] == ["first", "twice#2"]
    assert all(row.gradient_stddev > 0 for row in result.rows)
    gradients = {row.layer: row.gradient_stddev for row in result.without_batch_norm.rows}
    assert gradients["twice"] != gradients["twice#2"]


def test_recurrent_and_attention_layers():
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 8)(inputs)
    x = layers.LSTM(6)(x + layers.MultiHeadAttention(2, 4)(x, x))
    model = compiled(keras.Model(inputs, layers.Dense(3)(x)))
    result = signal_propagation(model, np.random.default_rng(0).integers(0, 9, (64, 5)), Y)
    names = [row.layer.rstrip("0123456789_") for row in result.rows]
    assert names.count("lstm") == 1 and "lstm_cell" not in names and "attention_output" in names
    by_name = dict(zip(names, result.rows, strict=True))
    assert by_name["lstm"].gradient_stddev > 0 and by_name["attention_output"].gradient_stddev > 0


def test_samples_that_all_look_alike():
    model = keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(16),
            layers.Dense(16, bias_initializer=keras.initializers.RandomNormal(stddev=1.0)),
            layers.Dense(16),
        ]
    )
    model.layers[1].kernel.assign(0.001 * model.layers[1].kernel)
    assert f"all samples look alike from `{model.layers[1].name}` on" in signal_propagation(model, X).verdict


def test_plot(tmp_path):
    result = signal_propagation(deep(0.1, depth=4, normalisation=True), X, Y)
    figure = result.plot(tmp_path / "signal.png")
    assert (tmp_path / "signal.png").stat().st_size > 10_000
    assert len(figure.axes) == 3
    lines = figure.axes[0].lines[0]
    np.testing.assert_allclose(lines.get_ydata(), [row.stddev for row in result.rows])
    assert len(signal_propagation(deep(0.1, depth=2), X).plot().axes) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "pattern"),
    [
        ({"model": 3}, TypeError, "`model` must be a keras.Model. Received: model=3"),
        ({"bypass": "batch"}, TypeError, "`bypass` must be a layer class or a tuple of them. Received: bypass='batch'"),
        ({"bypass": ()}, TypeError, "`bypass` must be a layer class"),
        ({"y": Y[:, :2]}, ValueError, "`y` must fit the model and its loss. Received: y=.64, 2."),
    ],
)
def test_bad_arguments(arguments, error, pattern):
    with pytest.raises(error, match=pattern):
        signal_propagation(**{"model": deep(0.1, depth=1), "x": X, **arguments})


def test_gradients_need_a_compiled_model():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="`y` must be None for a model that is not compiled"):
        signal_propagation(model, X, Y)
