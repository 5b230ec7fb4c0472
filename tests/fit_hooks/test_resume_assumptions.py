"""What resuming a run takes for granted about `fit`, random states and Keras's callbacks, checked on Keras alone.

What it assumes about data is in `test_data_assumptions.py`.
"""

import json
import sys
import threading

import keras
import numpy as np
import pytest
from keras import layers

from tests.fit_hooks.assumptions import AtBegin, array, assumes, build, data, fit, local_of_fit
from tf_tricks._backend import BACKEND
from tf_tricks.fit_hooks import running_fit


# --- fit_hooks/running_fit.py ---------------------------------------------------------------------------------------
@assumes("Model.fit.epoch_iterator", "Model.fit.callbacks")
def test_fit_keeps_its_iterator_and_its_callbacks_in_two_local_variables():
    seen, model = {}, build()

    def look(model):
        seen.update({name: local_of_fit(name) for name in ("self", "epoch_iterator", "callbacks")})

    begin = AtBegin(look)
    fit(model, begin)
    assert seen["self"] is model and seen["epoch_iterator"] is not None and begin in seen["callbacks"].callbacks, (
        "fit_hooks/running_fit.py: `epoch_iterator` and `callbacks` are no longer local variables of `Model.fit`: "
        "TrainingCheckpoint cannot see the data or the other callbacks, and raises at the begin of `fit`"
    )


@assumes("CallbackList.callbacks")
def test_a_callback_that_is_appended_in_on_train_begin_takes_part_from_there_on():
    called = []

    class Late(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            called.append("train")

        def on_epoch_end(self, epoch, logs=None):
            called.append("epoch")

        def on_train_end(self, logs=None):
            called.append("end")

    fit(build(), AtBegin(lambda model: local_of_fit("callbacks").callbacks.append(Late())))
    assert called == ["train", "epoch", "end"], (
        "fit_hooks/running_fit.py: the list `CallbackList.callbacks` is copied before `on_train_begin` is called: "
        "TrainingCheckpoint cannot come after the other callbacks, and saves counters that lag one epoch behind"
    )


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return tuple(each[:4] for each in data())


@assumes("Model.fit.val_x", "Model._eval_epoch_iterator")
def test_fit_validates_with_an_iterator_that_is_there_already():
    seen = {}

    def install(model):
        seen["x"] = local_of_fit("val_x")
        seen["ours"] = running_fit.running_fit(model, None).validation_iterator()

    class Seen(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen["used"] = self.model._eval_epoch_iterator

    model, batches = build(), Batches()
    fit(model, AtBegin(install), Seen(), validation_data=batches)
    assert seen["x"] is batches, (
        "fit_hooks/running_fit.py: `Model.fit` no longer has the validation data as `val_x`: TrainingCheckpoint cannot "
        "bring back the order of it"
    )
    assert seen["used"] is seen["ours"], (
        "fit_hooks/running_fit.py: `fit` no longer validates with the `_eval_epoch_iterator` that is there: the order "
        "of shuffled validation data is not followed"
    )
    assert getattr(model, "_eval_epoch_iterator", None) is None, (
        "fit_hooks/running_fit.py: `fit` no longer drops `_eval_epoch_iterator` at its end: the next `fit` would "
        "validate on the data of the last one"
    )


def test_our_iterator_over_validation_data_is_the_one_that_keras_makes():
    seen = {}

    def describe(iterator):
        settings = {key: value for key, value in vars(iterator).items() if isinstance(value, bool | int | None)}
        return type(iterator), type(iterator.data_adapter), settings

    def ours(model):
        seen["ours"] = describe(running_fit.running_fit(model, None).validation_iterator())
        model._eval_epoch_iterator = None  # now Keras makes its own

    class Theirs(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            seen["theirs"] = describe(self.model._eval_epoch_iterator)

    model = build()
    model.compile("sgd", "mse", steps_per_execution=1 if BACKEND == "torch" else 2)
    fit(model, AtBegin(ours), Theirs(), validation_data=Batches(), validation_steps=2, validation_batch_size=3)
    assert seen["ours"] == seen["theirs"], (
        "fit_hooks/running_fit.py: Keras makes its iterator over validation data with other arguments than we do: give "
        "`RunningFit.validation_iterator` the same ones"
    )


@assumes("Model._initial_epoch")
def test_fit_begins_at_the_initial_epoch_that_a_callback_sets():
    model = build()
    history = fit(model, AtBegin(lambda model: setattr(model, "_initial_epoch", 2)), epochs=4)
    assert history.epoch == [2, 3], (
        "fit_hooks/running_fit.py: `fit` no longer reads `model._initial_epoch` after `on_train_begin`: a resumed run "
        "begins at epoch 0 again"
    )
    history = fit(model, AtBegin(lambda model: setattr(model, "_initial_epoch", None)), epochs=2)
    assert history.epoch == [0, 1], (
        "fit_hooks/running_fit.py: None in `model._initial_epoch` is no longer the user's `initial_epoch`: the next "
        "`fit` of a resumed model begins at a wrong epoch"
    )


@assumes("CallbackList._async_train", "CallbackList._flush_futures")
def test_callbacks_that_run_beside_fit_can_be_waited_for():
    held, seen = threading.Event(), []

    class Slow(keras.callbacks.Callback):
        async_safe = True

        def on_train_batch_end(self, batch, logs=None):
            held.wait(30)
            seen.append(batch)

    def install(model):
        callbacks, original = local_of_fit("callbacks"), model.train_function
        assert callbacks._async_train == (BACKEND != "tensorflow"), (
            "fit_hooks/running_fit.py: `CallbackList._async_train` no longer tells whether callbacks run on a thread: "
            "TrainingCheckpoint may save before EarlyStopping or a logger has seen the last step"
        )

        def function(*arguments):
            held.set()
            if callbacks._async_train:
                callbacks._flush_futures()
            waited.append(len(seen))
            if callbacks._async_train and len(waited) < 4:  # the last one is waited for by `fit` itself
                held.clear()
            return original(*arguments)

        model.train_function = function

    waited = []
    if BACKEND == "tensorflow":
        held.set()
    fit(build(), AtBegin(install), Slow())
    assert waited == [0, 1, 2, 3], (
        "fit_hooks/running_fit.py: `CallbackList._flush_futures` no longer waits for the callbacks of the last step: "
        "what TrainingCheckpoint saves of them is a step old"
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.distribute belongs to the TensorFlow backend")
@assumes("Strategy.extended.should_checkpoint")
def test_a_strategy_tells_who_is_the_chief():
    assert build().distribute_strategy.extended.should_checkpoint is True, (
        "fit_hooks/running_fit.py: `strategy.extended.should_checkpoint` no longer tells the chief: with several "
        "workers no process writes checkpoints, or all do"
    )


@assumes("sys._current_frames")
def test_python_shows_the_frames_of_all_threads():
    seen = []

    def look(model):
        fits = [frame for frame in sys._current_frames().values() for frame in chain(frame)]
        seen.append(any(each.f_locals.get("self") is model for each in fits if each.f_code.co_name == "fit"))

    def chain(frame):
        while frame is not None:
            yield frame
            frame = frame.f_back

    model = build()
    thread = threading.Thread(target=fit, args=(model, AtBegin(look)))
    thread.start()
    thread.join()
    look(model)
    assert seen == [True, False], (
        "fit_hooks/running_fit.py: `sys._current_frames` no longer shows a `fit` that runs: TrainingCheckpoint takes "
        "a live run for one that raised, and lets a second one into its folder"
    )


# --- fit_hooks/random_state.py --------------------------------------------------------------------------------------
@assumes(
    "keras.utils.set_random_seed.global_state", "global_state.get_global_attribute", "global_state.set_global_attribute"
)
def test_unseeded_calls_of_keras_random_share_one_generator_in_the_global_state():
    state = keras.utils.set_random_seed.__globals__.get("global_state")
    sentence = (
        "fit_hooks/random_state.py: Keras's own SeedGenerator is no longer at `global_seed_generator` in the global "
        "state that `set_random_seed` uses: a resumed run draws other numbers in layers without a seed of their own"
    )
    assert state is not None, sentence
    keras.utils.set_random_seed(3)
    assert state.get_global_attribute("global_seed_generator") is None, sentence
    keras.random.normal((2,))
    generator = state.get_global_attribute("global_seed_generator")
    assert type(generator) is keras.random.SeedGenerator, sentence
    at = array(generator.state)
    first = array(keras.random.normal((2,)))
    assert not np.array_equal(array(generator.state), at), sentence
    other = keras.random.SeedGenerator(0)
    other.state.assign(at)
    state.set_global_attribute("global_seed_generator", other)
    np.testing.assert_array_equal(array(keras.random.normal((2,))), first, err_msg=sentence)


@assumes("SeedGenerator.state")
def test_a_seed_generator_is_its_state():
    sentence = (
        "fit_hooks/random_state.py: assigning `SeedGenerator.state` no longer repeats its numbers: dropout and random "
        "layers of a resumed run draw others"
    )
    one, other = keras.random.SeedGenerator(1), keras.random.SeedGenerator(2)
    keras.random.normal((2,), seed=one)
    other.state.assign(array(one.state))
    wanted = [array(keras.random.normal((2,), seed=one)) for _ in range(2)]
    np.testing.assert_array_equal([array(keras.random.normal((2,), seed=other)) for _ in range(2)], wanted, sentence)
    dropout = layers.Dropout(0.5, seed=4)
    dropout.build((2, 2))
    assert any(variable is dropout.seed_generator.state for variable in dropout.variables), (
        "fit_hooks/random_state.py: `SeedGenerator.state` is no longer one of its layer's variables: generators of the "
        "model and of the data cannot be told apart"
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own random state")
@assumes("tensorflow.context._seed", "tensorflow.context._rng")
def test_tensorflow_gives_eager_operations_their_seeds_from_a_python_generator():
    import tensorflow as tf
    from tensorflow.python.eager import context as module

    context = module.context()
    tf.random.set_seed(5)
    sentence = (
        "fit_hooks/random_state.py: `context()._seed` and `._rng` are no longer where TensorFlow gets the seeds of its "
        "eager operations from: a resumed run that calls `tf.random` draws other numbers"
    )
    assert context._seed == 5, sentence
    tf.random.normal((2,))
    state = context._rng.getstate()
    wanted = tf.random.normal((2,)).numpy()
    assert context._rng.getstate() != state, sentence
    context._rng.setstate(state)
    # A kernel that is cached goes on counting by itself, so the seeds are compared too.
    assert tf.compat.v1.get_seed(None) != (None, None), sentence
    tf.random.set_seed(5)
    context._rng.setstate(state)
    np.testing.assert_array_equal(tf.random.normal((2,)).numpy(), wanted, err_msg=sentence)


# --- fit_hooks/callback_state.py ------------------------------------------------------------------------------------
def lost(owner, what):
    return f"fit_hooks/callback_state.py: {owner} no longer keeps its counters there: {what} after a resume"


@assumes(*(f"EarlyStopping.{name}" for name in ("wait", "stopped_epoch", "best", "best_weights", "best_epoch")))
def test_early_stopping_goes_on_from_its_attributes():
    model = build()
    first = keras.callbacks.EarlyStopping("score", patience=3, mode="min", restore_best_weights=True)
    first.set_model(model)
    first.on_train_begin()
    first.on_epoch_end(0, {"score": 1.0})
    best = [array(v) for v in model.weights]
    model.weights[0].assign(np.full((3, 1), 9.0))
    first.on_epoch_end(1, {"score": 2.0})
    sentence = lost("EarlyStopping", "it forgets the best epoch and its weights, and stops late")
    assert (first.wait, first.best, first.best_epoch, first.stopped_epoch) == (1, 1.0, 0, 0), sentence
    np.testing.assert_array_equal(first.best_weights[0], best[0], err_msg=sentence)
    second = keras.callbacks.EarlyStopping("score", patience=3, mode="min", restore_best_weights=True)
    second.set_model(model)
    second.on_train_begin()
    for name in ("wait", "stopped_epoch", "best", "best_weights", "best_epoch"):
        setattr(second, name, getattr(first, name))
    second.on_epoch_end(2, {"score": 1.5})
    assert not model.stop_training, sentence
    second.on_epoch_end(3, {"score": 1.5})
    assert model.stop_training and second.stopped_epoch == 3, sentence
    second.on_train_end()
    np.testing.assert_array_equal(array(model.weights[0]), best[0], err_msg=sentence)


@assumes("ReduceLROnPlateau.wait", "ReduceLROnPlateau.best", "ReduceLROnPlateau.cooldown_counter")
def test_reduce_lr_on_plateau_goes_on_from_its_attributes():
    sentence = lost("ReduceLROnPlateau", "it lowers the rate in another epoch")
    wanted = plateau_rates([5.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0])
    assert len(set(wanted)) > 2, sentence
    for epoch in range(1, 9):
        got = plateau_rates([5.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0], resume_at=epoch)
        assert got == wanted, sentence


def plateau_rates(values, resume_at=None):
    """The learning rate after each epoch; at `resume_at` a new callback takes over with the old one's attributes."""
    model, rates = build(), []
    callback = plateau(model)
    for epoch, value in enumerate(values):
        if epoch == resume_at:
            before, callback = callback, plateau(model)
            for name in ("wait", "best", "cooldown_counter"):
                setattr(callback, name, getattr(before, name))
        callback.on_epoch_end(epoch, {"score": value})
        rates.append(round(float(model.optimizer.learning_rate), 6))
    return rates


def plateau(model):
    callback = keras.callbacks.ReduceLROnPlateau("score", factor=0.5, patience=2, cooldown=1, mode="min")
    callback.set_model(model)
    callback.on_train_begin()
    return callback


BATCH_COUNTERS = ("_batches_seen_since_last_saving", "_last_batch_seen", "_current_epoch")


@assumes("ModelCheckpoint.best", *(f"ModelCheckpoint.{name}" for name in BATCH_COUNTERS))
def test_model_checkpoint_goes_on_from_its_attributes(tmp_path):
    def make():
        path = tmp_path / "{epoch}-{batch}.weights.h5"
        callback = keras.callbacks.ModelCheckpoint(path, save_freq=3, save_weights_only=True)
        callback.set_model(model)
        callback.on_train_begin()
        return callback

    model = build()
    first = make()
    first.on_epoch_begin(4)
    first.on_train_batch_end(0, {})
    first.on_train_batch_end(1, {})
    second = make()
    for name in BATCH_COUNTERS:
        setattr(second, name, getattr(first, name))
    second.on_train_batch_end(2, {})
    sentence = lost("ModelCheckpoint", "it writes at other steps and under other names")
    assert [path.name for path in tmp_path.iterdir()] == ["5-3.weights.h5"], sentence
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.weights.h5", "score", mode="min", save_best_only=True,
                                           save_weights_only=True)  # fmt: skip
    best.set_model(model)
    best.best = 1.0
    best.on_epoch_end(0, {"score": 2.0})
    sentence = lost("ModelCheckpoint", "a worse model replaces the best one's file")
    assert not (tmp_path / "best.weights.h5").exists(), sentence
    best.on_epoch_end(1, {"score": 0.5})
    assert (tmp_path / "best.weights.h5").exists() and best.best == 0.5, sentence


@assumes(*(f"BackupAndRestore.{name}" for name in BATCH_COUNTERS))
def test_backup_and_restore_goes_on_from_its_attributes(tmp_path):
    def make():
        callback = keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=3)
        callback.set_model(model)
        return callback

    model = build()
    first = make()
    first.on_epoch_end(4)
    first.on_train_batch_end(0)
    first.on_train_batch_end(1)
    second = make()
    for name in BATCH_COUNTERS:
        setattr(second, name, getattr(first, name))
    second.on_train_batch_end(2)
    written = (tmp_path / "backup" / "training_metadata.json").read_text()
    assert json.loads(written) == {"epoch": 5, "batch": 2}, lost("BackupAndRestore", "it writes at other steps")


@assumes("SwapEMAWeights._ema_weights_in_model")
def test_swap_ema_weights_knows_which_weights_are_in_the_model():
    callback = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: seen.append(callback._ema_weights_in_model),
        on_epoch_end=lambda epoch, logs: seen.append(callback._ema_weights_in_model),
    )
    fit(build(keras.optimizers.SGD(0.1, use_ema=True)), callback, look, epochs=2)
    assert seen == [False, True, False, True], lost("SwapEMAWeights", "weights and their averages are mixed up")
