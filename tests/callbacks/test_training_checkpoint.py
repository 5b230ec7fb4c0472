"""Interrupted and resumed runs against runs that were not: every bit must be the same."""

import os
import random
import shutil
import signal
import sys
import threading
import time
import warnings

import keras
import numpy as np
import pytest

import tf_tricks
from tests.callbacks import resume_cases as cases
from tests.callbacks.resume_cases import CASES, EPOCHS, Kill, Killed, assert_same, evidence
from tf_tricks._backend import BACKEND
from tf_tricks.callbacks import TrainingCheckpoint


def run(
    directory,
    make_data,
    kill=None,
    seed=7,
    callbacks=lambda: [],
    make_model=cases.small_model,
    epochs=EPOCHS,
    **options,
):
    """What a script does from its first line to its last: returns the evidence, or raises Killed."""
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(seed)
    model, data, others = make_model(), make_data(), callbacks()
    checkpoint = TrainingCheckpoint(directory, **{"verbose": 0, "every": 2, **options})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your input ran out of data")  # Keras says so at the end of such data
        warnings.filterwarnings("ignore", ".*data is a generator")
        model.fit(**data, epochs=epochs, verbose=0, callbacks=[checkpoint, *others, *([kill] if kill else [])])
    return evidence(model, *others)


def run_until_done(directory, make_data, kills, **arguments):
    """The same script, killed at each of `kills` and started again."""
    for kill in kills:
        with pytest.raises(Killed):
            run(directory, make_data, kill=kill, **arguments)
    return run(directory, make_data, **arguments)


def only(step, source, target):
    """A folder with one of the checkpoints of another."""
    target.mkdir()
    shutil.copy(source / f"step-{step:010}.safetensors", target)
    return target


BOTH_EPOCHS = {
    "arrays",
    "arrays, steps_per_epoch",
    "PyDataset",
    "PyDataset, workers",
    "PyDataset, steps_per_epoch",
    "tf.data, random map",
    "tf.data, unknown length",
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_that_goes_on_from_any_step_ends_with_the_same_bits(name, tmp_path):
    whole = tmp_path / "whole"
    wanted = run(whole, CASES[name], every=1, keep=100)
    for step in (3, 8) if name in BOTH_EPOCHS else (8,):  # in the first epoch, in a later one
        assert_same(run(only(step, whole, tmp_path / str(step)), CASES[name]), wanted)


# --- settings of model, optimizer and fit ------------------------------------------------------------------------


def _validated(make):
    """Shuffled training arrays, and validation data that is in another order each time."""
    return lambda: {**cases.CASES["arrays"](), "validation_freq": 2, **make()}


def _halves_of_one_shuffle():
    import tensorflow as tf

    whole = tf.data.Dataset.from_tensor_slices(cases.arrays()).shuffle(cases.SAMPLES, seed=4)
    train, held_out = (part.batch(cases.BATCH) for part in (whole.take(20), whole.skip(20)))
    return {"x": train, "validation_data": held_out, "shuffle": False}  # 5 steps an epoch


def _with_a_generator_in_map():
    import tensorflow as tf

    noise = tf.random.Generator.from_seed(3)
    dataset = tf.data.Dataset.from_tensor_slices(cases.arrays())
    return dataset.map(lambda x, y: (x + noise.normal([5]), y)).batch(cases.BATCH)


VALIDATED = {
    "tf.data, validation_steps": _validated(
        lambda: {"validation_data": cases.tf_data()["x"], "validation_steps": 2, "validation_freq": 1}
    ),
    "tf.data, random map": _validated(lambda: {"validation_data": cases.tf_data(augment="tf")["x"]}),
    "tf.data, Keras layer in map": _validated(
        lambda: {"validation_data": cases.tf_data(augment="keras")["x"], "validation_freq": 1}
    ),
    "tf.data, a generator in map": _validated(lambda: {"validation_data": _with_a_generator_in_map()}),
    "tf.data, halves of one shuffle": _halves_of_one_shuffle,
    "PyDataset": _validated(lambda: {"validation_data": cases.Dataset(), "validation_freq": 1}),
    "PyDataset, own generator": _validated(lambda: {"validation_data": cases.Dataset(own=True), "validation_steps": 3}),
    "PyDataset, get_state": _validated(lambda: {"validation_data": cases.Remembering(), "validation_steps": 2}),
    "PyDataset, training of unknown length": lambda: {
        **cases.tf_data(known=False),
        "validation_data": cases.Dataset(own=True),
    },
    "two PyDatasets": lambda: {"x": cases.Dataset(), "validation_data": cases.Dataset(), "validation_steps": 2},
}
if BACKEND == "torch":
    VALIDATED["DataLoader"] = _validated(
        lambda: {"validation_data": cases.CASES["DataLoader, own generator"]()["x"], "validation_freq": 1}
    )


@pytest.mark.parametrize("name", VALIDATED)
def test_validation_data_in_another_order_each_time_goes_on_with_it(name, tmp_path):
    whole = run(tmp_path / "whole", VALIDATED[name], every=1, keep=99)
    assert "history/val_loss" in whole
    again = run(only(14, tmp_path / "whole", tmp_path / "one"), VALIDATED[name])
    assert_same(again, whole)


@pytest.mark.parametrize("frequency", [1, 2])
def test_a_fit_with_it_trains_and_validates_as_a_bare_one(frequency, tmp_path):
    histories = []
    for callbacks in ([], [TrainingCheckpoint(tmp_path, verbose=0)]):
        keras.utils.set_random_seed(7)
        model = cases.small_model()
        data = {"x": cases.Dataset(), "validation_data": cases.Dataset(), "validation_freq": frequency}
        histories.append(model.fit(**data, epochs=4, verbose=0, callbacks=callbacks).history)
    assert histories[0] == histories[1]  # both datasets draw from NumPy's global generator, one after the other


@pytest.mark.skipif(BACKEND == "jax", reason="one pipeline in one process is enough")
def test_halves_of_one_shuffle_that_do_not_take_turns_are_named(tmp_path):
    def data():
        halves = _halves_of_one_shuffle()
        return {**halves, "x": halves["x"].repeat(), "steps_per_epoch": 5}

    with pytest.warns(
        UserWarning, match="the order of the validation data cannot be kept: it comes from the `shuffle`"
    ):
        run(tmp_path, data, epochs=1)


def _other_data_again():
    return _validated(lambda: {"validation_data": cases.Dataset(), "validation_freq": 1})()


def test_the_comparison_of_validations_can_fail(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole", _other_data_again, every=1, keep=99)
    monkeypatch.setattr("tf_tricks.fit_hooks.running_fit.RunningFit.validation_iterator", lambda self: None)
    again = run(only(14, tmp_path / "whole", tmp_path / "one"), _other_data_again)
    with pytest.raises(AssertionError, match="history/val_"):
        assert_same(again, whole)


def test_one_dataset_that_trains_and_validates_is_named(tmp_path):
    def both():
        dataset = cases.Dataset()
        return {"x": dataset, "validation_data": dataset}

    with pytest.warns(
        UserWarning, match="order of the validation data cannot be kept: it is the PyDataset that trains"
    ):
        run(tmp_path, both, epochs=1)


def _clipped_with_schedule():
    schedule = keras.optimizers.schedules.CosineDecay(0.02, 20)
    return cases.model(keras.optimizers.Adam(schedule, clipnorm=1.0))


SETTINGS = {
    "schedule": {"make_model": _clipped_with_schedule},
    "accumulation": {"make_model": lambda: cases.model(keras.optimizers.Adam(0.01, gradient_accumulation_steps=3))},
    "average of weights": {"make_model": lambda: cases.model(keras.optimizers.Adam(0.01, use_ema=True))},
    "loss scale": {
        "make_model": lambda: cases.model(
            keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), dynamic_growth_steps=4)
        )
    },
    "eager": {"make_model": lambda: cases.model(run_eagerly=True, jit_compile=False)},
    "XLA": {"make_model": lambda: cases.model(jit_compile=BACKEND != "torch")},
    "validation": {"fit": {"validation_data": cases.arrays(), "validation_freq": 2}},
    "initial_epoch": {"fit": {"initial_epoch": 1}},
}
if BACKEND != "torch":  # takes one step at a time only
    SETTINGS["steps_per_execution"] = {"make_model": lambda: cases.model(steps_per_execution=2)}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_of_model_and_fit_resumes_with_the_same_bits(name, tmp_path):
    settings = {"fit": {}, "make_model": cases.model, **SETTINGS[name]}
    fit = settings.pop("fit")

    def data():
        return {**CASES["arrays"](), **fit}

    wanted = run(tmp_path / "whole", data, every=2, keep=100, **settings)
    assert_same(run(only(8, tmp_path / "whole", tmp_path / "8"), data, **settings), wanted)


def test_mixed_precision_resumes_with_the_same_bits(tmp_path):
    def build():
        keras.config.set_dtype_policy("mixed_float16")  # `clear_session` forgets it
        return cases.model()

    wanted = run(tmp_path / "whole", CASES["arrays"], make_model=build, keep=100)
    assert_same(run(only(8, tmp_path / "whole", tmp_path / "8"), CASES["arrays"], make_model=build), wanted)
    assert any("scale" in name for name in wanted)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute belongs to the TensorFlow backend")
def test_every_replica_is_restored(tmp_path, mirrored_strategy):
    def build():
        with mirrored_strategy.scope():
            return cases.model()

    def data():  # the validation takes what each replica has of the statistics of batch normalisation
        return {**CASES["arrays"](), "validation_data": cases.arrays(), "validation_batch_size": 4}

    wanted = run(tmp_path / "whole", data, make_model=build, keep=100)
    assert_same(run(only(8, tmp_path / "whole", tmp_path / "8"), data, make_model=build), wanted)
    moving = [name for name in wanted if name.startswith("replica") and "moving_mean" in name]
    assert len(moving) == 2 and not np.array_equal(*(wanted[name] for name in moving))  # Keras does not join them


def test_a_model_over_several_devices_is_restored(tmp_path, data_parallel):
    def data():
        x, y = cases.arrays()
        return {"x": x[:16], "y": y[:16], "batch_size": 4}

    with data_parallel.scope():
        wanted = run(tmp_path / "whole", data, keep=100, make_model=cases.model)
        assert_same(run(only(6, tmp_path / "whole", tmp_path / "6"), data, make_model=cases.model), wanted)


def _lowers(epoch, rate):
    return rate * 0.7


def keras_callbacks(directory):
    """Counters of all kinds; patience runs out within the run."""
    return [
        keras.callbacks.LearningRateScheduler(_lowers),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0, cooldown=1),
        keras.callbacks.EarlyStopping("loss", patience=3, min_delta=10.0, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(
            directory / "best.weights.h5", "loss", save_best_only=True, save_weights_only=True
        ),
        keras.callbacks.BackupAndRestore(directory / "backup", save_freq=4),
    ]


def our_callbacks():
    return [
        tf_tricks.callbacks.NaNGuard(on_nan="skip", verbose=0),
        tf_tricks.callbacks.GradientNormLogger(per="variable", verbose=0),
        tf_tricks.callbacks.FinalLearningRateDrop(last=0.5),
        tf_tricks.callbacks.EarlyStopping(
            "loss", patience=1, min_delta=10.0, learning_rate_drop=0.5, restore_best="all", smoothing=0.5, verbose=0
        ),
    ]


SAVED = [4, 12, 14]  # in the first epoch, at an epoch's end, in a later epoch


def test_counters_of_keras_callbacks_go_on(tmp_path):
    def make(name):
        return lambda: keras_callbacks(tmp_path / name)

    wanted = run(tmp_path / "whole", CASES["arrays"], callbacks=make("a"), keep=100, epochs=6)
    assert len(wanted["epochs"]) == 4  # stopped early
    for step in SAVED:
        directory = only(step, tmp_path / "whole", tmp_path / str(step))
        assert_same(run(directory, CASES["arrays"], callbacks=make(f"b{step}"), epochs=6), wanted)


def test_our_own_callbacks_go_on(tmp_path):
    histories = []

    def make():
        callbacks = our_callbacks()
        histories.append(callbacks[1])
        return callbacks

    wanted = run(tmp_path / "whole", CASES["arrays"], callbacks=make, keep=100, epochs=6)
    assert "learning_rate" in "".join(wanted) and "history/grad_norm/global" in wanted
    for step in SAVED:
        directory = only(step, tmp_path / "whole", tmp_path / str(step))
        assert_same(run(directory, CASES["arrays"], callbacks=make, epochs=6), wanted)
        assert_same(histories[-1].history, histories[0].history)


@pytest.mark.parametrize("on_nan", ["skip", "rollback"])
def test_a_guard_goes_on_after_a_bad_batch(on_nan, tmp_path):
    def data():
        x, y = cases.arrays()
        y[7] = np.inf  # shuffled: another batch of each epoch
        return {"x": x, "y": y, "batch_size": cases.BATCH}

    def make():
        return [tf_tricks.callbacks.NaNGuard(on_nan=on_nan, snapshot_every=2, verbose=0)]

    wanted = run(tmp_path / "whole", data, callbacks=make, keep=100, epochs=4)
    for step in (8, 12, 14):
        got = run(only(step, tmp_path / "whole", tmp_path / f"{step}"), data, callbacks=make, epochs=4)
        assert_same(got, wanted)


class Counter(keras.callbacks.Callback):
    """Anybody's callback that offers a state, and leans on every source of random numbers."""

    def __init__(self):
        super().__init__()
        self.batches, self.numbers = 0, []

    def on_train_batch_begin(self, batch, logs=None):
        self.batches += 1
        self.numbers.append([batch, random.random(), np.random.rand(), float(keras.random.uniform(()))])
        if BACKEND == "torch":
            self.numbers[-1].append(float(__import__("torch").rand(())))
        if BACKEND == "tensorflow":
            import tensorflow as tf

            self.numbers[-1] += [float(tf.random.uniform(())), float(tf.random.get_global_generator().uniform(()))]

    def get_state(self):
        return {"batches": self.batches, "numbers": self.numbers}

    def set_state(self, state):
        self.batches, self.numbers = state["batches"], state["numbers"]


@pytest.mark.parametrize(("name", "steps"), [("arrays", (3, 6, 8)), ("arrays, shuffle=batch", (8,))])
def test_anybodys_state_and_every_random_generator_go_on(name, steps, tmp_path):
    counters = []

    def make():
        counters.append(Counter())
        return [counters[-1]]

    wanted = run(tmp_path / "whole", CASES[name], callbacks=make, every=1, keep=100)
    for step in steps:
        directory = only(step, tmp_path / "whole", tmp_path / str(step))
        assert_same(run(directory, CASES[name], callbacks=make, seed=1000), wanted)
        assert counters[-1].batches == cases.STEPS * EPOCHS
        assert counters[-1].numbers == counters[0].numbers


def test_the_comparison_can_fail(tmp_path, monkeypatch):
    wanted = run(tmp_path / "whole", CASES["arrays"], keep=100)
    monkeypatch.setattr("tf_tricks.fit_hooks.random_state.put_back", lambda state, python=True: None)
    monkeypatch.setattr("tf_tricks.checkpoints.model_state.seed_variables", lambda model: [])
    with pytest.raises((AssertionError, ValueError)):
        assert_same(run(only(8, tmp_path / "whole", tmp_path / "8"), CASES["arrays"]), wanted)


# --- data without seeds -------------------------------------------------------------------------------------------


def without_global_seed(directory, make_data, **options):
    """As `run`, in a process that has set no seed."""
    keras.backend.clear_session(free_memory=False)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.random.set_seed(None)
    random.seed(), np.random.seed()
    model = cases.small_model()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Your input ran out of data")
        callback = TrainingCheckpoint(directory, verbose=0, **options)
        model.fit(**make_data(), epochs=EPOCHS, verbose=0, callbacks=[callback])
    return evidence(model)


@pytest.mark.parametrize("name", ["arrays", "arrays, shuffle=batch", "arrays, steps_per_epoch", "PyDataset, get_state"])
def test_arrays_without_any_seed_resume_with_the_same_bits(name, tmp_path):
    wanted = without_global_seed(tmp_path / "whole", CASES[name], every=1, keep=100)
    for step in (3, 8):
        assert_same(without_global_seed(only(step, tmp_path / "whole", tmp_path / str(step)), CASES[name]), wanted)


def test_without_a_seed_each_epoch_has_an_order_of_its_own(tmp_path):
    seen = []

    def data():
        x, y = cases.arrays()
        return {"x": x, "y": y, "batch_size": cases.BATCH, "shuffle": True}

    keras.backend.clear_session(free_memory=False)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.random.set_seed(None)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    original = model.train_step

    def step(*arguments):
        batch = arguments[-1]
        seen.append(np.array(keras.ops.convert_to_numpy(batch[0]))[:, 0])
        return original(*arguments)

    if BACKEND == "jax":
        pytest.skip("the order on JAX is NumPy's, as in bare Keras")
    object.__setattr__(model, "train_step", step)
    model.fit(**data(), epochs=3, verbose=0, callbacks=[TrainingCheckpoint(tmp_path / "a", verbose=0)])
    epochs = np.split(np.concatenate(seen), 3)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.sort(cases.arrays()[0][:, 0]))
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])


@pytest.mark.parametrize("make", ["generator", "shuffle", "map", "nested"])
def test_data_that_cannot_be_repeated_gets_one_warning_with_the_remedy(make, tmp_path):
    import tensorflow as tf

    tf.random.set_seed(None)
    dataset = tf.data.Dataset.from_tensor_slices(cases.arrays())
    data = {
        "generator": lambda: {"x": cases.generator(), "steps_per_epoch": 6},
        "shuffle": lambda: {"x": dataset.shuffle(9).batch(4)},
        "map": lambda: {"x": dataset.map(lambda x, y: (x + tf.random.normal(()), y)).batch(4)},
        "nested": lambda: {"x": dataset.batch(11).flat_map(_reshuffled).batch(4)},
    }[make]
    model = cases.small_model()
    remedy = "PyDataset" if make == "generator" else "set_random_seed"
    for epochs in (1, 2):  # once at the begin, once when it is resumed
        with pytest.warns(UserWarning, match=remedy) as warned:
            warnings.filterwarnings("ignore", "Your input ran out of data")
            checkpoint = TrainingCheckpoint(tmp_path / "a", verbose=0)
            model.fit(**data(), epochs=epochs, shuffle=False, verbose=0, callbacks=[checkpoint])
        assert len([each for each in warned if "order of the data" in str(each.message)]) == 1
    assert model.history.epoch == [0, 1]


def _reshuffled(x, y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).shuffle(5)


def test_other_steps_per_epoch_begin_the_epoch_anew_and_say_so(tmp_path):
    run(tmp_path / "whole", CASES["arrays"], keep=100)
    folder = only(10, tmp_path / "whole", tmp_path / "10")  # step 4 of the second epoch
    with pytest.warns(UserWarning, match="had 6 steps when the run was saved, and has 3 now"):
        got = run(folder, lambda: {**CASES["arrays"](), "batch_size": 8})
    assert got["epochs"].tolist() == [0, 1, 2]
    iterations = next(value for name, value in got.items() if "iteration" in name)
    assert iterations == 10 + 2 * 3


@pytest.mark.skipif(BACKEND != "tensorflow", reason="one backend is enough: the pipeline is TensorFlow's")
@pytest.mark.parametrize("make", ["numpy_function", "from_generator", "sample_from_datasets"])
def test_pipelines_that_call_python_or_draw_unseeded_are_named(make, tmp_path):
    import tensorflow as tf

    x, y = cases.arrays()
    dataset = tf.data.Dataset.from_tensor_slices((x, y))
    spec = (tf.TensorSpec((5,)), tf.TensorSpec((1,)))
    tf.random.set_seed(None)
    built = {
        "numpy_function": lambda: dataset.map(
            lambda a, b: (tf.ensure_shape(tf.numpy_function(abs, [a], "float32"), (5,)), b)
        ),
        "from_generator": lambda: tf.data.Dataset.from_generator(lambda: zip(x, y, strict=True), output_signature=spec),
        "sample_from_datasets": lambda: tf.data.Dataset.sample_from_datasets([dataset, dataset]),
    }[make]()
    with pytest.warns(UserWarning, match="order of the data"):
        warnings.filterwarnings("ignore", "Your input ran out of data")
        callback = TrainingCheckpoint(tmp_path / "a", verbose=0)
        cases.small_model().fit(built.batch(4), shuffle=False, verbose=0, callbacks=[callback])


# --- the life of a run --------------------------------------------------------------------------------------------


def test_more_epochs_go_on_and_a_run_that_has_ended_returns_at_once(tmp_path):
    wanted = run(tmp_path / "whole", CASES["arrays"], epochs=4)
    short = run(tmp_path / "a", CASES["arrays"], epochs=2)
    kill = Kill(1, "begin")
    assert_same(run(tmp_path / "a", CASES["arrays"], epochs=2, kill=kill), short)
    assert kill.seen == 0
    assert_same(run(tmp_path / "a", CASES["arrays"], epochs=4), wanted)


def test_a_run_that_was_stopped_stays_so(tmp_path, capsys):
    def make():
        return [keras.callbacks.EarlyStopping("loss", patience=1, min_delta=10.0, restore_best_weights=True)]

    wanted = run(tmp_path / "a", CASES["arrays"], callbacks=make, epochs=5)
    assert len(wanted["epochs"]) == 2
    kill = Kill(1, "begin")
    assert_same(run(tmp_path / "a", CASES["arrays"], callbacks=make, epochs=5, kill=kill, verbose=1), wanted)
    assert kill.seen == 0 and "had ended" in capsys.readouterr().out


def test_resume_false_begins_anew_and_loses_nothing(tmp_path):
    first = run(tmp_path / "a", CASES["arrays"])
    kept = sorted(path.name for path in (tmp_path / "a").glob("*.safetensors"))
    assert_same(run(tmp_path / "a", CASES["arrays"], resume=False), first)
    assert sorted(path.name for path in (tmp_path / "a").glob("previous-1/*.safetensors")) == kept


def test_another_model_or_optimizer_is_refused_by_name_and_nothing_changes(tmp_path):
    run(tmp_path / "a", CASES["arrays"], make_model=cases.model)
    files = {path: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    keras.utils.set_random_seed(3)
    other = keras.Sequential([keras.Input((5,)), keras.layers.Dense(7), keras.layers.Dense(1)])
    other.compile("adam", "mse")
    before = other.get_weights()
    with pytest.raises(ValueError, match=r"kernel` has shape \(5, 7\).*holds .*kernel` with shape \(5, 8\)"):
        other.fit(*cases.arrays(), verbose=0, callbacks=[TrainingCheckpoint(tmp_path / "a", verbose=0)])
    for one, two in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
    with pytest.raises(ValueError, match="optimizer is SGD, .* the state of Adam. Run it with the model and"):
        model = cases.model(keras.optimizers.SGD(0.1))
        model.fit(*cases.arrays(), verbose=0, callbacks=[TrainingCheckpoint(tmp_path / "a", verbose=0)])
    assert {path: path.read_bytes() for path in (tmp_path / "a").iterdir()} == files


def test_a_model_without_a_shape_is_built_from_the_data(tmp_path):
    def build():
        model = keras.Sequential([keras.layers.Dense(3, activation="relu"), keras.layers.Dense(1)])
        model.compile(keras.optimizers.Adam(0.01), "mse")
        return model

    wanted = run(tmp_path / "whole", CASES["arrays"], make_model=build, keep=100)
    assert_same(run(only(4, tmp_path / "whole", tmp_path / "4"), CASES["arrays"], make_model=build), wanted)


def test_best_checkpoint_stays(tmp_path):
    def make():
        return [
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(score=[3, 9, 5, 4, 1][epoch]))
        ]

    checkpoint = {"every": "epoch", "keep": 2, "keep_best": ("score", "max")}
    keras.utils.set_random_seed(0)
    model = cases.small_model()
    callback = TrainingCheckpoint(tmp_path / "a", verbose=0, **checkpoint)
    model.fit(*cases.arrays(), batch_size=4, epochs=5, verbose=0, callbacks=[*make(), callback])
    assert [path.name for path in sorted((tmp_path / "a").glob("*.safetensors"))] == [
        f"step-{step:010}.safetensors" for step in (12, 24, 30)
    ]


def test_it_leaves_nothing_behind(tmp_path):
    before = set(threading.enumerate())
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    checkpoint = TrainingCheckpoint(tmp_path / "a", every=1, verbose=0)
    model = cases.small_model()
    model.fit(*cases.arrays(), epochs=2, verbose=0, callbacks=[checkpoint])
    assert {thread for thread in threading.enumerate() if "tf_tricks" in thread.name} <= before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert not list((tmp_path / "a").glob("*.tmp")) and not list((tmp_path / "a").glob("*lock*"))
    # A `fit` that raises: the next one, with another object, may have the folder.
    with pytest.raises(Killed):
        model.fit(*cases.arrays(), epochs=3, verbose=0, callbacks=[checkpoint, Kill(1)])
    other = TrainingCheckpoint(tmp_path / "a", verbose=0)
    model.fit(*cases.arrays(), epochs=3, verbose=0, callbacks=[other])
    assert model.history.epoch == [0, 1, 2]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_what_can_never_be_written_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="`directory` must be a folder"):
        cases.small_model().fit(
            *cases.arrays(), verbose=0, callbacks=[TrainingCheckpoint(tmp_path / "file", verbose=0)]
        )
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"safetensors: pip install 'tf-tricks\[checkpoints\]'"):
        TrainingCheckpoint(tmp_path / "a")


def test_two_in_one_fit_are_refused(tmp_path):
    two = [TrainingCheckpoint(tmp_path / name, verbose=0) for name in "ab"]
    with pytest.raises(ValueError, match="one `fit` takes one"):
        cases.small_model().fit(*cases.arrays(), verbose=0, callbacks=two)


def test_outside_of_fit_it_says_what_to_use(tmp_path):
    callback = TrainingCheckpoint(tmp_path / "a")
    callback.set_model(cases.small_model())
    with pytest.raises(RuntimeError, match="tf_tricks.checkpoints.save"):
        callback.on_train_begin()


def test_a_remote_folder(tmp_path):
    pytest.importorskip("fsspec")
    url = f"memory://{tmp_path.name}"
    wanted = run(tmp_path / "whole", CASES["arrays"])
    got = run_until_done(url, CASES["arrays"], [Kill(5), Kill(4, "begin")])
    assert_same(got, wanted)


def test_a_worker_that_is_not_the_chief_reads_and_does_not_write(tmp_path, monkeypatch):
    wanted = run(tmp_path / "whole", CASES["arrays"], keep=100)
    folder = only(8, tmp_path / "whole", tmp_path / "8")
    monkeypatch.setattr("tf_tricks.fit_hooks.running_fit.is_chief", lambda model: False)
    assert_same(run(folder, CASES["arrays"]), wanted)
    assert [path.name for path in folder.iterdir()] == ["step-0000000008.safetensors"]


def test_the_first_epoch_of_a_later_fit_is_not_that_of_a_run_that_raised(tmp_path):
    run(tmp_path / "a", CASES["arrays"], epochs=2)
    model = cases.small_model()
    with pytest.raises(Killed):
        callbacks = [TrainingCheckpoint(tmp_path / "a", verbose=0), Kill(1)]
        model.fit(**CASES["arrays"](), epochs=3, verbose=0, callbacks=callbacks)
    assert model.fit(*cases.arrays(), epochs=1, verbose=0).epoch == [0]


def test_tensors_in_logs_are_written_as_numbers(tmp_path):
    def tell(epoch, logs):
        logs["rate"] = keras.ops.convert_to_tensor(0.5)

    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=tell), TrainingCheckpoint(tmp_path / "a", verbose=0)]
    cases.small_model().fit(*cases.arrays(), epochs=2, verbose=0, callbacks=callbacks)
    again = cases.small_model().fit(*cases.arrays(), epochs=2, verbose=0, callbacks=callbacks[1:])
    assert [float(each) for each in again.history["rate"]] == [0.5, 0.5]


def test_a_monitor_that_was_never_there_is_named(tmp_path):
    with pytest.warns(UserWarning, match="`keep_best` monitors `val_lss`.*Available: loss, mae"):
        callback = TrainingCheckpoint(tmp_path / "a", keep_best=("val_lss", "min"), verbose=0)
        cases.small_model().fit(*cases.arrays(), verbose=0, callbacks=[callback])


def test_a_folder_with_another_kind_of_checkpoint_is_refused(tmp_path):
    model = cases.small_model()
    tf_tricks.checkpoints.save(tmp_path / "model.safetensors", model)
    with pytest.raises(ValueError, match="not a checkpoint of a running `fit`"):
        model.fit(*cases.arrays(), verbose=0, callbacks=[TrainingCheckpoint(tmp_path, verbose=0)])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_running_fit_can_be_terminated(tmp_path):
    status = []

    class Forks(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            with warnings.catch_warnings(action="ignore"):
                child = os.fork()
            if not child:
                try:
                    time.sleep(60)
                finally:
                    os._exit(7)
            time.sleep(0.2)
            os.kill(child, signal.SIGTERM)
            status.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    cases.small_model().fit(
        *cases.arrays(), verbose=0, callbacks=[TrainingCheckpoint(tmp_path / "a", verbose=0), Forks()]
    )
    assert status == [7]  # at once, by the way of SystemExit


def test_a_signal_is_acted_on_after_a_step_also_where_nobody_knows_the_length_of_an_epoch(tmp_path):
    class Signals(keras.callbacks.Callback):
        seen = 0

        def on_train_batch_end(self, batch, logs=None):
            self.seen += 1
            if self.seen == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    wanted = run(tmp_path / "whole", CASES["tf.data, unknown length"])
    signals = Signals()
    with pytest.raises(SystemExit, match="143"):
        run(tmp_path / "a", CASES["tf.data, unknown length"], callbacks=lambda: [signals])
    assert signals.seen <= 4
    assert_same(run(tmp_path / "a", CASES["tf.data, unknown length"]), wanted)


def test_a_signal_after_the_last_epoch_is_not_lost(tmp_path):
    kill = keras.callbacks.LambdaCallback(on_train_end=lambda logs: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match="143"):
        cases.small_model().fit(
            *cases.arrays(), verbose=0, callbacks=[kill, TrainingCheckpoint(tmp_path / "a", verbose=0)]
        )
