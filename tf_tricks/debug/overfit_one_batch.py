"""Can the model learn one sample, and then a few, by heart? What cannot do that cannot learn anything else."""

import dataclasses
import math
import warnings

import keras
import numpy as np

from tf_tricks._checks import check_instance, check_integer
from tf_tricks.debug import _data, _overfit_findings, _targets
from tf_tricks.debug._budget import Budget
from tf_tricks.debug._regularisation import switch_off_regularisation, without_regularizers
from tf_tricks.debug._result import Finding, Result
from tf_tricks.fit_hooks.borrowing import borrowed
from tf_tricks.fit_hooks.functional import LossFunction
from tf_tricks.fit_hooks.replay import loss_of_predictions, training_argument
from tf_tricks.fit_hooks.replay_state import sublayers

CANDIDATES = 256  # samples among which different targets are looked for
OWN_STEPS, OTHER_STEPS = 1000, 300  # at the model's own rate, and at each other one
FACTORS = (0.1, 10.0, 0.01, 100.0, 1e-3, 1e3)  # of the model's rate
PLATEAU = 150  # steps without a fall that end an attempt
TRIAL = 200  # steps (a third of the attempt, if that is less) after which a tenth of the way must be gone
FEWEST = 3  # steps, of which the first may leave some weights where they are
UNKNOWN = 1e-3  # of the loss at the begin: the bound for a loss that says nothing about its minimum


@dataclasses.dataclass
class OverfitOneBatch(Result):
    """What `overfit_one_batch` saw; `print` it, or `.plot()` it.

    Attributes:
        fitted: bool, whether the loss got below `bound`, or all samples are classified rightly.
        samples: int, of the last attempt: 1, or all of them.
        start_loss, final_loss: floats, of the last attempt at the model's own rate.
        bound: float, the loss below which the samples count as learnt.
        mean_loss: float, the loss of predicting the mean of the targets; NaN where that is unknown.
        accuracy: float in [0, 1], or None for a regression.
        losses: list of float, step by step, at the model's own rate.
        learning_rate: float, the model's own. working_rate: float or None, the rate at which it fits.
        switched_off: list of str, the regularisation that was on.
        report: None, or the `NonFiniteReport` of a loss that was not finite.
        findings: list of `Finding`s. passed: bool, whether none of them is a fault.
    Example:
        >>> model.optimizer.learning_rate = 0.03
        >>> result = overfit_one_batch(model, x, y, samples=2, seconds=None, steps=900, verbose=0)
        >>> result.fitted, result.accuracy, result.report
        (True, None, None)
    """

    fitted: bool
    samples: int
    start_loss: float
    final_loss: float
    bound: float
    mean_loss: float
    accuracy: float | None
    losses: list
    learning_rate: float
    working_rate: float | None
    switched_off: list
    report: object
    findings: list

    def heading(self):
        outcome = "learnt by heart" if self.fitted else "NOT learnt"
        many = "one sample" if self.samples == 1 else f"{self.samples} samples"
        right = "" if self.accuracy is None else f", accuracy {100 * self.accuracy:.0f} %"
        lines = [
            f"overfit_one_batch: {many} {outcome}: loss {self.start_loss:.4g} -> {self.final_loss:.4g} in "
            f"{len(self.losses)} steps{right}",
            f"needed: {self.bound:.3g}; predicting the mean: {self.mean_loss:.3g}; rate {self.learning_rate:.3g}",
        ]
        if self.switched_off:
            shown = "; ".join(self.switched_off[:4]) + ("; ..." if len(self.switched_off) > 4 else "")
            lines.append(f"switched off: {shown}"[:300])
        return "\n".join(lines)

    def draw(self, axes):
        axes.plot(np.maximum(self.losses, 1e-12) if min(self.losses, default=1) > 0 else self.losses, label="loss")
        axes.axhline(self.bound, color="black", linewidth=1, linestyle=":", label="needed")
        if math.isfinite(self.mean_loss):
            axes.axhline(self.mean_loss, color="gray", linewidth=1, linestyle="--", label="predicting the mean")
        axes.set(xlabel="step", ylabel="loss")
        if min([*self.losses, self.bound], default=1) > 0:
            axes.set_yscale("log")
        axes.legend(fontsize="small", frameon=False)

    def series(self):
        logs = [math.log10(each) if each > 0 else math.nan for each in self.losses]
        return f"log10 of the loss, {len(logs)} steps", logs


def overfit_one_batch(model, x, y=None, sample_weight=None, *, samples=8, seconds=10.0, steps=None, seed=0, verbose=1):
    """Train on one sample, then on a few, until they are known by heart; if that fails, say what was seen.

    Regularisation is switched off for it, and named: weight regularisers, dropout, noise, augmentation, weight decay. A
    sample counts as learnt when the loss is that of predictions 1 % beside the best ones: 1 % of the targets' standard
    deviation for a regression (1e-4 of the variance, for the squared error), 1 % of the probability for a
    classification (so above the entropy of soft or smoothed labels); or when all are classified rightly and half of the
    loss is gone. Where the model's own rate fails, rates up to three decades away are tried: the finding tells a wrong
    rate from a model that cannot learn. The model is afterwards as it was, to the bit.

    One sample alone says nothing about a model with batch normalisation, which subtracts the sample's mean, the sample
    itself: it begins with all `samples`; with `samples=1` the moving statistics take the place of the batch's.

    Args:
        model: compiled keras.Model of any kind.
        x: arrays in the structure that the model takes; or, with `y=None`, a tf.data.Dataset, PyDataset, DataLoader or
            generator of batches.
        y, sample_weight: arrays as `fit` takes them, or None.
        samples: int >= 1. Different targets are preferred.
        seconds: float > 0 or None, the time limit. steps: int >= 1 or None, a limit of the training steps.
        seed: int, of the choice of the samples.
        verbose: 0: silent; 1: a progress bar.
    Returns:
        `OverfitOneBatch`. Its findings: "non_finite" (with `report`), "rate_too_high", "rate_too_low", "frozen",
        "no_gradient", "dead_relus", "saturated", "out_of_range", "one_class", "logits_as_probabilities",
        "probabilities_as_logits", "stuck_at_mean", "does_not_fit"; notes: "batch_normalization", "slow",
        "short_budget".
    Raises:
        TypeError, ValueError: an argument is out of range, or the model is not compiled.
    Reference:
        Karpathy (2019), A Recipe for Training Neural Networks, "overfit one batch"; Goodfellow, Bengio and Courville
        (2016), Deep Learning, section 11.5 (fit a tiny dataset).
    Example:
        >>> model.layers[-1].activation = keras.activations.sigmoid
        >>> overfit_one_batch(model, x, 5 + y, samples=4, steps=500, verbose=0).findings[0].name
        'out_of_range'
    """
    check_instance("model", model, keras.Model, "a keras.Model")
    if not model.compiled or model.optimizer is None:
        raise ValueError(f"`model` must be compiled with an optimizer. Received: model={model!r}")
    check_integer("samples", samples, 1)
    check_integer("seed", seed, 0)
    budget = Budget(seconds, steps, verbose, "overfit_one_batch")
    data = _different(_data.samples(x, y, sample_weight, limit=max(CANDIDATES, samples), seed=seed), samples)
    with warnings.catch_warnings(), borrowed(model, *data) as loan:
        warnings.filterwarnings("ignore", "Gradients do not exist")  # a finding says so, with the layers
        result = _Test(loan, data, budget).result()
    budget.close()
    return result


def _different(found, count):
    """The first `count` samples, those first whose targets were not seen before: the mean must not be the answer."""
    leaves = [leaf for leaf in keras.tree.flatten(found.y) if leaf is not None]
    keys = [tuple(leaf[i].tobytes() for leaf in leaves) for i in range(found.size)]
    rank, seen = [], {}
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        rank.append(seen[key])
    return found.take(np.argsort(rank, kind="stable")[:count])


class _Test:
    """The experiment, in a loan."""

    def __init__(self, loan, data, budget):
        self.loan, self.model, self.all, self.budget = loan, loan.model, data, budget
        self.rate = loan.learning_rate
        self.switched_off = switch_off_regularisation(loan)
        self.notes, self.report, self.working_rate, self.scheduled = [], None, None, True
        self.start = [keras.ops.convert_to_numpy(v.value).copy() for v in self.model.trainable_variables]

    def result(self):
        stages = [self.all] if self._normalises() or self.all.size == 1 else [_repeated(self.all), self.all]
        for stage in stages:
            self._begin(stage)
            if not self.model.trainable_variables:
                return self._result([_FROZEN])
            faults = self._stage(share=0.3 if stage is not self.all else 0.6)
            if any(fault.is_fault for fault in faults):
                break
            self.notes += [fault for fault in faults if fault not in self.notes]
            faults = []
        return self._result(faults)

    def _normalises(self):
        norms = [layer for layer in sublayers(self.model) if isinstance(layer, keras.layers.BatchNormalization)]
        if not norms:
            return False
        text = "Batch normalisation would subtract one sample from itself"
        if self.all.size > 1:
            text += f": the test with one sample alone was left out. The {self.all.size} are normalised together."
        else:
            text += ": the moving statistics were used in its place. Give more `samples` to test it as it trains."
            for layer in norms:
                vars(layer)["call"] = _as_in_inference(layer.call)
            self.loan.forget_steps()
        self.notes.append(Finding("batch_normalization", text, is_fault=False, evidence={"layers": len(norms)}))
        return True

    def _begin(self, data):
        """Note what a stage needs to know of its samples before training."""
        self.data, self.losses, self.accuracy, self.fitted = data, [], None, False
        self._reset()
        self.function = LossFunction(self.model, training=True, compiled=False)
        self.predictions = self.function.predictions(data.x)
        self.targets = _targets.targets(self.model, data.y, self.predictions)
        self.mean_loss = self._loss_of("mean")
        self.bound = self._loss_of("nearly_best")

    def _loss_of(self, name):
        if self.targets is None or any(target.kind is None for target in self.targets):
            return math.nan
        best = keras.tree.pack_sequence_as(self.predictions, [getattr(target, name)() for target in self.targets])
        return loss_of_predictions(self.model, self.data.x, self.data.y, best, self.data.sample_weight)

    # --- training -----------------------------------------------------------------------------------------------------

    def _reset(self):
        self.loan.reset()
        without_regularizers(self.model)

    def _attempt(self, rate, most, share=1.0):
        """(losses, fitted) of a training; `rate` None: the optimizer's own, a schedule included."""
        self._reset()
        if rate is not None:
            self.loan.learning_rate, self.scheduled = rate, False
        losses, looked = [], math.inf
        for step in self.budget.steps(most):
            losses.append(self.loan.step(*self.data))
            if not math.isfinite(losses[-1]):
                return losses, False
            if step == 0 and math.isnan(self.bound):
                self.bound = UNKNOWN * abs(losses[0])
            if step + 1 < FEWEST:
                continue
            if losses[-1] <= self.bound:
                return losses, True
            half = losses[-1] - self.bound <= 0.5 * (losses[0] - self.bound)
            if half and (losses[-1] <= 0.7 * looked or step % 50 == 0):
                looked = losses[-1]
                if self._accuracy() == 1.0:
                    return losses, True
            if step >= 2 * PLATEAU and step % 50 == 0 and _is_flat(losses):
                break
            if step == min(TRIAL, most // 3) and losses[-1] - self.bound > 0.9 * (losses[0] - self.bound):
                break
            if share < 1 and self.budget.share() > share:
                break
        return losses, False

    def _accuracy(self):
        if not any(target.kind in ("sparse", "categorical", "binary") for target in self.targets or []):
            return None
        return _targets.accuracy(self.targets, self.function.predictions(self.data.x))

    def _stage(self, share):
        """The findings of one stage; sets what the result tells about it."""
        own = None if self.working_rate is None and self.scheduled else self.working_rate or self.rate
        structural = _overfit_findings.wrong_scale(self.targets, self.predictions)
        structural += _overfit_findings.out_of_range(self.model, self.data, self.targets, self.predictions, self.bound)
        try:
            self.losses, self.fitted = self._attempt(own, OTHER_STEPS if structural else OWN_STEPS, share)
        except Exception:
            if not structural:
                raise
            return structural  # some losses refuse such data: the finding says more than their message
        if not self.losses or not math.isfinite(self.losses[0]):
            return self._non_finite(structural)
        broke = not math.isfinite(self.losses[-1])
        if not broke:
            self.accuracy = self._accuracy()
            silent = _overfit_findings.without_gradient(self.model, self.data, self.start)
            if self.fitted and self.data is not self.all:
                silent = []  # one sample may well leave a narrow layer dark
            at_end = [] if self.fitted else _overfit_findings.dead_or_saturated(self.model, self.data)
            if silent:
                self._reset()
                structural += _overfit_findings.no_gradient(self.model, self.data, silent)
        if self.fitted:
            self.working_rate = self.working_rate or self.rate
            return structural
        if broke:
            return self._broken(structural)
        if structural:
            return structural + self._frozen()
        rates = self._other_rates(FACTORS)
        if rates:
            return rates
        if any(finding.name == "dead_relus" for finding in at_end):
            return at_end[:1]
        return self._frozen() + at_end + [self._stuck()]

    def _other_rates(self, factors):
        own = self.losses
        for factor in factors:
            rate = (self.rate or 1e-3) * factor
            if self.budget.over():
                self.notes.append(_SHORT)
                return []
            losses, fitted = self._attempt(rate, OTHER_STEPS)
            if fitted:
                self.working_rate, self.fitted = rate, factor > 1 and self._fell(own)
                return [self._rate_finding(rate, own, len(losses))]
        return []

    def _fell(self, losses):
        return losses[-1] - self.bound <= 0.5 * (losses[0] - self.bound)

    def _rate_finding(self, rate, own, count):
        evidence = {"rate": self.rate, "working_rate": rate, "losses": own[:1] + own[-1:]}
        went = f"{own[0]:.3g} to {own[-1]:.3g} in {len(own)} steps" if math.isfinite(own[-1]) else "NaN or infinity"
        if rate < self.rate:
            ups = float(np.mean(np.diff(own) > 0)) if len(own) > 2 and math.isfinite(own[-1]) else None
            swings = "" if ups is None or ups < 0.2 else f" and rose in {100 * ups:.0f} % of the steps"
            text = f"The learning rate is too high: at {self.rate:.3g} the loss went to {went}{swings}; at {rate:.3g} "
            return Finding("rate_too_high", text + f"the samples are learnt in {count} steps.", evidence=evidence)
        slow = self._fell(own)
        text = f"At the rate {self.rate:.3g} the loss went from {went} only; at {rate:.3g} the samples are learnt in "
        text += f"{count} steps. " + (
            "That is slow, no fault." if slow else "The learning rate is too low, or the targets are too large for it."
        )
        return Finding("slow" if slow else "rate_too_low", text, is_fault=not slow, evidence=evidence)

    # --- what went wrong ----------------------------------------------------------------------------------------------

    def _broken(self, structural):
        """NaN after some steps: a rate that is too high, unless no lower one helps."""
        lower = self._other_rates([factor for factor in FACTORS if factor < 1])
        return self._non_finite(structural + lower)

    def _non_finite(self, findings):
        if not self.losses:
            self.losses = [math.nan]
            return [_NO_STEP]
        own = None if self.scheduled else self.rate

        def replay(steps):
            self._reset()
            if own is not None:
                self.loan.learning_rate = own
            for _ in range(steps):
                self.loan.step(*self.data)

        self.report = _overfit_findings.nan_report(self.loan, self.data, replay, len(self.losses) - 1)
        text = f"The loss is not finite at step {len(self.losses) - 1}: {self.report.cause}. See `.report`."
        return [*findings, Finding("non_finite", text, evidence={"step": len(self.losses) - 1})]

    def _frozen(self):
        frozen = [layer.name for layer in sublayers(self.model)[1:] if layer.weights and not layer.trainable]
        if not frozen:
            return []
        shown = ", ".join(f"`{name}`" for name in frozen[:6]) + (" ..." if len(frozen) > 6 else "")
        text = f"Frozen (`trainable=False`): {shown}. What is left to train cannot fit the samples."
        return [Finding("frozen", text, evidence={"layers": frozen})]

    def _stuck(self):
        first, last = self.losses[0], self.losses[-1]
        evidence = {"start_loss": first, "final_loss": last, "mean_loss": self.mean_loss, "bound": self.bound}
        if abs(last - self.mean_loss) <= 0.05 * abs(self.mean_loss - self.bound):
            text = (
                f"Stuck at a loss of {last:.3g}, that of predicting the mean of the targets ({self.mean_loss:.3g}): "
                "the outputs do not depend on the samples. Are the inputs of different samples different? Does a layer "
                "reduce them to a constant (pooling, masking, normalising each sample, a tiny bottleneck)?"
            )
            return Finding("stuck_at_mean", text, evidence=evidence)
        text = (
            f"The loss went from {first:.3g} to {last:.3g} and not below {self.bound:.3g}, at none of the rates tried. "
            "Too few units, equal inputs with different targets, a loss that does not measure the outputs, or a layer "
            "that loses what it is given."
        )
        return Finding("does_not_fit", text, evidence=evidence)

    def _result(self, faults):
        losses = self.losses or [math.nan]
        return OverfitOneBatch(
            fitted=self.fitted,
            samples=1 if self.data is not self.all or self.all.size == 1 else self.all.size,
            start_loss=losses[0],
            final_loss=losses[-1],
            bound=self.bound,
            mean_loss=self.mean_loss,
            accuracy=self.accuracy,
            losses=losses,
            learning_rate=self.rate,
            working_rate=self.working_rate,
            switched_off=self.switched_off,
            report=self.report,
            findings=[*faults, *self.notes],
        )


def _repeated(data):
    """The first sample as often as there are samples: the same shapes, so nothing is compiled anew."""
    return data.take(np.zeros(data.size, "int64"))


def _as_in_inference(call):
    def call_in_inference(inputs, *args, training=None, **kwargs):
        return call(inputs, training=False, **kwargs)

    return call_in_inference if training_argument(call) else call


def _is_flat(losses):
    """Did the last steps bring nothing over those before?"""
    before, last = min(losses[-2 * PLATEAU : -PLATEAU]), min(losses[-PLATEAU:])
    return before - last <= 1e-3 * abs(before)


_FROZEN = Finding("frozen", "The model has no trainable weights: its layers have `trainable=False`, or no weights.")
_SHORT = Finding(
    "short_budget", "The budget was over before all rates were tried: give more `seconds`.", is_fault=False
)
_NO_STEP = Finding("short_budget", "The budget was over before the first step. Give it more `seconds`.")
