"""Networks whose fate without normalisation is known, of every kind; numbers counted again in NumPy; no traces."""

import keras
import numpy as np
import pytest

from tf_tricks.debug import without_batch_norm

ops, layers = keras.ops, keras.layers
X = np.random.default_rng(0).normal(size=(96, 16)).astype("float32")
Y = np.random.default_rng(1).normal(size=(96, 3)).astype("float32")
HE = float(np.sqrt(2 / 32))
DEPTH = 6


def kernel(stddev):
    return keras.initializers.RandomNormal(stddev=stddev)


def blocks(stddev, depth=DEPTH):
    for i in range(depth):
        yield layers.Dense(32, kernel_initializer=kernel(stddev), name=f"dense_{i}")
        yield layers.BatchNormalization(name=f"normalise_{i}")
        yield layers.Activation("relu", name=f"relu_{i}")


def sequential(stddev):
    return keras.Sequential([keras.Input((16,)), *blocks(stddev), layers.Dense(3, name="outputs")])


def functional(stddev):
    inputs = keras.Input((16,))
    inner = keras.Sequential([keras.Input((16,)), *blocks(stddev)])  # a nested model, as from keras.applications
    return keras.Model(inputs, layers.Dense(3, name="outputs")(inner(inputs)))


class Subclassed(keras.Model):
    def __init__(self, stddev):
        super().__init__()
        self.blocks = list(blocks(stddev))
        self.outputs_layer = layers.Dense(3, name="outputs")

    def call(self, x, training=False):
        for layer in self.blocks:
            x = layer(x, training=training) if isinstance(layer, layers.BatchNormalization) else layer(x)
        return self.outputs_layer(x)


def compiled(model, rate=0.01, **kwargs):
    model.compile(keras.optimizers.SGD(rate), kwargs.pop("loss", "mse"), jit_compile=False, **kwargs)
    return model


def quick(model, x=X, y=Y, **kwargs):
    return without_batch_norm(model, x, y, **{"steps": 2, "seconds": None, "verbose": 0, **kwargs})


def state(model):
    return [np.array(ops.convert_to_numpy(v)) for v in [*model.variables, *model.optimizer.variables]]


@pytest.mark.parametrize("kind", [sequential, functional, Subclassed])
def test_hidden_explosion_is_found_with_its_numbers_and_the_step_of_the_first_nan(kind):
    model = compiled(kind(2.5), 0.05)
    result = quick(model)
    finding = result.named("batch_norm_hides")
    assert not result.passed and finding.evidence["kind"] == "explodes", str(result)
    at = finding.evidence["layer"]
    assert at in ("dense_1", "dense_2") and len(result.layers) == DEPTH
    assert finding.evidence["without"] > 20 * finding.evidence["with"] / 3
    assert finding.evidence["end_without"] > 1e5 > 100 > finding.evidence["end_with"]
    # The loss is huge at the first step, and its update makes the second one overflow.
    assert result.non_finite_step == 1 == result.report.step
    assert result.report.origin == "forward" and result.report.layer.startswith("dense")
    assert finding.evidence["non_finite_layer"] == result.report.layer
    assert all(np.isfinite(step.loss) for step in result.original_steps) and len(result.original_steps) == 2
    text = str(result)
    assert f"hiding exploding activations from `{at}` on" in text and "at step 1" in text
    assert len(text.splitlines()) <= 40 and max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("kind", [sequential, Subclassed])
def test_variance_scaling_is_healthy_without(kind):
    result = quick(compiled(kind(HE)))
    assert result.findings == [] and result.passed and result.report is None, str(result)


def test_hidden_vanishing():
    finding = quick(compiled(sequential(0.02))).named("batch_norm_hides")
    assert finding.evidence["kind"] == "vanishes" and "vanishing activations" in finding.text


def test_statistics_without_are_those_of_numpy_and_the_model_is_as_it_was():
    model = compiled(sequential(1.5))
    model.train_on_batch(X[:32], Y[:32])
    weights = [(layer.get_weights()) for layer in model.layers if isinstance(layer, layers.Dense)]
    before, config = state(model), [layer.get_config() for layer in model.layers]
    calls = [vars(layer).get("call") for layer in model.layers]
    result = quick(model, X[:32], Y[:32], batch_size=32)
    hidden = X[:32]
    rows = {row.layer: row.stddev for row in result.bare.rows}
    for i, (matrix, bias) in enumerate(weights[:-1]):
        hidden = hidden @ matrix + bias
        assert rows[f"dense_{i}"] == pytest.approx(hidden.std(), rel=1e-3)
        hidden = np.maximum(hidden, 0)
    outputs = hidden @ weights[-1][0] + weights[-1][1]
    assert result.bare_steps[0].loss == pytest.approx(np.mean((outputs - Y[:32]) ** 2), rel=1e-3)
    for a, b in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [layer.get_config() for layer in model.layers] == config
    assert [vars(layer).get("call") for layer in model.layers] == calls
    assert all(layer.trainable for layer in model.layers)


def test_original_steps_are_those_of_train_on_batch_and_gradients_those_of_the_loss():
    model = compiled(keras.Sequential([keras.Input((16,)), layers.BatchNormalization(), layers.Dense(3)]), 0.1)
    result = quick(model, X[:32], Y[:32], steps=3)
    matrix, bias = model.layers[-1].get_weights()
    for i in range(3):
        error = X[:32] @ matrix + bias - Y[:32]
        gradients = 2 * X[:32].T @ error / error.size, 2 * error.sum(axis=0) / error.size
        assert result.bare_steps[i].loss == pytest.approx(np.mean(error**2), rel=1e-4)
        norm = np.sqrt(sum(np.sum(gradient**2) for gradient in gradients))
        assert result.bare_steps[i].gradient_norm == pytest.approx(norm, rel=1e-3)
        matrix, bias = matrix - 0.1 * gradients[0], bias - 0.1 * gradients[1]
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    compiled(twin, 0.1)
    losses = []  # all samples are in each batch, so their order does not matter
    for _ in range(3):
        losses.append(float(twin.train_on_batch(X[:32], Y[:32], return_dict=True)["loss"]))
    assert [step.loss for step in result.original_steps] == pytest.approx(losses, rel=1e-4)


def test_a_rate_that_only_the_normalised_network_stands_is_a_remark():
    inputs = 30 * X
    model = keras.Sequential([keras.Input((16,)), layers.BatchNormalization(), layers.Dense(3)])
    result = quick(compiled(model, 0.02), inputs)
    assert result.passed and result.findings[0].name == "needs_batch_norm", str(result)
    assert quick(compiled(model, 1e-5), inputs).findings == []


def test_a_model_that_is_ill_with_normalisation_too_says_so():
    stack = [layers.Dense(32, kernel_initializer=kernel(3.0)) for _ in range(6)]
    model = keras.Sequential([keras.Input((16,)), layers.BatchNormalization(), *stack, layers.Dense(3)])
    result = quick(compiled(model))
    assert [finding.name for finding in result.findings] == ["unhealthy"] and not result.passed


class OwnStep(Subclassed):
    """Whose loss only its `train_step` knows."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(y - y_pred))


def test_own_loss_datasets_and_several_inputs():
    result = quick(compiled(OwnStep(2.5), 0.05, loss=None))
    assert result.named("batch_norm_hides") is not None
    batches = ((X[i : i + 16], Y[i : i + 16]) for i in range(0, 96, 16))
    result = without_batch_norm(compiled(sequential(HE)), batches, steps=2, seconds=None, verbose=0)
    assert result.passed and len(result.bare_steps) == 2
    a, b = keras.Input((16,), name="a"), keras.Input((16,), name="b")
    joined = layers.BatchNormalization()(layers.Dense(8)(layers.add([a, b])))
    outputs = {"left": layers.Dense(3, name="left")(joined), "right": layers.Dense(1, name="right")(joined)}
    model = compiled(keras.Model({"a": a, "b": b}, outputs), loss={"left": "mse", "right": "mae"})
    assert quick(model, {"a": X, "b": X}, {"left": Y, "right": Y[:, :1]}).passed


def test_deterministic_and_drawn(tmp_path, capsys):
    model = compiled(sequential(1.0))
    first, second = quick(model, steps=2), quick(model, steps=2)
    assert first.original_steps == second.original_steps
    assert capsys.readouterr().out == ""
    first.plot(tmp_path / "signals.png")
    assert (tmp_path / "signals.png").stat().st_size > 1000


def test_mistakes():
    bare = compiled(keras.Sequential([keras.Input((16,)), layers.Dense(3)]))
    with pytest.raises(TypeError, match="`model` must be a keras.Model. Received: model=3"):
        without_batch_norm(3, X, Y)
    with pytest.raises(ValueError, match=r"`model` must have a layer to take out \(BatchNormalization\)"):
        quick(bare)
    with pytest.raises(ValueError, match="`model` must be compiled"):
        quick(sequential(HE))
    with pytest.raises(ValueError, match="`y` must hold the targets"):
        quick(compiled(sequential(HE)), X, None)
    with pytest.raises(TypeError, match="`bypass` must be a layer class"):
        quick(bare, bypass="norm")
    with pytest.raises(ValueError, match="`batch_size` must be an int >= 2"):
        quick(bare, batch_size=1)
    with pytest.raises(ValueError, match="`x` must be finite"):
        quick(compiled(sequential(HE)), np.full_like(X, np.nan))


def test_of_a_trained_model_it_is_a_remark():
    model = compiled(sequential(1.0))
    assert not quick(model).passed
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(100)
    result = quick(model)
    assert result.passed and "no word on their initialisation" in result.findings[0].text
