"""Median and interquartile range, which outliers do not move."""

import keras
import numpy as np

from tf_tricks._checks import check_range
from tf_tricks.layers.scaling._scaling_layer import ScalingLayer
from tf_tricks.layers.scaling.standardize import destandardize, standardize


@keras.saving.register_keras_serializable(package="tf_tricks")
class RobustScale(ScalingLayer):
    """Subtract the median of each feature and divide by its interquartile range.

    Outliers move neither of the two; in the output they stay outliers. Where the two quantiles are equal, because most
    values are, the standard deviation takes the place of their difference. A constant feature comes out as 0.

    Args:
        quantile_range: pair of floats in (0, 1), low < high, the quantiles whose difference is divided by.
        axis: int, tuple of int or None, the axes that keep their own statistics for each index; None: one for all.
        kwargs: `name`, `dtype` and so on, as any layer has them.
    Shape:
        `(batch, ...)` of any real dtype -> same shape, compute dtype, dimensionless.
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the layer has no statistics yet.
    Reference:
        Huber and Ronchetti (2009), Robust Statistics, section 5.1.
    Example:
        >>> layer = RobustScale()
        >>> layer.adapt(np.array([[1.0], [2.0], [3.0], [4.0], [1e6]]))
        >>> keras.ops.convert_to_numpy(layer(np.array([[3.0], [5.0]]))).ravel().tolist()
        [0.0, 1.0]
    """

    kinds = ("moments", "quantiles")
    subtracts_first = True

    def __init__(self, quantile_range=(0.25, 0.75), axis=-1, **kwargs):
        super().__init__(axis, **kwargs)
        self.quantile_range = check_range("quantile_range", quantile_range, above=0, below=1)

    def constant_shapes(self, features):
        return {"median": (features,), "width": (features,)}

    def constants_from(self, statistics):
        moments = statistics.moments
        low, median, high = statistics.quantiles.quantile([self.quantile_range[0], 0.5, self.quantile_range[1]])
        width = np.where(high > low, high - low, moments.stddev)
        return {"median": median, "width": np.where(moments.constant, 0.0, width)}

    def scale_values(self, xp, x, constants):
        return standardize(xp, x, *constants.values())

    def unscale_values(self, xp, y, constants):
        return destandardize(xp, y, *constants.values())

    def get_config(self):
        return {**super().get_config(), "quantile_range": self.quantile_range}
