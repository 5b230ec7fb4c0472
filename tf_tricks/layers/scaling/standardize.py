"""Zero mean and unit variance."""

import keras
import numpy as np

from tf_tricks._checks import check_bool
from tf_tricks.layers.scaling._constants import check_constant, reciprocal
from tf_tricks.layers.scaling._scaling_layer import ScalingLayer


def standardize(xp, x, mean, stddev):
    return mean.subtracted_from(x) * reciprocal(xp, stddev.high)


def destandardize(xp, y, mean, stddev):
    return mean.added_to(y * stddev.high)


@keras.saving.register_keras_serializable(package="tf_tricks")
class Standardize(ScalingLayer):
    """Map each feature to zero mean and unit variance: `(x - mean) / stddev`.

    Takes the arguments and the data that `keras.layers.Normalization` takes, and differs where that one goes wrong:

    - A constant feature (equal but for the last bits, too) comes out as 0, and stays 0 on values that were not seen in
      training; `inverse` gives its training value back. Keras divides by 1e-7.
    - Mean and variance are exact also where the mean is large (Keras: in the compute dtype); NaN is left out of them
      and stays NaN in the output.
    - The inputs are scaled in float32 at least (float64 where they are), and cast to the compute dtype afterwards. That
      is too late where Keras has cast them before: under mixed_float16 it casts the inputs of a subclassed model, and
      of a `Sequential` without `keras.Input`, to float16 before any layer runs. Begin with `keras.Input` there.
    - Scalars in a batch, shape `(batch,)`, are one feature.

    Args:
        axis: int, tuple of int or None, the axes that keep their own mean and variance for each index; None: one mean
            and variance for all values.
        mean, variance: numbers or arrays that broadcast to the sizes of the kept axes, in the unit of the feature and
            its square; variance >= 0. Both or none; none: `adapt` learns them.
        invert: bool. True: the layer undoes the scaling, `x * stddev + mean`, and `inverse` does it.
        kwargs: `name`, `dtype` and so on, as any layer has them.
    Shape:
        `(batch, ...)` of any real dtype -> same shape, compute dtype, dimensionless.
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the layer has no statistics yet.
    Reference:
        LeCun, Bottou, Orr and Mueller (1998), Efficient BackProp, section 4.3.
    Example:
        >>> layer = Standardize()
        >>> layer.adapt(np.array([[1.0, 7.0], [3.0, 7.0]]))
        >>> keras.ops.convert_to_numpy(layer(np.array([[5.0, 8.0]]))).tolist()
        [[3.0, 0.0]]
    """

    def __init__(self, axis=-1, mean=None, variance=None, invert=False, **kwargs):
        super().__init__(axis, **kwargs)
        self.invert = check_bool("invert", invert)
        self.subtracts_first = not invert
        self.input_mean, self.input_variance = mean, variance
        if (mean is None) != (variance is None):
            raise ValueError(
                "`mean` must come with `variance`: both `mean` and `variance` must be set, or none. "
                f"Received: mean={mean!r}, variance={variance!r}"
            )
        if mean is not None:
            self.input_mean = check_constant("mean", mean, self.axis)
            self.input_variance = check_constant("variance", variance, self.axis, minimum=0)
            if self.input_mean.shape != self.input_variance.shape:
                raise ValueError(
                    f"`mean` must have the same shape as `variance`. Received: mean={mean!r}, variance={variance!r}"
                )
            self._given = (("mean", self.input_mean), ("stddev", np.sqrt(self.input_variance)))

    @property
    def mean(self):
        """float64 array of the rank of the inputs, or None before it is known."""
        return self.constant("mean")

    @property
    def variance(self):
        """float64 array of the rank of the inputs, or None before it is known."""
        stddev = self.constant("stddev")
        return None if stddev is None else stddev**2

    def constant_shapes(self, features):
        return {"mean": (features,), "stddev": (features,)}

    def constants_from(self, statistics):
        moments = statistics.moments
        constant = moments.constant
        # The mean of equal values may differ from them by a rounding.
        return {
            "mean": np.where(constant, moments.minimum, moments.mean),
            "stddev": np.where(constant, 0.0, moments.stddev),
        }

    def scale_values(self, xp, x, constants):
        return (destandardize if self.invert else standardize)(xp, x, **constants)

    def unscale_values(self, xp, y, constants):
        return (standardize if self.invert else destandardize)(xp, y, **constants)

    def get_config(self):
        given = {"mean": self.input_mean, "variance": self.input_variance}
        given = {name: None if value is None else value.tolist() for name, value in given.items()}
        return {**super().get_config(), **given, "invert": self.invert}
