"""Which learning rate: a range test, and short trainings at the rates that it leaves."""

import dataclasses
import math

import keras

from tf_tricks._checks import check_instance, check_integer, check_number, check_optional
from tf_tricks._text_table import text_table
from tf_tricks.debug import _data, _targets
from tf_tricks.debug._budget import Budget
from tf_tricks.debug._rate_search import RateSearch
from tf_tricks.debug._result import Result
from tf_tricks.fit_hooks import innermost
from tf_tricks.fit_hooks.borrowing import borrowed, forget_steps
from tf_tricks.fit_hooks.functional import LossFunction
from tf_tricks.fit_hooks.learning_rate import ScaledLearningRate, highest_rate, optimizer_rate
from tf_tricks.fit_hooks.replay import loss_of_predictions

BYTES = 2**28  # of a dataset that are kept in memory


@dataclasses.dataclass
class LearningRates(Result):
    """What `find_learning_rate` found; `print` it, `.plot()` it, `.apply()` it.

    Attributes:
        suggestion: float, or None where the loss falls at no rate.
        safe_maximum: float or None, the largest rate tried that still makes half of the best one's progress.
        steepest: float or None, the rate at which the loss of the range test falls fastest.
        present: float, the optimizer's rate; of a schedule the highest one that is ahead, in 100 000 steps.
        verdict: str or None, on the present rate: "fine", "too low" or "too high".
        rates, losses: lists of float, the range test: the median over its runs, smoothed.
        tried, reached: lists of float, the rates of the last round of short trainings, ascending, and the loss each
            reached, around the best one the mean over orders of the batches; NaN where it broke.
        length: int, steps of each of these trainings.
        findings: list of `Finding`s: "too_low", "too_high", "does_not_learn", "not_finite" (faults), "short_budget".
            Of a model that has learned already (see `find_learning_rate`) the first three are remarks.
        passed: bool, whether none of them is a fault.
    Example:
        >>> result = find_learning_rate(model, x, y, seconds=None, steps=200, verbose=0)
        >>> 1e-4 < result.suggestion <= result.safe_maximum
        True
    """

    suggestion: float | None
    safe_maximum: float | None
    steepest: float | None
    present: float
    verdict: str | None
    rates: list
    losses: list
    tried: list
    reached: list
    length: int
    findings: list
    model: keras.Model = dataclasses.field(repr=False)

    def apply(self):
        """Set the suggestion on the model's optimizer; a schedule is multiplied so that it goes up to it, from now on.

        Raises:
            ValueError: there is no suggestion, or the schedule is at 0 from now on.
        """
        if self.suggestion is None:
            raise ValueError("`apply` needs a suggestion, and the loss falls at no rate. Received: suggestion=None")
        optimizer = innermost(self.model.optimizer)
        if not callable(optimizer_rate(optimizer)):
            optimizer.learning_rate = self.suggestion
            return
        highest = highest_rate(optimizer)
        if not highest > 0:
            raise ValueError(
                "`apply` multiplies a schedule, which must get above 0: give the optimizer a schedule with the peak "
                f"that you want. Received: learning_rate={highest:g}"
            )
        ScaledLearningRate.apply_to(optimizer, self.suggestion / highest)
        forget_steps(self.model)  # a compiled step goes on with the schedule that it was compiled with

    def heading(self):
        if self.suggestion is None:
            return f"find_learning_rate: no suggestion; the present rate is {self.present:.3g}"
        words = "" if self.verdict is None else f", which is {self.verdict}"
        lines = [
            f"find_learning_rate: {self.suggestion:.2g}; safe up to {self.safe_maximum:.2g}",
            f"The present rate is {self.present:.3g}{words}.",
        ]
        if self.tried:
            rows = [(f"{rate:.2g}", float(loss)) for rate, loss in zip(self.tried, self.reached, strict=True)]
            lines.append(text_table(["rate", f"loss after {self.length} steps"], rows))
        return "\n".join(lines)

    def draw(self, axes):
        axes.plot(self.rates, self.losses, label="range test")
        if self.tried:
            axes.plot(self.tried, self.reached, "o", markersize=4, label=f"after {self.length} steps")
        for name, rate, style in (("suggestion", self.suggestion, "-"), ("present", self.present, ":")):
            if rate:
                axes.axvline(rate, color="black", linewidth=1, linestyle=style, label=f"{name} {rate:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.legend(fontsize="small", frameon=False)

    def series(self):
        ends = f" from {self.rates[0]:.2g} to {self.rates[-1]:.2g}" if self.rates else ""
        return f"loss at learning rates{ends} (logarithmic)", self.losses


def find_learning_rate(
    model,
    x,
    y=None,
    sample_weight=None,
    *,
    batch_size=None,
    lowest=1e-7,
    highest=10.0,
    seconds=20.0,
    steps=None,
    seed=0,
    verbose=1,
):
    """A learning rate for this model, its optimizer and this data, and whether the present one is far off.

    Range tests: the rate grows with each step from `lowest` to `highest`, or until the loss diverges, three times with
    other batches. The rate at which the smoothed loss falls fastest is where short trainings begin: at rates a factor
    of 2 apart, from the model's present weights, all with the same batches; in three rounds, each longer than the last,
    the rates that fall behind are dropped. Around the best one, if the budget lasts and not many are about as good,
    come rates in between and two other orders of the batches. The suggestion is the centre of those that end about
    equally well: a range test alone sees each rate for one step.

    A schedule is judged by the highest rate that is ahead: its first rate may be that of a warm-up. Where a model has
    been trained already and its loss is below half of that of predicting the mean, no rate may help it any further:
    what is found is then a remark.

    The model, its optimizer and the random states are afterwards as they were, to the bit. A budget that is too small
    for all of it leads to fewer points and rounds: the result rests on the last round that was completed.

    Args:
        model: compiled keras.Model of any kind, with the weights that training is to begin from.
        x: arrays in the structure that the model takes; or, with `y=None`, a tf.data.Dataset, PyDataset, DataLoader or
            generator of batches.
        y, sample_weight: arrays as `fit` takes them, or None.
        batch_size: None (that of the model's inputs if they have one, the size of a dataset's first batch, or 32) or
            int >= 1: the best rate depends on it.
        lowest, highest: floats, 0 < lowest < highest, the ends of the range test.
        seconds: float > 0 or None, the time limit. steps: int >= 1 or None, a limit of the training steps.
        seed: int, of the order of the samples.
        verbose: 0: silent; 1: a progress bar.
    Returns:
        `LearningRates`. A rate that is too low (a tenth of the suggestion or less, and it makes less than half of its
        progress) or too high (half of the progress, above the suggestion) is a fault.
    Raises:
        TypeError, ValueError: an argument is out of range, or the model is not compiled.
    Reference:
        Smith (2017), Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section 3.3 (range test);
        Karnin, Koren and Somekh (2013), Almost Optimal Exploration in Multi-Armed Bandits (rounds).
    Example:
        >>> model.optimizer.learning_rate = 1e-6
        >>> result = find_learning_rate(model, x, y, seconds=None, steps=900, verbose=0)
        >>> result.apply()
        >>> result.verdict, round(float(model.optimizer.learning_rate) / result.suggestion, 3)
        ('too low', 1.0)
    """
    check_instance("model", model, keras.Model, "a keras.Model")
    if not model.compiled or model.optimizer is None:
        raise ValueError(f"`model` must be compiled with an optimizer. Received: model={model!r}")
    check_optional(check_integer, "batch_size", batch_size, 1)
    check_number("lowest", lowest, above=0)
    check_number("highest", highest, above=lowest)
    check_integer("seed", seed, 0)
    budget = Budget(seconds, steps, verbose, "find_learning_rate")
    data, batch_size = _batches(x, y, sample_weight, _taken(model, batch_size), seed)
    _data.check_targets(model, data)
    if _data.fixed_batch_size(model) and data.size < batch_size:
        data = _data.filled(data, batch_size)
    with borrowed(model, *data.take(slice(batch_size))) as loan:
        present = highest_rate(innermost(model.optimizer))
        result = LearningRates(**RateSearch(loan, data, batch_size, budget, seed, present).fields(lowest, highest))
        if not result.passed and _has_learned(loan, data.take(slice(batch_size)), result):
            result.findings = [dataclasses.replace(finding, is_fault=False) for finding in result.findings]
    budget.close()
    return result


def _taken(model, batch_size):
    """`batch_size`, or that of a model which takes no other."""
    fixed = _data.fixed_batch_size(model)
    if fixed and batch_size not in (None, fixed):
        raise ValueError(
            f"`batch_size` must be {fixed}, which the model is built for. Received: batch_size={batch_size}"
        )
    return fixed or batch_size


def _batches(x, y, sample_weight, batch_size, seed):
    """(samples, batch size); of a dataset so many as one sweep takes, and memory allows."""
    if not _data.is_dataset(x):
        return _data.samples(x, y, sample_weight), 32 if batch_size is None else batch_size
    first, x = _data.first_batch(x)
    batch_size = first.size if batch_size is None else batch_size
    size = sum(array.nbytes for part in first for array in keras.tree.flatten(part) if array is not None)
    limit = max(batch_size, min(256 * batch_size, BYTES * first.size // max(1, size)))
    return _data.samples(x, y, sample_weight, limit=limit, seed=seed), batch_size


def _has_learned(loan, batch, result):
    """Has the model been trained, to a loss that training at no rate halves?"""
    seen = result.findings[0].evidence
    start, best = seen.get("start_loss", math.nan), seen.get("best_loss", math.nan)
    loan.reset()
    trained = int(keras.ops.convert_to_numpy(loan.model.optimizer.iterations)) > 0
    if not trained or not best > 0.5 * start or math.isnan(seen.get("loss", 0.0)):
        return False
    predictions = LossFunction(loan.model, training=True, compiled=False).predictions(batch.x)
    found = _targets.targets(loan.model, batch.y, predictions)
    if not found or any(target.kind is None for target in found):
        return False
    mean = keras.tree.pack_sequence_as(predictions, [target.mean() for target in found])
    return start < 0.5 * loss_of_predictions(loan.model, batch.x, batch.y, mean, batch.sample_weight)
