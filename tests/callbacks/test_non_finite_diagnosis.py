"""Each case plants one fault in a small model; its healthy twin must not be diagnosed as anything."""

import pickle

import keras
import numpy as np
import pytest
from keras import layers, ops

from tf_tricks._backend import BACKEND, jax, tf
from tf_tricks.callbacks import non_finite_causes as causes
from tf_tricks.callbacks.non_finite_data import explain_labels
from tf_tricks.callbacks.non_finite_diagnosis import diagnose
from tf_tricks.callbacks.non_finite_report import NonFiniteError

ROWS, FEATURES = 8, 4
CALM = {"step": [5, 6, 7], "loss": [1.0, 0.9, 0.8], "grad_norm": [1.0, 1.0, 1.0]}
DIVERGED = {"step": [4, 5, 6, 7], "loss": [2.5, 1e8, 1e20, np.inf], "grad_norm": [1.0, 1e9, 1e20, np.nan]}


def arrays(features=FEATURES, targets=1, low=0.1):
    generator = np.random.default_rng(0)
    x = generator.uniform(low, 1, (ROWS, features)).astype("float32")
    return x, generator.uniform(low, 1, (ROWS, targets)).astype("float32")


def compiled(model, loss="mse", **kwargs):
    model.compile(keras.optimizers.SGD(0.5), loss, **kwargs)
    return model


def small(*middle, features=FEATURES, targets=1, loss="mse", activation=None):
    stack = [keras.Input((features,)), *middle, layers.Dense(targets, activation=activation, name="head")]
    return compiled(keras.Sequential(stack), loss)


def tensors(data):
    def convert(part):
        return None if part is None else ops.convert_to_tensor(part)

    return keras.tree.map_structure(convert, data)


def diagnosed(model, data, trajectory=CALM):
    where = {"step": 7, "epoch": 1, "batch": 3, "learning_rate": 0.5}
    return diagnose(model, tensors(data), trajectory=trajectory, **where)


class Norm(layers.Layer):
    def __init__(self, epsilon=0.0, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def call(self, x):
        return ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True) + self.epsilon)


class Divide(layers.Layer):
    def call(self, x):
        return x / ops.std(x, axis=-1, keepdims=True)


class Own(layers.Layer):
    """Adds a loss of its own."""

    def call(self, x):
        self.add_loss(ops.mean(ops.log(x)))
        return x


def with_value(array, rows, value):
    array = array.copy()
    array[rows, 0] = value
    return array


# --- the cases: bad -> (model, data) ------------------------------------------------------------------------------
def nan_in_x(bad):
    x, y = arrays()
    return small(), (with_value(x, [3, 5], np.nan) if bad else x, y)


def inf_in_a_named_input(bad):
    x, y = arrays()
    inputs = {"a": keras.Input((FEATURES,), name="a"), "b": keras.Input((FEATURES,), name="b")}
    outputs = layers.Dense(1)(layers.Add()([inputs["a"], inputs["b"]]))
    return compiled(keras.Model(inputs, outputs)), ({"a": x, "b": with_value(x, [2], np.inf) if bad else x}, y)


def inf_in_y(bad):
    x, y = arrays()
    return small(), (x, with_value(y, [3, 7], np.inf) if bad else y)


def nan_in_sample_weight(bad):
    x, y = arrays()
    weight = np.ones(ROWS, "float32")
    weight[1] = np.nan if bad else 0.0
    return small(), (x, y, weight)


def nan_in_a_weight(bad):
    model = small(layers.Dense(3, name="first"))
    if bad:
        kernel = np.ones((FEATURES, 3), "float32")
        kernel[0, 0] = np.nan
        model.get_layer("first").kernel.assign(kernel)
    return model, arrays()


def log_in_a_layer(bad):
    x, y = arrays()
    return small(layers.Lambda(lambda t: ops.log(t), name="logs")), (with_value(x, [4], 0.0) if bad else x, y)


def log_as_an_operation(bad):
    x, y = arrays()
    inputs = keras.Input((FEATURES,))
    outputs = layers.Dense(1)(ops.log(inputs))
    return compiled(keras.Model(inputs, outputs)), (with_value(x, [4], 0.0) if bad else x, y)


def negative_log_in_a_layer(bad):
    x, y = arrays()
    return small(layers.Lambda(lambda t: ops.log(t), name="logs")), (with_value(x, [4], -1.0) if bad else x, y)


def division_by_a_zero_std(bad):
    x, y = arrays()
    x[6] = 0.5 if bad else x[6]
    return small(Divide(name="scale")), (x, y)


def operator_outside_any_layer(bad):
    class Model(keras.Model):
        def __init__(self):
            super().__init__(name="own_model")
            self.first, self.last = layers.Dense(3), layers.Dense(1)

        def call(self, x):
            return self.last(self.first(x) / ops.sum(x, axis=-1, keepdims=True))

    x, y = arrays()
    x[2] = 0.0 if bad else x[2]
    model = compiled(Model())
    model(x)
    return model, (x, y)


def batch_norm_without_epsilon(bad):
    x, y = arrays()
    x[:, 1] = 0.5
    return small(layers.BatchNormalization(epsilon=0.0 if bad else 1e-3, name="bn")), (x, y)


def layer_norm_without_epsilon(bad):
    x, y = arrays()
    x[3] = 0.5
    return small(layers.LayerNormalization(epsilon=0.0 if bad else 1e-3, name="ln")), (x, y)


def exp_overflows(bad):
    x, y = arrays()
    return small(layers.Dense(3, activation="exponential", name="grow")), (x * (2000 if bad else 1), y)


def diverged_forward(bad):
    model = small(layers.Dense(3, name="dense_3"), layers.Dense(3, name="dense_4"))
    for name in ("dense_3", "dense_4") if bad else ():
        model.get_layer(name).kernel.assign(model.get_layer(name).kernel * 0 + 1e20)
    return model, arrays()


def diverged_loss(bad):
    model = small(layers.Dense(3, name="dense_4"))
    if bad:
        model.get_layer("head").kernel.assign(np.full((3, 1), 1e22, "float32"))
    return model, arrays()


def huge_x(bad):
    x, y = arrays()
    return small(layers.Dense(3, name="first")), (x * np.float32(1e30 if bad else 1), y)


def float16_overflows(bad):
    keras.config.set_dtype_policy("mixed_float16")
    model = small(layers.Dense(3, name="half"))
    if bad:
        model.get_layer("half").kernel.assign(np.full((FEATURES, 3), 6e4, "float32"))
    return model, arrays(low=0.6)


def log_of_0_in_the_loss(bad):
    model = small(activation="relu" if bad else "sigmoid", loss=lambda y, p: -y * ops.log(p))
    model.get_layer("head").bias.assign([-100.0 if bad else 0.0])
    return model, arrays()


def log_of_negative_in_the_loss(bad):
    model = small(activation=None, loss=lambda y, p: -y * ops.log(p))
    model.get_layer("head").bias.assign([-100.0 if bad else 100.0])
    return model, arrays()


def masked_mean_in_the_loss(bad):
    x, y = arrays()
    y = y * 0 - 1 if bad else y

    def loss(y, p):
        mask = ops.cast(y >= 0, p.dtype)
        return ops.sum(mask * ops.square(y - p)) / ops.sum(mask)

    return small(loss=loss), (x, y)


def layer_loss(bad):
    x, y = arrays()
    return small(Own(name="own")), (with_value(x, [1], 0.0) if bad else x, y)


def sqrt_in_a_layer(bad):
    x, y = arrays()
    x[5] = 0.0
    stack = [layers.Dense(3, use_bias=False, name="first"), Norm(0.0 if bad else 1e-6, name="norm_1")]
    return small(*stack), (x, y)


def sqrt_in_the_loss(bad):
    x, y = arrays()
    x[5] = y[5] = 0.0
    if not bad:
        y[5] = 1.0
    model = small(loss=lambda y, p: ops.sqrt(ops.square(y - p)))
    return model, (x, y)


def where_hides_the_log(bad):
    x, y = arrays()
    x[5] = 0.0 if bad else 1.0

    def safe_log(t):
        return ops.where(t > 0, ops.log(t), ops.zeros_like(t))

    inputs = keras.Input((FEATURES,))
    hidden = layers.Dense(3, activation="relu", use_bias=False, kernel_initializer="ones", name="first")(inputs)
    outputs = layers.Dense(1)(layers.Lambda(safe_log, name="safe")(hidden))
    return compiled(keras.Model(inputs, outputs)), (x, y)


def std_of_equal_numbers(bad):
    x, y = arrays()
    x[2] = 0.0
    ones = keras.initializers.Constant(np.arange(12).reshape(4, 3) / 10)
    first = layers.Dense(3, kernel_initializer=ones, bias_initializer="zeros", name="first")
    if not bad:
        x[2] = 1.0
    return small(first, layers.Lambda(lambda t: ops.std(t, axis=-1, keepdims=True), name="spread")), (x, y)


def shared_layer_and_residual(bad):
    x, y = arrays()
    x[5] = 0.0
    inputs = keras.Input((FEATURES,))
    dense = layers.Dense(FEATURES, use_bias=False, name="shared")
    hidden = dense(dense(inputs))
    outputs = layers.Dense(1, name="head")(layers.Concatenate()([hidden, Norm(0.0 if bad else 1e-6, name="n")(hidden)]))
    return compiled(keras.Model(inputs, outputs)), (x, y)


def nested_recurrent_dropout(bad):
    x, y = arrays()
    series = np.repeat(x[:, None, :], 5, axis=1)
    series[3] = 0.0 if bad else series[3]
    inner = keras.Sequential([keras.Input((5, 3)), layers.Dropout(0.2), Divide(name="scale")], name="inner")
    inputs = keras.Input((5, FEATURES))
    hidden = layers.SimpleRNN(3, return_sequences=True, use_bias=False)(inputs)
    outputs = layers.Dense(1)(layers.BatchNormalization()(layers.SimpleRNN(2)(inner(hidden))))
    return compiled(keras.Model(inputs, outputs)), (series, y)


def second_of_two_outputs(bad):
    x, y = arrays()
    inputs = keras.Input((FEATURES,))
    hidden = layers.Dense(3, use_bias=False, name="first")(inputs)
    outputs = [layers.Dense(1, name="a")(hidden), Norm(0.0 if bad else 1e-6, name="b")(hidden)]
    x[5] = 0.0
    return compiled(keras.Model(inputs, outputs), ["mse", "mse"]), (x, [y, y])


def no_target(bad):
    x, _ = arrays()

    class Model(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return ops.mean(ops.log(y_pred))

    inputs = keras.Input((FEATURES,))
    bias = keras.initializers.Constant(-100.0)
    outputs = layers.Dense(1, activation="relu" if bad else "sigmoid", bias_initializer=bias if bad else "zeros")(
        inputs
    )
    model = Model(inputs, outputs)
    model.compile("sgd")
    return model, (x,)


def operator_in_the_loss(bad):
    x, y = arrays()
    y[2] = 0.0 if bad else y[2]
    return small(loss=lambda y, p: p / y), (x, y)


def backend_function_in_the_loss(bad):
    model, data = log_of_0_in_the_loss(bad)
    log = {"tensorflow": lambda t: tf.math.log(t), "jax": lambda t: jax.numpy.log(t), "torch": lambda t: t.log()}
    return compiled(model, lambda y, p: -y * log[BACKEND](p)), data


def unwatched_function_in_the_loss(bad):
    model = small(activation="sigmoid", loss=lambda y, p: y * ops.arctanh(p))
    model.get_layer("head").bias.assign([100.0 if bad else 0.0])
    return model, arrays()


def zero_sample_weights(bad):
    x, y = arrays()

    class Weighted(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return ops.sum(sample_weight * ops.square(y - y_pred)[:, 0]) / ops.sum(sample_weight)

    model = compiled(Weighted([keras.Input((FEATURES,)), layers.Dense(1)]))
    return model, (x, y, np.full(ROWS, 0.0 if bad else 1.0, "float32"))


def two_steep_branches(bad):
    x, y = arrays()
    x[5] = 0.0
    inputs = keras.Input((FEATURES,))
    hidden = layers.Dense(3, use_bias=False)(inputs)
    early = Norm(0.0 if bad else 1e-6, name="early")(hidden)
    late = Norm(0.0 if bad else 1e-6, name="late")(layers.Dense(3, use_bias=False)(hidden))
    return compiled(keras.Model(inputs, layers.Dense(1)(layers.Concatenate()([early, late])))), (x, y)


def activity_regularizer(bad):
    def norm(t):
        return ops.sqrt(ops.sum(ops.square(t)) + (0.0 if bad else 1e-6))

    return small(layers.Dense(3, kernel_initializer="zeros", activity_regularizer=norm, name="active")), arrays()


def weight_regularizer(bad):
    def norm(w):
        return ops.sqrt(ops.sum(ops.square(w)) + (0.0 if bad else 1e-6))

    return small(layers.Dense(3, kernel_initializer="zeros", kernel_regularizer=norm, name="first")), arrays()


def infinite_logits_are_legal(bad):
    x, y = arrays(targets=2)
    x[5] = 0.0
    inputs = keras.Input((FEATURES,))
    hidden = Norm(0.0 if bad else 1e-6, name="n")(layers.Dense(3, use_bias=False)(inputs))
    logits = layers.Dense(2)(hidden)
    closed = layers.Lambda(lambda t: ops.where(ops.arange(3) < 2, ops.pad(t, [[0, 0], [0, 1]]), -np.inf))(logits)
    model = compiled(keras.Model(inputs, closed), lambda y, p: -ops.sum(y * ops.log_softmax(p)[:, :2], axis=-1))
    return model, (x, y)


CASES = [
    # case, origin, layer, samples ("any": not checked), words of the cause, words of the suggestions, trajectory
    (nan_in_x, "input", None, [3, 5], "`x` contains NaN at rows 3 and 5", "drop or fill", CALM),
    (inf_in_a_named_input, "input", None, [2], "`x['b']` contains Inf at row 2", "drop or fill", CALM),
    (inf_in_y, "target", None, [3, 7], "`y` contains Inf at rows 3 and 7", "drop or fill", CALM),
    (nan_in_sample_weight, "sample_weight", None, [1], "`sample_weight` contains NaN at row 1", "drop", CALM),
    (nan_in_a_weight, "weights", "first", None, "contains NaN before the step", "loaded file", CALM),
    (log_in_a_layer, "forward", "logs", [4], "log of 0 in `logs`", "epsilon", CALM),
    (log_as_an_operation, "forward", "log", [4], "log of 0 in `log", "epsilon", CALM),
    (negative_log_in_a_layer, "forward", "logs", [4], "log of a negative number in `logs`", "epsilon", CALM),
    (division_by_a_zero_std, "forward", "scale", [6], "division by 0 in `scale`", "divide_no_nan", CALM),
    (operator_outside_any_layer, "forward", "own_model", [2], "0 / 0 in `own_model`", "divide_no_nan", CALM),
    (batch_norm_without_epsilon, "forward", "bn", "any", "division by 0 in `bn`: `epsilon` is 0", "1e-3", CALM),
    (layer_norm_without_epsilon, "forward", "ln", [3], "by 0 in `ln`: `epsilon` is 0", "1e-3", CALM),
    (exp_overflows, "forward", "grow", "any", "overflows float32 in `grow`", "softmax", CALM),
    (
        diverged_forward,
        "forward",
        "dense_4",
        "any",
        "activations of `dense_4` reach 3.4e38",
        "global_clipnorm",
        DIVERGED,
    ),
    (diverged_loss, "loss", None, "any", "over the last 3 steps: the learning rate 0.5 is too high", "Lower", DIVERGED),
    (huge_x, "loss", None, "any", "`x` holds magnitudes up to 1e30", "unit variance", CALM),
    (float16_overflows, "forward", "half", "any", "`half` overflow float16", "mixed_bfloat16", CALM),
    (log_of_0_in_the_loss, "loss", None, "any", "log of 0 in the loss", "epsilon", CALM),
    (log_of_negative_in_the_loss, "loss", None, "any", "log of a negative number in the loss", "epsilon", CALM),
    (masked_mean_in_the_loss, "loss", None, None, "0 / 0 in the loss", "divide_no_nan", CALM),
    (layer_loss, "loss", "own", [1], "log of 0 in the loss that `own` adds", "epsilon", CALM),
    (sqrt_in_a_layer, "gradient", "norm_1", [5], "square root has an infinite slope at 0 in `norm_1`", "1e-12", CALM),
    (sqrt_in_the_loss, "gradient", None, [5], "square root has an infinite slope at 0 in the loss", "1e-12", CALM),
    (where_hides_the_log, "gradient", "safe", [5], "log of 0 in `safe` is hidden", "where(ok", CALM),
    (std_of_equal_numbers, "gradient", "spread", [2], "infinite slope at 0 in `spread`", "1e-12", CALM),
    (shared_layer_and_residual, "gradient", "n", [5], "infinite slope at 0 in `n`", "1e-12", CALM),
    (nested_recurrent_dropout, "forward", "scale", [3], "0 / 0 in `scale`", "divide_no_nan", CALM),
    (second_of_two_outputs, "gradient", "b", [5], "infinite slope at 0 in `b`", "1e-12", CALM),
    (operator_in_the_loss, "loss", None, [2], "division by 0 in the loss", "divide_no_nan", CALM),
    (backend_function_in_the_loss, "loss", None, "any", "log of 0 in the loss", "epsilon", CALM),
    (unwatched_function_in_the_loss, "loss", None, "any", "predictions are exactly 1", "epsilon", CALM),
    (zero_sample_weights, "loss", None, None, "all sample weights of the batch are 0", "divide_no_nan", CALM),
    (two_steep_branches, "gradient", "late", [5], "infinite slope at 0 in `late`", "1e-12", CALM),
    (activity_regularizer, "gradient", "active", "any", "infinite slope at 0 in `active`", "1e-12", CALM),
    (weight_regularizer, "gradient", "first", "any", "infinite slope at 0 in the regularizer", "1e-12", CALM),
    (infinite_logits_are_legal, "gradient", "n", [5], "infinite slope at 0 in `n`", "1e-12", CALM),
    (no_target, "loss", None, "any", "log of 0 in the loss", "epsilon", CALM),
]


@pytest.mark.parametrize("row", CASES, ids=lambda row: row[0].__name__)
def test_planted_fault_is_named_and_its_healthy_twin_is_not(row, backend):
    case, origin, layer, samples, cause, help_text, trajectory = row
    if case is std_of_equal_numbers and backend == "torch":
        pytest.skip("Torch defines the slope of std at 0 as 0")
    report = diagnosed(*case(bad=True), trajectory=trajectory)
    assert (report.origin, report.cause.find(cause) >= 0) == (origin, True), str(report)
    assert report.layer == layer or (case is log_as_an_operation and report.layer.startswith("log"))
    assert samples == "any" or report.samples == samples
    assert help_text in " ".join(report.suggestions)
    twin = diagnosed(*case(bad=False), trajectory=trajectory)
    assert twin.cause.startswith("unknown: replaying the batch eagerly gave a loss of"), str(twin)


# --- labels -------------------------------------------------------------------------------------------------------
def classifier(loss="sparse_categorical_crossentropy"):
    return small(targets=10, activation="softmax", loss=loss)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy()])
def test_label_out_of_range_is_named(loss):
    labels = np.arange(ROWS)
    labels[3] = 12
    cause = explain_labels(classifier(loss), labels, np.zeros((ROWS, 10), "float32"))
    assert (cause.sentence, cause.samples) == ("label 12 at row 3 is outside 0..9", [3])
    assert explain_labels(classifier(loss), np.arange(ROWS), np.zeros((ROWS, 10), "float32")) is None
    assert explain_labels(small(targets=10), labels, np.zeros((ROWS, 10), "float32")) is None


def test_ignored_label_is_in_range():
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=255)
    labels = np.array([255, 1, 2, 3])
    assert explain_labels(classifier(loss), labels, np.zeros((4, 10), "float32")) is None


@pytest.mark.skipif(BACKEND == "jax", reason="JAX gives such a label a finite loss of 0")
def test_label_out_of_range_is_found_by_the_replay():
    labels = np.arange(ROWS)
    labels[3] = 12
    report = diagnosed(classifier(), (arrays()[0], labels))
    assert (report.origin, report.cause, report.samples) == ("loss", "label 12 at row 3 is outside 0..9", [3])


# --- the report ---------------------------------------------------------------------------------------------------
def test_report_reads_like_a_compiler_message():
    report = diagnosed(*sqrt_in_a_layer(bad=True), trajectory={**CALM, "grad_norm": [1.0, 1.5, float("nan")]})
    assert str(report).splitlines() == [
        "error: non-finite gradient",
        "  --> epoch 1, batch 3 (step 7), layer 'norm_1' (Norm)",
        "   |",
        "   | step  loss  grad_norm",
        "   |    5     1          1",
        "   |    6   0.9        1.5",
        "  >|    7   0.8        nan",
        "   |",
        "cause: square root has an infinite slope at 0 in `norm_1`",
        " help: Add a small constant under the root, e.g. `keras.ops.sqrt(x + 1e-12)`; its slope at 0 is then finite.",
    ]


@pytest.mark.parametrize("case", [nan_in_x, nan_in_a_weight, log_in_a_layer, log_of_0_in_the_loss, sqrt_in_a_layer])
def test_report_holds_plain_python_values_only(case):
    def types_in(value):
        if isinstance(value, dict):
            return {t for part in value.values() for t in types_in(part)}
        return {t for part in value for t in types_in(part)} if isinstance(value, list) else {type(value)}

    report = diagnosed(*case(bad=True))
    assert types_in(vars(report)) <= {int, float, str, type(None)}
    assert pickle.loads(pickle.dumps(NonFiniteError(report))).report == report
    assert "error: non-finite" in str(NonFiniteError(report))


def test_origin_of_what_does_not_show_again_is_taken_from_the_trajectory():
    lost = {**CALM, "loss": [1.0, 0.9, float("nan")]}
    assert diagnosed(small(), arrays()).origin == "gradient"
    report = diagnosed(small(), arrays(), lost)
    assert report.origin == "loss" and report.cause.endswith("so the problem did not show again")


def test_replay_that_raises_gives_a_report_that_says_so():
    def broken(y, p):
        raise ArithmeticError("no loss today")

    report = diagnosed(small(loss=broken), arrays())
    assert "ArithmeticError: no loss today" in report.cause


def test_error_report_has_no_place_for_a_model():
    assert not any(isinstance(v, keras.Model) for v in vars(diagnosed(*log_in_a_layer(bad=True))).values())


# --- arithmetic of the causes -------------------------------------------------------------------------------------
def test_growth_needs_a_rise_by_ten():
    assert causes.growth({"loss": [2.0, 2.1, np.nan]}) is None
    assert causes.growth({"loss": [5.0, 2.0, 40.0, np.inf]}) == "the loss grew from 2 to 40 over the last 2 steps"
    assert causes.growth({"loss": [9.0, 1.0, 0.1]}) is None


def test_positions_tell_log_from_division():
    before = np.array([[0.0, 1.0], [2.0, 3.0]])
    after = np.array([[-np.inf, 0.0], [1.0, 1.0]])
    assert "log of 0" in causes.explain_positions(before, after, "in `a`").sentence
    assert "division by 0" in causes.explain_positions(before, -after, "in `a`").sentence
    assert causes.explain_positions(before, after[::-1], "in `a`") is None
    negative, root = np.array([-1.0, 4.0]), np.array([np.nan, 2.0])
    assert "negative number" in causes.explain_positions(negative, root, "in `a`").sentence


# --- many devices -------------------------------------------------------------------------------------------------
def test_batch_in_parts_under_mirrored_strategy(mirrored_strategy):
    with mirrored_strategy.scope():
        model, (x, y) = small(layers.BatchNormalization(), layers.Lambda(ops.log, name="logs")), arrays()
        healthy = small(layers.BatchNormalization(), layers.Dense(2))

    def parts(array):
        def part(context):
            return tf.constant(np.split(array, 2)[context.replica_id_in_sync_group])

        return mirrored_strategy.experimental_distribute_values_from_function(part)

    where = {"step": 7, "epoch": 1, "batch": 3, "learning_rate": 0.5, "trajectory": CALM}
    report = diagnose(model, (parts(x), parts(y)), **where)
    assert (report.origin, report.layer) == ("forward", "logs")
    report = diagnose(model, (parts(with_value(x, [6], np.nan)), parts(y)), **where)
    assert (report.origin, report.samples) == ("input", [6])
    assert diagnose(healthy, (parts(x), parts(y)), **where).cause.startswith(
        "unknown: replaying the batch eagerly gave"
    )


def test_sharded_batch_under_data_parallel(data_parallel):
    with data_parallel.scope():
        report = diagnosed(*sqrt_in_a_layer(bad=True))
    assert (report.origin, report.layer, report.samples) == ("gradient", "norm_1", [5])
