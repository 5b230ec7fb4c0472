"""Which samples steer the training? Few of them, or samples that are wrong?"""

import dataclasses
import math
import typing

import keras
import numpy as np

from tf_tricks._checks import check_bool, check_integer, check_optional
from tf_tricks.debug._budget import Budget
from tf_tricks.debug._data import check_targets, fixed_batch_size, is_dataset, samples
from tf_tricks.debug._label_noise import crossentropies, label_noise
from tf_tricks.debug._result import Finding, Result
from tf_tricks.debug._sample_losses import CHUNK, held_out_losses, is_sum, losses_of, sample_losses, unregularised
from tf_tricks.debug.check_gradients import check_compiled
from tf_tricks.fit_hooks.borrowing import borrowed
from tf_tricks.fit_hooks.functional import LossFunction

_WORST = 0.01  # share of the samples
_STEERING = 0.25  # share of the loss and of the gradient, from which on so few are too many
_UNLIKELY = math.log(500)  # crossentropy of a label to which a model gives 0.2 %
_UNLIKELY_SHARE = 0.004  # of the samples: fewer are not worth a remark
_KNOWN = math.log(2)  # median crossentropy: a model that does not know the other labels cannot accuse one
_FAR = 6.0  # times the spread of the errors, by their median: a normal distribution has 2e-9 out there
_SHOWN = 20
_MEASURING = 0.4  # of the budget, after which the gradient of the rest is estimated from what there is
_ROBUST = ("huber", "absolute", "mae", "log_cosh", "logcosh")
_CLASSIFIES = ("crossentropy", "hinge", "kl_divergence", "kldivergence", "dice", "tversky", "focal", "ctc")


@dataclasses.dataclass
class LossOutliers(Result):
    """The samples by their loss; `print` shows the advice and the numbers of the worst.

    Attributes:
        findings: list of `Finding`s: the faults "few_steer" and "wrong_labels", the remarks "outliers",
            "not_measured", "not_finite" (a fault).
        ranking: int array, the numbers of the samples as they came, the most suspicious first.
        losses: float array, the loss of each with the present weights; infinite where it is NaN, NaN where the budget
            ended before.
        held_out: float array or None, the loss of each by models that were trained without it.
        numbers: int array, which sample of `x` each entry of the arrays above belongs to, if not all were used.
        suspects: int array, the samples that stand out: their labels or targets are worth a look.
        loss_share, gradient_share: float, what the worst 1 % of the samples make of the loss, and of the gradient: the
            norm of theirs, relative to it and that of the rest together.
        projection: float, of their gradient on that of all, relative to it: 1 if all progress comes from them.
    Example:
        >>> result = loss_outliers(model, x, y, cross_fit=False, verbose=0)
        >>> bool(result.losses[result.ranking[0]] == result.losses.max())
        True
    """

    findings: list
    ranking: np.ndarray
    losses: np.ndarray
    held_out: typing.Any
    numbers: np.ndarray
    suspects: np.ndarray
    loss_share: float
    gradient_share: float
    projection: float

    def heading(self):
        shown = ", ".join(map(str, self.ranking[:_SHOWN]))
        by = "by models trained without them" if self.held_out is not None else "with the present weights"
        listed = f"Largest losses {by}: samples\n{shown}"
        if math.isnan(self.loss_share):
            return listed
        return (
            f"The worst 1 % of {len(self.losses)} samples make {_percent(self.loss_share)} of the loss and "
            f"{_percent(self.gradient_share)} of the gradient\n"
            f"now (its projection on that of all: {self.projection:.2g}).\n"
            f"{listed}"
        )

    def draw(self, axes):
        for losses, label in ((self.losses, "present weights"), (self.held_out, "models trained without the sample")):
            if losses is not None:
                axes.plot(np.sort(losses[np.isfinite(losses)])[::-1], label=label)
        axes.set_yscale("log", nonpositive="mask")
        axes.set_xlabel("samples, the worst first")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)

    def series(self):
        losses = self.losses if self.held_out is None else self.held_out
        return "loss of the samples, the worst first", np.sort(losses[np.isfinite(losses)])[::-1]


def loss_outliers(
    model,
    x,
    y=None,
    sample_weight=None,
    limit=10_000,
    cross_fit=True,
    forget=None,
    *,
    seconds=10.0,
    steps=None,
    seed=0,
    verbose=1,
):
    """Find the samples that make most of the loss and of the gradient: wrong labels, wrong targets, outliers.

    The loss of each sample is what it contributes to the compiled loss, in inference mode, whatever losses and
    reductions there are: the derivative for its weight. A loss that takes no notice of weights is computed for one
    sample after the other; losses that layers add count for none.

    A model that has trained on a wrong label has often learned it by heart, and a fresh one knows nothing. So the
    samples are ranked by cross-fitting: the borrowed model is trained on one half and gives the losses of the other,
    and the other way round, with other halves again while the budget lasts. A model whose optimizer has made steps
    forgets its trained weights before, by shuffling the entries of each; a fresh one begins as it is, pre-trained parts
    included. The model itself is afterwards as it was, to the bit.

    Few steer the training where the worst 1 % make a quarter or more of both the loss and the gradient: a regression
    should then use `keras.losses.Huber` or the mean absolute error, or other targets (a logarithm).

    Labels are called wrong where models that have not seen them, and know most of the others, give them less than 5 %,
    if a rate of wrong labels explains the losses far better than overconfidence on classes that overlap. Otherwise, and
    for losses other than the crossentropy of one label, those with 0.2 % are a remark, if there are several. Targets
    stand out where the error is more than 6 times its robust spread.

    Args:
        model: a compiled keras.Model of any kind.
        x: arrays in the structure that the model takes; or, with `y=None`, a tf.data.Dataset, PyDataset, DataLoader or
            generator of batches. Samples of a dataset are numbered as they come: it should not shuffle.
        y, sample_weight: arrays as `fit` takes them, or None.
        limit: int >= 2, samples that are looked at: of arrays as many at random, of a dataset the first.
        cross_fit: bool, whether to train. False: rank by the present weights.
        forget: None (if the optimizer has made a step) or bool, whether cross-fitting begins with shuffled weights.
        seconds: float > 0 or None for no limit.
        steps: None or int >= 1, steps of training at most.
        seed: int >= 0, of the choice of samples, the halves and the shuffling.
        verbose: 0: silent; 1: a progress bar.
    Returns:
        A `LossOutliers`.
    Raises:
        TypeError, ValueError: an argument is out of range; the model is not compiled or takes batches of one size only;
            the loss cannot be computed.
    Reference:
        Northcutt, Jiang and Chuang (2021), Confident Learning, arXiv:1911.00068, section 3 (held-out predictions find
        wrong labels); Guo et al. (2017), On Calibration of Modern Neural Networks, arXiv:1706.04599, section 4.2
        (overconfidence is a temperature); Arpit et al. (2017), A Closer Look at Memorization in Deep Networks,
        arXiv:1706.05394, section 3 (rules are learned before exceptions); Huber (1964), Robust Estimation of a Location
        Parameter.
    Example:
        >>> y[7] = 50.0
        >>> int(loss_outliers(model, x, y, verbose=0, seconds=2).ranking[0])
        7
    """
    check_compiled(model)
    fixed = fixed_batch_size(model)
    if fixed:  # parts of other sizes are compared: halves, the worst 1 %
        raise ValueError(f"`model` must take any number of samples. Received: a model whose inputs hold {fixed}")
    limit = check_integer("limit", limit, 2)
    check_bool("cross_fit", cross_fit)
    check_optional(check_bool, "forget", forget)
    seed = check_integer("seed", seed, 0)
    budget = Budget(seconds, steps, verbose, "Looking for samples that stand out")
    data = samples(x, y, sample_weight, limit=limit if is_dataset(x) else None)
    check_targets(model, data)
    numbers = np.arange(data.size)
    if data.size > limit:
        numbers = np.sort(np.random.default_rng(seed).choice(data.size, limit, replace=False))
        data = data.take(numbers)
    try:
        with borrowed(model, *data.take(slice(min(32, data.size)))) as loan:
            return _look(loan, data, numbers, cross_fit, forget, seed, budget)
    finally:
        budget.close()


def shares(worst, rest):
    """(gradient share, projection) of the gradients of the worst samples and of the rest: lists of arrays or None.

    Example:
        >>> shares([np.array([3.0, 0.0])], [np.array([0.0, 1.0])])
        (0.75, 0.9)
    """
    pairs = [(a, b) for a, b in zip(worst, rest, strict=True) if a is not None and b is not None]
    worst, rest = (np.concatenate([np.ravel(p[i]).astype("float64") for p in pairs] or [[0.0]]) for i in (0, 1))
    both = worst + rest
    norms = np.linalg.norm(worst), np.linalg.norm(rest)
    square = both @ both
    return float(norms[0] / sum(norms)) if any(norms) else 0.0, float(worst @ both / square) if square else 0.0


def _look(loan, data, numbers, cross_fit, forget, seed, budget):
    model = loan.model
    function = LossFunction(model, training=False)
    with unregularised(model):
        losses = sample_losses(function, data, lambda: not budget.over(), min(CHUNK, data.size), apart=True)
        measured = np.flatnonzero(~np.isnan(losses))
        count = max(1, math.ceil(_WORST * len(measured)))
        worst = measured[np.argsort(-losses[measured], kind="stable")[:count]]
        finite = bool(np.all(np.isfinite(losses[measured])))
        loss_share = gradient_share = projection = math.nan
        if finite:
            loss_share = _share(losses[measured], count)
            gradient_share, projection = _gradient_shares(function, data, measured, worst, budget)
    held_out = None
    trains = cross_fit and finite and len(measured) == data.size >= 4 and model.trainable_variables
    if trains and (data.y is not None or not losses_of(model)) and model.optimizer is not None:
        if forget is None:
            forget = int(keras.ops.convert_to_numpy(model.optimizer.iterations)) > 0
        held_out = held_out_losses(loan, function, data, seed, budget, forget)
    by = losses if held_out is None else held_out
    ranking = np.argsort(np.where(np.isnan(by), np.inf, -by), kind="stable")
    kind = _kind(model, data.y)
    noise = None if held_out is None or kind != "labels" else _noise(model, data, held_out)
    if noise is None:
        finite_ones = ranking[np.isfinite(by[ranking])]
        suspects = finite_ones[: _standing_out(by[finite_ones], kind)]
    else:
        suspects = ranking[noise.wrong[ranking]]
    result = LossOutliers(
        [], numbers[ranking], losses, held_out, numbers, numbers[suspects], loss_share, gradient_share, projection
    )
    result.findings = _findings(result, kind, noise, _names(model), len(measured), finite)
    return result


def _noise(model, data, held_out):
    """A `LabelNoise` with wrong labels, or None."""
    found = crossentropies(model, data, held_out)
    if found is None or np.median(found) > _KNOWN:
        return None
    noise = label_noise(found)
    return noise if noise.wrong.any() else None


def _gradient_shares(function, data, measured, worst, budget):
    if not function.variables:
        return 0.0, 0.0
    rest = np.random.default_rng(0).permutation(np.setdiff1d(measured, worst))
    # All in parts of one size, as each other size would be compiled anew; what is left over is less than 1 %.
    count = len(worst)
    parts = rest[: max(1, len(rest) // count) * count].reshape(-1, min(count, len(rest)) or 1)
    of_worst, _ = _summed_gradient(function, data, [worst])
    # Some parts, drawn at random, stand for the rest where the model is large: the halves are to be trained, too.
    of_rest, used = _summed_gradient(function, data, parts, lambda: budget.share() < _MEASURING)
    return shares(of_worst, [None if g is None else g * (len(rest) / max(1, used)) for g in of_rest])


def _summed_gradient(function, data, parts, within=lambda: True):
    """The gradient that parts contribute, as list (of a sum or of a mean does not matter), and of how many samples."""
    total, used, summed = None, 0, is_sum(function.model)
    for chosen in parts:
        if used and not within():
            break
        used += len(chosen)
        part = data.take(chosen)
        _, gradients = function.gradient(*part)
        scaled = [None if g is None else g * (1 if summed else part.size) for g in gradients]
        total = scaled if total is None else [a if b is None else a + b for a, b in zip(total, scaled, strict=True)]
    return total or [np.zeros(tuple(v.shape)) for v in function.variables], used


def _share(losses, count):
    losses = losses - min(0.0, losses.min()) if len(losses) else losses
    total = losses.sum()
    return float(np.sort(losses)[::-1][:count].sum() / total) if total else 0.0


def _kind(model, y):
    """ "labels", "targets" or None: what can be wrong about the samples, from the losses and what they compare with."""
    if y is None:
        return None
    names = _names(model)
    flags = {any(word in name for word in _CLASSIFIES) for name in names}
    return None if not names or len(flags) > 1 else "labels" if flags.pop() else "targets"


def _names(model):
    """The names of the losses in small letters, those of their functions too."""
    found = []
    for loss in losses_of(model):
        function = getattr(loss, "fn", None)
        found.append(f"{type(loss).__name__} {loss.name} {getattr(function, '__name__', '')}".lower())
    return found


def _standing_out(losses, kind):
    """The number of samples whose loss is one that correct samples do not have."""
    if not len(losses):
        return 0
    if kind == "labels":
        if np.median(losses) > _KNOWN:
            return 0
        count = int(np.sum(losses > _UNLIKELY))
        return count if count >= max(3, _UNLIKELY_SHARE * len(losses)) else 0
    if kind == "targets" and len(losses) >= 10:
        errors = np.sqrt(np.maximum(losses, 0))
        return int(np.sum(errors > _FAR * np.median(errors) / 0.6745)) if np.median(errors) > 0 else 0
    return 0


def _findings(result, kind, noise, names, measured, finite):
    if not finite:
        text = "The loss is NaN or infinite for some samples. `check_inputs` and `NaNGuard` say why."
        return [Finding("not_finite", text)]
    found = []
    if min(result.loss_share, result.gradient_share) >= _STEERING and kind != "labels" and measured >= 50:
        robust = any(word in name for name in names for word in _ROBUST)
        advice = (
            "The loss is robust already: look at these samples, or take targets of a smaller range (a logarithm)."
            if robust
            else "Use keras.losses.Huber or the mean absolute error, or take the logarithm of the targets if they span "
            "orders of magnitude; correct the samples if they are wrong."
        )
        text = (
            f"Few samples steer the training: 1 % of them make {_percent(result.loss_share)} of the loss and "
            f"{_percent(result.gradient_share)} of the gradient. {advice}"
        )
        evidence = {"loss_share": result.loss_share, "gradient_share": result.gradient_share}
        found.append(Finding("few_steer", text, evidence=evidence))
    if len(result.suspects):
        found.append(_about_suspects(result, kind, noise))
    if measured < len(result.losses):
        text = f"The budget ended after {measured} of {len(result.losses)} samples: give `seconds` or a lower `limit`."
        found.append(Finding("not_measured", text, False))
    return found


def _about_suspects(result, kind, noise):
    count, evidence = len(result.suspects), {"samples": result.suspects.tolist()}
    listed = ", ".join(map(str, result.suspects[:_SHOWN])) + ", ..." * (count > _SHOWN)
    if noise is not None:
        text = (
            f"{count} labels are probably wrong: models that have not seen them give them less than 5 %, and "
            "contradict labels more often than their overconfidence explains (about "
            f"{_percent(noise.rate)} of the labels). Look at samples {listed}"
        )
        return Finding("wrong_labels", text, evidence={**evidence, "rate": noise.rate, "nats": noise.evidence})
    if kind == "labels":
        text = (
            f"{count} samples stand out, with a crossentropy above 6.2; an overconfident model errs like that: {listed}"
        )
    else:
        text = f"{count} samples stand out, with errors above {_FAR:g} times their spread: {listed}"
    return Finding("outliers", text, False, evidence)


def _percent(share):
    return f"{100 * share:.3g} %"
