"""Hold a non-finite update back before it destroys the weights, and say where it came from."""

import dataclasses
import math

import keras
import numpy as np

from tf_tricks import fit_hooks
from tf_tricks._checks import check_integer, check_number, check_one_of, check_optional
from tf_tricks.callbacks.non_finite_diagnosis import diagnose
from tf_tricks.callbacks.non_finite_report import NonFiniteError, NonFiniteReport
from tf_tricks.checkpoints import Snapshot


def _unchanged(position):
    return 1.0


_STATE = (
    "num_skipped",
    "num_rollbacks",
    "non_finite_metrics",
    "bad_in_a_row",
    "_rollbacks_in_a_row",
    "_steps_since_snapshot",
)


@keras.saving.register_keras_serializable(package="tf_tricks")
class NaNGuard(keras.callbacks.Callback):
    """Check loss and gradients inside the compiled train step; never apply a non-finite update; explain the first one.

    A step whose loss or gradient holds a NaN or Inf leaves no trace: weights, optimizer variables, batch-normalisation
    statistics, random state and running metrics stay bit for bit as the last good step left them, under XLA too. The
    host does not wait for the steps. It looks every few steps; until then the device holds still, and with "skip" and
    "rollback" the batches that came meanwhile are trained on afterwards. The batch that went bad is then replayed
    eagerly, layer by layer, to find the cause.

    What a `LossScaleOptimizer` skips because its scale was too large is not an error. A NaN in a metric alone is not
    one either: it is mentioned once.

    Args:
        on_nan: "stop" ends `fit`; "raise" raises `NonFiniteError`; "skip" leaves bad updates out and goes on;
            "rollback" returns to the last good snapshot of weights and optimizer, multiplies the learning rate by
            `lr_factor` and goes on.
        patience: int >= 1 or None. "skip": stop after so many bad steps in a row. "rollback": stop after so many
            rollbacks without a new snapshot between them. None: never; a row of the data that is always bad then lowers
            the rate at each visit.
        lr_factor: float in (0, 1], for "rollback", dimensionless; the lower rate stays after `fit`.
        snapshot_every: int >= 1, steps between two snapshots for "rollback"; None: at the beginning of each epoch.
        verbose: 0 prints nothing, 1 prints the report.
        look_every: int >= 1, the most steps between two looks of the host. Fewer are taken where the batches between
            two looks would keep more than 256 MiB alive.
    Attributes:
        report: None, or the `NonFiniteReport` of the first bad step of the last `fit`.
        num_skipped: int, updates held back. num_rollbacks: int.
        non_finite_metrics: list of names of metrics that were non-finite while loss and gradients were finite.
    Raises:
        TypeError, ValueError: an argument is out of range.
        NonFiniteError: from `fit`, with `on_nan="raise"`; its `report` is the report.
    Reference:
        Micikevicius et al. (2018), Mixed Precision Training, arXiv:1710.03740, section 3.2 (leave out a step whose
        gradient is non-finite).
    Example:
        >>> guard = NaNGuard(on_nan="stop", verbose=0)
        >>> y_bad = y.copy()
        >>> y_bad[5] = np.inf
        >>> _ = model.fit(x, y_bad, shuffle=False, verbose=0, callbacks=[guard])
        >>> guard.report.origin, guard.report.samples
        ('target', [5])
    """

    async_safe = True

    def __init__(self, on_nan="stop", patience=None, lr_factor=0.1, snapshot_every=None, verbose=1, look_every=32):
        super().__init__()
        self.on_nan = check_one_of("on_nan", on_nan, ("stop", "raise", "skip", "rollback"))
        self.patience = check_optional(check_integer, "patience", patience, 1)
        self.lr_factor = check_number("lr_factor", lr_factor, above=0, below=1, closed="]")
        self.snapshot_every = check_optional(check_integer, "snapshot_every", snapshot_every, 1)
        self.verbose = check_integer("verbose", int(verbose) if isinstance(verbose, bool) else verbose, 0)
        self.max_look_every = check_integer("look_every", look_every, 1)
        self._reset()

    def _reset(self):
        self.report = None
        self.num_skipped = self.num_rollbacks = 0
        self.non_finite_metrics = []
        self.bad_in_a_row = 0
        self._hook = self._error = self._snapshot = None
        self._rollbacks_in_a_row = self._steps_since_snapshot = 0

    # --- fit ------------------------------------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        self._reset()
        rate = _unchanged if self.on_nan == "rollback" else None
        self._hook = fit_hooks.attach(self.model, self, guard=self, rate=rate)

    def on_epoch_begin(self, epoch, logs=None):
        self._hook.begin_epoch(epoch, self.params["steps"])
        if self.on_nan == "rollback" and self.snapshot_every is None and self._snapshot is not None:
            self._take_snapshot(self.model)

    def on_test_begin(self, logs=None):
        self._finish_steps()  # before the validation, so that it runs on the weights that it reports on

    def on_epoch_end(self, epoch, logs=None):
        self._finish_steps()
        if self.report is None:
            self._mention_metrics(logs or {})

    def on_train_end(self, logs=None):
        self._let_go()

    def _finish_steps(self):
        if self._hook is not None:
            self._hook.flush()
        if self._error is not None:
            error, self._error = self._error, None
            self._let_go()
            raise error

    def _let_go(self):
        if self._hook is not None:
            self._hook.detach(self)
        self._hook = self._snapshot = None
        self.set_model(None)  # the report outlives `fit`, the model need not

    def _mention_metrics(self, logs):
        names = [name for name, value in logs.items() if not np.isfinite(np.asarray(value, "float64")).all()]
        if names and not self.non_finite_metrics:
            self.non_finite_metrics = names
            if self.verbose:
                print(f"\nNaNGuard: {', '.join(names)} is not finite, although loss and gradients are; going on.")

    # --- what the hook asks ---------------------------------------------------------------------------------------

    @property
    def look_every(self):
        """The most steps between two looks of the host."""
        return min(self.max_look_every, self.snapshot_every or self.max_look_every)

    @property
    def freeze_at(self):
        """After how many bad steps in a row the device shall hold still until the host has looked."""
        return self.patience if self.on_nan == "skip" and self.report is not None else 1

    def on_first_step(self, hook):
        """All variables exist and no step has run."""
        if self.on_nan == "rollback":
            with hook.published() as model:
                self._take_snapshot(model)

    def on_checked(self, hook, bad):
        """The host has read the status of some steps: `bad` is a bool array, one entry a step."""
        for each in bad:
            self.bad_in_a_row = self.bad_in_a_row + 1 if each else 0
        self.num_skipped += int(bad.sum())
        self._steps_since_snapshot += len(bad)
        if self.snapshot_every and not bad.any() and self._steps_since_snapshot >= self.snapshot_every:
            with hook.published() as model:
                self._take_snapshot(model)

    def on_bad(self, hook, incident):
        """The device holds still after a bad step; the model is as it was before it. Returns True to go on."""
        if self.report is None:
            position = incident.position
            self.report = diagnose(
                hook.model,
                incident.data,
                step=position.step,
                epoch=position.epoch,
                batch=position.batch,
                learning_rate=None if math.isnan(rate := hook.learning_rate()) else rate,
                trajectory=incident.trajectory,
            )
            if self.verbose and self.on_nan != "raise":
                print(f"\n{self.report}")
        if self.on_nan == "skip":
            return self.patience is None or self.bad_in_a_row < self.patience
        if self.on_nan == "rollback":
            return self._roll_back(hook)
        if self.on_nan == "raise":
            self._error = NonFiniteError(self.report)
        return False

    def _roll_back(self, hook):
        self.num_rollbacks += 1
        self._rollbacks_in_a_row += 1
        self._snapshot.restore(hook.model)
        hook.scale_learning_rate(self.lr_factor)
        if self.verbose:
            print(f"NaNGuard: back to the last good snapshot, learning rate {hook.learning_rate():.3g}.")
        return self.patience is None or self._rollbacks_in_a_row < self.patience

    def _take_snapshot(self, model):
        self._snapshot = Snapshot.take(model)
        self._steps_since_snapshot = self._rollbacks_in_a_row = 0

    # --- resumed runs ---------------------------------------------------------------------------------------------

    def get_state(self):
        """What a resumed run has to know: a tree of plain values and arrays."""
        return {
            "report": None if self.report is None else dataclasses.asdict(self.report),
            "snapshot": None if self._snapshot is None else self._snapshot.get_state(),
            **{name: getattr(self, name) for name in _STATE},
        }

    def set_state(self, state):
        """Go on where the run of `get_state` was; call it within `fit`, after `on_train_begin`."""
        self.report = None if state["report"] is None else NonFiniteReport(**state["report"])
        self._snapshot = None if state["snapshot"] is None else Snapshot.from_state(state["snapshot"])
        for name in _STATE:
            setattr(self, name, state[name])

    def get_config(self):
        return {
            "on_nan": self.on_nan,
            "patience": self.patience,
            "lr_factor": self.lr_factor,
            "snapshot_every": self.snapshot_every,
            "verbose": self.verbose,
            "look_every": self.max_look_every,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)
