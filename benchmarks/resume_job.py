"""The small job that is interrupted and started again, and the faults that its process does to itself.

Everything here runs in a child process: see `resume_children.py`. What the parent is to know is printed as a line that
begins with `NOTE`; it is in the pipe even if the process dies at the next instruction.
"""

import ctypes
import hashlib
import json
import os
import resource
import signal

import keras
import numpy as np
from keras import layers

from tf_tricks.callbacks import EarlyStopping

SAMPLES, BATCH, STEPS, EPOCHS = 52, 8, 7, 5  # the last batch of an epoch is a short one
EVERY = 3  # steps between two checkpoints, where a mechanism counts steps
NOTE = "@@note "


def note(**facts):
    # In one call, and below the length that a pipe takes as a whole: other threads print too.
    os.write(1, f"\n{NOTE}{json.dumps(facts)}\n".encode())


def arrays(samples, seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(samples, 6, 6, 1)).astype("float32")
    return x, (x.mean(axis=(1, 2)) * 4 - 2 * x[:, 0, 0] + rng.normal(size=(samples, 1)) / 9).astype("float32")


def new_model():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.RandomFlip(),
            layers.GaussianNoise(0.05),
            layers.Flatten(),
            layers.Dense(16, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mae"], jit_compile=keras.backend.backend() == "jax")
    return model


def data(kind):
    x, y = arrays(SAMPLES, 5)
    if kind == "arrays":
        return {"x": x, "y": y, "batch_size": BATCH}
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(SAMPLES, seed=4)
    dataset = dataset.map(lambda x, y: (x + tf.random.normal(tf.shape(x), stddev=0.02), y))
    return {"x": dataset.batch(BATCH).prefetch(2), "shuffle": False}


def others(kind):
    """The callbacks that have counters: Keras's own, and once ours."""
    stop = EarlyStopping if kind == "tf.data" else keras.callbacks.EarlyStopping
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=0.5)
    return [stop(monitor="val_loss", patience=4, restore_best_weights=True), plateau]


def run(spec, mechanism):
    """What a script does from its first line to its last; prints what the run ended with."""
    keras.utils.set_random_seed(spec["seed"])
    os.makedirs(spec["directory"], exist_ok=True)
    watch = others(spec["data"])
    model, initial_epoch, saving = mechanism(new_model, spec["directory"])
    faults = Faults(spec.get("fault"), spec["directory"])
    model.fit(
        **data(spec["data"]),
        epochs=spec.get("epochs", EPOCHS),
        initial_epoch=initial_epoch,
        validation_data=arrays(16, 6),
        callbacks=[*saving, *watch, faults],
        verbose=0,
    )
    note(ended=evidence(model, watch))


# --- what is compared ---------------------------------------------------------------------------------------------


def evidence(model, watch):
    """Name -> SHA-256 of all that a run ends with."""
    history = model.history
    counters = ("wait", "best", "best_epoch", "stopped_epoch", "cooldown_counter", "best_weights")
    return {
        "weights": sha256([*model.trainable_variables]),
        "other variables": sha256([*model.non_trainable_variables, *model.metrics_variables]),
        "optimizer": sha256(model.optimizer.variables),
        "History": sha256([history.epoch, *(value for _, value in sorted(history.history.items()))]),
        "callbacks": sha256([leaf for each in watch for name in counters for leaf in _leaves(each, name)]),
    }


def _leaves(callback, name):
    return [leaf for leaf in keras.tree.flatten(getattr(callback, name, None)) if leaf is not None]


def sha256(values):
    digest = hashlib.sha256()
    for value in values:
        array = np.ascontiguousarray(keras.ops.convert_to_numpy(value) if hasattr(value, "shape") else np.array(value))
        digest.update(f"{array.dtype.name}{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


# --- faults -------------------------------------------------------------------------------------------------------


class Faults(keras.callbacks.Callback):
    """Does to its own process what the fault says, and notes how far the run is.

    Args:
        fault: None or a dict with "kind", and "at": the how manyth batch of this process.
            "signal": sends "signal" to the process at the "when" ("begin", "end", "epoch end") of the batch.
            "write": from then on, the write that would take a file beyond "bytes" kills the process.
            "full": from then on that write fails; "read-only": no file can be made; both are killed at batch "kill".
            "call": SIGKILL at the "number"th call of the function "name" of `os`, before it or after it.
        directory: folder of the checkpoints.
    """

    def __init__(self, fault, directory):
        super().__init__()
        self.fault, self.directory = fault or {"kind": None}, directory
        self.batch, self.begun, self.files = 0, False, None

    def on_train_begin(self, logs=None):
        if self.fault["kind"] == "call":
            _die_in_call(self.fault)

    def on_epoch_begin(self, epoch, logs=None):
        if not self.begun:
            self.begun, model = True, self.model
            moments = model.optimizer.variables[2:]  # after the iterations and the learning rate
            note(
                begin=int(model.optimizer.iterations),
                zero=not any(np.any(keras.ops.convert_to_numpy(each)) for each in moments),
                weights=sha256(model.trainable_variables),
            )
            self.files = _files(self.directory)

    def on_train_batch_begin(self, batch, logs=None):
        self.batch += 1
        self._look("begin")

    def on_train_batch_end(self, batch, logs=None):
        note(step=1)
        self._look_for_files()
        self._look("end")

    def on_epoch_end(self, epoch, logs=None):
        self._look_for_files()
        if self.batch >= self.fault.get("at", self.batch + 1):
            self._look("epoch end", late=True)

    def _look_for_files(self):
        before, self.files = self.files, _files(self.directory)
        if self.files and self.files != before:
            note(saved=1)

    def _look(self, when, late=False):
        fault = self.fault
        if when == "begin" and self.batch == fault.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if when != fault.get("when", "begin") or not (late or self.batch == fault.get("at")):
            return
        if fault["kind"] == "signal":
            os.kill(os.getpid(), fault["signal"])
        elif fault["kind"] in ("write", "full"):
            # Python ignores the signal of a file that grows too large, and the write fails with an error then.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fault["kind"] == "write" else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], resource.RLIM_INFINITY))
        elif fault["kind"] == "read-only":
            os.chmod(self.directory, 0o555)


def obey_permissions():
    """Take from root the capability to write everywhere; from this thread and those it starts. Linux only."""
    if os.geteuid():
        return
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version 3, no capabilities
    if ctypes.CDLL(None, use_errno=True).capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def _die_in_call(fault):
    function, left = getattr(os, fault["name"]), [fault["number"]]

    def dying(*arguments, **options):
        left[0] -= 1
        if left[0] == 0 and fault["before"]:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, fault["name"], dying)


def _files(directory):
    found = []
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                status = os.stat(os.path.join(folder, name))
            except FileNotFoundError:  # a background thread is at work
                continue
            found.append((folder, name, status.st_size, status.st_mtime_ns))
    return sorted(found)
