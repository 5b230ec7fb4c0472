"""The loss of each sample, for every compiled loss, by models that have seen the sample and by models that have not."""

import contextlib

import keras
import numpy as np

from tf_tricks.fit_hooks.gradients import innermost
from tf_tricks.fit_hooks.replay_state import reachable, sublayers

CHUNK = 256  # samples of a forward pass
_BATCH = 32
_EPOCHS = 25
_PATIENCE = 4  # epochs without a better loss of the samples that are held out
_NEAR = 1.25  # times the best loss: epochs as good as that have a say
_EASY = 0.9  # of the samples, those with the lower losses, say how good a model is: the others may be wrong themselves
_TRAINING = 0.85  # of the budget: what a model makes of the other half is measured in the rest
_REPEATS = 4


def sample_losses(function, data, within=lambda: True, chunk=CHUNK, apart=False):
    """Array (n,): the losses whose mean (or sum, for such a reduction) is the loss of the data without regularisation.

    Args:
        function: `LossFunction`, to be called under `unregularised`.
        data: `Samples`.
        within: callable, whether there is time left. NaN for the samples that it was too late for.
        chunk: int, samples of a pass; the last is filled up, since each other size would be compiled anew.
        apart: bool, whether to look at the samples of a pass one by one if not all of it is finite.
    """
    losses = np.full(data.size, np.nan)
    summed = is_sum(function.model)
    for start in range(0, data.size, chunk):
        chosen = np.arange(start, start + chunk) % data.size
        found = _by_weights(function, data.take(chosen))
        if found is None:  # the loss takes no notice of weights
            return _one_by_one(function, data, within)
        found = found if summed else found * chunk
        if apart and not np.all(np.isfinite(found)):
            chosen = chosen[: data.size - start]
            found = _one_by_one(function, data.take(chosen), within)
        losses[chosen] = found
    return losses


def contributions(loss, shares):
    """What each sample adds to `loss`, from the derivatives of the loss for factors on their weights.

    A loss that sums, or divides by the number of samples, is of degree 1 in the weights: the derivatives add up to it.
    One that divides by the sum of the weights is of degree 0: they add up to 0, and each lacks the mean.

    Example:
        >>> contributions(2.0, np.array([-0.5, 0.5])).tolist()
        [0.5, 1.5]
    """
    return shares + (loss - shares.sum(dtype="float64")) / len(shares)


def is_sum(model):
    """Do all losses of a compiled model add up the samples, rather than taking the mean?"""
    reductions = [loss.reduction for loss in losses_of(model)]
    return bool(reductions) and all(reduction == "sum" for reduction in reductions)


def losses_of(model):
    """The `keras.losses.Loss` objects that a model was compiled with, those made of strings and functions too."""
    inner = [each for each in reachable(model, (keras.Model, keras.losses.Loss)) if isinstance(each, keras.losses.Loss)]
    return [each for each in inner if "CompileLoss" not in type(each).__name__]


@contextlib.contextmanager
def unregularised(model):
    """What is traced meanwhile has no weight or activity regularisation."""
    weights = [(each, each.regularizer) for each in model.trainable_variables]
    layers = [(each, each.activity_regularizer) for each in sublayers(model)]
    try:
        for each, _ in weights:
            each.regularizer = None
        for each, _ in layers:
            each.activity_regularizer = None
        yield
    finally:
        for each, regularizer in weights:
            each.regularizer = regularizer
        for each, regularizer in layers:
            each.activity_regularizer = regularizer


def held_out_losses(loan, function, data, seed, budget, forget):
    """Array (n,): the loss of each sample by models that were trained on the other half of the samples, on average.

    Each model has a say at the epochs at which it is nearly at its best on what is held out, where it has learned the
    rule and not yet the exceptions; its 10 % largest losses do not count for that.

    Args:
        loan: of the model; its weights are changed.
        budget: `Budget`, of which each half gets the same share; the first two halves are trained in any case.
        forget: bool, whether the models begin with weights that know nothing.
    """
    generator = np.random.default_rng(seed)
    total, number, repeat = np.zeros(data.size), 0, 0
    begin = budget.share()
    while repeat < _REPEATS and (repeat == 0 or _TRAINING - budget.share() > 0.9 * (budget.share() - begin)):
        begin = budget.share()
        order = generator.permutation(data.size)
        halves = order[: data.size // 2], order[data.size // 2 :]
        losses = np.zeros(data.size)
        for part, (out, others) in enumerate((halves, halves[::-1])):
            end = begin + (_TRAINING - begin) * (part + 1) / 2 if repeat == 0 else _TRAINING
            slots = _Slots(budget, end)
            loan.reset()
            if forget:
                forget_all(loan.model, generator)
            trained = data.take(others), data.take(out)
            losses[out] = _trained_and_measured(loan, function, *trained, slots, generator, min(CHUNK, data.size))
        if repeat and budget.share() >= _TRAINING:  # cut short
            break
        total, number, repeat = total + losses, number + 1, repeat + 1
    loan.reset()
    return total / number


class _Slots:
    """Counts steps of a budget, up to a share of it."""

    def __init__(self, budget, end):
        self._budget, self._end = budget, end

    def left(self):
        return self._budget.share() < self._end

    def use(self):
        for _ in self._budget.steps(1):
            pass


def forget_all(model, generator):
    """Shuffle each trained weight, which keeps its scale and nothing of what it learned, and renew the optimizer."""
    for variable in model.trainable_variables:
        value = np.array(keras.ops.convert_to_numpy(variable.value))
        variable.assign(generator.permutation(value.ravel()).reshape(value.shape))
    optimizer = model.optimizer
    try:
        fresh = type(optimizer).from_config(optimizer.get_config())
        fresh.build(model.trainable_variables)
    except Exception:  # an optimizer without a configuration goes on as it is
        return
    rate = getattr(innermost(optimizer), "learning_rate", None)
    if len(fresh.variables) == len(optimizer.variables):
        for old, new in zip(optimizer.variables, fresh.variables, strict=True):
            if old is not rate and old.shape == new.shape:
                old.assign(new)


def _trained_and_measured(loan, function, training, out, slots, generator, chunk):
    found, best, since = [], np.inf, 0
    batches = training.batches(_BATCH, seed=int(generator.integers(1 << 31)))
    steps = max(1, training.size // min(_BATCH, training.size))
    for _ in range(_EPOCHS):
        for _ in range(steps):
            slots.use()
            loan.step(*next(batches))
            if not slots.left():
                break
        with unregularised(loan.model):
            losses = sample_losses(function, out, chunk=chunk)
        easy = float(np.mean(np.sort(losses)[: max(1, int(_EASY * len(losses)))]))
        found.append((easy, losses))
        best, since = (easy, 0) if easy < best else (best, since + 1)
        if not slots.left() or since >= _PATIENCE:
            break
    good = [losses for easy, losses in found if easy <= _NEAR * best]
    return np.mean(good or [found[0][1]], axis=0)


def _by_weights(function, part):
    loss, shares = function.shares(*part)
    if shares is None or not np.any(shares):
        return None
    if len(shares) > 1 and np.ptp(shares) <= 1e-6 * np.abs(shares).max():
        return None  # one number for all: a loss that averages by itself
    return contributions(loss, shares)


def _one_by_one(function, data, within):
    losses = np.full(data.size, np.nan)
    for i in range(data.size):
        if i and not within():
            break
        loss = function.value(*data.take(slice(i, i + 1)))
        losses[i] = np.inf if np.isnan(loss) else loss  # NaN is a loss that nobody has looked at
    return losses
