"""What the hook promises: it is gone when `fit` is over, invisible to files, and does not make the device wait."""

import json
import os
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers, ops

from tf_tricks import fit_hooks
from tf_tricks._backend import BACKEND, jax, tf
from tf_tricks.callbacks import EarlyStopping, FinalLearningRateDrop, GradientNormLogger, NaNGuard
from tf_tricks.fit_hooks import gradients, hook_look

JIT = BACKEND == "jax"
BATCH = 4


class Counted(layers.Dense):
    """Counts how often Python runs through `call`: once a trace where the step is compiled."""

    calls = 0

    def call(self, x):
        type(self).calls += 1
        return super().call(x)


def build(optimizer=None, **options):
    """The same model at every call, with the same names everywhere."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(1)
    stack = [keras.Input((3,)), layers.Dense(4, activation="tanh", name="first"), layers.BatchNormalization(name="bn")]
    model = keras.Sequential([*stack, layers.Dropout(0.2, name="drop"), layers.Dense(1, name="head")], name="small")
    optimizer = optimizer or keras.optimizers.Adam(0.05, name="adam")
    model.compile(optimizer, "mse", metrics=["mae"], **{"jit_compile": JIT, **options})
    return model


def data(num_batches=6):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(num_batches * BATCH, 3)), generator.normal(size=(num_batches * BATCH, 1))
    return x.astype("float32"), y.astype("float32")


def fit(model, *callbacks, x=None, **options):
    keras.utils.set_random_seed(2)
    x, y = data() if x is None else x
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, callbacks=list(callbacks), **options)


def all_four():
    early = EarlyStopping(monitor="loss", patience=100)
    return [NaNGuard(), GradientNormLogger(verbose=0), FinalLearningRateDrop(last=1, restore=True), early]


def values(model):
    return [ops.convert_to_numpy(v) for v in (*model.variables, *model.optimizer.variables)]


def assert_same_values(model, oracle):
    for ours, theirs in zip(values(model), values(oracle), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def attributes(model):
    return {"model": dict(vars(model)), "optimizer": dict(vars(model.optimizer))}


def changed(before, after):
    """Names of the attributes that are another object than before."""
    return {
        (owner, name)
        for owner in before
        for name in {*before[owner], *after[owner]}
        if before[owner].get(name, changed) is not after[owner].get(name, changed)
    }


class Failing(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            raise ZeroDivisionError("planted in a callback")


# --- nothing is left behind -----------------------------------------------------------------------------------------
def test_after_fit_all_attributes_are_the_old_ones():
    model, oracle = build(), build()
    differences = []
    for each, callbacks in ((model, all_four()), (oracle, [])):
        fit(each)
        before, train_function, cls = attributes(each), each.train_function, type(each.optimizer)
        fit(each, *callbacks)
        assert each.train_function is train_function
        assert type(each.optimizer) is cls
        differences.append(changed(before, attributes(each)))
    assert differences[0] == differences[1]


@pytest.mark.parametrize("where", ["first step", "data", "callback"])
def test_after_a_fit_that_raises_a_plain_one_works(where):
    model, oracle = build(run_eagerly=True, jit_compile=False), build(run_eagerly=True, jit_compile=False)
    fit(model)
    fit(oracle)
    before, train_function, cls = attributes(model), model.train_function, type(model.optimizer)
    callbacks, x = [*all_four(), *([Failing()] if where == "callback" else [])], data()
    if where != "callback":  # a shape that the model does not take
        x = (x[0][:, :2], x[1]) if where == "first step" else ((batch for batch in broken_batches()), None)
    state = values(model) if where == "first step" else None
    with pytest.raises(Exception, match="planted|shape|axis"):
        fit(model, *callbacks, x=x)
    if where == "first step":
        assert model.train_function is train_function  # where nobody tells us of an error, the next `fit` sees to it
    assert type(model.optimizer) is cls
    left = {name for owner, name in changed(before, attributes(model)) if owner == "optimizer"}
    assert not left
    if state is not None:
        for ours, old in zip(values(model), state, strict=True):
            np.testing.assert_array_equal(ours, old)
    for variable, value in zip(model.variables, oracle.variables, strict=True):
        variable.assign(value)
    for variable, value in zip(model.optimizer.variables, oracle.optimizer.variables, strict=True):
        variable.assign(value)
    fit(model)
    fit(oracle)
    assert_same_values(model, oracle)
    assert model.train_function is train_function


def broken_batches():
    x, y = data()
    yield x[:BATCH], y[:BATCH]
    yield x[:BATCH], y[:BATCH]
    raise ZeroDivisionError("planted in the data")


def test_between_two_steps_others_see_the_user_s_optimizer():
    seen = []

    class Spy(keras.callbacks.Callback):
        def look(self, *_, **__):
            optimizer = self.model.optimizer
            seen.append((type(optimizer), "apply" in vars(optimizer), len(optimizer.variables)))

        on_train_batch_begin = on_train_batch_end = on_epoch_begin = on_epoch_end = on_train_begin = look

    for callbacks in ([], all_four()):
        model = build()
        cls = type(model.optimizer)
        model.optimizer.build(model.trainable_variables)
        fit(model, *callbacks, Spy())
        assert seen == [(cls, False, len(model.optimizer.variables))] * (3 + 2 * 6)
        seen.clear()


# --- files ----------------------------------------------------------------------------------------------------------
class SaveAll(keras.callbacks.Callback):
    """`model.save` and the like in the middle of `fit`; ends it after two epochs, before the drop begins."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_epoch_end(self, epoch, logs=None):
        self.model.save(self.folder / f"saved_{epoch}.keras")
        self.model.stop_training = epoch == 1

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            self.model.save_weights(self.folder / "amid.weights.h5")


def save_during_fit(folder, ours):
    folder.mkdir()
    model = build()
    savers = [
        keras.callbacks.ModelCheckpoint(folder / "epoch_{epoch}.keras"),
        keras.callbacks.ModelCheckpoint(folder / "epoch_{epoch}.weights.h5", save_weights_only=True),
        keras.callbacks.ModelCheckpoint(folder / "batch_{batch}.keras", save_freq=4),
        keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False),
        SaveAll(folder),
    ]
    fit(model, *savers[:2], *ours, *savers[2:], epochs=4)
    return model


def contents(path):
    """{name: bytes or array} of a saved file, dates left out."""
    if path.suffix == ".keras":
        found = {}
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".h5"):
                    with archive.open(name) as file, h5py.File(file) as opened:
                        found.update(arrays_of(opened))
                else:
                    found[name] = json.loads(archive.read(name), object_hook=without_chance)
        return found
    if path.suffix == ".h5":
        with h5py.File(path) as opened:
            return arrays_of(opened)
    return {"text": path.read_text()}


def without_chance(entry):
    """Leave out what differs between two bare runs: a date, and a memory address that serves as an id."""
    return {key: value for key, value in entry.items() if key not in ("date_saved", "shared_object_id")}


def arrays_of(opened):
    found = {}

    def visit(name, item):
        found[name] = [(key, str(value)) for key, value in sorted(item.attrs.items())]
        if isinstance(item, h5py.Dataset):
            found[name].append(np.asarray(item).tobytes())

    opened.visititems(visit)
    return found


LOAD = """
import sys
sys.modules["tf_tricks"] = None  # an import of it now raises
import keras, numpy as np
for path in sys.argv[2:]:
    model = keras.saving.load_model(path)
    print(float(np.sum(model.predict(np.load(sys.argv[1]), verbose=0), dtype="float64")))
"""


def test_files_written_during_fit_are_those_of_a_bare_run(tmp_path):
    model = save_during_fit(tmp_path / "ours", all_four())
    oracle = save_during_fit(tmp_path / "bare", [])
    assert_same_values(model, oracle)
    paths = sorted(p.relative_to(tmp_path / "bare") for p in (tmp_path / "bare").rglob("*") if p.is_file())
    assert paths == sorted(p.relative_to(tmp_path / "ours") for p in (tmp_path / "ours").rglob("*") if p.is_file())
    assert len(paths) >= 10
    for path in paths:
        assert contents(tmp_path / "ours" / path) == contents(tmp_path / "bare" / path), path
    archives = [tmp_path / "ours" / path for path in paths if path.suffix == ".keras"]
    np.save(tmp_path / "x.npy", data()[0])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", LOAD, str(tmp_path / "x.npy"), *map(str, archives)]
    environment["KERAS_BACKEND"] = BACKEND
    loaded = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr[-2000:]
    printed = dict(zip((path.name for path in archives), map(float, loaded.stdout.split()), strict=True))
    expected = float(np.sum(model.predict(data()[0], verbose=0), dtype="float64"))
    assert printed["saved_1.keras"] == pytest.approx(expected, rel=1e-5)


# --- the compiled step ----------------------------------------------------------------------------------------------
@pytest.mark.skipif(BACKEND == "torch", reason="nothing is traced")
def test_a_second_fit_compiles_nothing_and_a_new_compile_all():
    def make():
        keras.utils.set_random_seed(1)
        return keras.Sequential([keras.Input((3,)), Counted(1)])

    def traces(*callbacks):
        Counted.calls = 0
        fit(model, *callbacks)
        return Counted.calls

    model = make()
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=JIT)
    assert traces(*all_four()) > 0
    assert traces(*all_four()) == 0
    assert traces() > 0  # a bare fit has a step of its own,
    assert traces() == 0
    assert traces(*all_four()) == 0  # and takes nothing away from ours
    model.compile(keras.optimizers.SGD(0.3), "mae", jit_compile=JIT)
    before = model.get_weights()
    assert traces(*all_four()) > 0
    oracle = make()
    oracle.compile(keras.optimizers.SGD(0.3), "mae", jit_compile=JIT)
    oracle.set_weights(before)
    fit(oracle)
    # The drop lasts for the one epoch that there is; `restore` gives the rate back.
    rate = float(ops.convert_to_numpy(model.optimizer.learning_rate))
    assert rate == pytest.approx(0.3)
    ours, theirs = (np.concatenate([w.ravel() for w in m.get_weights()]) for m in (model, oracle))
    start = np.concatenate([w.ravel() for w in before])
    assert 0 < np.linalg.norm(ours - start) < 0.5 * np.linalg.norm(theirs - start)


# --- the learning rate ----------------------------------------------------------------------------------------------
class Halved(keras.callbacks.Callback):
    """Half the learning rate in every second step."""

    async_safe = True

    def on_train_begin(self, logs=None):
        self.hook = fit_hooks.attach(self.model, self, rate=lambda position: 0.5 if position.step % 2 else 1.0)

    def on_train_end(self, logs=None):
        self.hook.detach(self)


class HalvedSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """The same, for the oracle, around whatever the rate is."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        rate = self.rate(step) if isinstance(self.rate, keras.optimizers.schedules.LearningRateSchedule) else self.rate
        rate = rate() if callable(rate) else rate
        return ops.where(ops.cast(step, "int32") % 2 > 0, 0.5, 1.0) * rate


RATES = {
    "float": lambda: 0.125,
    "schedule": lambda: keras.optimizers.schedules.ExponentialDecay(0.125, 1, 0.5),
    "callable": lambda: lambda: 0.125,
    "loss scaling": lambda: 0.125,
}


@pytest.mark.parametrize("kind", RATES)
def test_the_rate_of_every_step_is_scaled_whatever_it_is(kind):
    def optimizer(wrap):
        inner = keras.optimizers.SGD(wrap(RATES[kind]()), momentum=0.5)
        return keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0) if kind == "loss scaling" else inner

    model, oracle = build(optimizer(lambda rate: rate)), build(optimizer(HalvedSchedule))
    fit(model, Halved())
    fit(oracle)
    for ours, theirs in zip(model.get_weights(), oracle.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


# --- cost -----------------------------------------------------------------------------------------------------------
class Watch(keras.callbacks.Callback):
    """Keeps the hook of the running `fit`. Comes after the callbacks that attach it."""

    async_safe = True

    def on_train_begin(self, logs=None):
        self.hook = self.model.train_function


class WatchRows(Watch):
    """Notes the sizes of the rows that wait on the device."""

    async_safe = False
    sizes = frozenset()

    def on_train_batch_end(self, batch, logs=None):
        self.sizes |= {int(ops.size(row)) for *_, row in self.hook._pending}


def test_the_records_of_100_layers_take_less_than_a_megabyte():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), *(layers.Dense(3) for _ in range(100))])
    model.compile(keras.optimizers.SGD(1e-3, clipvalue=1.0), "mse", run_eagerly=True)
    watch, (x, _) = WatchRows(), data(3)
    fit(model, GradientNormLogger(per="variable"), NaNGuard(), watch, x=(x, x))
    largest = 2 + 200 * len(gradients.COLUMNS)
    assert watch.sizes == {largest}
    assert 4 * largest * hook_look.FLUSH_EVERY <= 2**20


@pytest.mark.skipif(BACKEND == "torch", reason="an eager step on the CPU has ended when it returns")
def test_the_host_looks_at_most_once_in_16_steps(monkeypatch):
    model, watch, looks = build(), Watch(), set()
    array = type(tf.constant(0.0)) if tf else type(jax.numpy.zeros(()))
    for name in ("__array__", "__float__", "__bool__", "__int__", "__index__", "numpy", "item"):
        if hasattr(array, name):
            monkeypatch.setattr(array, name, noted(getattr(array, name), watch, looks))
    monkeypatch.setattr(ops, "convert_to_numpy", noted(ops.convert_to_numpy, watch, looks))
    fit(model, *all_four(), watch, x=data(128))
    assert 1 <= len(looks) <= 128 / 16


def noted(original, watch, looks):
    """`original`, with a note of the step if tf_tricks is among its callers."""

    def wrapper(*args, **kwargs):
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith("tf_tricks") and hasattr(watch, "hook"):
                looks.add(watch.hook.step)
                break
            frame = frame.f_back
        return original(*args, **kwargs)

    return wrapper


def test_multi_optimizer_is_guarded_and_its_rates_are_left_alone():
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        pytest.skip("this Keras has no MultiOptimizer")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, name="a"), keras.layers.Dense(1, name="b")])
    rates = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1), {"a/kernel": keras.optimizers.Adam()})
    model.compile(keras.optimizers.MultiOptimizer(rates), "mse")
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    bad = x.copy()
    bad[40, 0] = np.nan
    guard, logger = NaNGuard("skip", verbose=0), GradientNormLogger(verbose=0)
    history = model.fit(bad, x[:, :1], epochs=2, verbose=0, shuffle=False, callbacks=[guard, logger]).history
    assert np.isfinite(history["loss"]).all() and guard.num_skipped == 2
    with pytest.raises(ValueError, match="FinalLearningRateDrop: the learning rate of MultiOptimizer"):
        model.fit(x, x[:, :1], verbose=0, callbacks=[FinalLearningRateDrop()])
    assert np.isfinite(model.fit(x, x[:, :1], verbose=0).history["loss"][0])
