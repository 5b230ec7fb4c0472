"""tanh(x / C): a smooth end to inputs of any size."""

import math

import keras
import numpy as np

from tf_tricks._checks import check_bool, check_number
from tf_tricks.layers.scaling._constants import check_constant, reciprocal
from tf_tricks.layers.scaling._scaling_layer import ScalingLayer

GRID = np.linspace(0, 1, 2001)
LARGEST = {"float32": 1 - 2.0**-24, "float64": 1 - 2.0**-53}  # the largest number below 1


def size_quantile(quantiles, center, q):
    """The quantile `q` of `|x - center|`, from those of `x`.

    Zeros count only where there is something else than zeros at `q` as well: a feature that is 0 most of the time is
    measured by the rest of its values.

    Args:
        quantiles: array (len(GRID), features), the quantiles of `x` at GRID.
        center: array (features,).
        q: float in (0, 1).
    """
    sizes = np.abs(quantiles - center)
    result = np.quantile(sizes, q, axis=0)
    for column in np.flatnonzero(result == 0):
        some = sizes[sizes[:, column] > 0, column]
        result[column] = np.quantile(some, q) if some.size else 0.0
    return result


def tanh_scale(xp, x, center, scale):
    return xp.tanh(center.subtracted_from(x) * reciprocal(xp, scale.high))


def tanh_unscale(xp, y, center, scale):
    largest = LARGEST[keras.backend.standardize_dtype(y.dtype)]
    return center.added_to(xp.arctanh(xp.clip(y, -largest, largest)) * scale.high)


@keras.saving.register_keras_serializable(package="tf_tricks")
class TanhScale(ScalingLayer):
    """Squash each feature into (-1, 1) by `tanh(x / C)`, for inputs such as [0, 140000000].

    `C` is given, or learned so that the quantile `quantile` of `|x|` comes out as `at`: with the defaults nine tenths
    of the values lie within +-0.9, and the largest ones are told apart less and less. A feature that is 0 in most rows
    is measured by its other values; one that is always 0 stays 0, and with `center` any constant one becomes 0.

    `inverse` gives `C * arctanh(y)`. Where tanh has reached 1, at nine times `C` in float32, nothing is left to tell
    the inputs apart: they come back as about `9 * C`.

    Args:
        C: positive number, or an array of one for each feature, in the unit of the feature; None: `adapt` learns it.
        quantile: float in (0, 1), the quantile of `|x|` (of `|x - median|` with `center`) that `at` is reached at.
        at: float in (0, 1), the output there, dimensionless.
        center: bool. True: the median of the training data is subtracted first; then `C` cannot be given.
        axis: int, tuple of int or None, the axes that keep their own `C` for each index; None: one for all values.
        kwargs: `name`, `dtype` and so on, as any layer has them.
    Shape:
        `(batch, ...)` of any real dtype -> same shape, compute dtype, dimensionless.
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the layer has no statistics yet.
    Reference:
        Hampel, Ronchetti, Rousseeuw and Stahel (1986), Robust Statistics, section 2.6 (tanh-estimators).
    Example:
        >>> layer = TanhScale()
        >>> layer.adapt(np.linspace(0, 140_000_000, 101)[:, None])
        >>> round(float(keras.ops.convert_to_numpy(layer(np.array([[126_000_000]])))[0, 0]), 3)
        0.9
    """

    kinds = ("moments", "quantiles")
    subtracts_first = True

    def __init__(self, C=None, quantile=0.9, at=0.9, center=False, axis=-1, **kwargs):
        super().__init__(axis, **kwargs)
        self.C = C
        self.quantile = check_number("quantile", quantile, above=0, below=1)
        self.at = check_number("at", at, above=0, below=1)
        self.center = check_bool("center", center)
        if C is not None:
            self.C = check_constant("C", C, self.axis, above=0)
            if center:
                raise ValueError(f"`center` must be False where `C` is given. Received: center={center!r}, C={C!r}")
            self._given = (("center", np.zeros(())), ("scale", self.C))

    def constant_shapes(self, features):
        return {"center": (features,), "scale": (features,)}

    def constants_from(self, statistics):
        quantiles = statistics.quantiles.quantile(GRID)
        center = quantiles[len(GRID) // 2] if self.center else np.zeros(quantiles.shape[1])
        scale = size_quantile(quantiles, center, self.quantile) / math.atanh(self.at)
        if self.center:  # what is left of a constant feature is rounding
            scale = np.where(statistics.moments.constant, 0.0, scale)
        return {"center": center, "scale": scale}

    def scale_values(self, xp, x, constants):
        return tanh_scale(xp, x, **constants)

    def unscale_values(self, xp, y, constants):
        return tanh_unscale(xp, y, **constants)

    def get_config(self):
        C = None if self.C is None else self.C.tolist()
        return {**super().get_config(), "C": C, "quantile": self.quantile, "at": self.at, "center": self.center}
