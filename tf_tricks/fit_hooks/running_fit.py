"""The two objects of a running `fit` that no callback is given: its epoch iterator and its list of callbacks.

Both are local variables of `Model.fit`. They are read from its frame, and never written there.
"""

import dataclasses
import inspect
import sys

from tf_tricks._backend import BACKEND, jax
from tf_tricks.fit_hooks import data_kinds
from tf_tricks.fit_hooks.drivers import build_all

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "Model.fit.epoch_iterator": "the one object that knows the data and the step within the epoch",
    "Model.fit.callbacks": "the CallbackList: no callback is told who else takes part",
    "Model.fit.val_x": "the validation data, also where `validation_split` cuts it off; with its batch size and steps",
    "Model._eval_epoch_iterator": "Keras makes it at the first validation, and takes one that is there already",
    "Model._initial_epoch": "where `fit` begins to count, as BackupAndRestore sets it",
    "CallbackList.callbacks": "its list: to come after all others, and for their states",
    "CallbackList._async_train": "tells whether callbacks run beside `fit`, as on JAX and Torch",
    "CallbackList._flush_futures": "waits until they have seen the last step",
    "EpochIterator._distributed_dataset": "on TensorFlow the pipeline that `fit` feeds, and so its specification",
    "Strategy.extended.should_checkpoint": "the chief of several workers, as BackupAndRestore asks for it",
    "sys._current_frames": "tells whether a `fit` still runs, on whichever thread",
}


@dataclasses.dataclass
class RunningFit:
    """A `fit` that runs, seen from inside one of its callbacks."""

    model: object
    epoch_iterator: object
    callback_list: object
    validation: dict | None = None  # what Keras will make the iterator over the validation data from
    validation_freq: object = 1

    @property
    def callbacks(self):
        """The callbacks themselves, in their order, Keras's own included."""
        return self.callback_list.callbacks

    def wait_for_callbacks(self):
        """Return when every callback has seen the last step."""
        if self.callback_list._async_train:
            self.callback_list._flush_futures()

    def is_running(self):
        """Is this `fit` still at work, on any thread? Not so if it has raised."""
        for frame in sys._current_frames().values():
            while frame is not None:
                if frame.f_code.co_name == "fit" and frame.f_locals.get("epoch_iterator") is self.epoch_iterator:
                    return True
                frame = frame.f_back
        return False

    def validates_after(self, epoch):
        """Does `fit` validate at the end of this epoch?"""
        frequency = self.validation_freq
        if self.validation is None:
            return False
        if isinstance(frequency, int):
            return (epoch + 1) % frequency == 0
        return isinstance(frequency, list) and epoch + 1 in frequency  # Keras refuses anything else

    def validation_iterator(self):
        """Make the iterator over the validation data, as Keras does just before the first validation.

        On TensorFlow that reads the first batches, and so may draw random numbers: call it when Keras would.
        None where there is no position to follow: arrays are read in their order each time, a generator only goes on,
        and an iterator that Keras has made itself has been used already.
        """
        if self.validation is None or getattr(self.model, "_eval_epoch_iterator", None) is not None:
            return None
        self.model._eval_epoch_iterator = type(self.epoch_iterator)(
            **self.validation, steps_per_execution=self.model.steps_per_execution, shuffle=False
        )
        return self.model._eval_epoch_iterator

    def begin_at(self, epoch):
        """Let `fit` begin with `epoch`; call it in `on_train_begin`. None puts the user's choice back."""
        self.model._initial_epoch = epoch


def running_fit(model, owner):
    """Find the `fit` of `model` that the caller runs inside of.

    Raises:
        RuntimeError: there is none on this thread.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
            local = frame.f_locals
            if "epoch_iterator" in local and "callbacks" in local:
                found = _validation(model, local), local.get("validation_freq", 1)
                return RunningFit(model, local["epoch_iterator"], local["callbacks"], *found)
        frame = frame.f_back
    raise RuntimeError(
        f"{type(owner).__name__} works inside of `model.fit` only: it has to see the data and the other callbacks. "
        "Received: a call from somewhere else. In a loop of your own use `tf_tricks.checkpoints.save` and `restore`."
    )


def _validation(model, local):
    names = ("val_x", "val_y", "val_sample_weight", "validation_batch_size", "batch_size", "validation_steps")
    if local.get("validation_data") is None or not all(name in local for name in names):  # perhaps a `fit` of the user
        return None
    if not data_kinds.has_an_order(local["val_x"]):
        return None
    found = {
        "x": local["val_x"],
        "y": local["val_y"],
        "sample_weight": local["val_sample_weight"],
        "batch_size": local["validation_batch_size"] or local["batch_size"],
        "steps_per_epoch": local["validation_steps"],
    }
    return {**found, "distribute_strategy": model.distribute_strategy} if BACKEND == "tensorflow" else found


def is_chief(model):
    """Is this the one of several processes that writes files?"""
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow's alone
    if strategy is not None:
        return strategy.extended.should_checkpoint
    return BACKEND != "jax" or jax.process_index() == 0


def build(fit):
    """Have the model of a `fit` that has not taken a step create its variables, from the specification of its data."""
    if BACKEND == "tensorflow":  # the others do it before `fit` begins
        build_all(fit.model, fit.epoch_iterator._distributed_dataset)
