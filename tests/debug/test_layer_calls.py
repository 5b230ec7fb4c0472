"""Two threads that watch layer calls at the same time put everything back, in whatever order they leave."""

import threading

import keras
import pytest

from tf_tricks._layer_calls import answered_by
from tf_tricks.fit_hooks.replay_calls import CallRecorder


def watched(kind):
    return answered_by(lambda layer, call: call()) if kind == "answer" else CallRecorder().installed()


@pytest.mark.parametrize("kinds", [("answer", "answer"), ("answer", "record"), ("record", "answer")])
def test_threads_that_overlap_leave_the_door_as_it_was(kinds):
    door = keras.Operation.__call__
    entered, left = threading.Event(), threading.Event()

    def second():
        with watched(kinds[1]):
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=second)
    with watched(kinds[0]):
        thread.start()
        assert not entered.wait(0.2)  # it waits for its turn
    left.set()
    thread.join(10)
    assert entered.is_set() and keras.Operation.__call__ is door
    with watched(kinds[0]), watched(kinds[1]):  # one thread may nest them
        pass
    assert keras.Operation.__call__ is door
