"""The rank of a value among the training data, as a uniform or a normal variable."""

import math

import keras
import numpy as np

from tf_tricks._checks import check_integer, check_one_of
from tf_tricks.layers.scaling._scaling_layer import ScalingLayer

OUTPUTS = ("uniform", "normal")
SMALLEST = 1e-7  # the share that the lowest value stands for: normal outputs end at +-5.2

# Wichura (1988), algorithm AS 241, PPND7: relative error 1e-7 for probabilities from exp(-25) on.
CENTRAL = (
    (3.3871327179e00, 5.0434271938e01, 1.5929113202e02, 5.9109374720e01),
    (1.0, 1.7895169469e01, 7.8757757664e01, 6.7187563600e01),
)
TAIL = (
    (1.4234372777e00, 2.7568153900e00, 1.3067284816e00, 1.7023821103e-01),
    (1.0, 7.3700164250e-01, 1.2021132975e-01),
)


def rational(x, coefficients):
    above, below = (sum(a * x**i for i, a in enumerate(each)) for each in coefficients)
    return above / below


def normal_quantile(xp, below, above):
    """The standard normal value with the probability `below` under and `above = 1 - below` over it.

    Both are asked for, because float32 has no digits for a probability near 1.
    """
    q = (below - above) / 2
    central = q * rational(0.180625 - q * q, CENTRAL)
    tail = xp.where(below < above, below, above)
    tail = rational(xp.sqrt(-xp.log(xp.clip(tail, SMALLEST, 0.5))) - 1.6, TAIL)
    return xp.where(xp.abs(q) <= 0.425, central, xp.sign(q) * tail)


def tie_ranks(quantiles):
    """The rank in [0, 1] of each entry of the sorted columns; equal entries share the mean of theirs.

    Entries equal to the lowest one have rank 0, and those equal to the highest one rank 1, as in scikit-learn. In a
    column of equal values all have rank 1/2.
    """
    n, features = quantiles.shape
    ranks = np.empty((n, features))
    for column in range(features):
        values = quantiles[:, column]
        first, last = np.searchsorted(values, values, "left"), np.searchsorted(values, values, "right") - 1
        rank = (first + last) / 2
        rank[first == 0] = 0 if last[0] < n - 1 else rank[0]
        rank[(last == n - 1) & (first > 0)] = n - 1
        ranks[:, column] = rank / (n - 1)
    return ranks


def count_up_to(xp, x, table, start, n):
    """How many of the `n` entries of the sorted `table` that begin at `start` are <= `x`, by a binary search."""
    count, step = start * 0, 1 << (n.bit_length() - 1)
    while step:  # unrolled: `n` is known when the step is traced
        more = count + step
        fits = (more <= n) & (xp.take(table, start + xp.clip(more, 1, n) - 1) <= x)
        count = xp.where(fits, more, count)
        step //= 2
    return count


def rank(xp, x, table, ranks, start, n):
    """The shares of the training values below and above each `x`, with straight lines between the quantiles."""
    index = xp.clip(count_up_to(xp, x, table, start, n) - 1, 0, n - 2)
    left, right = xp.take(table, start + index), xp.take(table, start + index + 1)
    one = xp.cast(1, x.dtype)
    width = xp.where(right > left, right - left, one)
    share = xp.where(x < right, xp.clip((x - left) / width, 0, 1), one)
    tied, constant = xp.take(ranks, start + index), xp.take(table, start) == xp.take(table, start + n - 1)
    known = (x == left) | constant
    index = xp.cast(index, x.dtype)
    below = xp.where(known, tied, (index + share) / (n - 1))
    above = xp.where(known, 1 - tied, ((n - 1 - index) - share) / (n - 1))
    return xp.where(x == x, below, x), xp.where(x == x, above, x)  # NaN stays NaN


def value_at(xp, share, table, start, n):
    """The value at a share in [0, 1] of the training values."""
    position = xp.clip(share, 0, 1) * (n - 1)
    index = xp.clip(xp.cast(position, "int32"), 0, n - 2)
    left, right = xp.take(table, start + index), xp.take(table, start + index + 1)
    return left + (right - left) * (position - xp.cast(index, share.dtype))


@keras.saving.register_keras_serializable(package="tf_tricks")
class QuantileScale(ScalingLayer):
    """Replace each value by its rank among the training data, as a uniform or a normal variable.

    The distribution of the outputs is the same for every feature, whatever its own is. Between the quantiles that are
    kept the function is linear. Equal training values share the mean of their ranks; values beyond the training data
    come out as its ends, and a constant feature (equal but for the last bits, too) as the middle.

    The quantiles come from a sketch with a rank error of at most 0.5 %; below about a thousand rows it is exact.

    Args:
        output: "uniform" in [0, 1], or "normal" (standard normal, cut off at +-5.2, dimensionless).
        num_quantiles: int >= 2, how many quantiles are kept for each feature.
        axis: int, tuple of int or None, the axes that keep their own quantiles for each index; None: one for all.
        kwargs: `name`, `dtype` and so on, as any layer has them.
    Shape:
        `(batch, ...)` of any real dtype -> same shape, compute dtype, dimensionless.
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the layer has no statistics yet.
    Reference:
        Bartlett (1947), The Use of Transformations, Biometrics 3(1) (normal scores); Wichura (1988), Applied
        Statistics 37(3), AS 241 (the normal quantiles).
    Example:
        >>> layer = QuantileScale(num_quantiles=5)
        >>> layer.adapt(np.array([[1.0], [10.0], [100.0], [1000.0], [10000.0]]))
        >>> keras.ops.convert_to_numpy(layer(np.array([[10.0], [55.0], [1e9]]))).ravel().tolist()
        [0.25, 0.375, 1.0]
    """

    kinds = ("moments", "quantiles")

    def __init__(self, output="uniform", num_quantiles=1000, axis=-1, **kwargs):
        super().__init__(axis, **kwargs)
        # Not `self.output`: a Keras layer has that name for its symbolic output.
        self.output_distribution = check_one_of("output", output, OUTPUTS)
        self.num_quantiles = check_integer("num_quantiles", num_quantiles, 2)

    def constant_shapes(self, features):
        return {"quantiles": (features, self.num_quantiles), "ranks": (features, self.num_quantiles)}

    def constants_from(self, statistics):
        quantiles = statistics.quantiles.quantile(np.linspace(0, 1, self.num_quantiles))
        moments = statistics.moments
        quantiles = np.where(moments.constant, moments.minimum, quantiles)  # the ranks of roundings say nothing
        return {"quantiles": quantiles.T, "ranks": tie_ranks(quantiles).T}

    def _tables(self, xp, constants):
        """The tables of all features end to end, and where that of each feature begins."""
        tables = [xp.reshape(constants[name].high, (-1,)) for name in ("quantiles", "ranks")]
        start = np.arange(self._features, dtype="int32").reshape(self._broadcast_shape) * self.num_quantiles
        return *tables, xp.cast(start, "int32")

    def scale_values(self, xp, x, constants):
        below, above = rank(xp, x, *self._tables(xp, constants), self.num_quantiles)
        return below if self.output_distribution == "uniform" else normal_quantile(xp, below, above)

    def unscale_values(self, xp, y, constants):
        table, _, start = self._tables(xp, constants)
        if self.output_distribution == "normal":
            y = (1 + xp.erf(y / math.sqrt(2))) / 2
        return value_at(xp, y, table, start, self.num_quantiles)

    def get_config(self):
        return {**super().get_config(), "output": self.output_distribution, "num_quantiles": self.num_quantiles}
