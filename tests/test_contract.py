"""One row per public name (`contract/rows.py`), many contracts that each of them keeps."""

import gc
import inspect
import os
import re
import threading
import types

import keras
import numpy as np
import pytest

import tf_tricks
from tests.contract import refusals
from tests.contract.augmentation_rows import AUGMENTATIONS
from tests.contract.debug_rows import DEBUG
from tests.contract.initializer_rows import INITIALIZERS
from tests.contract.layer_rows import LAYERS
from tests.contract.models import BACKEND, EPOCHS, MODES, QUICK, SHAPES, STEPS, Run, assert_same_bits
from tests.contract.rows import ALL_SECTIONS, CALLBACKS, FUNCTIONS, ROWS
from tf_tricks.debug._result import Result
from tf_tricks.fit_hooks.learning_rate import ScaledLearningRate, optimizer_rate

CLASSES = sorted(name for name, row in ROWS.items() if row.make is not None)
SERIALIZABLE = sorted([*CALLBACKS, "ScaledLearningRate"])


def public_names():
    """Every public name of the package with its object; a module's public names are public too."""
    found, waiting = {"ScaledLearningRate": ScaledLearningRate}, [tf_tricks]
    while waiting:
        module = waiting.pop()
        for name in module.__all__:
            found[name] = getattr(module, name)
            if isinstance(found[name], types.ModuleType):
                waiting.append(found[name])
    return found


def everything():
    """One of each callback."""
    return [ROWS[name].make() for name in CALLBACKS]


_runs = {}


def run_of(mode, name=None):
    """A compiled model that the tests share (those of one name, if it is given), so that each step is compiled once."""
    if (mode, name) not in _runs:
        run = _runs[mode, name] = Run(**MODES[mode])
        run.bare = run.fit()
    return _runs[mode, name]


# --- every name has a row -----------------------------------------------------------------------------------------


def test_every_public_name_has_a_row_and_every_row_a_public_name():
    results = [name for name, each in public_names().items() if inspect.isclass(each) and issubclass(each, Result)]
    assert sorted([*ROWS, *LAYERS, *AUGMENTATIONS, *INITIALIZERS, *DEBUG, *results]) == sorted(public_names())
    assert all(isinstance(public_names()[name], type) == (name in CLASSES) for name in ROWS)


def test_every_callback_has_a_row_of_a_callback():
    classes = [name for name, each in public_names().items() if inspect.isclass(each)]
    assert sorted(name for name in classes if hasattr(public_names()[name], "on_train_begin")) == CALLBACKS


@pytest.mark.parametrize("name", [*CALLBACKS, *FUNCTIONS])
def test_every_argument_refuses_something(name):
    tested = {bad[0] for bad in ROWS[name].bad} | set(ROWS[name].any_value)
    assert tested == set(inspect.signature(public_names()[name]).parameters)


# --- 1. every way to compile --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("mode", MODES)
def test_works_in_silence_and_leaves_training_alone(mode, name, capsys):
    run, row = run_of(mode), ROWS[name]
    callback = row.make()
    state, history = run.fit([callback])
    row.proof(callback, history)
    if not row.changes_training:
        assert_same_bits(state, run.bare[0])
        assert all(history[key] == values for key, values in run.bare[1].items())
    # Warnings are errors in all tests.
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_works_in_silence(name, capsys):
    public_names()[name](**ROWS[name].arguments())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("mode", MODES)
def test_all_callbacks_together(mode):
    callbacks = everything()
    _, history = run_of(mode).fit(callbacks)
    for name, callback in zip(CALLBACKS, callbacks, strict=True):
        ROWS[name].proof(callback, history)


# Half a minute, most of it Torch's compiler.
@pytest.mark.skipif(BACKEND != "torch", reason="the other backends compile in every test")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by Torch's compiler itself
def test_all_callbacks_together_in_a_compiled_torch_step():
    callbacks = everything()
    _, history = Run(jit_compile=True).fit(callbacks)
    for name, callback in zip(CALLBACKS, callbacks, strict=True):
        ROWS[name].proof(callback, history)


# --- 2. dtypes, 3. devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    run = Run(**MODES[QUICK])
    assert isinstance(run.model.optimizer, keras.optimizers.LossScaleOptimizer) == (policy == "mixed_float16")
    bare, _ = run.fit()
    check_save_and_restore(run)
    for name in CALLBACKS:
        callback = ROWS[name].make()
        state, history = run.fit([callback])
        ROWS[name].proof(callback, history)
        if not ROWS[name].changes_training:
            assert_same_bits(state, bare)


def check_save_and_restore(run):
    """`tf_tricks.checkpoints.save`, then `restore` into the same model after it has changed."""
    path, before = ROWS["save"].arguments()["path"], run.state()
    tf_tricks.checkpoints.save(path, run.model, epoch=EPOCHS)
    run.reset()
    assert any(not np.array_equal(a, b) for a, b in zip(run.state(), before, strict=True))
    report = tf_tricks.checkpoints.restore(path, run.model)
    assert (report.epoch, report.optimizer_restored, report.skipped, report.cast) == (EPOCHS, True, {}, {})
    assert_same_bits(run.state(), before)
    assert tf_tricks.checkpoints.verify(path) is None
    assert tf_tricks.checkpoints.describe(path).step == report.step == EPOCHS * STEPS
    assert tf_tricks.checkpoints.latest(os.path.dirname(path)) == path


def test_mirrored_strategy(mirrored_strategy):
    with mirrored_strategy.scope():
        run = Run(**MODES[QUICK])
    check_on_devices(run)


def test_data_parallel(data_parallel):
    with data_parallel.scope():
        check_on_devices(Run(**MODES[QUICK]))


def check_on_devices(run):
    bare, _ = run.fit()
    check_save_and_restore(run)
    for name in CALLBACKS:
        callback = ROWS[name].make()
        state, history = run.fit([callback])
        ROWS[name].proof(callback, history)
        if not ROWS[name].changes_training:
            for got, expected in zip(state, bare, strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


# --- 4. configuration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERIALIZABLE)
def test_config_round_trip(name):
    cls = public_names()[name]
    for arguments in [{}, *ROWS[name].variants]:
        config = ROWS[name].make(**arguments).get_config()
        assert set(config) == set(inspect.signature(cls).parameters)
        assert cls.from_config(config).get_config() == config
        assert arguments.items() <= config.items()


@pytest.mark.parametrize("name", SERIALIZABLE)
def test_keras_saving_round_trip(name):
    assert keras.saving.get_registered_name(public_names()[name]) == f"tf_tricks>{name}"
    for arguments in [{}, *ROWS[name].variants]:
        original = ROWS[name].make(**arguments)
        serialized = keras.saving.serialize_keras_object(original)
        assert serialized["registered_name"] == f"tf_tricks>{name}"
        again = keras.saving.deserialize_keras_object(serialized)
        assert type(again) is public_names()[name]
        assert again.get_config() == original.get_config()


def test_a_trained_model_is_saved_and_loaded(tmp_path):
    run = run_of(QUICK)
    run.fit(everything())
    run.model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    loaded = [np.array(keras.ops.convert_to_numpy(v)) for v in [*again.weights, *again.optimizer.variables]]
    assert_same_bits(loaded, run.state())


def test_a_model_with_a_scaled_learning_rate_is_saved_and_loaded(tmp_path):
    run = Run(learning_rate=ROWS["ScaledLearningRate"].make(), **MODES[QUICK])
    run.model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert float(again.optimizer.learning_rate) == pytest.approx(0.01)


# --- 5. two fits, and fits that end with an exception -------------------------------------------------------------


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_second_fit_starts_anew(name):
    run, row = run_of(QUICK, name), ROWS[name]
    callback = row.make()
    first, first_history = run.fit([callback])
    second, second_history = run.fit([callback])
    row.proof(callback, second_history)
    assert_same_bits(second, first)
    assert second_history == first_history


class Stopper(keras.callbacks.Callback):
    """Raises in the middle of the second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.seen == 7:
            raise RuntimeError("enough")
        self.seen += 1

    def on_train_begin(self, logs=None):
        self.seen = 0


def broken_data(x, y):
    """Batches that end with an exception inside the step of `fit`."""
    for start in range(0, 24, 8):
        yield x[start : start + 8], y[start : start + 8]
    raise RuntimeError("enough")


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize("where", ["callback", "data"])
@pytest.mark.filterwarnings("ignore:TrainingCheckpoint. the order of the data.*is a generator")
def test_a_fit_that_raises_leaves_model_and_optimizer_as_it_found_them(name, where, tmp_path):
    run = run_of(QUICK, name)
    found = description(run.model)

    def interrupted(callbacks):
        if where == "callback":
            return run.fit([*callbacks, Stopper()])
        batches = broken_data(run.x, run.y)
        return run.fit(callbacks, x=batches, y=None, batch_size=None, steps_per_epoch=STEPS, shuffle=False)

    with pytest.raises(Exception, match="enough"):
        interrupted([])
    expected = after_interruption(run, tmp_path / "bare.keras")
    with pytest.raises(Exception, match="enough"):
        interrupted([ROWS[name].make()])
    got = after_interruption(run, tmp_path / "ours.keras")
    assert description(run.model) == found
    if ROWS[name].changes_training:
        assert_same_bits(run.fit()[0], run.bare[0])
        return
    if where == "data":
        # TensorFlow counts the iteration while it waits for the batch that never comes, or does not: weights only.
        got, expected = ([states[0][: len(run.model.weights)]] for states in (got, expected))
    for each, other in zip(got, expected, strict=True):
        assert_same_bits(each, other)
    assert_same_bits(run.fit()[0], run.bare[0])


def description(model):
    """What must be the same before and after: classes, attributes, variables and the learning rate's kind."""
    optimizer = model.optimizer
    return (
        type(model),
        type(optimizer),
        sorted(vars(optimizer)),
        sorted(set(vars(model)) - {"history", "_jax_state_synced"}),
        [v.path for v in optimizer.variables],
        [v.path for v in model.variables],
        type(optimizer_rate(optimizer)),
        "train_step" in vars(model),
        optimizer.get_config().keys(),
    )


def after_interruption(run, path):
    """The state right after, what a single batch does then, and the shapes that a saved file holds."""
    if BACKEND == "jax":
        run.model.jax_state_sync()
    right_after = run.state()
    run.model.save(path)
    keras.utils.set_random_seed(1)
    run.model.train_on_batch(run.x[:8], run.y[:8])
    one_more = run.state()
    loaded = keras.saving.load_model(path)
    saved = [np.array(keras.ops.convert_to_numpy(v)) for v in [*loaded.weights, *loaded.optimizer.variables]]
    return right_after, one_more, saved


@pytest.mark.parametrize("name", CALLBACKS)
def test_the_model_can_be_forgotten_after_fit(name):
    run = run_of(QUICK, name)
    callback = ROWS[name].make()
    run.fit([callback])
    assert type(run.model.train_function).__module__.partition(".")[0] != "tf_tricks"
    hooks = [each for each in vars(callback).values() if isinstance(each, tf_tricks.fit_hooks.FitHook)]
    assert hooks == []


def test_a_restore_that_raises_leaves_model_and_optimizer_as_it_found_them():
    arguments, run = ROWS["restore"].arguments(), run_of(QUICK)
    run.reset()
    found, before = description(run.model), run.state()
    with pytest.raises(ValueError, match="kernel"):  # of another model, whose second variable has another shape
        tf_tricks.checkpoints.restore(arguments["path"], run.model)
    assert description(run.model) == found
    assert_same_bits(run.state(), before)
    assert_same_bits(run.fit()[0], run.bare[0])


# --- 6. every kind of model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_model(shape):
    run = Run(SHAPES[shape], **MODES[QUICK])
    bare, _ = run.fit()
    check_save_and_restore(run)
    for name in CALLBACKS:
        callback = ROWS[name].make()
        state, history = run.fit([callback])
        ROWS[name].proof(callback, history)
        if not ROWS[name].changes_training:
            assert_same_bits(state, bare)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", CALLBACKS)
def test_non_finite_data_is_no_surprise(name, value, capsys):
    run = run_of(QUICK, name)
    y = run.y.copy()
    y[20] = value
    callback = ROWS[name].make()
    with np.errstate(all="ignore"):
        _, history = run.fit([callback], y=y, shuffle=False)
    assert len(history["loss"]) == (1 if name == "NaNGuard" else 2)
    assert capsys.readouterr() == ("", "")


# --- 7. bad arguments ---------------------------------------------------------------------------------------------

CALLED = {name: ROWS[name] for name in [*CALLBACKS, *FUNCTIONS]}


@pytest.mark.parametrize(("name", "argument", "value", "error", "accepted", "others"), refusals.cases(CALLED))
def test_a_bad_argument_is_named_with_what_is_accepted_and_what_came(name, argument, value, error, accepted, others):
    if name in FUNCTIONS:
        others = {**ROWS[name].arguments(), **others}
    refusals.check(public_names()[name], argument, value, error, accepted, others)


# --- 8. random numbers, 9. nothing left open ----------------------------------------------------------------------


def test_two_runs_from_one_seed_give_the_same_bits():
    results = [Run(**MODES[QUICK]).fit(everything()) for _ in range(2)]
    assert_same_bits(results[1][0], results[0][0])
    assert list(results[1][1].values()) == list(results[0][1].values())  # layers have other names the second time


def test_no_thread_and_no_file_is_left_open(tmp_path):
    run = run_of(QUICK)
    run.fit(everything())  # what the backend itself starts and opens once
    gc.collect()  # a `fit` that raised, in another test, keeps its thread until it is forgotten
    before = threading.enumerate(), open_files()
    logger = ROWS["GradientNormLogger"].make(log_dir=tmp_path)
    run.fit([*everything(), logger])
    assert list(tmp_path.rglob("*tfevents*"))
    gc.collect()  # a file that was left to the garbage collector is a ResourceWarning, and so an error
    assert (threading.enumerate(), open_files()) == before


def open_files():
    """Paths that this process holds open, where the system tells."""
    if not os.path.isdir("/proc/self/fd"):
        return []
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return sorted(os.readlink(link) for link in links if os.path.exists(link))


# --- 10. docstrings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted([*CLASSES, *FUNCTIONS, *LAYERS, *INITIALIZERS]))
def test_docstring_has_its_sections(name):
    cls = public_names()[name]
    doc = inspect.getdoc(cls)
    wanted = ROWS[name].sections if name in ROWS else ALL_SECTIONS
    found = re.findall(r"^(Args|Attributes|Returns|Raises|Reference|Example):$", doc, re.MULTILINE)
    assert [section for section in wanted if section not in found] == []
    if "Args" in wanted:
        arguments = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.MULTILINE | re.DOTALL).group(1)
        for argument in inspect.signature(cls).parameters:
            assert re.search(rf"^ +([\w, ]+, )?{argument}(, [\w, ]+)?:", arguments, re.MULTILINE), argument
