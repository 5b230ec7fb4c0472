"""Each fault planted beside a healthy twin; bounds and entropies counted again in NumPy; no traces."""

import keras
import numpy as np
import pytest

from tf_tricks._backend import BACKEND
from tf_tricks.callbacks import NonFiniteReport
from tf_tricks.debug import overfit_one_batch
from tf_tricks.debug._overfit_findings import output_range
from tf_tricks.debug._targets import targets

layers, ops = keras.layers, keras.ops
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype("float32")
LABELS = RNG.integers(0, 3, 40)
JIT = "auto" if BACKEND == "jax" else False  # without it the steps of JAX take long, with it the first of TensorFlow
Y = RNG.normal(size=(40, 1)).astype("float32")


def compiled(model, loss, optimizer=None, **kwargs):
    optimizer = keras.optimizers.Adam(0.03) if optimizer is None else optimizer
    model.compile(optimizer, loss, jit_compile=JIT, **kwargs)
    return model


def regression(*extra, output=None, optimizer=None, loss="mse", activation="tanh"):
    first, last = layers.Dense(16, activation, name="first"), layers.Dense(1, output, name="last")
    return compiled(keras.Sequential([keras.Input((6,)), first, *extra, last]), loss, optimizer)


def classifier(loss="sparse_categorical_crossentropy", output="softmax", units=3):
    return compiled(keras.Sequential([keras.Input((6,)), layers.Dense(16, "relu"), layers.Dense(units, output)]), loss)


def run(model, x=X, y=Y, **kwargs):
    return overfit_one_batch(model, x, y, **{"seconds": None, "steps": 900, "verbose": 0, "samples": 3, **kwargs})


def state(model):
    return [np.array(ops.convert_to_numpy(v)) for v in [*model.variables, *model.optimizer.variables]]


@keras.saving.register_keras_serializable(package="tests")
class Cut(layers.Layer):
    def call(self, inputs):
        return ops.stop_gradient(inputs)


def test_a_healthy_regression_reaches_a_ten_thousandth_of_the_variance_and_is_as_before():
    model = regression()
    before = state(model)
    result = run(model)
    assert (result.fitted, result.passed, result.findings, result.samples) == (True, True, [], 3)
    assert result.final_loss <= result.bound and result.working_rate == result.learning_rate == pytest.approx(0.03)
    for a, b in zip(before, state(model), strict=False):
        np.testing.assert_array_equal(a, b)
    text = str(result)
    assert "3 samples learnt by heart" in text and max(map(len, text.splitlines())) <= 110


def test_a_healthy_classifier_is_silent_and_needs_every_sample():
    result = run(classifier(), y=LABELS)
    assert (result.passed, result.findings, result.accuracy) == (True, [], 1.0)


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        ("categorical_crossentropy", RNG.dirichlet([1, 1, 1], 5)),
        (keras.losses.CategoricalCrossentropy(label_smoothing=0.2), np.eye(3)[[0, 1, 2, 0, 1]]),
        (keras.losses.CategoricalCrossentropy(from_logits=True), RNG.dirichlet([1, 1, 1], 5)),
        ("binary_crossentropy", RNG.uniform(0, 1, (5, 3))),
        (keras.losses.BinaryCrossentropy(from_logits=True), RNG.uniform(0, 1, (5, 3))),
    ],
    ids=["soft", "smoothed", "logits", "binary", "binary_logits"],
)
def test_the_best_predictions_have_the_entropy_of_the_targets_as_loss(loss, y):
    model = compiled(keras.Sequential([keras.Input((6,)), layers.Dense(3)]), loss)
    (target,) = targets(model, y, np.zeros((5, 3), "float32"))
    p = y * 0.8 + 0.2 / 3 if target.smoothing else y
    entropy = -np.sum(p * np.log(p), -1) if target.kind == "categorical" else None
    if entropy is None:
        entropy = np.mean(-p * np.log(p) - (1 - p) * np.log(1 - p), -1)
    function = keras.losses.get(loss)
    floor = float(ops.mean(function(ops.convert_to_tensor(y.astype("float32")), target._outputs(p))))
    assert floor == pytest.approx(np.mean(entropy), rel=1e-4)
    bound = float(ops.mean(function(ops.convert_to_tensor(y.astype("float32")), target.nearly_best())))
    assert floor < bound < floor + 0.03


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("mse", lambda e: e**2), ("mae", lambda e: e), ("huber", lambda e: e**2 / 2)],
    ids=["mse", "mae", "huber"],
)
def test_the_bound_of_a_regression_is_an_error_of_one_percent_of_the_deviation(loss, expected):
    few = run(regression(layers.BatchNormalization(), loss=loss), X[:3], Y[:3], steps=2)
    assert few.bound == pytest.approx(expected(0.01 * np.std(Y[:3])), rel=1e-2)
    one = run(regression(loss=loss), X[:1], Y[:1], samples=1, steps=2)
    assert one.bound == pytest.approx(expected(0.01 * abs(float(Y[0, 0]))), rel=1e-2)
    # One of many has the spread of all of them, and the first of three that of the three.
    one = run(regression(loss=loss), samples=1, steps=2)
    assert one.bound == pytest.approx(expected(0.01 * np.std(Y)), rel=1e-2)
    first = run(regression(loss=loss), X[:3], Y[:3], steps=2)
    assert first.samples == 1 and first.bound == pytest.approx(expected(0.01 * np.std(Y[:3])), rel=1e-2)


@pytest.mark.parametrize("alone", [False, True], ids=["first", "all"])
def test_a_target_of_0_is_learnt(alone):
    y = 0 * Y if alone else np.where(np.arange(40)[:, None] == 0, 0, Y)
    result = run(regression(optimizer=keras.optimizers.SGD(0.1)), y=y, samples=1 if alone else 3, steps=1500)
    assert result.passed and result.fitted and result.bound > 0


def test_soft_labels_are_learnt_down_to_their_entropy():
    y = RNG.dirichlet([2, 2, 2], 4).astype("float32")
    result = run(classifier("categorical_crossentropy"), X[:4], y)
    assert result.passed and result.bound > -np.sum(y * np.log(y), -1).mean() * 0.99


# --- planted faults -----------------------------------------------------------------------------------------------
def test_a_gradient_that_is_cut_is_named_with_the_layers_before_it():
    result = run(regression(Cut(name="cut")))
    assert not result.passed
    finding = result.named("no_gradient")
    assert finding.evidence["layers"] == ["first"] and "stop_gradient" in finding.text
    assert run(regression(layers.Identity(name="cut"))).findings == []


def test_dead_relus_are_named():
    model = regression(activation="relu")
    model.get_layer("first").bias.assign(np.full(16, -100.0))
    result = run(model)
    assert result.named("dead_relus").evidence["layer"] == "first" and not result.passed
    assert run(regression(activation="relu")).passed


def test_saturated_units_are_named():
    model = regression(activation="sigmoid")
    model.get_layer("first").bias.assign(np.full(16, 200.0))
    result = run(model, X)
    assert result.named("saturated").evidence["layer"] == "first" and not result.passed
    assert run(regression(activation="sigmoid"), steps=1500).passed


@pytest.mark.parametrize(
    ("output", "y", "reach"),
    [("sigmoid", 3 + Y, "[0, 1]"), ("tanh", 3 + Y, "[-1, 1]"), ("relu", -1 - np.abs(Y), "[0, inf]")],
    ids=["sigmoid", "tanh", "relu"],
)
def test_targets_that_the_output_cannot_reach(output, y, reach):
    result = run(regression(output=output), y=y)
    finding = result.findings[0]
    assert finding.name == "out_of_range" and reach in finding.text and not result.passed
    assert finding.evidence["loss"] > result.bound


def test_targets_within_the_range_are_no_fault():
    assert run(regression(output="sigmoid"), y=0.5 + 0.1 * Y.clip(-2, 2)).findings == []


def test_labels_of_minus_one_for_a_sigmoid():
    y = np.sign(Y)
    result = run(classifier("binary_crossentropy", "sigmoid", 1), y=y)
    assert result.findings[0].name == "out_of_range"
    assert run(classifier("binary_crossentropy", "sigmoid", 1), y=(y + 1) / 2).findings == []


@pytest.mark.parametrize(
    ("loss", "output", "units", "name"),
    [
        (keras.losses.CategoricalCrossentropy(from_logits=True), "softmax", 3, "probabilities_as_logits"),
        ("categorical_crossentropy", None, 3, "logits_as_probabilities"),
        (keras.losses.CategoricalCrossentropy(from_logits=True), None, 3, None),
        ("categorical_crossentropy", "softmax", 1, "one_class"),
    ],
    ids=["twice", "never", "logits", "one_unit"],
)
@pytest.mark.filterwarnings("ignore:.*from_logits.*", "ignore:.*softmax.*", "ignore:.*axis.*", "ignore:.*num_classes.*")
def test_logits_and_probabilities(loss, output, units, name):
    y = np.eye(3)[LABELS] if units == 3 else np.ones((40, 1))
    result = run(classifier(loss, output, units), y=y)
    assert [each.name for each in result.findings][:1] == ([name] if name else [])


def test_a_rate_that_is_too_high_and_the_one_that_works():
    result = run(regression(optimizer=keras.optimizers.SGD(1.5)), steps=1200)
    finding = result.named("rate_too_high")
    assert finding.evidence["working_rate"] < 1.5 and f"{result.working_rate:.3g}" in finding.text
    healthy = run(regression(optimizer=keras.optimizers.SGD(result.working_rate)), steps=1200)
    assert healthy.named("rate_too_high") is None


def test_a_rate_that_is_too_low():
    result = run(regression(optimizer=keras.optimizers.Adam(1e-5)), steps=1500)
    assert result.named("rate_too_low").evidence["working_rate"] > 0.9e-3 and not result.passed


def test_nan_brings_its_report():
    bad = X.copy()
    bad[:, 2] = np.nan
    result = run(regression(), bad)
    assert result.named("non_finite") and not result.passed
    assert isinstance(result.report, NonFiniteReport) and result.report.origin == "input"


def test_nan_of_an_exploding_rate_is_a_rate_that_is_too_high():
    model = regression(activation="relu", optimizer=keras.optimizers.SGD(30.0))
    result = run(model, steps=1500)
    assert result.named("rate_too_high") and isinstance(result.report, NonFiniteReport)


def test_frozen_layers_are_named():
    model = regression()
    model.trainable = False
    assert run(model).named("frozen")
    model = compiled(keras.Sequential([keras.Input((6,)), layers.Dense(2, name="f"), layers.Dense(3, name="l")]), "mse")
    model.get_layer("l").trainable = False
    result = run(compiled(model, "mse"), y=RNG.normal(size=(40, 3)), samples=8, steps=1500)
    assert result.named("frozen").evidence["layers"] == ["l"]


def test_an_output_that_does_not_depend_on_the_sample_is_stuck_at_the_mean():
    result = run(regression(), np.ones_like(X))
    assert result.named("stuck_at_mean") and result.final_loss == pytest.approx(result.mean_loss, rel=0.05)


# --- what the budget cuts off, and losses about which nothing is known ----------------------------------------------
@pytest.mark.parametrize("steps", [1, 20, 60, 150])
def test_a_training_that_the_budget_cuts_off_is_no_failure(steps):
    keras.utils.set_random_seed(1)
    model = regression(optimizer=keras.optimizers.Adam(1e-3))
    result = run(model, y=2 * X[:, :1], steps=steps, samples=8)
    assert result.passed and [each.name for each in result.findings] == ["short_budget"] and not result.fitted
    assert "not finished" in str(result)
    planted = run(regression(Cut(name="cut")), steps=max(steps, 20))
    assert planted.named("no_gradient")


def test_a_loss_that_is_still_falling_is_no_fault():
    keras.utils.set_random_seed(0)
    hidden = layers.Dense(32, "relu")
    model = compiled(keras.Sequential([keras.Input((6,)), hidden, layers.Dense(1)]), "mse", keras.optimizers.Adam(3e-3))
    y = np.tanh(X[:, :1] - X[:, 1:2]) + 0.1 * Y
    assert run(model, y=y, samples=8, steps=None, seconds=30.0).passed


@pytest.mark.filterwarnings("ignore:.*from_logits.*")
@pytest.mark.parametrize("zeros", [False, True], ids=["glorot", "zeros"])
def test_logits_that_lie_between_0_and_1_are_no_probabilities(zeros):
    loss, start = keras.losses.BinaryCrossentropy(from_logits=True), "zeros" if zeros else "glorot_uniform"
    model = compiled(
        keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh"), layers.Dense(1, kernel_initializer=start)]), loss
    )
    for seed in range(1 if zeros else 4):
        model.set_weights(
            [0.5 * np.random.default_rng(seed).normal(size=w.shape) for w in model.get_weights()[:2]]
            + model.get_weights()[2:]
        )
        assert run(model, y=LABELS[:, None] > 0, steps=200).named("probabilities_as_logits") is None
    twice = run(classifier(loss, "sigmoid", 1), y=LABELS > 0, steps=20)
    assert twice.named("probabilities_as_logits").is_fault


def with_floor(y_true, y_pred):
    return keras.losses.mean_squared_error(y_true, y_pred) + 0.5


@pytest.mark.parametrize("loss", ["cosine_similarity", with_floor], ids=["negative", "floor"])
@pytest.mark.parametrize("same", [False, True], ids=["healthy", "equal_inputs"])
def test_a_loss_whose_lowest_value_is_unknown_is_neither_failed_nor_learnt(loss, same):
    model = compiled(keras.Sequential([keras.Input((6,)), layers.Dense(8, "tanh"), layers.Dense(2)]), loss)
    result = run(model, np.ones_like(X) if same else X, np.hstack([Y, -Y[::-1]]), steps=500)
    assert [(each.name, each.is_fault) for each in result.findings] == [("unknown_bound", False)]
    assert result.fitted is None and np.isnan(result.bound) and "cannot be judged" in str(result)


@pytest.mark.parametrize("named", ["huber", "Huber"])
def test_a_loss_of_a_user_with_the_name_of_one_of_keras_is_not_taken_for_it(named):
    def own(y_true, y_pred):
        return with_floor(y_true, y_pred)

    own.__name__ = named
    loss = type(named, (keras.losses.Loss,), {"call": staticmethod(own)})() if named == "Huber" else own
    kinds = [targets(regression(loss=each), Y, Y)[0].kind for each in (loss, keras.losses.get(named))]
    assert kinds == [None, "regression"]


def test_the_accuracy_of_one_output_does_not_end_the_test_of_another():
    inputs = keras.Input((6,))
    hidden = layers.Dense(16, "tanh")(inputs)
    model = keras.Model(inputs, [layers.Dense(1)(hidden), layers.Dense(3, "softmax")(hidden)])
    compiled(model, ["mse", "sparse_categorical_crossentropy"], loss_weights=[1e-3, 1.0])
    result = run(model, y=[Y, LABELS], steps=1500)
    assert result.fitted and result.accuracy == 1.0 and result.final_loss <= result.bound


def test_the_accuracy_leaves_out_what_the_loss_leaves_out():
    y, predictions = np.array([0, 1, -1, 2]), np.eye(3)[[0, 2, 1, 2]].astype("float32")
    model = classifier(keras.losses.SparseCategoricalCrossentropy(ignore_class=-1))
    assert targets(model, y, predictions)[0].accuracy(predictions) == pytest.approx(2 / 3)
    weights = np.array([1.0, 0.0, 1.0, 1.0])
    assert targets(model, y, predictions, weights)[0].accuracy(predictions) == 1.0
    assert targets(classifier(), y, predictions, weights[:, None])[0].accuracy(predictions) == pytest.approx(2 / 3)
    assert targets(model, y, predictions, 0 * weights)[0].accuracy(predictions) is None


def test_the_range_of_an_output():
    assert output_range(layers.ReLU(negative_slope=0.2)) == (None, None) and output_range(layers.ReLU(6)) == (0.0, 6)
    x = np.linspace(-5, 5, 100001)
    for name, function in {"silu": lambda x: x / (1 + np.exp(-x)), "relu": lambda x: np.maximum(x, 0)}.items():
        low, high = output_range(layers.Dense(1, name))
        assert (low, high) == (pytest.approx(function(x).min(), abs=1e-4), None)
    assert output_range(layers.Dense(1, "gelu"))[0] == pytest.approx(-0.17, abs=1e-3)
    assert output_range(layers.Dense(1, "tanh")) == pytest.approx((-1, 1))


class Adding(layers.Layer):
    def call(self, inputs):
        self.add_loss(0.5 + 0.1 * ops.mean(ops.square(inputs)))
        return inputs


def test_what_layers_add_to_the_loss_has_an_unknown_lowest_value():
    result = run(regression(Adding()), steps=200)
    assert result.passed and result.fitted is None and "`add_loss`" in result.named("unknown_bound").text


class KnownToItsStep(keras.Sequential):
    """Nothing but its `train_step` knows the loss, and it takes `x` alone."""

    def train_step(self, *arguments):
        vars(self)["compute_loss"] = lambda x, y, y_pred, *_, **__: ops.mean(ops.square(ops.exp(y_pred) - x))
        try:
            return super().train_step(*arguments)
        finally:
            del vars(self)["compute_loss"]


def test_a_loss_that_only_the_train_step_knows():
    model = KnownToItsStep([keras.Input((6,)), layers.Dense(16, "tanh"), layers.Dense(6)])
    model.compile(keras.optimizers.Adam(0.03), jit_compile=JIT)
    result = run(model, np.abs(X), None, steps=300)
    assert result.passed and result.final_loss < 0.1 * result.start_loss
    model.compile(keras.optimizers.SGD(1e4), jit_compile=JIT)
    result = run(model, np.abs(X), None, steps=60)
    assert not result.passed and isinstance(result.report, NonFiniteReport)


# --- what is switched off -----------------------------------------------------------------------------------------
def test_regularisation_is_switched_off_named_and_back_afterwards():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16, "tanh", kernel_regularizer=keras.regularizers.L2(10.0), activity_regularizer="l1"),
            layers.Dropout(0.9, name="drop"),
            layers.GaussianNoise(0.9, name="noise"),
            layers.Dense(1),
        ]
    )
    compiled(model, "mse", keras.optimizers.AdamW(0.01, weight_decay=0.5))
    result = run(model)
    named = " ".join(result.switched_off)
    assert all(word in named for word in ("L2", "activity", "`drop`", "`noise`", "weight decay 0.5"))
    assert result.findings == []
    assert (model.layers[1].rate, model.layers[2].stddev, model.optimizer.weight_decay) == (0.9, 0.9, 0.5)
    assert isinstance(model.layers[0].kernel.regularizer, keras.regularizers.L2)


def test_augmentation_is_switched_off():
    x = RNG.uniform(0, 1, (6, 4, 4, 1)).astype("float32")
    shift = layers.RandomTranslation(0.9, 0.9, name="shift")
    model = compiled(keras.Sequential([keras.Input((4, 4, 1)), shift, layers.Flatten(), layers.Dense(1)]), "mse")
    result = run(model, x, Y[:6])
    assert result.switched_off == ["`shift` (RandomTranslation)"] and result.passed


@pytest.mark.parametrize("samples", [1, 6])
def test_batch_normalisation_is_not_tested_with_one_sample_alone(samples):
    result = run(regression(layers.BatchNormalization()), samples=samples)
    assert [each.name for each in result.findings] == ["batch_normalization"] and result.passed
    assert result.samples == samples


# --- kinds of models, mistakes ------------------------------------------------------------------------------------
def test_a_model_with_two_outputs_and_a_dictionary_of_losses():
    inputs = keras.Input((6,))
    hidden = layers.Dense(16, "tanh")(inputs)
    outputs = {"a": layers.Dense(1, name="a")(hidden), "b": layers.Dense(3, "softmax", name="b")(hidden)}
    model = compiled(keras.Model(inputs, outputs), {"a": "mse", "b": "sparse_categorical_crossentropy"})
    result = run(model, y={"a": Y, "b": LABELS})
    assert result.passed and result.bound < 0.05


def test_a_subclassed_model_that_is_not_built_and_a_generator():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = layers.Dense(16, "tanh"), layers.Dense(1)

        def call(self, inputs):
            return self.outer(self.inner(inputs))

    batches = ((X[i : i + 10], Y[i : i + 10]) for i in range(0, 40, 10))
    assert run(compiled(Own(), "mse"), batches, None).passed


def test_samples_that_weigh_nothing_are_left_out():
    y = np.where(np.arange(40)[:, None] < 36, 1e3, Y)
    weights = (np.arange(40) >= 36).astype("float32")
    result = run(regression(), y=y, sample_weight=weights)
    assert result.fitted and result.start_loss > 0 and result.mean_loss < 10
    with pytest.raises(ValueError, match="`sample_weight` must not be 0 for all samples. Received: 0 for the 40"):
        run(regression(), sample_weight=0 * weights)


@pytest.mark.parametrize("size", [2, 12])
def test_a_model_that_takes_batches_of_one_size(size):
    model = keras.Sequential([keras.Input(batch_shape=(size, 6)), layers.Dense(16, "tanh"), layers.Dense(1)])
    result = run(compiled(model, "mse"))
    assert result.passed and result.samples == min(size, 3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"samples": 0}, "`samples` must be an int >= 1"), ({"seconds": -1}, "`seconds` must lie")],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        run(regression(), **kwargs)


def test_a_model_that_is_not_compiled_is_refused():
    with pytest.raises(ValueError, match="`model` must be compiled"):
        run(keras.Sequential([keras.Input((6,)), layers.Dense(1)]))
