"""Planted errors of 1 %, kinks, steps and stopped gradients beside healthy twins; known functions."""

import keras
import numpy as np
import pytest

from tf_tricks.debug import check_gradients
from tf_tricks.debug._finite_differences import compare, flatness, measured_noise
from tf_tricks.fit_hooks.precision import computing_in

layers, ops = keras.layers, keras.ops
X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 16)
ARGUMENTS = {"seconds": None, "steps": 60, "verbose": 0}


class Matmul(layers.Layer):
    """A matrix product whose custom gradients are off by factors."""

    def __init__(self, units, of_inputs=1.0, of_kernel=1.0, **kwargs):
        super().__init__(**kwargs)
        self.units, self.factors = units, (of_inputs, of_kernel)

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), name="kernel")

    def call(self, inputs):
        @ops.custom_gradient
        def product(x, kernel):
            def gradient(*args, upstream=None):
                upstream = args[0] if upstream is None else upstream
                of_x, of_kernel = ops.matmul(upstream, ops.transpose(kernel)), ops.matmul(ops.transpose(x), upstream)
                return self.factors[0] * of_x, self.factors[1] * of_kernel

            return ops.matmul(x, kernel), gradient

        return product(inputs, 1.0 * self.kernel)


class Operation(layers.Layer):
    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


def network(*between, loss="sparse_categorical_crossentropy", first="tanh"):
    blocks = [layers.Dense(5, first, name="first"), *between, layers.Dense(3, "softmax", name="last")]
    model = keras.Sequential([keras.Input((6,)), *blocks])
    model.compile("adam", loss, metrics=["accuracy"])
    return model


def verdicts(result):
    return {row.variable.partition("/")[2]: row.verdict for row in result.rows}


def test_a_healthy_model_is_right_in_double_precision_and_stays_as_it_is():
    model = network(layers.BatchNormalization(), layers.Dropout(0.3), Matmul(5))
    before = [np.array(ops.convert_to_numpy(v.value)) for v in model.variables]
    result = check_gradients(model, X, Y, **ARGUMENTS)
    assert (result.passed, result.findings, result.precision) == (True, [], "float64"), str(result)
    assert set(verdicts(result).values()) == {"right"} and max(row.error for row in result.rows) < 1e-5
    assert keras.config.floatx() == "float32" and model.layers[0].compute_dtype == "float32"
    assert keras.losses.MeanSquaredError().dtype == "float32"
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable.value), value)
    lines = str(result).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 110
    result.plot()


@pytest.mark.parametrize("of_inputs", [True, False], ids=["inputs", "weight"])
def test_a_custom_gradient_that_is_off_by_one_percent_is_found_and_its_layer_named(of_inputs):
    factors = (1.01, 1.0) if of_inputs else (1.0, 1.01)
    result = check_gradients(network(Matmul(5, *factors, name="bad"), layers.Dense(4)), X, Y, **ARGUMENTS)
    finding = result.named("wrong_gradient")
    assert not result.passed and finding.evidence["layer"] == "bad", str(result)
    assert finding.evidence["factor"] == pytest.approx(1.01, abs=1e-4)
    assert (finding.evidence["inputs"], len(finding.evidence["weights"])) == ((True, 0) if of_inputs else (False, 1))
    wrong = {name for name, verdict in verdicts(result).items() if verdict == "wrong"}
    assert wrong == ({"first/kernel", "first/bias"} if of_inputs else {"bad/kernel"})


def test_an_error_of_one_percent_in_a_weak_branch_is_found_and_its_layer_named():
    inputs = keras.Input((6,))
    hidden = layers.Dense(5, "tanh", name="first")(inputs)
    branch = layers.Rescaling(0.05)(Matmul(5, 1.01, name="bad")(hidden))
    model = keras.Model(inputs, layers.Dense(3, "softmax", name="last")(layers.Add()([hidden, branch])))
    model.compile("adam", "sparse_categorical_crossentropy")
    result = check_gradients(model, X, Y, **ARGUMENTS)
    assert [finding.evidence["layer"] for finding in result.findings] == ["bad"], str(result)
    wrong = [row for row in result.rows if row.verdict == "wrong"]
    assert [row.variable for row in wrong] == ["first/kernel", "first/bias"] and wrong[0].error < 1e-3


def test_a_wrong_gradient_of_the_loss_is_named():
    def loss(y_true, y_pred):
        # The value of the one and the gradient of the other.
        value = ops.mean(ops.square(ops.one_hot(ops.cast(y_true[:, 0], "int32"), 3) - y_pred), axis=-1)
        return 1.01 * value - ops.stop_gradient(0.01 * value)

    result = check_gradients(network(loss=loss), X, Y[:, None], **ARGUMENTS)
    assert [finding.evidence["layer"] for finding in result.findings] == [None], str(result)
    assert result.findings[0].evidence["factor"] == pytest.approx(1.01, abs=1e-3)


@pytest.mark.parametrize(
    ("function", "name", "verdict"),
    [(lambda x: ops.round(4 * x), "not_differentiable", "steps"), (ops.stop_gradient, "blocked", "blocked")],
    ids=["round", "stop_gradient"],
)
def test_an_operation_without_a_gradient_is_named(function, name, verdict):
    result = check_gradients(network(Operation(function, name="planted")), X, Y, **ARGUMENTS)
    assert [finding.name for finding in result.findings] == [name], str(result)
    evidence = result.findings[0].evidence
    assert evidence["layer"] == "planted"
    assert {path.partition("/")[2] for path in evidence["variables"]} == {"first/kernel", "first/bias"}
    assert verdicts(result)["first/kernel"] == verdict and verdicts(result)["last/kernel"] == "right"


def test_a_kink_is_no_error_and_what_the_loss_ignores_is_disconnected():
    inputs = keras.Input((6,))
    hidden = layers.Dense(5, "relu", name="kinked")(inputs)
    model = keras.Model(inputs, [layers.Dense(3, "softmax")(hidden), layers.Dense(1, name="unused")(hidden)])
    model.compile("sgd", ["sparse_categorical_crossentropy", None])
    zeros = np.zeros_like(X)  # with a bias of zero all units sit on the kink
    result = check_gradients(model, zeros, [Y, np.zeros((16, 1))], **ARGUMENTS)
    found = {row.variable: row.verdict for row in result.rows}
    assert found["kinked/bias"] == "kink" and result.named("kinks").is_fault is False, str(result)
    assert {name for name, verdict in found.items() if verdict == "disconnected"} >= {"unused/kernel", "unused/bias"}
    assert result.named("wrong_gradient") is None


def test_a_zero_gain_a_bias_before_a_normalisation_and_frozen_layers_are_silent():
    class Gain(layers.Layer):
        def build(self, input_shape):
            self.gain = self.add_weight(shape=(), initializer="zeros", name="gain")

        def call(self, inputs):
            return self.gain * inputs

    inputs = keras.Input((6,))
    hidden = layers.BatchNormalization()(layers.Dense(5, name="before")(inputs))
    branch = Gain()(layers.Dense(5, name="branch")(hidden))
    model = keras.Model(inputs, layers.Dense(3, "softmax", name="out")(layers.Add()([hidden, branch])))
    model.get_layer("out").trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy")
    result = check_gradients(model, X, Y, **ARGUMENTS)
    assert result.passed, str(result)
    found = {row.variable: row.verdict for row in result.rows}
    assert found["branch/kernel"] == "zero" and not any(name.startswith("out/") for name in found)


def test_a_model_that_casts_to_float32_is_checked_in_float32():
    model = network(Operation(lambda x: ops.cast(ops.cast(x, "float32"), x.dtype)))
    result = check_gradients(model, X, Y, **ARGUMENTS)
    assert result.precision == "float32" and result.passed, str(result)


def test_a_loss_that_is_not_finite_and_wrong_arguments():
    model = network()
    result = check_gradients(model, np.full_like(X, np.nan), Y, **ARGUMENTS)
    assert [finding.name for finding in result.findings] == ["not_finite"] and not result.passed
    with pytest.raises(ValueError, match="`model` must be compiled"):
        check_gradients(keras.Sequential([layers.Dense(1)]), X, Y)
    with pytest.raises(TypeError, match="`model` must be a keras.Model"):
        check_gradients("model", X, Y)
    with pytest.raises(ValueError, match=r"`tolerance` must lie in \(0, 1\)"):
        check_gradients(model, X, Y, tolerance=1.5)
    model.trainable = False
    with pytest.raises(ValueError, match="`model` must have trainable weights"):
        check_gradients(model, X, Y)


def test_differences_of_known_functions():
    def judged(function, analytic, at=0.7, noise=1e-15):
        return compare(lambda t: function(at + t), function(at), analytic, 1e-5, noise, 1e-3).verdict

    assert judged(np.sin, np.cos(0.7)) == "right"
    assert judged(np.sin, 1.01 * np.cos(0.7)) == "wrong"
    assert judged(lambda t: 2 + max(t, 0.0), 0.0, at=0.0) == "kink"
    assert judged(lambda t: 1.0 + 1e-18 * t, 5e-17) == "unclear"
    # The step adapts: too large for the curvature, too small for the noise.
    assert judged(lambda t: np.sin(1e4 * t), 1e4 * np.cos(7e3)) == "right"
    rounded = compare(lambda t: float(np.float32(1 + np.sin(t))), 1.0, 1.0, 1e-5, 6e-8, 5e-3)
    assert rounded.verdict in ("right", "unclear")


def test_words_for_a_zero_gradient():
    words = {
        "unused": lambda t: 2.0,
        "blocked": lambda t: 2.0 + 0.3 * t,
        "steps": lambda t: 2.0 + np.round(5 * t),
        "level": lambda t: 2.0 + max(t - 0.2, 0.0),
    }
    assert {word: flatness(along, 2.0, 1.0, 1e-15) for word, along in words.items()} == {word: word for word in words}


def test_noise_is_that_of_the_rounding():
    assert measured_noise(lambda t: 3.0 + 2.0 * t, 1e-8) < 1e-14
    assert 1e-8 < measured_noise(lambda t: float(np.float32(3.0 + 2.0 * t)), 1e-6) < 1e-6


def test_computing_in_another_type_ends_with_the_block():
    model = network()
    with computing_in("float64", model):
        assert ops.convert_to_numpy(ops.add(np.float64(1.0), np.float64(2.0))).dtype == "float64"
        assert keras.losses.MeanSquaredError().dtype == "float64"
    assert (keras.config.floatx(), keras.losses.MeanSquaredError().dtype) == ("float32", "float32")
