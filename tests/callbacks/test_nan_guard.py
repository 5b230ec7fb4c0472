"""NaNGuard in real fits, against an independent oracle: a bare `fit` that never meets the bad batches, bit for bit."""

import functools
import gc
import math
import weakref

import keras
import numpy as np
import pytest
from keras import layers, ops

from tf_tricks._backend import BACKEND, jax, tf, torch
from tf_tricks.callbacks import NaNGuard
from tf_tricks.callbacks.non_finite_report import NonFiniteError

BATCH, FEATURES = 4, 3
JIT = BACKEND == "jax"  # the cheap way to run a tiny model; the modes below run the others
MODES = {
    "plain": {"jit_compile": False},
    "jit": {"jit_compile": True},
    "eager": {"run_eagerly": True},
    "4 steps a call": {"jit_compile": JIT, "steps_per_execution": 4},
}
if BACKEND == "torch":  # one step a call only; its compiler has a test of its own
    MODES = {"plain": MODES["plain"], "eager": MODES["eager"]}
if BACKEND == "jax":  # there "eager" is another name for "plain"
    del MODES["plain"]


def data(num_batches, bad=(), value=np.nan, where="x", rows=(2,)):
    """`num_batches` batches of `(x, y, sample_weight)`; `value` stands in `rows` of each batch in `bad`."""
    generator = np.random.default_rng(0)
    arrays = {
        "x": generator.normal(size=(num_batches * BATCH, FEATURES)).astype("float32"),
        "y": generator.normal(size=(num_batches * BATCH, 1)).astype("float32"),
        "sample_weight": generator.uniform(0.5, 1.0, num_batches * BATCH).astype("float32"),
    }
    for batch in bad:
        for row in rows:
            arrays[where][batch * BATCH + row] = value
    return arrays


def chosen(arrays, batches):
    """The rows of some batches, in that order."""
    rows = np.concatenate([np.arange(b * BATCH, (b + 1) * BATCH) for b in batches])
    return keras.tree.map_structure(lambda array: array[rows], arrays)


def fit_stream(model, arrays, batches, *callbacks, epochs=1, **options):
    """Fit on a generator: `epochs` epochs over the listed batches together, so not one over all of them each."""

    def generate():
        for batch in batches:
            yield tuple(chosen(arrays, [batch]).values())

    keras.utils.set_random_seed(2)
    steps = len(batches) // epochs
    options = {"shuffle": False, "verbose": 0, "steps_per_epoch": steps, "epochs": epochs, **options}
    return model.fit(generate(), callbacks=list(callbacks), **options)


def without(num_batches, *bad):
    return [batch for batch in range(num_batches) if batch not in bad]


def build(*middle, optimizer=None, loss="mse", metrics=None, **options):
    """The same small model at every call, weights and seeds included."""
    keras.utils.set_random_seed(1)
    stack = [keras.Input((FEATURES,)), layers.Dense(4, activation="tanh", name="first")]
    stack += [each() for each in middle] + [layers.Dense(1, name="head")]
    options = {"jit_compile": JIT, **options} if not options.get("run_eagerly") else options
    model = keras.Sequential(stack)
    model.compile(optimizer() if optimizer else keras.optimizers.Adam(0.05), loss, metrics=metrics, **options)
    return model


def fit(model, arrays, *callbacks, **options):
    keras.utils.set_random_seed(2)  # unseeded layers draw from the generator of the process on Torch
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **options}
    return model.fit(**arrays, callbacks=list(callbacks), **options)


def state(model):
    return [(v.path, ops.convert_to_numpy(v)) for v in (*model.variables, *model.optimizer.variables)]


def assert_same_state(model, oracle):
    ours, theirs = state(model), state(oracle)
    assert len(ours) == len(theirs)
    for (path, value), (_, expected) in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(value, expected, err_msg=path)
        assert np.isfinite(value).all(), path


def noisy():
    return layers.BatchNormalization, lambda: layers.Dropout(0.3, seed=7), lambda: layers.Dropout(0.2)


def quiet(on_nan, **options):
    return NaNGuard(on_nan, **{"verbose": 0, **options})


# --- the update that is not applied ---------------------------------------------------------------------------------
@pytest.mark.parametrize("on_nan, mode", [("stop", next(iter(MODES))), *(("skip", mode) for mode in MODES)])
def test_a_bad_step_leaves_no_trace(mode, on_nan):
    model, oracle = build(*noisy(), **MODES[mode]), build(*noisy(), **MODES[mode])
    guard, arrays = quiet(on_nan), data(9, bad=[5])
    history = fit(model, arrays, guard, epochs=2).history
    if on_nan == "stop":
        expected = fit(oracle, chosen(arrays, range(5))).history
    else:
        expected = fit(oracle, chosen(arrays, without(9, 5)), epochs=2).history
    assert_same_state(model, oracle)
    np.testing.assert_array_equal(history["loss"], expected["loss"])  # the bad batch counts in no running mean either
    assert (guard.report.step, guard.report.epoch, guard.report.batch) == (5, 0, 5)
    assert (guard.report.origin, guard.report.samples) == ("input", [2])
    assert guard.num_skipped == (1 if on_nan == "stop" else 2)


@pytest.mark.skipif(BACKEND != "torch", reason="the compiler of Torch")
def test_a_bad_step_leaves_no_trace_under_torch_compile(monkeypatch):
    # Torch's tracer without its code generator: half as slow, and rounded like eager Torch.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    model, oracle = build(jit_compile=True), build()
    arrays = data(4, bad=[2])
    fit(model, arrays, quiet("skip"))
    fit(oracle, chosen(arrays, without(4, 2)))
    assert_same_state(model, oracle)


def test_raise_carries_the_report_and_leaves_the_model_usable():
    model, oracle = build(*noisy()), build(*noisy())
    guard, arrays = quiet("raise"), data(8, bad=[3], value=np.inf, where="y", rows=(0, 3))
    with pytest.raises(NonFiniteError, match="`y` contains Inf at rows 0 and 3") as caught:
        fit(model, arrays, guard, epochs=3)
    assert caught.value.report is guard.report
    fit(oracle, chosen(arrays, range(3)))
    assert_same_state(model, oracle)
    for each in (model, oracle):
        fit(each, chosen(arrays, range(4, 8)))
    assert_same_state(model, oracle)


PLACES = {"jit" if JIT else "plain": ([0, 1, 7], [3]), "4 steps a call": ([2, 3],)}


@pytest.mark.parametrize("mode, bad", [(mode, bad) for mode in PLACES if mode in MODES for bad in PLACES[mode]])
def test_skip_wherever_the_bad_step_is(mode, bad):
    """The first step, the last one of an epoch, two in a row."""
    model, oracle = build(*noisy(), **MODES[mode]), build(*noisy(), **MODES[mode])
    arrays, guard = data(8, bad), quiet("skip")
    fit_stream(model, arrays, range(8), guard, epochs=2)
    fit_stream(oracle, arrays, without(8, *bad))
    assert_same_state(model, oracle)
    assert (guard.report.step, guard.report.epoch, guard.report.batch) == (bad[0], bad[0] // 4, bad[0] % 4)
    assert guard.num_skipped == len(bad)


OPTIMIZERS = {
    "weight decay and clipnorm": lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1, clipnorm=0.1),
    "momentum and average of weights": lambda: keras.optimizers.SGD(0.05, 0.9, use_ema=True, ema_momentum=0.5),
    "gradient accumulation": lambda: keras.optimizers.Adam(0.05, gradient_accumulation_steps=2),
    "schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_skip_leaves_every_optimizer_alone(name):
    model, oracle = build(optimizer=OPTIMIZERS[name]), build(optimizer=OPTIMIZERS[name])
    arrays = data(7, bad=[2, 5])
    fit(model, arrays, quiet("skip"))
    fit(oracle, chosen(arrays, without(7, 2, 5)))
    assert_same_state(model, oracle)


# --- the report -----------------------------------------------------------------------------------------------------
def log_of_target(y, p):
    return ops.mean(ops.square(y - p) + p * ops.log(ops.abs(y)), axis=-1)


def log_of_target_without_gradient(y, p):
    return ops.mean(ops.square(y - p) + ops.log(ops.abs(y)), axis=-1)


def build_norm():
    return layers.Lambda(lambda t: ops.sqrt(ops.sum(ops.square(t), axis=-1, keepdims=True)), name="norm")


def build_without_bias():
    model = build(build_norm)
    model.get_layer("first").bias.trainable = False  # so that a row of zeros stays one
    model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=JIT)
    return model


def build_with_nan_weight():
    model = build()
    kernel = np.ones((4, 1), "float32")
    kernel[1] = np.nan
    model.get_layer("head").kernel.assign(kernel)
    return model


FAULTS = {  # name -> (model, data, expected fields, pattern of the cause)
    "sample_weight": (
        build,
        data(6, [4], where="sample_weight"),
        {"origin": "sample_weight", "step": 4, "samples": [2]},
        "`sample_weight` contains NaN at row 2",
    ),
    "weights at the start": (
        build_with_nan_weight,
        data(3),
        {"origin": "weights", "step": 0, "layer": "head"},
        "head/kernel` contains NaN before the step",
    ),
    "divergence": (
        lambda: build(optimizer=lambda: keras.optimizers.SGD(200.0)),
        data(60),
        {"epoch": 0},
        "the learning rate 200 is too high",
    ),
    "log of 0 in the loss": (
        lambda: build(loss=log_of_target),
        data(6, [3], 0.0, "y"),
        {"origin": "loss", "step": 3},
        "log of 0 in the loss",
    ),
    "loss with finite gradients": (
        lambda: build(loss=log_of_target_without_gradient),
        data(6, [3], 0.0, "y"),
        {"origin": "loss", "step": 3},
        "log of 0 in the loss",
    ),
    "sqrt at 0": (
        build_without_bias,
        data(6, [5], 0.0, "x", (1,)),
        {"origin": "gradient", "step": 5, "layer": "norm", "samples": [1]},
        "square root has an infinite slope at 0 in `norm`",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_and_held_back(name):
    make, arrays, fields, cause = FAULTS[name]
    model, guard = make(), quiet("stop")
    before = [ops.convert_to_numpy(variable) for variable in model.variables]
    fit(model, arrays, guard, epochs=2)
    report = guard.report
    assert {field: getattr(report, field) for field in fields} == fields
    assert cause in report.cause
    assert report.trajectory["step"][-1] == report.step < len(arrays["x"]) // BATCH
    assert all(math.isfinite(norm) for norm in report.trajectory["grad_norm"][:-1])
    if name.startswith("weights"):
        for variable, old in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(ops.convert_to_numpy(variable), old, err_msg=variable.path)
    else:
        oracle = make()
        fit(oracle, chosen(arrays, range(report.step)))
        assert_same_state(model, oracle)


def test_verbose_prints_the_report_once_and_0_prints_nothing(capsys):
    guards = [NaNGuard("skip", verbose=verbose) for verbose in (0, 1)]
    printed = []
    for guard in guards:
        fit(build(), data(6, bad=[1, 4]), guard)
        printed.append(capsys.readouterr().out)
    assert printed == ["", f"\n{guards[1].report}\n"]
    assert "batch 1 (step 1)" in printed[1]


def test_the_report_is_of_the_last_fit():
    model, guard, arrays = build(), quiet("stop"), data(4, bad=[2])
    fit(model, arrays, guard)
    assert guard.report is not None and guard.num_skipped == 1
    oracle = build()
    fit(oracle, chosen(arrays, range(2)))
    for each, callbacks in ((model, [guard]), (oracle, [])):
        fit(each, data(4), *callbacks)
    assert guard.report is None and guard.num_skipped == 0
    assert_same_state(model, oracle)


def test_a_nan_in_a_metric_alone_is_mentioned_once(capsys):
    def broken(y, p):
        return ops.log(ops.abs(y)) * 0.0

    model, oracle = build(metrics=[broken]), build(metrics=[broken])
    guard, arrays = NaNGuard(), data(4, [1], 0.0, "y")
    history = fit(model, arrays, guard, epochs=2).history
    assert math.isnan(history["broken"][0])
    assert guard.report is None and guard.non_finite_metrics == ["broken"]
    assert capsys.readouterr().out.count("broken is not finite") == 1
    fit(oracle, arrays, epochs=2)
    assert_same_state(model, oracle)


def test_neither_model_nor_data_outlive_the_fit():
    model, guard, arrays = build(), NaNGuard(verbose=0), data(4, bad=[1])
    fit(model, arrays, guard)
    references = [weakref.ref(model), weakref.ref(model.optimizer), weakref.ref(arrays["x"])]
    del model, arrays
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]
    assert guard.report.samples == [2]


@pytest.mark.parametrize("mode", ["jit"] if BACKEND != "torch" else ["plain"])
def test_a_healthy_run_is_not_changed_by_a_bit(mode):
    model, oracle = (build(*noisy(), metrics=["mae"], **MODES[mode]) for _ in range(2))
    guard, arrays = NaNGuard("rollback", snapshot_every=3), data(10)
    options = {"epochs": 2, "validation_data": tuple(data(2).values())}
    history, expected = fit(model, arrays, guard, **options).history, fit(oracle, arrays, **options).history
    assert guard.report is None
    assert_same_state(model, oracle)
    assert history == expected


# --- how long to go on ----------------------------------------------------------------------------------------------
def test_skip_stops_after_patience_bad_steps_in_a_row():
    model, oracle = build(*noisy()), build(*noisy())
    guard, arrays = quiet("skip", patience=2), data(9, bad=[1, 3, 4, 6])
    history = fit(model, arrays, guard, epochs=5)
    fit(oracle, chosen(arrays, [0, 2]))
    assert_same_state(model, oracle)
    assert len(history.epoch) == 1 and guard.num_skipped == 3


def halved(model):
    model.optimizer.learning_rate = 0.5 * float(ops.convert_to_numpy(model.optimizer.learning_rate))


@pytest.mark.parametrize("snapshot_every, kept", [(None, []), (2, [0, 1, 2, 3])])
def test_rollback_goes_on_from_the_snapshot_with_a_lower_rate(snapshot_every, kept):
    model, oracle = build(layers.BatchNormalization), build(layers.BatchNormalization)
    arrays = data(10, bad=[5])
    guard = quiet("rollback", lr_factor=0.5, snapshot_every=snapshot_every)
    fit(model, arrays, guard)
    if kept:
        fit(oracle, chosen(arrays, kept))
    halved(oracle)
    fit(oracle, chosen(arrays, range(6, 10)))
    assert_same_state(model, oracle)
    assert guard.num_rollbacks == 1 and guard.report.step == 5


def test_rollback_starts_a_new_epoch_with_a_new_snapshot():
    model, oracle = build(), build()
    arrays, guard = data(8, bad=[6]), quiet("rollback", lr_factor=0.5)
    fit_stream(model, arrays, range(8), guard, epochs=2)
    fit(oracle, chosen(arrays, range(4)))
    halved(oracle)
    fit(oracle, chosen(arrays, [7]))
    assert_same_state(model, oracle)
    assert (guard.report.epoch, guard.report.batch) == (1, 2)


def test_rollback_stops_after_patience_rollbacks_to_one_snapshot():
    model, oracle = build(), build()
    guard = quiet("rollback", lr_factor=0.5, patience=2)
    fit(model, data(10, bad=[2, 4, 6]), guard, epochs=3)
    oracle.optimizer.build(oracle.trainable_variables)
    halved(oracle)
    halved(oracle)
    assert_same_state(model, oracle)
    assert guard.num_rollbacks == 2


def test_rollback_lowers_a_schedule():
    def decaying():
        return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5))

    model, arrays = build(optimizer=decaying), data(6, bad=[2])
    fit(model, arrays, quiet("rollback", lr_factor=0.25))
    rate = float(ops.convert_to_numpy(model.optimizer.learning_rate))
    # Back to step 0 after three batches, then three more: 0.1 * 0.5 ** (3 / 2), a quarter of it.
    assert rate == pytest.approx(0.25 * 0.1 * 0.5**1.5, rel=1e-5)


# --- data -----------------------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize("bad", [[2], [6]], ids=["amid", "the very last"])
def test_data_of_unknown_length(bad):
    # Without dropout: at an end that it did not foresee, TensorFlow without XLA still draws random numbers for a step
    # that has no batch, and a bare `fit` even counts one more iteration. So the oracle knows the length.
    model, oracle, arrays = build(layers.BatchNormalization), build(layers.BatchNormalization), data(7, bad)
    guard = quiet("skip")
    fit_stream(model, arrays, range(7), guard, steps_per_epoch=None)
    fit_stream(oracle, arrays, without(7, *bad))
    assert_same_state(model, oracle)
    assert guard.report.batch == bad[0]


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.data")
def test_several_epochs_of_a_dataset_of_unknown_length():
    model, oracle, arrays = build(), build(), data(5, [4])
    for each, batches, callbacks in ((model, range(5), [quiet("skip")]), (oracle, range(4), [])):
        dataset = tf.data.Dataset.from_tensor_slices(tuple(chosen(arrays, batches).values())).batch(BATCH)
        dataset = dataset if each is oracle else dataset.filter(lambda *batch: True)
        each.fit(dataset, epochs=3, shuffle=False, verbose=0, callbacks=callbacks)
    assert_same_state(model, oracle)


def test_a_partial_last_batch():
    model, oracle = build(*noisy()), build(*noisy())
    arrays = {key: array[: 3 * BATCH + 2] for key, array in data(4, [1]).items()}
    kept = {key: np.delete(array, range(BATCH, 2 * BATCH), axis=0) for key, array in arrays.items()}
    fit(model, arrays, quiet("skip"), epochs=2)
    fit(oracle, kept, epochs=2)
    assert_same_state(model, oracle)


def test_validation_sees_the_intact_weights():
    model, oracle, arrays = build(*noisy()), build(*noisy()), data(5, [4])
    options = {"epochs": 2, "validation_data": tuple(data(2).values())}
    history = fit(model, arrays, quiet("skip"), **options).history
    expected = fit(oracle, chosen(arrays, range(4)), **options).history
    assert history == expected
    assert np.isfinite(list(history.values())).all()


def test_rows_and_names_of_several_inputs():
    def build_two():
        keras.utils.set_random_seed(1)
        inputs = {"wide": keras.Input((3,), name="wide"), "deep": keras.Input((2,), name="deep")}
        joined = layers.Concatenate()([layers.Dense(2)(inputs["wide"]), inputs["deep"]])
        model = keras.Model(inputs, {"a": layers.Dense(1, name="a")(joined), "b": layers.Dense(2, name="b")(joined)})
        model.compile("adam", {"a": "mse", "b": "mse"}, jit_compile=JIT)
        return model

    generator = np.random.default_rng(0)
    x = {"wide": generator.normal(size=(24, 3)), "deep": generator.normal(size=(24, 2))}
    y = {"a": generator.normal(size=(24, 1)), "b": generator.normal(size=(24, 2))}
    x, y = keras.tree.map_structure(lambda array: array.astype("float32"), (x, y))
    x["deep"][[9, 11], 1] = np.inf
    model, oracle, guard = build_two(), build_two(), quiet("skip")
    fit(model, {"x": x, "y": y}, guard)
    fit(oracle, chosen({"x": x, "y": y}, without(6, 2)))
    assert_same_state(model, oracle)
    assert (guard.report.batch, guard.report.samples) == (2, [1, 3])
    assert guard.report.cause == "`x['deep']` contains Inf at rows 1 and 3"


# --- mixed precision ------------------------------------------------------------------------------------------------
def scaled(scale=2.0**10):
    return lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), initial_scale=scale)


def test_what_loss_scaling_skips_is_no_error():
    keras.config.set_dtype_policy("mixed_float16")
    model, oracle = build(optimizer=scaled(2.0**22)), build(optimizer=scaled(2.0**22))
    guard, arrays = NaNGuard("raise"), data(20)
    fit(model, arrays, guard)
    fit(oracle, arrays)
    assert float(ops.convert_to_numpy(model.optimizer.dynamic_scale)) < 2.0**22  # it did overflow, and got over it
    assert guard.report is None and guard.num_skipped == 0
    assert_same_state(model, oracle)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_bad_batch_in_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    optimizer = scaled() if policy == "mixed_float16" else None
    model, oracle = build(optimizer=optimizer), build(optimizer=optimizer)
    guard, arrays = quiet("skip"), data(7, bad=[3])
    fit(model, arrays, guard)
    fit(oracle, chosen(arrays, without(7, 3)))
    assert (guard.report.step, guard.report.origin) == (3, "input")
    assert_same_state(model, oracle)


# --- other models, several devices ----------------------------------------------------------------------------------
class OwnStep(keras.Model):
    """A `train_step` as in Keras's guides, one for each backend."""

    def __init__(self):
        super().__init__()
        self.hidden, self.head = layers.Dense(4, activation="relu"), layers.Dense(1)

    def call(self, x, training=False):
        return self.head(self.hidden(x))

    if BACKEND == "jax":

        def compute_loss_and_updates(self, trainable, non_trainable, x, y):
            y_pred, non_trainable = self.stateless_call(trainable, non_trainable, x, training=True)
            return self.compute_loss(x, y, y_pred), (y_pred, non_trainable)

        def train_step(self, state, data):
            trainable, non_trainable, optimizer_variables, metrics_variables = state
            x, y = data[:2]
            grad = jax.value_and_grad(self.compute_loss_and_updates, has_aux=True)
            (loss, (_, non_trainable)), grads = grad(trainable, non_trainable, x, y)
            trainable, optimizer_variables = self.optimizer.stateless_apply(optimizer_variables, grads, trainable)
            return {"loss": loss}, (trainable, non_trainable, optimizer_variables, metrics_variables)

    elif BACKEND == "tensorflow":

        def train_step(self, data):
            x, y = data[:2]
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            return {"loss": loss}

    else:

        def train_step(self, data):
            x, y = data[:2]
            self.zero_grad()
            loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            loss.backward()
            variables = list(self.trainable_weights)
            with torch.no_grad():
                self.optimizer.apply([v.value.grad for v in variables], variables)
            return {"loss": loss}


class Unbuilt(keras.Model):
    """Creates its variables at the first step."""

    def __init__(self):
        super().__init__()
        self.hidden, self.norm, self.head = layers.Dense(4), layers.BatchNormalization(), layers.Dense(1)

    def call(self, x, training=False):
        return self.head(self.norm(self.hidden(x), training=training))


@pytest.mark.parametrize("cls", [OwnStep, Unbuilt])
def test_subclassed_models(cls):
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        models.append(cls())
        models[-1].compile(keras.optimizers.Adam(0.05), "mse", jit_compile=JIT)
    (model, oracle), arrays, guard = models, data(6, bad=[0, 4]), quiet("skip")
    for each, batches, callbacks in ((model, range(6), [guard]), (oracle, without(6, 0, 4), [])):
        keras.utils.set_random_seed(3)  # the weights are drawn in `fit`
        kept = chosen(arrays, batches)
        each.fit(kept["x"], kept["y"], batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
    assert_same_state(model, oracle)
    assert (guard.report.step, guard.report.origin, guard.report.samples) == (0, "input", [2])


def test_mirrored_strategy(mirrored_strategy):
    with mirrored_strategy.scope():
        model, oracle = build(layers.BatchNormalization), build(layers.BatchNormalization)
    guard, arrays = quiet("skip"), data(6, bad=[0, 3], rows=(3,))  # the second replica alone meets the NaN
    fit(model, arrays, guard)
    fit(oracle, chosen(arrays, without(6, 0, 3)))
    assert_same_state(model, oracle)
    assert (guard.report.step, guard.report.samples) == (0, [3])


def test_data_parallel(data_parallel):
    with data_parallel.scope():
        model, oracle = build(*noisy()), build(*noisy())
        guard, arrays = quiet("skip"), data(6, bad=[0, 3], rows=(3,))
        fit(model, arrays, guard)
        fit(oracle, chosen(arrays, without(6, 0, 3)))
    assert_same_state(model, oracle)
    assert (guard.report.step, guard.report.samples) == (0, [3])
