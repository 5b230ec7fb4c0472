"""The experiment of `overfit_one_batch`: trainings at the model's own rate and at others, and what they mean."""

import math

import keras
import numpy as np

from tf_tricks.debug import _overfit_findings, _targets
from tf_tricks.debug._regularisation import switch_off_regularisation, without_regularizers
from tf_tricks.debug._result import Finding
from tf_tricks.fit_hooks.functional import LossFunction
from tf_tricks.fit_hooks.replay import loss_of_predictions, training_argument
from tf_tricks.fit_hooks.replay_state import sublayers

OWN_STEPS, OTHER_STEPS = 1000, 300  # at the model's own rate, and at each other one
FACTORS = (0.1, 10.0, 0.01, 100.0, 1e-3, 1e3)  # of the model's rate
PLATEAU = 150  # steps without a fall that end an attempt
TRIAL = 200  # steps (a third of the attempt, if that is less) after which a tenth of the way must be gone
FEWEST = 3  # steps, of which the first may leave some weights where they are
ROUNDING = 1e-8  # of the loss at the start: nothing is asked for below that
FEW = 60  # steps that can show that a loss has come to rest, when the time is too short for a plateau


class OverfitTest:
    """The experiment, in a loan.

    Args:
        data: `Samples`, one batch of them. count: int, how many different ones it holds: a model that takes so many
            samples and no other number gets some of them several times.
        others: `Samples` among which they were chosen: their targets say how much targets differ.
    """

    def __init__(self, loan, data, budget, count, others):
        self.loan, self.model, self.all, self.budget = loan, loan.model, data, budget
        self.count, self.among = count, [data.y, others.y] if count > 1 else [others.y]
        self.rate = loan.learning_rate
        self.switched_off = switch_off_regularisation(loan)
        self.notes, self.report, self.working_rate, self.scheduled = [], None, None, True
        self.falling = None  # another rate, at which the loss got further and still fell
        self.start = [keras.ops.convert_to_numpy(v.value).copy() for v in self.model.trainable_variables]

    def fields(self):
        """The fields of an `OverfitOneBatch`, by name."""
        stages = [self.all] if self._normalises() or self.count == 1 else [_repeated(self.all), self.all]
        for stage in stages:
            self._begin(stage)
            if not self.model.trainable_variables:
                return self._fields([_FROZEN])
            findings = self._stage(share=0.3 if stage is not self.all else 0.6)
            faults = [finding for finding in findings if finding.is_fault]
            if faults:
                break
            # What the first stage leaves open the second may still show.
            self._note([each for each in findings if each is not _SHORT or stage is self.all or self.budget.over()])
            if self.budget.over():
                break
        return self._fields(faults)

    def _note(self, findings):
        """Remember remarks, in place of those of that name that an earlier stage led to."""
        names = [finding.name for finding in findings]
        self.notes = [note for note in self.notes if note.name not in names] + findings

    def _normalises(self):
        norms = [layer for layer in sublayers(self.model) if isinstance(layer, keras.layers.BatchNormalization)]
        if not norms:
            return False
        text = "Batch normalisation would subtract one sample from itself"
        if self.count > 1:
            text += f": the test with one sample alone was left out. The {self.count} are normalised together."
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
        self.targets = _targets.targets(self.model, data.y, self.predictions, data.sample_weight, self.among)
        self.layers = _overfit_findings.output_layers(self.model, data.x)
        self.adds = self.function.added_loss(data.x) != 0
        self.mean_loss, best, bound = (self._loss_of(name) for name in ("mean", "best", "nearly_best"))
        # Where the targets do not differ, the bound would be what rounding keeps a training from.
        start = loss_of_predictions(self.model, data.x, data.y, self.predictions, data.sample_weight)
        self.bound = max(bound, best + ROUNDING * (start - best)) if start > best else bound

    def _loss_of(self, name):
        if self.adds or self.targets is None or any(target.kind is None for target in self.targets):
            return math.nan  # a loss that says nothing about its minimum
        outputs = keras.tree.pack_sequence_as(self.predictions, [getattr(target, name)() for target in self.targets])
        return loss_of_predictions(self.model, self.data.x, self.data.y, outputs, self.data.sample_weight)

    # --- training -----------------------------------------------------------------------------------------------------

    def _reset(self):
        self.loan.reset()
        without_regularizers(self.model)

    def _attempt(self, rate, most, share=1.0):
        """(losses, how it ended) of a training; `rate` None: the optimizer's own, a schedule included.

        It ended "fitted", "broke" (a loss that is not finite), "slow" (a tenth of the way was not gone after the
        trial), "rest" (nothing fell any more), "steps" (`most` of them, and it was still falling) or "budget".
        """
        self._reset()
        if rate is not None:
            self.loan.learning_rate, self.scheduled = rate, False
        losses, looked = [], math.inf
        for step in self.budget.steps(most):
            losses.append(self.loan.step(*self.data))
            if not math.isfinite(losses[-1]):
                return losses, "broke"
            if step + 1 < FEWEST:
                continue
            if losses[-1] <= self.bound:
                return losses, "fitted"
            if self._fell(losses) and (losses[-1] <= 0.7 * looked or step % 50 == 0):
                looked = losses[-1]
                if self._accuracy(of_all=True) == 1.0:
                    return losses, "fitted"
            if step >= 2 * PLATEAU and step % 50 == 0 and _is_flat(losses):
                return losses, "rest"
            if step == min(TRIAL, most // 3) and losses[-1] - self.bound > 0.9 * (losses[0] - self.bound):
                return losses, "slow"
            if share < 1 and self.budget.share() > share:
                if len(losses) >= FEW and _is_flat(losses, len(losses) // 3):
                    return losses, "rest"
                if self.data is not self.all:
                    break
                share = 1.0  # it is on its way: it gets what was kept for other rates
        return losses, "steps" if len(losses) == most else "budget"

    def _accuracy(self, of_all=False):
        """The accuracy, or None without a classification; `of_all`: None, too, if an output does something else."""
        found = self.targets or []
        if not any(target.classifies for target in found) or of_all and not all(target.classifies for target in found):
            return None
        return _targets.accuracy(found, self.function.predictions(self.data.x))

    def _stage(self, share):
        """The findings of one stage; sets what the result tells about it."""
        own = None if self.working_rate is None and self.scheduled else self.working_rate or self.rate
        structural = _overfit_findings.wrong_scale(self.targets, self.predictions, self.layers)
        structural += _overfit_findings.out_of_range(self.model, self.data, self.targets, self.predictions, self.layers)
        try:
            self.losses, end = self._attempt(own, OTHER_STEPS if structural else OWN_STEPS, share)
        except Exception:
            if not structural:
                raise
            return structural  # some losses refuse such data: the finding says more than their message
        self.fitted = end == "fitted"
        if not self.losses or not math.isfinite(self.losses[0]):
            return self._non_finite(structural)
        at_end = []
        if end != "broke":
            self.accuracy = self._accuracy()
            silent = []
            # One sample may well leave a narrow layer dark; and weights begin to move after a step or two.
            if len(self.losses) >= FEWEST and not (self.fitted and self.data is not self.all):
                silent = _overfit_findings.without_gradient(self.model, self.data, self.start)
            if not self.fitted:
                at_end = _overfit_findings.dead_or_saturated(self.model, self.data)
            if silent:
                self._reset()
                structural += _overfit_findings.no_gradient(self.model, self.data, silent)
        if self.fitted:
            self.working_rate = self.working_rate or self.rate
            return structural
        if end == "broke":
            return self._broken(structural)
        if structural:
            return structural + self._frozen()
        if math.isnan(self.bound):
            self.fitted = None
            return [self._unknown(end)]
        return [_SHORT] if end == "budget" else self._at_rest(end, at_end)

    def _at_rest(self, end, at_end):
        """What it means that a training ended above the bound before the budget did."""
        rates = self._other_rates(FACTORS)
        if rates:
            return rates
        if end == "steps" and self._fell(self.losses) or self.falling is not None:
            return [self._slow()]
        if any(finding.name == "dead_relus" for finding in at_end):
            return at_end[:1]
        if self.budget.over() and (end == "slow" or len(self.losses) < 2 * PLATEAU):
            return [_SHORT]
        return self._frozen() + at_end + [self._stuck()]

    def _other_rates(self, factors):
        own, self.falling = self.losses, None
        for factor in factors:
            rate = (self.rate or 1e-3) * factor
            if self.budget.over():
                self._note([_SHORT])
                return []
            losses, end = self._attempt(rate, OTHER_STEPS)
            if end == "fitted":
                self.working_rate, self.fitted = rate, factor > 1 and self._fell(own)
                return [self._rate_finding(rate, own, len(losses))]
            further = end in ("steps", "budget") and losses and losses[-1] - self.bound < 0.5 * (own[-1] - self.bound)
            if further and not _is_flat(losses, len(losses) // 3):
                self.falling = rate
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
            return [*findings, _NO_STEP]
        own = None if self.scheduled else self.rate

        def replay(steps):
            self._reset()
            if own is not None:
                self.loan.learning_rate = own
            for _ in range(steps):
                self.loan.step(*self.data)

        self.report = _overfit_findings.nan_report(self.loan, self.data, replay, self.losses)
        text = f"The loss is not finite at step {len(self.losses) - 1}: {self.report.cause}. See `.report`."
        return [*findings, Finding("non_finite", text, evidence={"step": len(self.losses) - 1})]

    def _frozen(self):
        frozen = [layer.name for layer in sublayers(self.model)[1:] if layer.weights and not layer.trainable]
        if not frozen:
            return []
        shown = ", ".join(f"`{name}`" for name in frozen[:6]) + (" ..." if len(frozen) > 6 else "")
        text = f"Frozen (`trainable=False`): {shown}. What is left to train cannot fit the samples."
        return [Finding("frozen", text, evidence={"layers": frozen})]

    def _slow(self):
        first, last = self.losses[0], self.losses[-1]
        where = "" if self.falling is None else f", and further at {self.falling:.3g}"
        text = (
            f"The loss went from {first:.3g} to {last:.3g} in {len(self.losses)} steps{where}; it was still falling "
            f"and {self.bound:.3g} is where the samples count as learnt. That is slow, no fault."
        )
        return Finding("slow", text, is_fault=False, evidence={"start_loss": first, "final_loss": last})

    def _unknown(self, end):
        first, last = self.losses[0], self.losses[-1]
        how = {"rest": "came to rest", "budget": "the budget was over"}.get(end, "was still falling")
        which = "the losses that layers add (`add_loss`)" if self.adds else "this loss"
        text = (
            f"Nothing is known about the lowest value of {which}. It went from {first:.3g} to {last:.3g} and {how}: "
            "is that what predictions without an error give?"
        )
        evidence = {"start_loss": first, "final_loss": last, "at_rest": end == "rest"}
        return Finding("unknown_bound", text, is_fault=False, evidence=evidence)

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

    def _fields(self, faults):
        losses = self.losses or [math.nan]
        return dict(
            fitted=self.fitted,
            samples=1 if self.data is not self.all else self.count,
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


def _is_flat(losses, last=PLATEAU):
    """Did the last steps bring nothing over as many before?"""
    before, last = min(losses[-2 * last : -last], default=math.inf), min(losses[-last:])
    return before - last <= 1e-3 * abs(before)


_FROZEN = Finding("frozen", "The model has no trainable weights: its layers have `trainable=False`, or no weights.")
_SHORT = Finding(
    "short_budget", "The budget was over before this came to an end: give more `seconds` or `steps`.", is_fault=False
)
_NO_STEP = Finding(
    "short_budget", "The budget was over before the first step: give more `seconds` or `steps`.", is_fault=False
)
