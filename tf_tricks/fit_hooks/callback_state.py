"""What callbacks remember between two steps, so that a resumed run can go on with it.

A callback that has `get_state()` and `set_state(state)` speaks for itself. Keras's own have neither: their counters
are attributes, listed here.
"""

import keras
import numpy as np

_BATCHES = ("_batches_seen_since_last_saving", "_last_batch_seen", "_current_epoch")
_COUNTERS = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_weights", "best_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best", *_BATCHES),
    keras.callbacks.BackupAndRestore: _BATCHES,
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
}

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "EarlyStopping.wait": "epochs without improvement",
    "EarlyStopping.stopped_epoch": "the epoch in which it stopped",
    "EarlyStopping.best": "the best value so far",
    "EarlyStopping.best_weights": "the weights of that epoch, to be put back at the end",
    "EarlyStopping.best_epoch": "its number",
    "ReduceLROnPlateau.wait": "epochs without improvement",
    "ReduceLROnPlateau.best": "the best value so far",
    "ReduceLROnPlateau.cooldown_counter": "epochs to rest after a lower rate",
    "ModelCheckpoint.best": "the best value so far: a worse model shall not replace that file",
    "ModelCheckpoint._batches_seen_since_last_saving": "steps since the last file, with `save_freq=int`",
    "ModelCheckpoint._last_batch_seen": "the batch that was counted last",
    "ModelCheckpoint._current_epoch": "the epoch that a file is named after",
    "BackupAndRestore._batches_seen_since_last_saving": "steps since the last file, with `save_freq=int`",
    "BackupAndRestore._last_batch_seen": "the batch that was counted last",
    "BackupAndRestore._current_epoch": "the epoch that it writes down",
    "SwapEMAWeights._ema_weights_in_model": "are averages and weights swapped at the moment?",
}


def take(callbacks):
    """List of `{"class", "state"}`, one for each callback that has something to remember."""
    found = []
    for callback in callbacks:
        if _speaks(callback):
            found.append({"class": type(callback).__name__, "state": copied(callback.get_state())})
        elif names := _counters(callback):
            state = {name: getattr(callback, name) for name in names if hasattr(callback, name)}
            found.append({"class": type(callback).__name__, "state": copied(state)})
    return found


def put_back(callbacks, saved):
    """Give each callback the state that the first unused entry of its class holds."""
    waiting = list(saved)
    for callback in callbacks:
        if not _speaks(callback) and not _counters(callback):
            continue
        entry = next((each for each in waiting if each["class"] == type(callback).__name__), None)
        if entry is None:  # it did not take part before
            continue
        waiting.remove(entry)
        state = copied(entry["state"])  # the callback changes it, and it may be put back once more
        if _speaks(callback):
            callback.set_state(state)
        else:
            for name, value in state.items():
                setattr(callback, name, value)


def copied(state):
    """A state that stays as it is while its callback goes on: it is written later, by another thread."""
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(copied(value) for value in state)
    if isinstance(state, np.ndarray) and state.flags.writeable:
        return state.copy()
    if keras.ops.is_tensor(state):
        return np.array(keras.ops.convert_to_numpy(state))
    return state


def _speaks(callback):
    return hasattr(callback, "get_state") and hasattr(callback, "set_state")


def _counters(callback):
    return [name for cls, names in _COUNTERS.items() if isinstance(callback, cls) for name in names]
