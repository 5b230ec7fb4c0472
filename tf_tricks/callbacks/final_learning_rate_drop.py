"""One drop of the learning rate at the end of training."""

import math
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


@keras.saving.register_keras_serializable(package="tf_tricks")
class FinalLearningRateDrop(keras.callbacks.Callback):
    """Lower the learning rate once, in the last part of the run, whatever the learning rate is.

    Works on a float, a `LearningRateSchedule` and a callable, beside `LearningRateScheduler` and `ReduceLROnPlateau`:
    those go on to see and set the rate without the drop, which multiplies it inside the train step. The drop is exact
    to the step where the number of steps is known; in the first epoch over a dataset of unknown length it moves in
    whole epochs. `logs["learning_rate"]` holds the rate of the next step, drop included.

    Args:
        factor: float in (0, 1), the multiplier at the end of the run, dimensionless.
        last: the length of the last phase: a float in (0, 1], a share of the whole run (`epochs` epochs, also when
            `initial_epoch > 0`), or an int >= 1, a number of epochs.
        shape: "step" drops at once; "linear", "cosine" and "sqrt" (one minus the square root) reach `factor` with the
            last step.
        restore: bool. False: the optimizer keeps the lower rate after `fit`. True: it gets the old one back.
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
        if isinstance(last, float):
            self.last = check_number("last", last, above=0, below=1, closed="]")
        else:
            self.last = check_integer("last", last, 1)
        self.shape = check_one_of("shape", shape, SHAPES)
        self.restore = check_bool("restore", restore)
        self._hook = None

    def on_train_begin(self, logs=None):
        self._multiplier = 1.0
        self._hook = fit_hooks.attach(self.model, self, rate=self._rate)

    def on_epoch_begin(self, epoch, logs=None):
        self._hook.begin_epoch(epoch, self.params["steps"])

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs["learning_rate"] = self._hook.last_learning_rate()

    def on_train_end(self, logs=None):
        hook, self._hook = self._hook, None
        if not self.restore:
            hook.scale_learning_rate(self._multiplier)
        hook.detach(self)

    def _rate(self, position):
        epochs, steps = self.params["epochs"], self._hook.steps_per_epoch
        if steps is None:  # a dataset of unknown length: all steps of the first epoch count as its beginning
            steps, batch = 1, 0
            if epochs == 1:
                self._warn_unknown_length()
        else:
            batch = position.batch
        total = epochs * steps
        length = self.last * (total if isinstance(self.last, float) else steps)
        length = min(total, max(1, round(length)))
        done = position.epoch * steps + batch + 1  # steps of the run that are over after this one
        self._multiplier = multiplier((done - (total - length)) / length, self.factor, self.shape)
        return self._multiplier

    def _warn_unknown_length(self):
        if not getattr(self, "_warned", False):
            self._warned = True
            warnings.warn(
                "FinalLearningRateDrop: one epoch over a dataset of unknown length has no last part that is known "
                "beforehand; the whole epoch runs at the lower rate. Give `steps_per_epoch` to `fit`, or apply "
                "`tf.data.experimental.assert_cardinality` to the dataset.",
                stacklevel=2,
            )

    def get_config(self):
        return {"factor": self.factor, "last": self.last, "shape": self.shape, "restore": self.restore}

    @classmethod
    def from_config(cls, config):
        return cls(**config)
