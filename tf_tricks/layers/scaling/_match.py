"""How `MatchCheck` counts what it sees, and how it judges that."""

import math
from typing import NamedTuple

import keras
import numpy as np

GRID = np.linspace(0, 1, 11)
FEWEST = 32  # rows, of training and of evaluation: fewer say too little
DISTANCE = 0.15  # by which the share of the values below some quantile may be off in the long run
CHANCE = 1.5  # the same, for what chance adds: this over the root of the number of rows
MANY = 128  # rows after which the outer tenths of the training data should have been seen: 0.9**128 = 1e-6
NARROW = 0.02  # least width of all values then, as a share of the width of the inner eight tenths
SMALL = 1 << 20  # values of a batch that are compared with all quantiles at once: 11 MiB of bool
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # relative error of inputs that were cast on the way


class Moved(NamedTuple):
    """A feature whose distribution moved, as `MatchCheck` found it.

    Attributes:
        feature: int, its index.
        mean, minimum, maximum: float, of the evaluation that did not match, in the unit of the feature.
        training_mean, training_minimum, training_maximum: float, of the training data.
    """

    feature: int
    mean: float
    minimum: float
    maximum: float
    training_mean: float
    training_minimum: float
    training_maximum: float

    def __str__(self):
        return (
            f"feature {self.feature}: mean {self.mean:.4g} (training: {self.training_mean:.4g}), range "
            f"[{self.minimum:.4g}, {self.maximum:.4g}] (training: [{self.training_minimum:.4g}, "
            f"{self.training_maximum:.4g}])"
        )


def accumulate(seen, columns, rows, quantiles, rounding, axis=0):
    """What was seen of each feature, with one more batch.

    Returns a tensor like `seen`, (5 + 2 * len(GRID), features): the number of values; of rows; minimum; maximum; mean;
    the share of values below each quantile; the share that is not above it. Shares and not counts, for which float32
    has no room.

    Args:
        seen: tensor, zeros at the beginning.
        columns: tensor (n, features), NaN where missing.
        rows: number of rows of the batch, from which the `n` values of a feature come.
        quantiles: tensor (len(GRID), features) of the training data.
        rounding: float, relative error of the values.
        axis: 0, or 1 if `columns` is (features, n), which Torch compares and adds three times as fast; XLA is slower.
    """
    ops, dtype = keras.ops, columns.dtype
    valid = ops.logical_not(ops.isnan(columns))
    count = ops.cast(ops.sum(valid, axis=axis), dtype)
    minimum = ops.min(ops.where(valid, columns, np.inf), axis=axis)
    maximum = ops.max(ops.where(valid, columns, -np.inf), axis=axis)
    sums = [ops.expand_dims(ops.sum(ops.where(valid, columns, 0.0), axis=axis), 0)]
    slack = rounding * ops.abs(quantiles)
    # All at once is fewer kernels where nothing is fused; one by one is less memory.
    known = math.prod(size for size in columns.shape if isinstance(size, int))
    step = len(GRID) if known <= SMALL else 1
    values = ops.expand_dims(columns, 1 - axis)
    for is_found, bounds in ((ops.less, quantiles - slack), (ops.less_equal, quantiles + slack)):
        for i in range(0, len(GRID), step):
            some = bounds[i : i + step]
            found = is_found(values, ops.expand_dims(some, -1) if axis else some)
            sums.append(ops.cast(ops.sum(found, axis=2 * axis), dtype))
    number = seen[0] + count
    rates = ops.concatenate(sums) / ops.maximum(count, 1)
    rates = seen[4:] + (rates - seen[4:]) * (count / ops.maximum(number, 1))
    begun = seen[0] > 0
    minimum = ops.where(begun, ops.minimum(seen[2], minimum), minimum)
    maximum = ops.where(begun, ops.maximum(seen[3], maximum), maximum)
    length = ops.cast(ops.maximum(ops.shape(columns)[axis], 1), dtype)
    rows = seen[1] + count * ops.cast(rows, dtype) / length
    return ops.concatenate([ops.stack([number, rows, minimum, maximum]), rates])


def moved_features(seen, count, quantiles):
    """Which features of an evaluation do not match the training data: an array of bool.

    Any one of three is enough: the share of values below some quantile of the training data is far from what it was
    there (the distance of Kolmogorov and Smirnov, at `GRID`); all values lie close together; a value is infinite.

    Args:
        seen: array, as `accumulate` returns it.
        count: array (features,), number of values in the training data.
        quantiles: array (len(GRID), features) of the training data.
    """
    values, rows, minimum, maximum = seen[:4]
    below, up_to = np.split(seen[5:], 2)
    distance = np.maximum(below - GRID[:, None], GRID[:, None] - up_to).max(axis=0)
    training_rows = count * rows / np.maximum(values, 1)
    enough = np.minimum(rows, training_rows) >= FEWEST
    chance = CHANCE * np.sqrt(1 / np.maximum(rows, 1) + 1 / np.maximum(training_rows, 1))
    with np.errstate(invalid="ignore"):
        narrow = maximum - minimum < NARROW * (quantiles[-2] - quantiles[1])
    narrow &= np.minimum(rows, training_rows) >= MANY
    return enough & ((distance > DISTANCE + chance) | narrow | np.isinf(minimum) | np.isinf(maximum))
