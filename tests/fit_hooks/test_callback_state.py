"""States of callbacks: taken, changed no more, and given to the callback that they belong to."""

import keras
import numpy as np
import pytest

from tests.fit_hooks.assumptions import build, fit
from tf_tricks.callbacks import EarlyStopping
from tf_tricks.checkpoints.packing import pack, unpack
from tf_tricks.fit_hooks import callback_state

KERAS = {
    "EarlyStopping": lambda: keras.callbacks.EarlyStopping("loss", patience=2, restore_best_weights=True),
    "ReduceLROnPlateau": lambda: keras.callbacks.ReduceLROnPlateau("loss", patience=1, cooldown=2, min_delta=10.0),
    "ModelCheckpoint": lambda: keras.callbacks.ModelCheckpoint("f.weights.h5", save_freq=3, save_weights_only=True),
    "BackupAndRestore": lambda: keras.callbacks.BackupAndRestore("backup", save_freq=3, delete_checkpoint=False),
    "SwapEMAWeights": lambda: keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
}


class Speaks(keras.callbacks.Callback):
    """Counts, and says so itself."""

    def __init__(self, start=0):
        super().__init__()
        self.seen = {"steps": [start], "array": np.zeros(2)}

    def get_state(self):
        return self.seen

    def set_state(self, state):
        self.seen = state


class Counts(keras.callbacks.EarlyStopping):
    """A subclass of one of Keras's."""


@pytest.mark.parametrize("name", KERAS)
def test_counters_of_keras_s_callbacks_after_training_reach_a_new_one(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    used, new = KERAS[name](), KERAS[name]()
    fit(build(optimizer), used, epochs=4)
    (entry,) = callback_state.take([used])
    assert entry["class"] == name
    fresh = {key: getattr(new, key, None) for key in entry["state"]}
    callback_state.put_back([new], unpack(*pack([entry])))
    for key, value in entry["state"].items():
        np.testing.assert_equal(getattr(new, key), value)
    assert any(not np.array_equal(fresh[key], value) for key, value in entry["state"].items())


def test_a_subclass_of_keras_s_callback_counts_as_one():
    callback = Counts("loss")
    callback.wait = 7
    (entry,) = callback_state.take([callback])
    assert (entry["class"], entry["state"]["wait"]) == ("Counts", 7)


def test_a_callback_that_speaks_for_itself_is_asked_even_if_it_is_ours():
    callback = EarlyStopping("loss", patience=3)
    callback.set_model(build())
    fit(callback.model, callback, epochs=2)
    (entry,) = callback_state.take([callback])
    again = EarlyStopping("loss", patience=3)
    again.set_model(callback.model)
    again.on_train_begin()
    callback_state.put_back([again], unpack(*pack([entry])))
    assert (again.best, again.best_epoch) == (callback.best, callback.best_epoch)


def test_others_are_left_alone():
    others = [keras.callbacks.LambdaCallback(), keras.callbacks.History(), keras.callbacks.TerminateOnNaN()]
    assert callback_state.take(others) == []
    callback_state.put_back(others, [{"class": "History", "state": {"x": 1}}])
    assert not hasattr(others[1], "x")


def test_a_state_stays_as_it_is_while_the_callback_goes_on():
    callback = Speaks()
    taken = callback_state.take([callback])
    callback.seen["steps"].append(1)
    callback.seen["array"] += 1
    callback.seen["more"] = True
    np.testing.assert_equal(taken, [{"class": "Speaks", "state": {"steps": [0], "array": np.zeros(2)}}])


def test_two_of_one_class_get_their_own_states_in_order():
    saved = callback_state.take([Speaks(3), keras.callbacks.EarlyStopping("loss"), Speaks(4)])
    new = [Speaks(), Speaks(), keras.callbacks.EarlyStopping("loss")]
    callback_state.put_back(new, saved)
    assert [each.seen["steps"] for each in new[:2]] == [[3], [4]]
    assert len(saved) == 3  # a list of the caller's, which may be put back twice


def test_a_callback_that_is_new_in_the_resumed_run_keeps_its_beginning():
    saved = callback_state.take([Speaks(3)])
    new = [Speaks(1), Speaks(2)]
    callback_state.put_back(new, saved)
    assert [each.seen["steps"] for each in new] == [[3], [2]]
    callback_state.put_back(new, [])
    assert [each.seen["steps"] for each in new] == [[3], [2]]


def test_putting_back_twice_gives_the_same():
    """Within an epoch states are put back before and after `on_epoch_begin`."""
    saved = callback_state.take([Speaks(3)])
    new = Speaks()
    callback_state.put_back([new], saved)
    new.seen["steps"].append(9)
    callback_state.put_back([new], saved)
    assert new.seen["steps"] == [3]
