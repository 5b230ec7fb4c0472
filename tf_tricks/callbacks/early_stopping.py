"""Stop `fit` when it no longer pays, go back to the best epoch, try a lower learning rate first, and say why."""

import dataclasses
import time
import warnings

import keras

from tf_tricks import fit_hooks
from tf_tricks._checks import check_bool, check_integer, check_number, check_one_of, check_optional
from tf_tricks.callbacks._monitor import (
    Track,
    check_each,
    check_monitor,
    check_restore_best,
    check_thresholds,
    direction_of,
    is_improvement,
    scalar,
    spread,
)
from tf_tricks.checkpoints.snapshot import Snapshot

_STATE = ("wait", "stopped_epoch", "stopped_reason", "best", "best_epoch")


@keras.saving.register_keras_serializable(package="tf_tricks")
class EarlyStopping(keras.callbacks.Callback):
    """Stop training when the monitored quantity has stopped improving: Keras's arguments, and more.

    A changed import is enough: with finite values of one monitor, the epochs, the weights and the attributes are those
    of `keras.callbacks.EarlyStopping`. It differs where Keras is wrong:

    - A value that is not finite never counts as best and never as an improvement. In Keras a NaN in the first epoch
      stays the best for ever, and its weights are restored. Such an epoch counts for `patience`, the first one too.
    - A monitor that is absent because validation did not run in this epoch is not warned about. One warning comes in
      the first epoch in which the others of its kind are there, or at the end of `fit`.
    - An unknown `mode` is an error, not a warning. `mode="auto"` also knows losses and metrics of named outputs
      (`out_loss`, `out_accuracy`) and common names of metrics of your own; if in doubt it asks, as Keras does.
    - `best_epoch` is None, not 0, while there is no best epoch.

    Epochs are counted from 0 in arguments and attributes and, like Keras's progress bar, from 1 in sentences.

    Args:
        monitor: str, a key of `logs`; or a list of them. With several, an epoch improves if any of them improves, an
            epoch counts if all of them are there, and the first one decides which epoch is best.
        min_delta: float, smallest change that counts as an improvement; its sign is ignored. In the unit of the
            monitor, or a fraction (see `min_delta_mode`). With several monitors, one for all or a list.
        patience: int >= 0, number of measured epochs without improvement after which to stop.
        verbose: int, 0 (silent) or 1 (say what is done).
        mode: "auto", "min" or "max". With several monitors, one for all or a list.
        baseline: float or None, value of the first monitor that has to be beaten for `wait` to go back to 0. As in
            Keras, an epoch that improves on the best so far does not stop training even if it is below the baseline.
        restore_best_weights: bool, go back to the weights of the best epoch at the end of `fit`, however it ended.
        start_from_epoch: int >= 0, first epoch whose monitor is looked at. `max_seconds` holds before it too.
        min_delta_mode: "absolute", or "relative": `min_delta` and `divergence` are fractions of the magnitude of the
            value that is compared with, so that `min_delta=0.01` asks for 1 % better.
        smoothing: None, or float in [0, 1), weight of the past in an exponential moving average of each monitor. The
            average is corrected for its start (Adam's bias correction) and leaves out what is not finite. Everything
            below and above then refers to the average: `best`, `baseline`, thresholds, divergence.
        max_seconds: float > 0 or None, time limit, since the begin of `fit` and over resumed runs together. Looked at
            at the begin of every batch and the end of every epoch; the batch that begins too late is the last one, and
            validation still runs after it.
        stop_above: float or None: stop as soon as the first monitor is at or above it, be it the goal or a give-up.
        stop_below: float or None: stop as soon as the first monitor is at or below it.
        divergence: float > 0 or None: stop at once if the first monitor is worse than its best by more than this (in
            the unit of the monitor, or a fraction, see `min_delta_mode`), or not finite after a finite best.
        learning_rate_drop: float in (0, 1) or None. When patience runs out, go back to the weights and the optimizer's
            state of the best epoch, multiply the learning rate by this, and go on. The lower rate stays after `fit`.
        max_drops: int >= 1, number of such drops in one `fit`; after that patience stops training.
        restore_best: what to bring back at the end of `fit`. "weights": the weights of the best epoch. "all": also the
            optimizer's state, so that training can go on from there, with the learning rate of that epoch unless it
            was dropped since. False: nothing. None: `restore_best_weights` decides.

    Attributes:
        stopped_reason: None, or one sentence: "val_loss has not improved for 3 epochs (best 0.123 at epoch 7)".
        stopped_epoch: int, 0 if training was not stopped.
        best_epoch, best: int and float, or None.
        best_weights: list of arrays in the order of `model.get_weights()`, or None if none are kept.
        wait: int, measured epochs since the last improvement.
        drop_epochs: list of int, the epochs at whose end the learning rate was dropped.

    Raises:
        ValueError: an argument is out of range; in `fit`: "auto" cannot tell the direction of a monitor.
        TypeError: an argument has the wrong type.

    Reference:
        Prechelt (1998), Early Stopping - But When?, in Neural Networks: Tricks of the Trade.

    Example:
        >>> stopping = EarlyStopping("loss", patience=2, restore_best="all", max_seconds=60)
        >>> _ = model.fit(x, y, epochs=3, verbose=0, callbacks=[stopping])
        >>> stopping.best_epoch in (0, 1, 2)
        True
    """

    async_safe = True  # nothing here looks at the logs of a batch

    def __init__(
        self,
        monitor="val_loss",
        min_delta=0,
        patience=0,
        verbose=0,
        mode="auto",
        baseline=None,
        restore_best_weights=False,
        start_from_epoch=0,
        *,
        min_delta_mode="absolute",
        smoothing=None,
        max_seconds=None,
        stop_above=None,
        stop_below=None,
        divergence=None,
        learning_rate_drop=None,
        max_drops=1,
        restore_best=None,
    ):
        super().__init__()
        self.monitor = check_monitor(monitor)
        self.min_delta = check_each("min_delta", min_delta, self._names, check_number)
        self.patience = check_integer("patience", patience, 0)
        self.verbose = check_integer("verbose", int(verbose) if isinstance(verbose, bool) else verbose, 0)
        self.mode = check_each("mode", mode, self._names, check_one_of, ("auto", "min", "max"))
        self.baseline = check_optional(check_number, "baseline", baseline)
        self.restore_best_weights = check_bool("restore_best_weights", restore_best_weights)
        self.start_from_epoch = check_integer("start_from_epoch", start_from_epoch, 0)
        self.min_delta_mode = check_one_of("min_delta_mode", min_delta_mode, ("absolute", "relative"))
        self.smoothing = check_optional(check_number, "smoothing", smoothing, above=0, below=1, closed="[")
        self.max_seconds = check_optional(check_number, "max_seconds", max_seconds, above=0)
        self.stop_above = check_optional(check_number, "stop_above", stop_above)
        self.stop_below = check_optional(check_number, "stop_below", stop_below)
        check_thresholds(self.stop_above, self.stop_below)
        self.divergence = check_optional(check_number, "divergence", divergence, above=0)
        self.learning_rate_drop = check_optional(
            check_number, "learning_rate_drop", learning_rate_drop, above=0, below=1
        )
        self.max_drops = check_integer("max_drops", max_drops, 1)
        self.restore_best = check_restore_best(restore_best, self.restore_best_weights)
        self._hook = None
        self._reset()

    def get_config(self):
        names = (
            "monitor min_delta patience verbose mode baseline restore_best_weights start_from_epoch min_delta_mode "
            "smoothing max_seconds stop_above stop_below divergence learning_rate_drop max_drops restore_best"
        )
        return {name: getattr(self, name) for name in names.split()}

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    # --- what `fit` calls -----------------------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        if not self._resuming:  # else `set_state` was called before `fit`
            self._reset()
        self._begin = time.monotonic()
        if self.learning_rate_drop is not None:
            # `rate` only says that the rate may change: the compiled step then takes a multiplier as an argument.
            self._hook = fit_hooks.attach(self.model, self, rate=_unchanged)

    def on_epoch_begin(self, epoch, logs=None):
        if self._resuming:
            self._resuming = False
            self._resume_learning_rate()
            if self.stopped_reason is not None:
                self.model.stop_training = True

    def on_train_batch_begin(self, batch, logs=None):
        if self._time_is_over():
            self.model.stop_training = True  # `fit` ends the epoch after this batch; `on_epoch_end` gives the reason

    def on_epoch_end(self, epoch, logs=None):
        self._resuming = False
        if self.stopped_reason is not None:  # a resumed run that had already come to its end
            self.model.stop_training = True
            return
        values = self._read(logs or {})
        reason, stale = None, False
        if values is not None and epoch >= self.start_from_epoch:
            reason, stale = self._judge(epoch, values)
        if reason is None and self._time_is_over():
            reason = f"the time limit of {self.max_seconds:g} seconds was reached in epoch {epoch + 1}"
        if reason is None and stale and self.wait >= self.patience and not self._drop(epoch):
            reason = self._lost_patience()
        if reason is not None:
            self.stopped_epoch, self.stopped_reason = epoch, reason
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self._resuming = False
        self._elapsed, self._begin = self._seconds(), None
        if self._available:
            self._warn_of_missing([name for name in self._names if name not in self._seen])
        if self.stopped_reason is not None:
            self._say(f"Epoch {self.stopped_epoch + 1}: early stopping: {self.stopped_reason}.")
        what = self._brought_back()
        if what and self._best_state is not None:
            self._say(f"Restoring model {what} from the end of the best epoch: {self.best_epoch + 1}.")
            # A rate that was dropped stays dropped.
            self._best_state.restore(self.model, optimizer=what == "all", learning_rate=not self.drop_epochs)
        if self._hook is not None:
            # Only now: letting go of the hook multiplies the optimizer's own rate by the drops.
            self._last_rate = self._hook.learning_rate()
            self._hook.detach(self)
            self._hook = None

    # --- resumed runs ---------------------------------------------------------------------------------------------

    def get_state(self):
        """What a resumed run has to know: a dict of plain values, with arrays for the best state.

        Call it at the end of an epoch after this callback's own turn (a callback that saves comes later in the list),
        or after `fit`. The constructor's arguments are not part of it.
        """
        return {
            **{name: getattr(self, name) for name in _STATE},
            "drop_epochs": list(self.drop_epochs),
            "seconds": self._seconds(),
            "learning_rate": self._last_rate if self._hook is None else self._hook.learning_rate(),
            "monitors": [dataclasses.asdict(track) for track in self._tracks],
            "averages_at_best": [list(pair) for pair in self._averages_at_best],
            "best_state": None if self._best_state is None else self._best_state.get_state(),
        }

    def set_state(self, state):
        """Go on where the run of `get_state` was, in the next `fit` or in the one that is just beginning.

        Call it before `fit`, or from the `on_train_begin` of any callback; weights, optimizer and `initial_epoch` are
        the caller's to restore. A run that had already been stopped stops again after one batch.

        Raises:
            ValueError: the state belongs to another number of monitors.
        """
        if len(state["monitors"]) != len(self._names):
            raise ValueError(
                f"EarlyStopping: the state is one of {len(state['monitors'])} monitors, this object has "
                f"{self._names}. Make it with the arguments of the run that is resumed."
            )
        in_fit = self._begin is not None
        self._reset()
        for name in _STATE:
            setattr(self, name, state[name])
        self.drop_epochs = list(state["drop_epochs"])
        self._tracks = [Track(**track) for track in state["monitors"]]
        self._averages_at_best = [tuple(pair) for pair in state["averages_at_best"]]
        self._best_state = None if state["best_state"] is None else Snapshot.from_state(state["best_state"])
        self._last_rate = state["learning_rate"]
        self._elapsed = state["seconds"]
        self._begin = time.monotonic() if in_fit else None
        self._resuming = True

    def _resume_learning_rate(self):
        # Whether the resumed optimizer already has the drops depends on where its state was saved: a checkpoint
        # written during `fit` holds the rate without them, one written after `fit` the rate with them.
        if self._hook is None or not self.drop_epochs or self._last_rate is None:
            return
        drops, now = self.learning_rate_drop ** len(self.drop_epochs), self._hook.learning_rate()
        if abs(now * drops - self._last_rate) < abs(now - self._last_rate):
            self._hook.scale_learning_rate(drops)

    # --- one epoch ------------------------------------------------------------------------------------------------

    @property
    def best_weights(self):
        return None if self._best_state is None else self._best_state.arrays("weights")

    @property
    def _names(self):
        return [self.monitor] if isinstance(self.monitor, str) else list(self.monitor)

    def _reset(self):
        self.wait, self.stopped_epoch, self.stopped_reason = 0, 0, None
        self.best, self.best_epoch, self.drop_epochs = None, None, []
        self._best_state, self._last_rate, self._resuming = None, None, False
        self._tracks = [Track() for _ in self._names]
        self._averages_at_best = [(0.0, 0) for _ in self._names]
        self._directions = None
        self._elapsed, self._begin = 0.0, None
        self._seen, self._available, self._warned, self._gaps = set(), [], False, False  # which log keys there were

    def _read(self, logs):
        """The values of all monitors, or None if one of them was not measured in this epoch."""
        self._available += [name for name in logs if name not in self._available]
        self._seen.update(name for name in self._names if name in logs)
        absent = [name for name in self._names if name not in logs]
        validated = any(name.startswith("val_") for name in logs)
        expected = [name for name in absent if validated or not name.startswith("val_")]
        self._warn_of_missing([name for name in expected if name not in self._seen])
        if absent:
            self._gaps = True
            return None
        return [scalar(name, logs[name]) for name in self._names]

    def _judge(self, epoch, values):
        """Take in the values of an epoch: a reason to stop now or None, and whether no monitor has improved."""
        if self._directions is None:
            modes = spread(self.mode, self._names)
            self._directions = [direction_of(*each, self.model) for each in zip(modes, self._names, strict=True)]
        values = [track.smoothed(value, self.smoothing) for track, value in zip(self._tracks, values, strict=True)]
        diverged = self._diverged(values[0], epoch)
        self.wait += 1
        improved = [self._improves(i, value, self._tracks[i].best) for i, value in enumerate(values)]
        for track, value, better in zip(self._tracks, values, improved, strict=True):
            track.best = value if better else track.best
        if improved[0]:
            self._keep(epoch, values[0])
        if any(improved) and (self.baseline is None or self._improves(0, values[0], self.baseline)):
            self.wait = 0
        return self._goal(values[0], epoch) or diverged, not any(improved)

    def _keep(self, epoch, value):
        self.best, self.best_epoch = value, epoch
        self._averages_at_best = [(track.average, track.count) for track in self._tracks]
        if self._brought_back() or self.learning_rate_drop is not None:
            optimizer = self._brought_back() == "all" or self.learning_rate_drop is not None
            self._best_state = Snapshot.take(self.model, optimizer=optimizer)

    def _improves(self, i, value, reference):
        margin = abs(spread(self.min_delta, self._names)[i])
        return is_improvement(value, reference, self._directions[i], margin, self.min_delta_mode == "relative")

    def _goal(self, value, epoch):
        """The sentence for a threshold that was reached, or None."""
        if value is not None and self.stop_above is not None and value >= self.stop_above:
            limit = f"at or above stop_above={self.stop_above:g}"
        elif value is not None and self.stop_below is not None and value <= self.stop_below:
            limit = f"at or below stop_below={self.stop_below:g}"
        else:
            return None
        return f"{self._names[0]} is {_text(value)} in epoch {epoch + 1}, {limit}"

    def _diverged(self, value, epoch):
        """The sentence for a value that is much worse than the best, or None."""
        best = self._tracks[0].best
        if self.divergence is None or best is None:
            return None
        # Worse than the best by more than a margin: then the best is an improvement on this value by that margin.
        margin = self.divergence * (abs(best) if self.min_delta_mode == "relative" else 1.0)
        if value is not None and not is_improvement(best, value, self._directions[0], margin):
            return None
        what = "is no longer finite" if value is None else f"has diverged to {_text(value)}"
        return f"{self._names[0]} {what} in epoch {epoch + 1} (best {_text(best)} at epoch {self.best_epoch + 1})"

    # --- when patience runs out -----------------------------------------------------------------------------------

    def _drop(self, epoch):
        """Go back to the best epoch with a lower learning rate; False if there is no drop left or nothing to go to."""
        if self.learning_rate_drop is None or len(self.drop_epochs) >= self.max_drops or self._best_state is None:
            return False
        before = self._hook.learning_rate()
        # The rate is not put back: what other callbacks have lowered since the best epoch stays lowered.
        self._best_state.restore(self.model, learning_rate=False)
        self._hook.scale_learning_rate(self.learning_rate_drop)
        for track, (average, count) in zip(self._tracks, self._averages_at_best, strict=True):
            track.average, track.count = average, count
        self._say(
            f"Epoch {epoch + 1}: {self._lost_patience()}. Going on from epoch {self.best_epoch + 1}, "
            f"learning rate {before:.3g} -> {before * self.learning_rate_drop:.3g}."
        )
        self.drop_epochs.append(epoch)
        self.wait = 0
        return True

    def _lost_patience(self):
        names = self._names
        epochs = f"{self.wait} {'measured ' if self._gaps else ''}{'epoch' if self.wait == 1 else 'epochs'}"
        subject = f"{names[0]} has not" if len(names) == 1 else f"none of {', '.join(names)} has"
        if self.best is None:
            return f"{names[0]} has not been finite in {epochs}"
        goal = ""
        if self.baseline is not None and not self._improves(0, self.best, self.baseline):
            goal = f" on the baseline {self.baseline:g}"
        after = f", nor after dropping the learning rate {len(self.drop_epochs)}x" if self.drop_epochs else ""
        name = f"{names[0]} " if len(names) > 1 else ""
        best = f"(best {name}{_text(self.best)} at epoch {self.best_epoch + 1})"
        return f"{subject} improved{goal} for {epochs}{after} {best}"

    # --- small things ---------------------------------------------------------------------------------------------

    def _brought_back(self):
        return self.restore_best if self.restore_best is not None else self.restore_best_weights and "weights"

    def _seconds(self):
        return self._elapsed + (0.0 if self._begin is None else time.monotonic() - self._begin)

    def _time_is_over(self):
        return self.max_seconds is not None and self._seconds() >= self.max_seconds

    def _say(self, sentence):
        if self.verbose > 0:
            print(sentence)

    def _warn_of_missing(self, names):
        if not names or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"EarlyStopping: monitor {', '.join(f'`{name}`' for name in names)} is not in the logs of `fit`: nothing "
            f"can be said about it. Available: {', '.join(self._available)}. Change `monitor`, pass `validation_data`, "
            "or put the callback that logs it earlier in the list.",
            stacklevel=3,
        )


def _unchanged(position):
    return 1.0


def _text(value):
    return f"{value:.4g}"
