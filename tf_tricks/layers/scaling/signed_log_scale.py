"""A logarithm for both signs and for zero."""

import keras
import numpy as np

from tf_tricks._checks import check_one_of
from tf_tricks.layers.scaling._constants import check_constant, reciprocal
from tf_tricks.layers.scaling._scaling_layer import ScalingLayer
from tf_tricks.layers.scaling.tanh_scale import GRID, size_quantile

KINDS = ("asinh", "log1p")


def signed_log(xp, x, scale, kind):
    """`asinh(x / scale)`, or `log1p(|x| / scale)` with the sign of `x`."""
    size = xp.abs(x) * reciprocal(xp, scale.high)  # odd functions: of the size, they have no cancellation to fear
    return xp.sign(x) * (xp.arcsinh(size) if kind == "asinh" else xp.log1p(size))


def signed_exp(xp, y, scale, kind):
    size = xp.abs(y)
    return xp.sign(y) * (xp.sinh(size) if kind == "asinh" else xp.expm1(size)) * scale.high


@keras.saving.register_keras_serializable(package="tf_tricks")
class SignedLogScale(ScalingLayer):
    """Take the logarithm of each feature, of either sign, for values over many orders of magnitude.

    Linear up to about `scale`, logarithmic above: "asinh" gives `asinh(x / scale)`, which is `log(2 x / scale)` for
    large `x`; "log1p" gives `sign(x) * log(1 + |x| / scale)`. Order, sign and zero are kept.

    Args:
        kind: "asinh" (smooth at 0) or "log1p" (the second derivative jumps there).
        scale: positive number, or an array of one for each feature, in the unit of the feature; None: `adapt` takes
            the median of `|x|` (of the values other than 0 where that is 0). 1.0 needs no `adapt`.
        axis: int, tuple of int or None, the axes that keep their own scale for each index; None: one for all values.
        kwargs: `name`, `dtype` and so on, as any layer has them.
    Shape:
        `(batch, ...)` of any real dtype -> same shape, compute dtype, dimensionless.
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the layer has no statistics yet.
    Reference:
        Burbidge, Magee and Robb (1988), JASA 83(401) (asinh); John and Draper (1980), Applied Statistics 29(2) (log1p).
    Example:
        >>> layer = SignedLogScale("log1p", scale=1.0)
        >>> y = keras.ops.convert_to_numpy(layer(np.array([[-1e6], [0.0], [1e6]])))
        >>> [round(float(each), 2) for each in y.ravel()]
        [-13.82, 0.0, 13.82]
    """

    kinds = ("quantiles",)

    def __init__(self, kind="asinh", scale=None, axis=-1, **kwargs):
        super().__init__(axis, **kwargs)
        self.kind = check_one_of("kind", kind, KINDS)
        self.scale = scale
        if scale is not None:
            self.scale = check_constant("scale", scale, self.axis, above=0)
            self._given = (("scale", self.scale),)

    def constant_shapes(self, features):
        return {"scale": (features,)}

    def constants_from(self, statistics):
        quantiles = statistics.quantiles.quantile(GRID)
        return {"scale": size_quantile(quantiles, np.zeros(quantiles.shape[1]), 0.5)}

    def scale_values(self, xp, x, constants):
        return signed_log(xp, x, constants["scale"], self.kind)

    def unscale_values(self, xp, y, constants):
        return signed_exp(xp, y, constants["scale"], self.kind)

    def get_config(self):
        scale = None if self.scale is None else self.scale.tolist()
        return {**super().get_config(), "kind": self.kind, "scale": scale}
