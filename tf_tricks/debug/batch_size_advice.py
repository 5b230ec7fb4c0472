"""How large should a batch be? The gradient noise scale, with its uncertainty, and what it says of a size."""

import dataclasses
import math

import numpy as np

from tf_tricks._checks import check_integer
from tf_tricks.debug._budget import Budget
from tf_tricks.debug._data import check_targets, fixed_batch_size, samples
from tf_tricks.debug._result import Finding, Result
from tf_tricks.debug.check_gradients import check_compiled
from tf_tricks.fit_hooks.borrowing import borrowed
from tf_tricks.fit_hooks.functional import LossFunction
from tf_tricks.fit_hooks.replay_state import sublayers

_MOST = 64  # small batches
_FEWEST = 4
_LIMIT = 2048  # samples
# Longer gradients are sketched to this length: a prime, with which the widths of layers do not line up.
_ENTRIES = (1 << 18) - 5
_DRAWS = 1000  # of the bootstrap
_FAR = 4  # times the noise scale, from where on a size is called wasteful or noisy


@dataclasses.dataclass
class BatchSizeAdvice(Result):
    """The gradient noise scale and what follows for the size of a batch; `print` shows the advice.

    Attributes:
        findings: list of `Finding`s, all of them remarks: "wastes_compute", "too_noisy", "fits", "noise_only",
            "too_few_samples"; and the fault "no_gradient".
        noise_scale: float, B_simple = tr(Sigma) / |G|^2, in samples; inf where the gradient drowns in its noise.
        interval: (float, float), between which it lies with 90 % confidence.
        gradient_square: float, |G|^2: the squared norm of the gradient without noise.
        variance: float, tr(Sigma): the variance of the gradient of one sample, summed over the weights.
        batch_size: int, the size that was judged.
        small: int, samples of each of the batches whose gradients were compared.
        gradients: int, the number of these batches.
    Example:
        >>> result = batch_size_advice(model, x, y, verbose=0)
        >>> result.interval[0] <= result.noise_scale <= result.interval[1]
        True
    """

    findings: list
    noise_scale: float
    interval: tuple
    gradient_square: float
    variance: float
    batch_size: int
    small: int
    gradients: int

    def costs(self, batch_size):
        """(steps, samples) that training at this size takes, relative to the fewest steps and the fewest samples.

        Example:
            >>> steps, seen = batch_size_advice(model, x, y, verbose=0).costs(8)
            >>> abs((steps - 1) * (seen - 1) - 1) < 1e-9
            True
        """
        return costs(self.noise_scale, batch_size)

    def heading(self):
        low, high = self.interval
        return (
            f"Gradient noise scale: {_count(self.noise_scale)} samples, with 90 % confidence between {_count(low)} and "
            f"{_count(high)}\n({self.gradients} batches of {self.small} at the present weights; it grows as training "
            "goes on, often tenfold)."
        )

    def draw(self, axes):
        center = self.noise_scale if 0 < self.noise_scale < math.inf else max(self.batch_size, 1)
        sizes = np.geomspace(max(1, center / 100), center * 100, 100)
        steps, seen = zip(*(costs(self.noise_scale, size) for size in sizes), strict=True)
        axes.loglog(sizes, steps, label="steps, relative to the fewest")
        axes.loglog(sizes, seen, label="samples, relative to the fewest")
        low, high = (min(max(end, sizes[0]), sizes[-1]) for end in self.interval)
        axes.axvspan(low, high, color="gray", alpha=0.2, label="noise scale, 90 %")
        axes.axvline(self.batch_size, color="tab:red", linewidth=1, label="batch_size")
        axes.set_xlabel("batch size")
        axes.legend(fontsize="small", frameon=False)

    def series(self):
        sizes = [2**k for k in range(17)]
        return "log10 of the samples needed, relative to the fewest, for batches of 1, 2, 4, ... 65536", [
            math.log10(costs(self.noise_scale, size)[1]) for size in sizes
        ]


def batch_size_advice(
    model, x, y=None, sample_weight=None, batch_size=32, *, seconds=10.0, steps=None, seed=0, verbose=1
):
    """Measure the gradient noise scale, and say which batch sizes waste compute and which are too noisy.

    The gradients of many small batches are compared with that of all of them together: what they have in common is the
    gradient, the rest is noise. Below the noise scale a batch of twice the size halves the steps, at no cost in
    samples; far above it the steps stay the same and each sample counts for less. Training takes (1 + B_noise / B)
    times the fewest steps, and (1 + B / B_noise) times the fewest samples. A step is that of `fit`: regularisation,
    dropout, which draws anew for each batch, and sample weights are in it; the optimizer is not. Nothing is trained,
    and the model stays as it is, to the bit.

    Args:
        model: a compiled keras.Model of any kind. Best in the midst of training: the scale grows while the loss falls.
        x: arrays in the structure that the model takes; or, with `y=None`, a tf.data.Dataset, PyDataset, DataLoader or
            generator of batches. At most 2048 samples are used.
        y, sample_weight: arrays as `fit` takes them, or None.
        batch_size: int >= 1, the size that you use, which the advice is about; 32 is that of `fit`.
        seconds: float > 0 or None for no limit.
        steps: None or int >= 4, number of small batches at most.
        seed: int >= 0, of the choice of samples and the bootstrap.
        verbose: 0: silent; 1: a progress bar.
    Returns:
        A `BatchSizeAdvice`. The advice is no fault; `passed` is False only where there is no gradient at all.
    Raises:
        TypeError, ValueError: an argument is out of range; the model is not compiled or has nothing to train; there
            are fewer than 4 samples, or batches of a model that takes one size only.
    Reference:
        McCandlish, Kaplan, Amodei et al. (2018), An Empirical Model of Large-Batch Training, arXiv:1812.06162, section
        2 and appendix A.1 (the unbiased estimates from two batch sizes).
    Example:
        >>> advice = batch_size_advice(model, x, y, batch_size=8, verbose=0)
        >>> advice.noise_scale > 0, advice.passed
        (True, True)
    """
    check_compiled(model)
    batch_size = check_integer("batch_size", batch_size, 1)
    seed = check_integer("seed", seed, 0)
    budget = Budget(seconds, steps, verbose, "Measuring the noise of the gradient")
    check_integer("steps", _MOST if steps is None else steps, _FEWEST)
    fixed = fixed_batch_size(model)
    needed = _FEWEST * (fixed or 1)
    found = samples(x, y, sample_weight, limit=max(_LIMIT, needed), seed=seed)
    check_targets(model, found)
    if found.size < needed:
        what = f", {_FEWEST} batches of the size that the model is built for" if fixed else ""
        raise ValueError(f"`x` must have at least {needed} samples{what}. Received: {found.size}")
    small = fixed or _small(model, found.size)
    try:
        with borrowed(model, *found.take(slice(small))):
            if not model.trainable_variables:
                raise ValueError("`model` must have trainable weights. Received: none")
            gradients = _gradients(LossFunction(model), found, small, seed, budget)
    finally:
        budget.close()
    return _advice(gradients, small, batch_size, seed)


def _small(model, size):
    """Samples of a small batch, of `size` in all."""
    small = max(1, size // _MOST)
    # Statistics of a batch of one are no statistics: a normalisation over the batch needs several.
    normalises = any("batchnorm" in type(layer).__name__.lower() for layer in sublayers(model))
    return min(max(small, 8), size // _FEWEST) if normalises else small


def noise_scale(products, small):
    """(B_simple, |G|^2, tr(Sigma)) from the products of the gradients of batches of `small` samples with each other.

    The unbiased estimates of McCandlish et al. (2018), appendix A.1, for the batches of `small` and their union.

    Args:
        products: array (K, K), the inner products; K >= 2.
        small: int, samples of each batch.
    Example:
        >>> noise_scale(np.array([[3.0, 1.0], [1.0, 3.0]]), small=2)
        (4.0, 1.0, 4.0)
    """
    count = len(products)
    of_small, of_big = float(np.trace(products)) / count, float(products.mean())
    big = count * small
    square = (big * of_big - small * of_small) / (big - small)
    variance = max((of_small - of_big) / (1 / small - 1 / big), 0.0)
    if square > 0:
        return variance / square, square, variance
    return (math.inf if variance else 0.0), square, variance


def bootstrap_interval(products, small, seed=0, draws=_DRAWS, confidence=0.9):
    """(low, high) of the noise scale, from batches drawn again with replacement.

    Args:
        products, small: as in `noise_scale`.
    Example:
        >>> low, high = bootstrap_interval(np.eye(8) + 1, small=1)
        >>> low <= 1.0 <= high
        True
    """
    generator, count = np.random.default_rng(seed), len(products)
    found = []
    for _ in range(draws):
        # Each pair of two different batches counts; a batch with itself would pass its noise off as gradient.
        weights = np.bincount(generator.integers(0, count, count), minlength=count).astype("float64")
        pairs = weights @ products @ weights - (weights**2) @ np.diag(products)
        number = weights.sum() ** 2 - (weights**2).sum()
        square = pairs / number if number else 0.0
        variance = small * max(weights @ np.diag(products) / count - square, 0.0)
        found.append(variance / square if square > 0 else math.inf if variance else 0.0)
    found = np.sort(found)  # `np.quantile` would interpolate between infinities
    tail = (1 - confidence) / 2
    return float(found[math.floor(tail * (draws - 1))]), float(found[math.ceil((1 - tail) * (draws - 1))])


def costs(scale, batch_size):
    """(steps relative to the fewest, samples relative to the fewest) at a batch size.

    Example:
        >>> costs(100.0, 100)
        (2.0, 2.0)
    """
    return 1 + scale / batch_size, 1 + (batch_size / scale if scale else math.inf)


def _gradients(function, found, small, seed, budget):
    """Array (K, entries): the gradient of each small batch, flat, sketched if it is long."""
    entries = sum(int(np.prod(v.shape)) for v in function.variables)
    sketch = _Sketch(entries, seed) if entries > _ENTRIES else None
    rows = []
    batches = found.batches(small, seed)
    most = found.size // small
    for number in range(most):
        if budget.over() and len(rows) >= _FEWEST:
            break
        for _ in budget.steps(1):
            pass
        function.draw = number
        _, gradients = function.gradient(*next(batches))
        zeros = (np.zeros(tuple(v.shape)) for v in function.variables)
        parts = [np.ravel(z if g is None else g) for g, z in zip(gradients, zeros, strict=True)]
        row = np.concatenate(parts).astype("float32")
        rows.append(row if sketch is None else sketch(row))
    return np.stack(rows)


class _Sketch:
    """Adds up entries of a long vector, with random signs, in fewer places: inner products stay the same on average.

    To 0.2 or 0.3 % of the product of the norms, at random, which is little beside the noise of a few dozen batches.
    """

    def __init__(self, entries, seed):
        self._signs = np.random.default_rng(seed).integers(0, 2, entries, dtype="int8") * np.int8(2) - np.int8(1)
        self._missing = -entries % _ENTRIES

    def __call__(self, row):
        return np.pad(row * self._signs, (0, self._missing)).reshape(-1, _ENTRIES).sum(axis=0)


def _advice(gradients, small, batch_size, seed):
    count = len(gradients)
    if not np.all(np.isfinite(gradients)):
        text = "The gradient is not finite: there is no advice. `NaNGuard` and `signal_propagation` say why."
        finding = Finding("no_gradient", text)
        return BatchSizeAdvice([finding], math.nan, (0.0, math.inf), math.nan, math.nan, batch_size, small, count)
    products = gradients.astype("float64") @ gradients.T.astype("float64")
    scale, square, variance = noise_scale(products, small)
    interval = bootstrap_interval(products, small, seed)
    interval = (min(interval[0], scale), max(interval[1], scale))
    findings = _findings(products, scale, interval, batch_size, count * small)
    return BatchSizeAdvice(findings, scale, interval, square, variance, batch_size, small, count)


def _findings(products, scale, interval, batch_size, seen):
    low, high = interval
    evidence = {"noise_scale": scale, "interval": interval, "batch_size": batch_size}
    found = []
    if not np.any(products):
        return [Finding("no_gradient", "The gradient is zero for all batches: nothing can be learned.", True, evidence)]
    if not math.isfinite(scale):
        text = (
            f"The gradient is smaller than its noise in {seen} samples: training is at its end, or has not begun to "
            f"learn. A batch of {_count(max(low, 1))} or fewer is too noisy to go further at this learning rate."
        )
        return [Finding("noise_only", text, False, evidence)]
    steps, samples_needed = costs(scale, batch_size)
    if batch_size > _FAR * max(high, 1):
        text = (
            f"A batch of {batch_size} wastes compute now: it needs {samples_needed:.3g} times the fewest samples. From "
            f"about {_count(_FAR * max(scale, 1))} on, more samples in a batch hardly better its gradient. Take about "
            f"{_count(max(scale, 1))}, unless the hardware handles {batch_size} as fast."
        )
        found.append(Finding("wastes_compute", text, False, evidence))
    elif batch_size < low / _FAR:
        text = (
            f"A batch of {batch_size} is noisy now: it needs {steps:.3g} times the fewest steps. Up to about "
            f"{_count(scale)} samples, twice the batch (and up to twice the rate) halves the steps at hardly any cost "
            "in samples: worth it where the hardware has room."
        )
        found.append(Finding("too_noisy", text, False, evidence))
    else:
        text = (
            f"A batch of {batch_size} fits: {steps:.3g} times the fewest steps, {samples_needed:.3g} times the fewest "
            f"samples. Below {_count(scale / _FAR)} batches are noisy, above {_count(_FAR * scale)} they waste compute."
        )
        found.append(Finding("fits", text, False, evidence))
    if high > 10 * max(low, 1):
        text = f"{seen} samples tell little: the interval is wide. Give more data or more `seconds`."
        found.append(Finding("too_few_samples", text, False, evidence))
    return found


def _count(number):
    return f"{number:.2g}" if number < 10 else f"{number:.0f}" if number < 1e6 else f"{number:.2g}"
