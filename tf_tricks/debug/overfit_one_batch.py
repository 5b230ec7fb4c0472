"""Can the model learn one sample, and then a few, by heart? What cannot do that cannot learn anything else."""

import dataclasses
import math
import warnings

import keras
import numpy as np

from tf_tricks._checks import check_instance, check_integer
from tf_tricks.debug import _data
from tf_tricks.debug._budget import Budget
from tf_tricks.debug._overfit_training import OverfitTest
from tf_tricks.debug._result import Result
from tf_tricks.fit_hooks.borrowing import borrowed

CANDIDATES = 256  # samples among which different targets are looked for


@dataclasses.dataclass
class OverfitOneBatch(Result):
    """What `overfit_one_batch` saw; `print` it, or `.plot()` it.

    Attributes:
        fitted: bool, whether the loss got below `bound`, or all samples are classified rightly; None for a loss about
            whose lowest value nothing is known.
        samples: int, of the last attempt: 1, or all of them.
        start_loss, final_loss: floats, of the last attempt at the model's own rate.
        bound: float, the loss below which the samples count as learnt; NaN where that is unknown.
        mean_loss: float, the loss of predicting the mean of the targets; NaN where that is unknown.
        accuracy: float in [0, 1], of the outputs that classify, without what `ignore_class` or a weight of 0 leaves
            out; or None for a regression.
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

    fitted: bool | None
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
        if self.fitted is None:
            outcome = "cannot be judged"
        elif self.fitted:
            outcome = "learnt by heart"
        else:
            unfinished = self.passed and (self.named("short_budget") or self.named("slow"))
            outcome = "not finished" if unfinished else "NOT learnt"
        many = "one sample" if self.samples == 1 else f"{self.samples} samples"
        right = "" if self.accuracy is None else f", accuracy {100 * self.accuracy:.0f} %"
        lines = [
            f"overfit_one_batch: {many} {outcome}: loss {self.start_loss:.4g} -> {self.final_loss:.4g} in "
            f"{len(self.losses)} steps{right}",
            f"needed: {_known(self.bound)}; predicting the mean: {_known(self.mean_loss)}; "
            f"rate {self.learning_rate:.3g}",
        ]
        if self.switched_off:
            shown = "; ".join(self.switched_off[:4]) + ("; ..." if len(self.switched_off) > 4 else "")
            lines.append(f"switched off: {shown}"[:300])
        return "\n".join(lines)

    def draw(self, axes):
        axes.plot(np.maximum(self.losses, 1e-12) if min(self.losses, default=1) > 0 else self.losses, label="loss")
        if math.isfinite(self.bound):
            axes.axhline(self.bound, color="black", linewidth=1, linestyle=":", label="needed")
        if math.isfinite(self.mean_loss):
            axes.axhline(self.mean_loss, color="gray", linewidth=1, linestyle="--", label="predicting the mean")
        axes.set(xlabel="step", ylabel="loss")
        if all(each > 0 for each in [*self.losses, self.bound] if math.isfinite(each)):
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
    rate from a model that cannot learn. A training that the budget cuts off is no failure: the note "short_budget" says
    so. Of a loss that is not Keras's own, and of what layers add by `add_loss`, the lowest value is unknown: the note
    "unknown_bound" tells how far it fell.
    The model is afterwards as it was, to the bit.

    One sample alone says nothing about a model with batch normalisation, which subtracts the sample's mean, the sample
    itself: it begins with all `samples`; with `samples=1` the moving statistics take the place of the batch's.

    Args:
        model: compiled keras.Model of any kind.
        x: arrays in the structure that the model takes; or, with `y=None`, a tf.data.Dataset, PyDataset, DataLoader or
            generator of batches.
        y, sample_weight: arrays as `fit` takes them, or None.
        samples: int >= 1. Different targets are preferred, and samples whose weights are 0 left out. A model that takes
            batches of one size only (`Input(batch_shape=...)`) gets them repeated up to it, or no more than that.
        seconds: float > 0 or None, the time limit. steps: int >= 1 or None, a limit of the training steps.
        seed: int, of the choice of the samples.
        verbose: 0: silent; 1: a progress bar.
    Returns:
        `OverfitOneBatch`. Its findings: "non_finite" (with `report`), "rate_too_high", "rate_too_low", "frozen",
        "no_gradient", "dead_relus", "saturated", "out_of_range", "one_class", "logits_as_probabilities",
        "probabilities_as_logits", "stuck_at_mean", "does_not_fit"; notes: "batch_normalization", "slow",
        "short_budget", "unknown_bound".
    Raises:
        TypeError, ValueError: an argument is out of range, the model is not compiled, or no sample has a weight.
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
    found = _data.samples(x, y, sample_weight, limit=max(CANDIDATES, samples), seed=seed)
    _data.check_targets(model, found)
    found = _weighed(found)
    data = _different(found, samples)
    count, data = data.size, _data.one_batch(model, data)
    with warnings.catch_warnings(), borrowed(model, *data) as loan:
        warnings.filterwarnings("ignore", "Gradients do not exist")  # a finding says so, with the layers
        result = OverfitOneBatch(**OverfitTest(loan, data, budget, min(count, data.size), found).fields())
    budget.close()
    return result


def _weighed(found):
    """Those of the samples that count: a weight of 0 leaves a sample out of the loss."""
    weights = [leaf for leaf in keras.tree.flatten(found.sample_weight) if leaf is not None]
    if not weights:
        return found
    counts = np.any([np.reshape(leaf != 0, (found.size, -1)).any(axis=1) for leaf in weights], axis=0)
    if not counts.any():
        raise ValueError(f"`sample_weight` must not be 0 for all samples. Received: 0 for the {found.size} looked at")
    return found.take(np.flatnonzero(counts))


def _different(found, count):
    """The first `count` samples, those first whose targets were not seen before: the mean must not be the answer."""
    leaves = [leaf for leaf in keras.tree.flatten(found.y) if leaf is not None]
    keys = [tuple(leaf[i].tobytes() for leaf in leaves) for i in range(found.size)]
    rank, seen = [], {}
    for key in keys:
        seen[key] = seen.get(key, 0) + 1
        rank.append(seen[key])
    return found.take(np.argsort(rank, kind="stable")[:count])


def _known(loss):
    return "unknown" if math.isnan(loss) else f"{loss:.3g}"
