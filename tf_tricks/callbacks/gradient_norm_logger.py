"""Gradient norms, weight norms and update ratios of every step, without a second backward pass."""

import os

import keras
import numpy as np

from tf_tricks import fit_hooks
from tf_tricks._checks import check_bool, check_integer, check_one_of
from tf_tricks.callbacks import gradient_norm_plot, gradient_norm_tensorboard
from tf_tricks.callbacks import gradient_norm_statistics as statistics

PER = ("global", "layer", "variable")


@keras.saving.register_keras_serializable(package="tf_tricks")
class GradientNormLogger(keras.callbacks.Callback):
    """Log L2 norms of gradients (before and after clipping) and of weights, and the size of the updates.

    The norms are computed inside the compiled train step from the gradients that are there anyway. They stay on the
    device and the host reads them every few steps. Loss scaling is undone; with several replicas the norm is that of
    the global batch. A variable that the loss does not depend on has norm 0. With gradient accumulation, "after
    clipping" and the update ratio are those of the accumulated gradient, and NaN at the steps that only accumulate.

    `logs` gets the means over the steps of the epoch under `grad_norm/global`, `grad_norm/<layer>`,
    `update_ratio/global` and `update_ratio/<layer>`, in every epoch, as floats. `History` shows them wherever this
    callback stands; other loggers (`CSVLogger`, `TensorBoard`, ...) do if they come after it in the list of callbacks.
    A gradient that is not finite shows as such; the steps that `LossScaleOptimizer` skips, as it is meant to, are left
    out of the means. A healthy update ratio is around 1e-3 for Adam.

    Args:
        every: "epoch" or int k >= 1: keep every step, or every k-th step, in `history`. TensorBoard gets a point at
            the end of each epoch, or one every k steps.
        per: "global", "layer" or "variable": what one norm is taken over, beside the global one.
        update_ratio: bool, also record weight norms (after the step) and the ratio of the update's norm to them.
        log_dir: local path or None; TensorBoard scalars and histograms (of the weights, and of the norms of an
            epoch's steps) are written to its folder "gradient_norms", whatever the backend.
        verbose: 0 prints nothing; 1 names vanishing and exploding gradients once each.
    Attributes:
        history: dict of NumPy arrays `(steps,)`: "step" (0-based, of this `fit`), "loss", "grad_norm/global",
            "grad_norm/<name>", "clipped_grad_norm/...", and with `update_ratio` "weight_norm/..." and
            "update_ratio/...".
        findings: list of sentences: the first layer's norm is below 1e-3 of the last one's (median over up to 100
            steps), or the global norm is more than 100 times its median over the last 100 steps.
    Raises:
        TypeError, ValueError: an argument is out of range.
        ImportError: `log_dir` without tensorboard, `plot` without matplotlib.
        RuntimeError: `plot` before `fit`.
    Reference:
        Pascanu, Mikolov and Bengio (2013), On the difficulty of training recurrent neural networks, section 2.1
        (exploding and vanishing norms); Karpathy, CS231n notes, "Ratio of weights:updates" (the 1e-3 rule).
    Example:
        >>> logger = GradientNormLogger(per="layer")
        >>> _ = model.fit(x, y, epochs=2, verbose=0, callbacks=[logger])
        >>> len(logger.history["grad_norm/global"]) == len(logger.history["step"])
        True
    """

    async_safe = True

    def __init__(self, every="epoch", per="layer", update_ratio=True, log_dir=None, verbose=1):
        super().__init__()
        if isinstance(every, str):
            self.every = check_one_of("every", every, ("epoch",))
        else:
            self.every = check_integer("every", every, 1)
        self.per = check_one_of("per", per, PER)
        self.update_ratio = check_bool("update_ratio", update_ratio)
        self.log_dir = None if log_dir is None else os.fspath(log_dir)
        if self.log_dir is not None:
            gradient_norm_tensorboard.check_installed()
        self.verbose = check_integer("verbose", int(verbose) if isinstance(verbose, bool) else verbose, 0)
        self._forget()

    def _forget(self):
        self.findings = []
        self._history, self._kept = {}, []  # the joined arrays, and (steps, loss, tables) not yet joined
        self._members = self._layers = None
        self._means = statistics.RunningMeans()
        self._watch = statistics.Watch()
        self._epoch_norms = []
        self._hook = self._writer = None

    @property
    def history(self):
        """Dict of arrays `(steps,)`, oldest first."""
        if self._kept:
            steps, loss, found = zip(*self._kept, strict=True)
            new = {"step": np.concatenate(steps), "loss": np.concatenate(loss)}
            new.update(self._by_name({kind: np.concatenate([each[kind] for each in found]) for kind in found[0]}))
            old = self._history or {key: array[:0] for key, array in new.items()}
            self._history = {key: np.concatenate([old[key], array]) for key, array in new.items()}
            self._kept = []
        return self._history

    # --- fit ------------------------------------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        self._forget()
        model = self.model
        fit_hooks.require_optimizer(model, self)
        self._optimizer = optimizer = fit_hooks.innermost(model.optimizer)
        self._loss_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        columns = ["grad_norm"]
        if optimizer.clipvalue is not None or optimizer.gradient_accumulation_steps:
            columns.append("applied_grad_norm")
        if self.update_ratio:
            columns += ["weight_norm", "update_norm"]
        if self.log_dir is not None:
            self._writer = gradient_norm_tensorboard.Writer(self.log_dir)
        self._hook = fit_hooks.attach(model, self, columns=columns, on_rows=self._on_rows)

    def on_epoch_begin(self, epoch, logs=None):
        self._hook.begin_epoch(epoch, self.params["steps"])

    def on_epoch_end(self, epoch, logs=None):
        self._hook.flush()
        self._name_groups()
        kinds = statistics.KINDS if self.update_ratio else statistics.KINDS[:2]
        means = self._means.take(kinds, self._names())
        if logs is not None:
            logs.update({key: value for key, value in means.items() if key.startswith(("grad_norm/", "update_ratio/"))})
        if self._writer is not None:
            self._write_epoch(epoch, means)

    def on_train_end(self, logs=None):
        self._hook.detach(self)
        _ = self.history
        self._hook = self._writer = self._optimizer = None

    def _name_groups(self):
        if self._members is None:  # only with the first step all variables exist for sure
            model = self._hook.model
            self._members = statistics.groups(model.trainable_variables, model.name, self.per)
            self._layers = statistics.groups(model.trainable_variables, model.name, "layer")

    def _names(self):
        return ["global", *(name for name, _ in self._members)]

    def _by_name(self, found):
        return {f"{kind}/{name}": found[kind][:, i] for i, name in enumerate(self._names()) for kind in found}

    def _on_rows(self, steps, loss, columns):
        self._name_groups()
        found = statistics.tables(columns, self._members, self._optimizer)
        counted = np.ones(len(steps), bool)
        if self._loss_scaled:  # an overflow is how it finds its scale; such a step is skipped
            counted = np.isfinite(found["grad_norm"][:, 0])
        updating = counted
        if self._optimizer.gradient_accumulation_steps:
            updating = counted & ~statistics.only_accumulates(columns)
        after = {"clipped_grad_norm": updating, "update_ratio": updating}
        self._means.add(found, {kind: after.get(kind, counted) for kind in found})
        self._warn(steps[counted], columns["grad_norm"][counted], found["grad_norm"][counted])
        kept = slice(None) if self.every == "epoch" else steps % self.every == 0
        found = {kind: array[kept].astype("float32") for kind, array in found.items()}
        if len(steps[kept]):
            self._kept.append((steps[kept], loss[kept], found))
        if self._writer is not None:
            self._epoch_norms.append(found["grad_norm"])
            if self.every != "epoch":
                self._writer.rows(steps[kept], {"loss": loss[kept], **self._by_name(found)})

    def _warn(self, steps, norms, found):
        norms = found if self.per == "layer" else statistics.table(norms, self._layers)
        for finding in self._watch.look(steps, norms, [name for name, _ in self._layers]):
            self.findings.append(finding)
            if self.verbose:
                print(f"\nGradientNormLogger: {finding}")

    def _write_epoch(self, epoch, means):
        if self.every == "epoch":
            self._writer.scalars(means, epoch)
        norms, self._epoch_norms = self._epoch_norms, []
        if norms:
            self._writer.histograms(
                {f"{key}/steps": array for key, array in self._by_name({"grad_norm": np.concatenate(norms)}).items()},
                epoch,
            )
        self._writer.histograms(gradient_norm_tensorboard.weights(self.model), epoch)

    # --- resumed runs ---------------------------------------------------------------------------------------------

    def get_state(self):
        """What a resumed run has to know: a tree of plain values and arrays."""
        return {
            "history": dict(self.history),
            "findings": list(self.findings),
            "means": self._means.get_state(),
            "watch": self._watch.get_state(),
            "epoch_norms": list(self._epoch_norms),
        }

    def set_state(self, state):
        """Go on where the run of `get_state` was; call it within `fit`, after `on_train_begin`."""
        self._history, self._kept = {key: np.array(array) for key, array in state["history"].items()}, []
        self.findings = list(state["findings"])
        self._means, self._watch = statistics.RunningMeans(), statistics.Watch()
        self._means.set_state(state["means"])
        self._watch.set_state(state["watch"])
        self._epoch_norms = list(state["epoch_norms"])

    # --- pictures -------------------------------------------------------------------------------------------------

    def plot(self, path=None):
        """Draw the norms over the steps and a layer-by-step heat map.

        Args:
            path: where to save the picture, or None.
        Returns:
            The `matplotlib.figure.Figure`.
        Raises:
            RuntimeError: there is nothing to draw yet.
        """
        if not self.history:
            raise RuntimeError("GradientNormLogger.plot: nothing is recorded yet; call it after `fit`.")
        return gradient_norm_plot.draw(self.history, path)

    def get_config(self):
        return {
            "every": self.every,
            "per": self.per,
            "update_ratio": self.update_ratio,
            "log_dir": self.log_dir,
            "verbose": self.verbose,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)
