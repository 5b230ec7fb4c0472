"""What a learning curve says about the run that made it."""

import csv
import dataclasses
import os

import keras
import numpy as np

from tf_tricks._checks import check_integer, check_number, check_optional
from tf_tricks.debug._curve import FEWEST, Curve
from tf_tricks.debug._curve_rules import RULES
from tf_tricks.debug._result import Finding, Result

_RATES = ("learning_rate", "lr")
_BEST_IS_ONE = ("accuracy", "acc", "r2_score", "auc")  # the end of a metric's name


@dataclasses.dataclass
class LearningCurve(Result):
    """What `diagnose_learning_curve` read; `print` shows the findings, each with its numbers.

    Attributes:
        findings: list of `Finding`s named "diverged", "overfitting", "underfitting", "learning_rate_too_high",
            "learning_rate_too_low", "not_converged" (faults, but for a rate that merely fell late, and underfitting
            without a `baseline`) and "generalization_gap", "plateau", "noisy_validation", "validation_better",
            "validation_epochs", "too_short" (remarks).
        epochs: list of int, the numbers of the epochs, from 0 as callbacks see them.
        loss: list of float, of training.
        val_epochs, val_loss: lists of int and float, the epochs that were validated; maybe empty.
        learning_rate: list of float, or None if none was logged.
        best_epoch: int, that of the lowest validation loss, or training loss if there is none.
    Example:
        >>> curve = diagnose_learning_curve({"loss": [2.0, 1.2, 0.9, float("nan")]})
        >>> curve.passed, curve.findings[0].name, curve.findings[0].evidence["epoch"]
        (False, 'diverged', 3)
    """

    findings: list
    epochs: list
    loss: list
    val_epochs: list
    val_loss: list
    learning_rate: list | None
    best_epoch: int

    def heading(self):
        validation = f", validation {self.val_loss[-1]:.4g}" if self.val_loss else ""
        outcome = "FAILED" if not self.passed else "passed"
        return (
            f"diagnose_learning_curve {outcome}: {len(self.epochs)} epochs, training loss {self.loss[0]:.4g} -> "
            f"{self.loss[-1]:.4g}{validation}; best epoch {self.best_epoch}"
        )

    def draw(self, axes):
        axes.plot(self.epochs, self.loss, label="training")
        if self.val_loss:
            axes.plot(self.val_epochs, self.val_loss, label="validation")
        for finding in self.findings:
            epoch = finding.evidence.get("epoch", finding.evidence.get("from"))
            if epoch is not None:
                axes.axvline(epoch, color="grey", linestyle=":")
                axes.annotate(finding.name, (epoch, 0.02), xycoords=("data", "axes fraction"), rotation=90, fontsize=7)
        values = [value for value in [*self.loss, *self.val_loss] if np.isfinite(value)]
        if values and min(values) > 0 and max(values) > 30 * min(values):
            axes.set_yscale("log")
        axes.set(xlabel="epoch", ylabel="loss")
        axes.legend()

    def series(self):
        return "training loss over the epochs", self.loss


def diagnose_learning_curve(history, *, monitor="loss", baseline=None, validation_freq=None):
    """Read a learning curve as an expert would: each finding comes with the epoch and the numbers that led to it.

    Everything is judged against the noise of the curve itself (a robust estimate from second differences) and relative
    to its level, so no unit matters. A curve of fewer than five epochs is only checked for NaN and for an explosion.
    The rate is read where it was logged as "learning_rate" or "lr" (`LearningRateScheduler`, `ReduceLROnPlateau`).
    Where an accuracy (or R2, or AUC) was logged, 0.9 and more is not called underfitting.

    Args:
        history: what `fit` returned, its `.history` or another dict of lists, or the path of a `CSVLogger`'s file.
        monitor: str, the training loss to read; that of validation is "val_" and its name. The smaller the better.
        baseline: None, or float > 0: the loss of predicting the mean (the targets' variance for "mse", the entropy of
            the labels for a cross-entropy). Underfitting is then judged against it, and is a fault; judged against the
            first epoch, which may have learned all there is, it is a remark.
        validation_freq: None, or as `fit` takes it: int >= 1, or the epochs (from 1) that were validated. Needed where
            `history` has fewer values of validation than epochs, and several frequencies give as many.
    Returns:
        A `LearningCurve`; `print` it, or `.plot()` it.
    Raises:
        TypeError, ValueError: `history` is none of these, or has no `monitor` in it.
    Reference:
        Goodfellow, Bengio and Courville (2016), Deep Learning, section 11.4; Smith (2018), A disciplined approach to
        neural network hyper-parameters, arXiv:1803.09820, sections 3 and 4.
    Example:
        >>> history = model.fit(x, y, validation_split=0.25, epochs=2, verbose=0)
        >>> diagnose_learning_curve(history).findings[0].name
        'too_short'
    """
    if not isinstance(monitor, str):
        raise TypeError(f"`monitor` must be a str. Received: monitor={monitor!r}")
    baseline = check_optional(check_number, "baseline", baseline, above=0)
    validation_freq = _checked_frequency(validation_freq)
    epochs, logs = _read(history)
    if monitor not in logs or not len(logs[monitor]):
        raise ValueError(f"`monitor` must be one of {', '.join(sorted(logs))}. Received: monitor={monitor!r}")
    loss = _floats(monitor, logs[monitor])
    epochs = np.arange(len(loss)) if epochs is None or len(epochs) != len(loss) else np.asarray(epochs, "int64")
    val_at, val, possible = _validation(logs.get(f"val_{monitor}"), f"val_{monitor}", epochs, validation_freq)
    rate = next((_floats(name, logs[name]) for name in _RATES if len(logs.get(name, ())) == len(loss)), None)
    findings = _findings(epochs, loss, val_at, val, rate, _success(logs), baseline)
    if len(possible) > 1:
        text = (
            f"{len(val)} validation losses in {len(loss)} epochs fit a `validation_freq` of "
            f"{' or '.join(map(str, possible[:5]))}: {possible[0]} is assumed. Pass the one of `fit`."
        )
        findings.append(Finding("validation_epochs", text, False, {"frequencies": possible}))
    best_at, best = (val_at, val) if np.isfinite(val).any() else (np.arange(len(loss)), loss)
    lowest = int(epochs[best_at[np.nanargmin(best)]]) if np.isfinite(best).any() else int(epochs[0])
    rates = None if rate is None else rate.tolist()
    return LearningCurve(findings, epochs.tolist(), loss.tolist(), epochs[val_at].tolist(), val.tolist(), rates, lowest)


def _findings(epochs, loss, val_at, val, rate, success, baseline):
    found = []
    for name, at, values in (("training", np.arange(len(loss)), loss), ("validation", val_at, val)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad) and not found:
            first = int(bad[0])
            before = f"{values[first - 1]:.4g} in the epoch before" if first else "from the first epoch on"
            text = (
                f"The {name} loss is {values[first]} at epoch {epochs[at[first]]} ({before}). `NaNGuard` says which "
                "layer "
                "and why, and goes on from the last good step; a lower rate may be enough."
            )
            evidence = {"epoch": int(epochs[at[first]]), "before": float(values[first - 1]) if first else None}
            found.append(Finding("diverged", text, evidence=evidence))
    # The rules see what came before the first value that is not finite.
    bad = np.flatnonzero(~np.isfinite(loss))
    n = int(bad[0]) if len(bad) else len(loss)
    bad = np.flatnonzero(~np.isfinite(val))
    seen = val_at[: int(bad[0]) if len(bad) else len(val)]
    seen = seen[seen < n]
    rate = None if rate is None or not np.isfinite(rate[:n]).all() else rate[:n]
    if n:
        curve = Curve(epochs[:n], loss[:n], seen, val[: len(seen)], rate, success, baseline)
        named = {finding.name for finding in found}
        # After a divergence only what came before it says why.
        for rule in RULES:
            finding = rule(curve)
            if finding is not None and finding.name not in named:
                diverged_already = "diverged" in named
                if not diverged_already or finding.name in ("learning_rate_too_high", "overfitting"):
                    found.append(finding)
                    named.add(finding.name)
    if len(loss) < FEWEST and not found:
        text = f"{len(loss)} epochs are too few to see more than NaN or an explosion; {2 * FEWEST} show all."
        found.append(Finding("too_short", text, is_fault=False, evidence={"epochs": len(loss)}))
    return sorted(found, key=lambda finding: not finding.is_fault)


def _read(history):
    """(numbers of the epochs or None, dict of lists) of whatever was given."""
    if isinstance(history, keras.callbacks.History):
        return history.epoch, history.history
    if isinstance(history, str | os.PathLike):
        return _from_file(history)
    if isinstance(history, dict):
        lists = {name: values for name, values in history.items() if np.ndim(values) == 1}
        return lists.get("epoch"), lists
    raise TypeError(
        "`history` must be what `fit` returned, a dict of lists, or the path of a CSV file. "
        f"Received: history={history!r}"
    )


def _from_file(path):
    with open(path, newline="", encoding="utf-8") as file:
        text = file.read()
    heading = text.partition("\n")[0]
    separator = max(",;\t", key=heading.count)
    rows = [row for row in csv.DictReader(text.splitlines(), delimiter=separator) if row]
    if not rows:
        raise ValueError(f"`history` must be a file with a heading and a line for each epoch. Received: {path!s}")
    # A file that a second run went on with may have its heading once more.
    names = [name for name in rows[0] if name]
    rows = [row for row in rows if any(row[name] != name for name in names)]
    logs = {name: [row[name] for row in rows] for name in names}
    epochs = logs.get("epoch")
    numbers = _floats("epoch", epochs) if epochs else None
    # Where a second run counts from 0 again, positions are the only numbers that rise.
    rises = numbers is not None and np.isfinite(numbers).all() and (np.diff(numbers) > 0).all()
    return (numbers if rises else None), logs


def _floats(name, values):
    try:
        return np.array([np.nan if value in ("NA", "", None) else float(value) for value in values], "float64")
    except (TypeError, ValueError):
        raise TypeError(f"`history` must hold numbers under '{name}'. Received: {values!r}") from None


def _checked_frequency(frequency):
    """None, an int, or a set of epochs from 1."""
    if isinstance(frequency, (list, tuple, set, range)):
        return {check_integer("validation_freq", each, 1) for each in frequency}
    return check_optional(check_integer, "validation_freq", frequency, 1)


def _validation(values, name, epochs, frequency):
    """(positions of the epochs that were validated, values, frequencies that fit equally well)."""
    if values is None or not len(values):
        return np.empty(0, "int64"), np.empty(0), []
    numbers, n = _floats(name, values), len(epochs)
    if len(numbers) == n:
        there = np.array([value not in ("NA", "", None) for value in values])
        return np.flatnonzero(there), numbers[there], []
    if len(numbers) > n:
        raise ValueError(f"`history` must have no more values of '{name}' than epochs, {n}. Received: {len(numbers)}")
    # History keeps only the epochs that were validated.
    if frequency is not None:
        at = _validated(epochs, frequency)
        if len(at) != len(numbers):
            raise ValueError(
                f"`validation_freq` must give {len(numbers)} of {n} epochs, as many as '{name}' has values. "
                f"Received: validation_freq={frequency!r}, which gives {len(at)}"
            )
        return at, numbers, []
    possible = [each for each in range(1, int(epochs[-1]) + 2) if len(_validated(epochs, each)) == len(numbers)]
    if not possible:  # some epochs of the user's choice
        return np.arange(1, len(numbers) + 1) * (n // len(numbers)) - 1, numbers, []
    possible.sort(key=lambda each: (each % 10 != 0, each % 5 != 0, each))  # people like round numbers
    return _validated(epochs, possible[0]), numbers, possible


def _validated(epochs, frequency):
    """Positions of the epochs (numbers from 0) that `fit` validates; it counts them from 1."""
    numbers = np.asarray(epochs) + 1
    chosen = numbers % frequency == 0 if isinstance(frequency, int) else np.isin(numbers, sorted(frequency))
    return np.flatnonzero(chosen)


def _success(logs):
    """The last value of a logged metric of training whose best value is 1, or None."""
    for name, values in logs.items():
        if name.startswith("val_") or not name.endswith(_BEST_IS_ONE) or not len(values):
            continue
        last = _floats(name, values)[-1]
        if np.isfinite(last):
            return float(last)
    return None
