"""Look at each feature and choose how to scale it."""

import math
import weakref
from typing import NamedTuple

import keras
import numpy as np

from tf_tricks._text_table import text_table
from tf_tricks.layers.scaling._constants import reciprocal
from tf_tricks.layers.scaling._scaling_layer import ScalingLayer
from tf_tricks.layers.scaling.tanh_scale import GRID, LARGEST, size_quantile

LINEAR, LOG, TANH = range(3)  # the formulas
MANY_ORDERS = 1000  # 95 % quantile of the sizes over their 5 % one; 31 for a normal distribution around 0
SOME_ORDERS = 10  # the same: from here on, a long tail is part of the distribution rather than a few outliers
# Both do not depend on the number of rows: the variance is finite wherever the quantile is below its limit.
HEAVY_TAIL = 30  # 99.95 % of the distances from the median over the typical one; normal 5, exponential 14
HEAVY_SPREAD = 10  # standard deviation over the typical distance; normal 1.5, exponential 2; outliers raise it
FAR = 30  # standard deviations from the mean to the farthest value
RARE = 0.01  # share of the values that are not the median; below it, rarity alone takes them far from the mean
NARROW = 0.1  # standard deviation below which values within [-1, 1] are scaled all the same
AT = 0.9  # where nine tenths of the values lie in a tanh


class Choice(NamedTuple):
    """What `AutoScale` does with one feature, and why.

    Attributes:
        feature: str, its index, with the name before it in a dict of features.
        method: "zero" | "as is" | "log" | "tanh" | "standardize".
        reason: str.
        mean, stddev, minimum, maximum: float, of the training data, in the unit of the feature.
        missing: int, how many values were missing.
    """

    feature: str
    method: str
    reason: str
    mean: float
    stddev: float
    minimum: float
    maximum: float
    missing: int


class Choices(tuple):
    """A tuple of `Choice`, one for each feature; `print` shows a table."""

    def __str__(self):
        return text_table(Choice._fields, self)


def choose(low, high, constant, mean, stddev, quantiles):
    """Return (method, reason) for one feature.

    Args:
        low, high: floats, minimum and maximum.
        constant: bool, whether they are equal but for rounding.
        mean, stddev: floats, mean and standard deviation.
        quantiles: array (len(GRID),), its quantiles at GRID.
    """
    if constant:
        return "zero", "constant"
    bounded = -1 <= low and high <= 1
    if bounded and np.isin(quantiles, (low, high)).mean() > 0.999:
        return "as is", "binary"
    if bounded and stddev >= NARROW:
        return "as is", "within [-1, 1]"
    sizes, distances = np.abs(quantiles), np.abs(quantiles - quantiles[len(GRID) // 2])
    far = max(mean - low, high - mean)
    if far > FAR * stddev > 0 and np.mean(distances > 0) < RARE:  # the rules below look at the rare values alone
        return "tanh", f"rare: up to {far / stddev:.0f} times the stddev from the mean"
    smallest, largest = np.quantile(sizes[sizes > 0], [0.05, 0.95])
    orders = f"|x| over {math.log10(largest / smallest):.1f} orders of magnitude"
    if largest > MANY_ORDERS * smallest:
        return "log", orders
    typical = np.median(distances[distances > 0])
    tail, spread = distances[1:-1].max() / typical, stddev / typical
    if tail > HEAVY_TAIL or spread > HEAVY_SPREAD:
        what = f"0.05 % beyond {tail:.0f}" if tail > HEAVY_TAIL else f"stddev {spread:.0f}"
        reason = f"heavy tail: {what} times the typical distance from the median"
        one_sided = low >= 0 or high <= 0
        return ("log", f"{reason}; {orders}") if one_sided and largest > SOME_ORDERS * smallest else ("tanh", reason)
    return "standardize", "no heavy tail"


def choices_from(statistics, quantiles):
    """The `Choices` for all features of a `Statistics` with moments, and with these quantiles at GRID."""
    moments, found = statistics.moments, []
    for i in range(statistics.features):
        low, high, mean, stddev = (
            float(each[i]) for each in (moments.minimum, moments.maximum, moments.mean, moments.stddev)
        )
        method, reason = choose(low, high, moments.constant[i], mean, stddev, quantiles[:, i])
        found.append(Choice(str(i), method, reason, mean, stddev, low, high, int(moments.missing[i])))
    return Choices(found)


def auto_scale(xp, x, formula, center, scale, log_mean, log_stddev):
    linear = center.subtracted_from(x) * reciprocal(xp, scale.high)
    log = (xp.sign(linear) * xp.arcsinh(xp.abs(linear)) - log_mean.high) / log_stddev.high
    return xp.where(formula.high == LOG, log, xp.where(formula.high == TANH, xp.tanh(linear), linear))


def auto_unscale(xp, y, formula, center, scale, log_mean, log_stddev):
    zero = xp.cast(0, y.dtype)  # for a formula that is not the one: no overflow
    log = xp.sinh(xp.where(formula.high == LOG, y * log_stddev.high + log_mean.high, zero))
    largest = LARGEST[keras.backend.standardize_dtype(y.dtype)]
    tanh = xp.arctanh(xp.where(formula.high == TANH, xp.clip(y, -largest, largest), zero))
    linear = xp.where(formula.high == LOG, log, xp.where(formula.high == TANH, tanh, y))
    return center.added_to(linear * scale.high)


@keras.saving.register_keras_serializable(package="tf_tricks")
class AutoScale(ScalingLayer):
    """Scale each feature as its training data suggests, and say why.

    `adapt` prints and returns a table. In this order: a constant feature becomes 0; a binary one and one within [-1, 1]
    stay as they are; one that is the same in nearly all rows, and far away in the others, becomes
    `tanh((x - median) / C)`, nine tenths of those others within +-0.9; one over many orders of magnitude, or with a
    long one-sided tail, becomes the `asinh` of it over its median size, standardized; one with a heavy tail otherwise
    becomes such a tanh, of all rows; any other one is standardized. The limits are at the top of this module.

    Afterwards it is a layer like the others: files hold the choices, `inverse` undoes them (a constant feature gets its
    value back; where tanh has reached 1, inputs cannot be told apart).

    Args:
        axis: int, tuple of int or None, the axes that keep their own choice for each index; None: one for all values.
        kwargs: `name`, `dtype` and so on, as any layer has them.
    Shape:
        `(batch, ...)` of any real dtype -> same shape, compute dtype, dimensionless.
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the layer has no statistics yet.
    Reference:
        LeCun, Bottou, Orr and Mueller (1998), Efficient BackProp, section 4.3; Burbidge, Magee and Robb (1988), JASA
        83(401), for `asinh`.
    Example:
        >>> layer = AutoScale()
        >>> data = np.stack([np.ones(99), np.arange(99) % 2, np.arange(99), 1.2 ** np.arange(99)], axis=1)
        >>> [choice.method for choice in layer.adapt(data, verbose=0)]
        ['zero', 'as is', 'standardize', 'log']
    """

    kinds = ("moments", "quantiles")
    subtracts_first = True

    def __init__(self, axis=-1, **kwargs):
        super().__init__(axis, **kwargs)
        self._chosen = weakref.WeakKeyDictionary()  # from statistics to choices, for which all quantiles are read

    def adapt(self, data, steps=None, *, reset=True, verbose="auto"):
        """Choose for each feature, from one pass over `data`.

        Args:
            data, steps, reset: as every scaling layer has them.
            verbose: "auto", 0 or 1. The table is printed unless 0.
        Returns:
            `Choices`, a tuple of `Choice(feature, method, reason, mean, stddev, minimum, maximum, missing)`.
        Raises:
            TypeError, ValueError: as every scaling layer.
        """
        super().adapt(data, steps, reset=reset, verbose=verbose)
        if verbose != 0:
            print(self.choices)
        return self.choices

    @property
    def choices(self):
        """The table of the last `adapt` or `from_statistics`; None if there was none, as in a loaded model."""
        if self.statistics is None:
            return None
        if not isinstance(self.statistics, dict):
            return self._choices_of(self.statistics)
        return Choices(
            choice._replace(feature=f"{name}[{choice.feature}]")
            for name, statistics in self.statistics.items()
            for choice in self._choices_of(statistics)
        )

    def _choices_of(self, statistics):
        if statistics not in self._chosen:
            self._chosen[statistics] = choices_from(statistics, statistics.quantiles.quantile(GRID))
        return self._chosen[statistics]

    def constant_shapes(self, features):
        return dict.fromkeys(("formula", "center", "scale", "log_mean", "log_stddev"), (features,))

    def constants_from(self, statistics):
        quantiles = statistics.quantiles.quantile(GRID)
        median, zero = quantiles[len(GRID) // 2], np.zeros(statistics.features)
        log_scale = size_quantile(quantiles, zero, 0.5)
        logs = np.arcsinh(np.divide(quantiles, log_scale, out=np.zeros_like(quantiles), where=log_scale > 0))
        tanh_scale = size_quantile(quantiles, median, AT) / math.atanh(AT)
        rows, self._chosen[statistics] = [], choices_from(statistics, quantiles)
        for i, choice in enumerate(self._chosen[statistics]):
            rows.append(
                {
                    "zero": (LINEAR, choice.minimum, 0, 0, 1),
                    "as is": (LINEAR, 0, 1, 0, 1),
                    "standardize": (LINEAR, choice.mean, choice.stddev, 0, 1),
                    "log": (LOG, 0, log_scale[i], logs[:, i].mean(), logs[:, i].std()),
                    "tanh": (TANH, median[i], tanh_scale[i], 0, 1),
                }[choice.method]
            )
        return dict(zip(self.constant_shapes(0), np.array(rows, "float64").T, strict=True))

    def scale_values(self, xp, x, constants):
        return auto_scale(xp, x, **constants)

    def unscale_values(self, xp, y, constants):
        return auto_unscale(xp, y, **constants)
