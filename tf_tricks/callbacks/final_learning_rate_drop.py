"""One drop of the learning rate at the end of training."""

import math
import numbers
import warnings

import keras

from tf_tricks import fit_hooks
from tf_tricks._checks import check_bool, check_integer, check_number, check_one_of

SHAPES = ("step", "linear", "cosine", "sqrt")


def multiplier(progress, factor, shape):
    """The multiplier of the learning rate at `progress` through the last phase.

    Args:
        progress: float, share of the last phase that is over after this step; <= 0 before the phase, 1 at its end.
        factor: float, the multiplier at the end.
        shape: "step" | "linear" | "cosine" | "sqrt".
    """
    if progress <= 0:
        return 1.0
    progress = min(progress, 1.0)
    if shape == "step":
        return factor
    share_left = {
        "linear": 1 - progress,
        "cosine": (1 + math.cos(math.pi * progress)) / 2,
        "sqrt": 1 - math.sqrt(progress),
    }[shape]
    return factor + (1 - factor) * share_left


def multiplier_at(epoch, batch, epochs, steps_per_epoch, last, factor, shape):
    """The multiplier of the learning rate at one step of the run.

    Args:
        epoch, batch: int, where the step is: epoch of the run, batch within the epoch, both from 0.
        epochs: int, epochs of the whole run.
        steps_per_epoch: int, or None while it is unknown; every step then counts as the first one of its epoch.
        last: int (epochs) or float (share of the run), the length of the last phase.
        factor, shape: see `multiplier`.
    """
    if steps_per_epoch is None:
        length = min(epochs, last * epochs if isinstance(last, float) else last)
        over = epoch - (epochs - length)  # epochs of the phase that were over before this one
        if over < 0:
            return 1.0
        return factor if shape == "step" else multiplier(over / length, factor, shape)
    total = epochs * steps_per_epoch
    length = last * (total if isinstance(last, float) else steps_per_epoch)
    length = min(total, max(1, round(length)))
    done = epoch * steps_per_epoch + batch + 1  # steps of the run that are over after this one
    return multiplier((done - (total - length)) / length, factor, shape)


@keras.saving.register_keras_serializable(package="tf_tricks")
class FinalLearningRateDrop(keras.callbacks.Callback):
    """Lower the learning rate once, in the last part of the run, whatever the learning rate is.

    Works on a float, a `LearningRateSchedule` and a callable, beside `LearningRateScheduler` and `ReduceLROnPlateau`:
    those go on to see and set the rate without the drop, which multiplies it inside the train step.

    The drop is exact to the step where the number of steps is known, and that is so from the second epoch on at the
    latest. In the first epoch over a dataset of unknown length the multiplier stays what it is at the begin of the
    epoch; if that epoch is also the last one, a warning says that there is no drop.

    `logs["learning_rate"]` is the rate of the last step of the epoch, drop included. `LearningRateScheduler` and
    `ReduceLROnPlateau` write the rate without the drop under the same key: put this callback after them.

    Args:
        factor: float in (0, 1), the multiplier at the end of the run, dimensionless.
        last: the length of the last phase: a float in (0, 1], a share of the whole run (`epochs` epochs, also when
            `initial_epoch > 0`), at least one step; or an int >= 1, a number of epochs, at most the whole run.
        shape: "step" drops at once; "linear", "cosine" and "sqrt" (one minus the square root) reach `factor` with the
            last step.
        restore: bool. False: the optimizer keeps the rate of the last step after `fit`; a second `fit` starts from
            there, and drops again; a schedule becomes a `ScaledLearningRate`, and a model saved from then on needs
            tf_tricks to load. True: it gets the old rate back, as a run that is resumed afterwards needs it.
    Raises:
        TypeError, ValueError: an argument is out of range.
    Reference:
        Li, Wei and Ma (2019), Towards Explaining the Regularization Effect of Initial Large Learning Rate,
        arXiv:1907.04595, section 3 (the step); Haegele et al. (2024), arXiv:2405.18392, section 4 (linear, 1-sqrt).
    Example:
        >>> drop = FinalLearningRateDrop(factor=0.1, last=0.25)
        >>> history = model.fit(x, y, epochs=4, verbose=0, callbacks=[drop]).history
        >>> round(history["learning_rate"][-1] / history["learning_rate"][0], 6)
        0.1
    """

    async_safe = True

    def __init__(self, factor=0.1, last=0.1, shape="step", restore=False):
        super().__init__()
        self.factor = check_number("factor", factor, above=0, below=1)
        self.last = _check_last(last)
        self.shape = check_one_of("shape", shape, SHAPES)
        self.restore = check_bool("restore", restore)
        self._hook = None

    def on_train_begin(self, logs=None):
        self._hook = fit_hooks.attach(self.model, self, rate=self._rate)

    def on_epoch_begin(self, epoch, logs=None):
        self._hook.begin_epoch(epoch, self.params["steps"])
        if self._hook.steps_per_epoch is None and epoch + 1 == self.params["epochs"]:
            self._warn_unless_known(self._hook.position())

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["learning_rate"] = self._hook.last_learning_rate()

    def on_train_end(self, logs=None):
        hook = self._hook
        if not self.restore and hook.step:
            hook.scale_learning_rate(self._rate(hook.position(-1)))
        hook.detach(self)
        self._hook = None

    def _rate(self, position):
        return multiplier_at(
            position.epoch,
            position.batch,
            self.params["epochs"],
            self._hook.steps_per_epoch,
            self.last,
            self.factor,
            self.shape,
        )

    def _warn_unless_known(self, position):
        now = self._rate(position)
        if now == self.factor:
            return
        warnings.warn(
            "FinalLearningRateDrop: the last epoch is the first one over a dataset of unknown length, so nobody knows "
            f"when its last part begins: the learning rate stays multiplied by {now:g}. Give `steps_per_epoch` to "
            "`fit`, or apply `tf.data.experimental.assert_cardinality` to the dataset.",
            stacklevel=2,
        )

    def get_config(self):
        return {"factor": self.factor, "last": self.last, "shape": self.shape, "restore": self.restore}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def _check_last(last):
    if isinstance(last, numbers.Real) and not isinstance(last, (bool, numbers.Integral)):
        return check_number("last", last, above=0, below=1, closed="]")
    if isinstance(last, bool) or not isinstance(last, numbers.Integral):
        raise TypeError(f"`last` must be a float in (0, 1] or an int >= 1. Received: last={last!r}")
    return check_integer("last", last, 1)
