"""The range of the training data, mapped to a given range."""

import keras
import numpy as np

from tf_tricks._checks import check_bool, check_range
from tf_tricks.layers.scaling._constants import reciprocal
from tf_tricks.layers.scaling._scaling_layer import ScalingLayer


def to_range(xp, x, minimum, width, low, high, clip):
    y = low + minimum.subtracted_from(x) * (reciprocal(xp, width.high) * (high - low))
    return xp.clip(y, low, high) if clip else y


def from_range(xp, y, minimum, width, low, high):
    return minimum.added_to((y - low) / (high - low) * width.high)


@keras.saving.register_keras_serializable(package="tf_tricks")
class MinMaxScale(ScalingLayer):
    """Map the range that each feature has in the training data to `range`.

    A constant feature comes out as the lower end. Values outside of the training range come out outside of `range`,
    unless `clip`.

    Args:
        range: pair of numbers (low, high), low < high, the range of the outputs on the training data, dimensionless.
        clip: bool. True: outputs never leave `range`; `inverse` then gives the end of the training range for them.
        axis: int, tuple of int or None, the axes that keep their own range for each index; None: one for all values.
        kwargs: `name`, `dtype` and so on, as any layer has them.
    Shape:
        `(batch, ...)` of any real dtype -> same shape, compute dtype, dimensionless.
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the layer has no statistics yet.
    Reference:
        Han, Kamber and Pei (2012), Data Mining, section 3.5.2.
    Example:
        >>> layer = MinMaxScale(range=(-1, 1))
        >>> layer.adapt(np.array([[10.0], [30.0]]))
        >>> keras.ops.convert_to_numpy(layer(np.array([[10.0], [20.0], [40.0]]))).ravel().tolist()
        [-1.0, 0.0, 2.0]
    """

    subtracts_first = True

    def __init__(self, range=(0, 1), clip=False, axis=-1, **kwargs):
        super().__init__(axis, **kwargs)
        self.range = check_range("range", range)
        self.clip = check_bool("clip", clip)

    def constant_shapes(self, features):
        return {"minimum": (features,), "width": (features,)}

    def constants_from(self, statistics):
        moments = statistics.moments
        width = np.where(moments.constant, 0.0, moments.maximum - moments.minimum)
        return {"minimum": moments.minimum, "width": width}

    def scale_values(self, xp, x, constants):
        return to_range(xp, x, *constants.values(), *self.range, self.clip)

    def unscale_values(self, xp, y, constants):
        return from_range(xp, y, *constants.values(), *self.range)

    def get_config(self):
        return {**super().get_config(), "range": self.range, "clip": self.clip}
