"""Gradient norms, weight norms and update ratios of every step, without a second backward pass."""

import keras
import numpy as np

from tf_tricks import fit_hooks
from tf_tricks._checks import check_bool, check_integer, check_one_of
from tf_tricks.callbacks import gradient_norm_plot, gradient_norm_statistics

PER = ("global", "layer", "variable")


@keras.saving.register_keras_serializable(package="tf_tricks")
class GradientNormLogger(keras.callbacks.Callback):
    """Log L2 norms of gradients (before and after clipping) and of weights, and the size of the updates.

    The norms are computed inside the compiled train step from the gradients that are there anyway. They stay on the
    device and the host reads them every few steps. Loss scaling is undone; with several replicas the norm is that of
    the global batch. With gradient accumulation, "after clipping" and the update ratio are those of the accumulated
    gradient, and NaN at the steps that only accumulate.

    `logs` gets the mean over the epoch of `grad_norm/global`, `grad_norm/<layer>`, `update_ratio/global` and
    `update_ratio/<layer>`, so `History` and every logger that comes after this callback in the list shows them. A
    healthy update ratio is around 1e-3 for Adam.

    Args:
        every: "epoch" or int k >= 1: keep every step, or every k-th step, in `history`. TensorBoard gets a point at
            the end of each epoch, or one every k steps.
        per: "global", "layer" or "variable": what one norm is taken over.
        update_ratio: bool, also record weight norms and the ratio of the update's norm to the weight's norm.
        log_dir: path or None; TensorBoard scalars and histograms are written there, whatever the backend.
        verbose: 0 prints nothing; 1 names vanishing and exploding gradients once each.
    Attributes:
        history: dict of NumPy arrays `(steps,)`: "step" (0-based, of this `fit`), "loss", "grad_norm/global",
            "grad_norm/<name>", "clipped_grad_norm/...", and with `update_ratio` "weight_norm/..." and
            "update_ratio/...".
        findings: list of sentences about vanishing or exploding gradients.
    Raises:
        TypeError, ValueError: an argument is out of range.
        ImportError: `log_dir` without tensorboard, `plot` without matplotlib.
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
        self.log_dir = None if log_dir is None else str(log_dir)
        self.verbose = check_integer("verbose", int(verbose) if isinstance(verbose, bool) else verbose, 0)
        self._forget()

    def _forget(self):
        self.findings = []
        self._kept = []  # one dict of arrays a delivery, joined when somebody asks
        self._history = {}
        self._epoch_sums = gradient_norm_statistics.RunningMeans()
        self._watch = gradient_norm_statistics.Watch()
        self._hook = self._writer = None

    @property
    def history(self):
        """Dict of arrays `(steps,)`, oldest first."""
        if self._kept:
            parts = [self._history, *self._kept] if self._history else self._kept
            self._history = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            self._kept = []
        return self._history

    # --- fit ------------------------------------------------------------------------------------------------------

    def on_train_begin(self, logs=None):
        self._forget()
        model = self.model
        optimizer = fit_hooks.innermost(model.optimizer)
        self._optimizer = optimizer
        columns = ["grad_norm"]
        if optimizer.clipvalue is not None or optimizer.gradient_accumulation_steps:
            columns.append("applied_grad_norm")
        if self.update_ratio:
            columns += ["weight_norm", "update_norm"]
        self._groups = None
        if self.log_dir is not None:
            from tf_tricks.callbacks.gradient_norm_tensorboard import Writer

            self._writer = Writer(self.log_dir)
        self._hook = fit_hooks.attach(model, self, columns=columns, on_rows=self._on_rows)

    def on_epoch_begin(self, epoch, logs=None):
        self._hook.begin_epoch(epoch, self.params["steps"])

    def on_epoch_end(self, epoch, logs=None):
        self._hook.flush()
        means = self._epoch_sums.take()
        if logs is not None:
            logs.update({key: value for key, value in means.items() if key.startswith(("grad_norm/", "update_ratio/"))})
        if self._writer is not None:
            if self.every == "epoch":
                self._writer.scalars(means, epoch)
            self._writer.histograms(self.model, epoch)

    def on_train_end(self, logs=None):
        self._hook.detach(self)
        if self._writer is not None:
            self._writer.close()
        _ = self.history
        self._hook = self._writer = self._optimizer = None

    def _on_rows(self, steps, loss, columns):
        if self._groups is None:  # only now all variables exist for sure
            self._groups = gradient_norm_statistics.groups(self._hook.variables, self._hook.model.name, self.per)
        values = gradient_norm_statistics.by_group(columns, self._groups, self._optimizer)
        self._epoch_sums.add(values)
        for finding in self._watch.look(steps, values, [name for name, _ in self._groups]):
            self.findings.append(finding)
            if self.verbose:
                print(f"\nGradientNormLogger: {finding}")
        kept = slice(None) if self.every == "epoch" else steps % self.every == 0
        rows = {"step": steps[kept], "loss": loss[kept], **{key: value[kept] for key, value in values.items()}}
        if len(rows["step"]):
            self._kept.append(rows)
            if self._writer is not None and self.every != "epoch":
                self._writer.rows(rows)

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
