"""Is the data what the model takes it for? The checks that cost seconds and save days."""

import dataclasses

import keras
import numpy as np

from tf_tricks._checks import check_instance, check_integer
from tf_tricks.debug import _data, _label_dependence
from tf_tricks.debug._budget import Budget
from tf_tricks.debug._input_examination import Examination
from tf_tricks.debug._input_rows import BYTES, Rows
from tf_tricks.debug._result import WIDTH, Result
from tf_tricks.fit_hooks import random_state


@dataclasses.dataclass
class InputCheck(Result):
    """What `check_inputs` saw; `print` shows the findings, each with its numbers.

    Attributes:
        findings: list of `Finding`s named "not_finite", "constant_columns", "duplicate_columns", "images_not_scaled",
            "not_scaled", "channels_first", "axes_scrambled", "does_not_fit", "one_unit", "one_hot_targets",
            "integer_targets", "not_integers", "labels_out_of_range", "single_class", "imbalance", "constant_target",
            "target_scale", "broadcast", "target_shape", "labels_independent", "conflicting_labels", "shapes_differ",
            "scaled_differently", "unknown_classes", "leakage".
        num_samples, num_validation_samples: int, how many there are; of a dataset, how many were read.
        num_sampled: int, how many of `num_samples` the statistics are made of.
        shapes: dict, name of an array -> its shape and dtype as a str.
        dependence: None, or the `Dependence` of labels and features: p_value, learner, score, chance, chance_stddev,
            planted_p_value.
        percentiles: dict, name of an input -> (5, columns) array: the 0, 5, 50, 95 and 100 % points.
        skipped: list of str, the checks that the budget left no time for.
    Example:
        >>> result = check_inputs(x, np.where(np.arange(len(x)) == 3, np.nan, y[:, 0]), verbose=0)
        >>> result.passed, result.findings[0].name, result.findings[0].evidence["samples"]
        (False, 'not_finite', [3])
    """

    findings: list
    num_samples: int
    num_sampled: int
    num_validation_samples: int
    shapes: dict
    dependence: object
    percentiles: dict
    skipped: list

    def heading(self):
        validation = f" and {self.num_validation_samples} of validation" if self.num_validation_samples else ""
        arrays = ", ".join(f"{name} {shape}" for name, shape in list(self.shapes.items())[:6])
        lines = [
            f"check_inputs {'passed' if self.passed else 'FAILED'}: {self.num_samples} samples{validation}",
            arrays[:WIDTH],
        ]
        if self.num_sampled < self.num_samples:
            lines.append(
                f"scales and distributions are those of {self.num_sampled} finite samples; NaN, equal samples and "
                "labels are of all"
            )
        if self.dependence is not None:
            d = self.dependence
            lines.append(
                f"labels against features: correlation {d.score:.2f} ({d.learner}), {d.chance:.2f} +- "
                f"{d.chance_stddev:.2f} for permuted labels"
            )
        if self.skipped:
            lines.append(f"out of time, not checked: {', '.join(self.skipped)}")
        return "\n".join(lines)

    def draw(self, axes):
        for name, points in self.percentiles.items():
            columns = np.arange(points.shape[1])
            band = axes.fill_between(columns, points[1], points[3], alpha=0.3)
            axes.plot(columns, points[2], ".", color=band.get_facecolor()[0][:3], label=f"{name}: median, 5 to 95 %")
        axes.set(xlabel="column", ylabel="value", yscale="symlog")
        if self.percentiles:
            axes.legend()

    def series(self):
        first = next(iter(self.percentiles.values()), np.zeros((5, 1)))
        return "95 % point of each column", first[3].tolist()


def check_inputs(x, y=None, model=None, validation=None, *, samples=10_000, seconds=10.0, seed=0, verbose=1):
    """Look at the data as an expert does before the first `fit`, alone and with the eyes of the model.

    Always: NaN and infinities, constant and duplicate columns, pictures of 0 to 255 and columns far from unit scale,
    a single class, imbalance, equal samples with different labels, and whether the labels depend on the features at
    all: nearest neighbours, a ridge regression, single columns and pairs of them have to fit better than nearly all
    permutations of the labels (199 of them, p <= 0.01) would. If they do not, it is a fault where a relation that
    explains 5 % of the labels would have shown, and a remark where samples are too few to tell. Equal samples are
    faults where samples are rich in numbers, not in a table of a few categories, which repeats itself.

    With `model`: what its first layer with a kernel receives in training (so scaling in the model counts), labels
    against loss and output units, targets that are broadcast or do not fit, pictures in a wrong order of axes after a
    `Reshape` or with channels first. With `validation`: equal samples in both, other scales and classes.

    Of arrays, finite values, constant columns, equal samples and labels are looked up in all samples, and have their
    numbers; the rest is seen in `samples` of them. The model is left as it is, to the bit; one that is not built is
    built. The random states stay as they are; the batches of a generator are used up.

    Args:
        x: arrays as `model` takes them (n samples each), preprocessed as in training; or a tf.data.Dataset, PyDataset,
            DataLoader or generator, with `y=None`.
        y: arrays of targets, or None.
        model: None, or a compiled keras.Model.
        validation: None, `(x, y)` or `(x, y, sample_weight)`, or a dataset.
        samples: int >= 50, how many samples statistics are made of: at random of arrays, the first of a dataset, of
            which no more are read (no more than 256 MiB).
        seconds: float > 0 or None; checks that there is no time for are named in the result.
        seed: int >= 0, of the random choices.
        verbose: 0: silent; 1: a progress bar.
    Returns:
        An `InputCheck`; `print` it, or `.plot()` it. Remarks (not faults) are things that may be meant.
    Raises:
        TypeError, ValueError: an argument is none of these; `model` is not compiled.
    Reference:
        Karpathy (2019), A recipe for training neural networks, section 1; Good (2005), Permutation, parametric and
        bootstrap tests of hypotheses, chapter 3; Wellek (2010), Testing statistical hypotheses of equivalence and
        noninferiority, section 1.2.
    Example:
        >>> check_inputs(x, y, model, validation=(x[:8], y[:8]), verbose=0).findings[0].name
        'leakage'
    """
    if model is not None:
        check_instance("model", model, keras.Model, "a keras.Model or None")
        if not model.compiled:
            raise ValueError(f"`model` must be compiled. Received: model={model.name!r}, which is not")
    samples, seed = check_integer("samples", samples, _label_dependence.FEWEST), check_integer("seed", seed, 0)
    budget = Budget(seconds, None, verbose, "check_inputs")
    with random_state.unchanged():
        found = Examination(_taken(x, y, samples, seed), model, _validation(validation, samples, seed), seed)
        skipped = []
        for name, check in found.checks():
            if budget.over():
                skipped.append(name)
            else:
                for _ in budget.steps(1):
                    check()
    budget.close()
    return InputCheck(**found.result(), skipped=skipped)


def _taken(x, y, samples, seed):
    if not _data.is_dataset(x):
        return Rows(_data.samples(x, y), samples, seed)
    first, x = _data.first_batch(x)
    total = sum(a.nbytes for part in first for a in keras.tree.flatten(part) if a is not None)
    bytes_each = max(1, total // max(1, first.size))
    limit = max(first.size, min(samples, BYTES // bytes_each))
    return Rows(_data.samples(x, y, limit=limit), limit, seed)


def _validation(validation, samples, seed):
    if validation is None:
        return None
    if _data.is_dataset(validation):
        return _taken(validation, None, samples, seed)
    if not isinstance(validation, (tuple, list)) or len(validation) not in (2, 3):
        raise TypeError(
            "`validation` must be (x, y), (x, y, sample_weight), a dataset or None. "
            f"Received: validation={validation!r}"
        )
    return _taken(validation[0], validation[1], samples, seed)
