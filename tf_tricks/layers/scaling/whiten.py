"""Uncorrelated features of unit variance."""

import keras
import numpy as np

from tf_tricks._checks import check_integer, check_number, check_one_of, check_optional
from tf_tricks.layers.scaling._constants import Split
from tf_tricks.layers.scaling._features import kept_axes
from tf_tricks.layers.scaling._scaling_layer import ScalingLayer

KINDS = ("pca", "zca")


def whitening(covariance, kind, epsilon, num_components):
    """The matrix that whitens rows, and the one that undoes it; float64.

    Directions in which the data has no variance come out as 0: what rounding left of it is not blown up.

    Args:
        covariance: array (features, features).
        kind: "pca" | "zca".
        epsilon: float >= 0, added to the variance of each direction.
        num_components: int, how many directions of the largest variance "pca" keeps.
    Returns:
        arrays (features, components) and (components, features); components are all features for "zca".
    """
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = np.maximum(variances[::-1], 0), directions[:, ::-1]
    # The sign of a direction is arbitrary: its largest entry becomes positive, so that two runs agree.
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.sign(directions[largest, np.arange(len(covariance))])
    widths = np.sqrt(variances + epsilon)
    rounding = len(covariance) * np.finfo("float64").eps * variances[:1].max(initial=0)
    some = variances + epsilon > rounding
    widths = np.where(some, widths, 0.0)
    scales = np.divide(1, widths, out=np.zeros_like(widths), where=some)
    if kind == "zca":
        return directions * scales @ directions.T, directions * widths @ directions.T
    directions, widths, scales = directions[:, :num_components], widths[:num_components], scales[:num_components]
    return directions * scales, (directions * widths).T


def flat(xp, mean):
    return Split(xp.reshape(mean.high, (-1,)), xp.reshape(mean.low, (-1,)))


@keras.saving.register_keras_serializable(package="tf_tricks")
class Whiten(ScalingLayer):
    """Rotate and scale the features so that they are uncorrelated and of unit variance.

    "pca" gives the principal components, largest first, on the last axis; "zca" turns them back, which stays as close
    to the inputs as whitening can, and keeps the shape. Directions without variance come out as 0.

    With `patch_size` an image is cut into tiles that do not overlap, and each tile is whitened as one row of
    `patch_size * patch_size * channels` features: "zca" gives an image again, "pca" one vector a tile.

    `inverse` multiplies with the inverse matrix. It is exact, but for directions without variance (they come back as
    the mean) and for components that `num_components` leaves out (the nearest inputs that have none of them).

    Directions whose variance is below the roundings of the largest one, and features that are constant but for
    roundings, come out as 0 as well: features in units 1e8 times apart go through `Standardize` first.

    Rows with a missing value are left out of the statistics. Where some directions have a millionth of the variance of
    others, float32 inputs have no digits left for them: `epsilon` says what to take for noise. On GPUs, matrix products
    in TensorFloat-32 keep three digits; Keras's backends say how to switch that off.

    Args:
        kind: "pca" or "zca".
        epsilon: float >= 0, added to the variance of each direction, in the squared unit of the features; for images
            in [0, 1] 0.001 to 0.1.
        num_components: int >= 1 or None, how many components "pca" keeps; None: all.
        patch_size: int >= 1 or None, height and width of the tiles of images `(batch, height, width, channels)`, whose
            sizes it must divide; None: the features are those along `axis`.
        data_format: "channels_last", "channels_first" or None, where images have their channels; None: as Keras is
            set. Only for `patch_size`.
        axis: int, tuple of int or None, the axes that the features lie along; None: nothing to rotate, one feature.
        kwargs: `name`, `dtype` and so on, as any layer has them.
    Shape:
        "zca": `(batch, ...)` of any real dtype -> same shape, compute dtype, dimensionless.
        "pca": the axes that are not features, then the components; with `patch_size` `(batch, rows of tiles, columns of
        tiles, components)`.
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the layer has no statistics yet.
    Reference:
        Kessy, Lewin and Strimmer (2018), Optimal Whitening and Decorrelation, The American Statistician 72(4);
        Coates, Lee and Ng (2011), section 3.1 (patches and epsilon).
    Example:
        >>> layer = Whiten("zca")
        >>> layer.adapt(x)
        >>> y = keras.ops.convert_to_numpy(layer(x))
        >>> bool(np.allclose(np.cov(y.T, bias=True), np.eye(4), atol=1e-4))
        True
    """

    kinds = ("moments", "covariance")

    def __init__(
        self, kind="pca", epsilon=0.0, num_components=None, patch_size=None, data_format=None, axis=-1, **kwargs
    ):
        super().__init__(axis, **kwargs)
        self.kind = check_one_of("kind", kind, KINDS)
        self.epsilon = check_number("epsilon", epsilon, above=0, closed="[")
        self.num_components = check_optional(check_integer, "num_components", num_components, 1)
        self.patch_size = check_optional(check_integer, "patch_size", patch_size, 1)
        check_one_of("data_format", data_format, (None, "channels_last", "channels_first"))
        self.data_format = data_format or keras.config.image_data_format()
        if kind == "zca" and num_components is not None:
            raise ValueError(
                f"`num_components` must be None for kind='zca'. Received: num_components={num_components!r}"
            )
        if patch_size is not None and self.axis != -1:
            raise ValueError(f"`axis` must be left at -1 where `patch_size` is given. Received: axis={axis!r}")

    # --- patches: an image is seen with the rows and columns of tiles as axes of their own -----------------------

    def view_shape(self, shape):
        if self.patch_size is None:
            return tuple(shape)
        first = len(shape) - (3 if self.data_format == "channels_last" else 2)
        sides = shape[first : first + 2]
        if first < 0 or any(isinstance(side, int) and side % self.patch_size for side in sides):
            raise ValueError(
                f"`patch_size` must divide height and width of images, of shape {tuple(shape)} in {self.data_format}. "
                f"Received: patch_size={self.patch_size}"
            )
        rows, columns = (None if side is None else side // self.patch_size for side in sides)
        return (*shape[:first], rows, self.patch_size, columns, self.patch_size, *shape[first + 2 :])

    @property
    def view_axis(self):
        if self.patch_size is None:
            return self.axis
        return (-4, -2, -1) if self.data_format == "channels_last" else (-5, -3, -1)

    def _joined(self, view):
        """The shape of inputs whose view has the shape `view`."""
        if self.patch_size is None:
            return view
        first = len(view) - (5 if self.data_format == "channels_last" else 4)
        return (*view[:first], view[first] * self.patch_size, view[first + 2] * self.patch_size, *view[first + 4 :])

    def _order(self, ndim):
        """The axes of a view of `ndim` axes: those that are no features, then those that are."""
        missing = len(self.view_shape(self._shape)) - ndim  # a single row lacks the axis of the batch
        kept = [each - missing for each in self._kept]
        return [each for each in range(ndim) if each not in kept], kept

    # --- constants ------------------------------------------------------------------------------------------------

    def _components(self, features):
        components = self.num_components or features
        if components > features:
            raise ValueError(
                f"`num_components` must be at most the number of features, {features}. "
                f"Received: num_components={components}"
            )
        return components

    def constant_shapes(self, features):
        components = self._components(features)
        return {"mean": (features,), "matrix": (features, components), "inverse_matrix": (components, features)}

    def constants_from(self, statistics):
        covariance = statistics.covariance
        components = self._components(len(covariance.mean))
        constant = statistics.moments.constant
        varies = np.outer(~constant, ~constant)  # the variance of a constant feature is rounding, and no direction
        variances = np.where(varies, covariance.covariance, 0.0)
        matrix, inverse = whitening(variances, self.kind, self.epsilon, components)
        mean = np.where(constant, statistics.moments.minimum, covariance.mean)
        return {"mean": mean, "matrix": matrix, "inverse_matrix": inverse}

    # --- call -----------------------------------------------------------------------------------------------------

    def _rows(self, xp, x):
        """The features of each row or tile, `(rows, features)`, and the sizes of the axes that are no features."""
        view = self.view_shape(xp.shape(x))
        rest, kept = self._order(len(view))
        x = xp.transpose(xp.reshape(x, view), [*rest, *kept])
        return xp.reshape(x, (-1, self._features)), tuple(view[each] for each in rest)

    def _inputs(self, xp, rows, sizes):
        """The inverse of `_rows`."""
        rest, kept = self._order(len(sizes) + len(self._kept))
        order = [*rest, *kept]
        x = xp.transpose(xp.reshape(rows, (*sizes, *self._kept_shape)), [order.index(each) for each in sorted(order)])
        return xp.reshape(x, self._joined(xp.shape(x)))

    def scale_values(self, xp, x, constants):
        rows, sizes = self._rows(xp, x)
        y = xp.matmul(flat(xp, constants["mean"]).subtracted_from(rows), constants["matrix"].high)
        return xp.reshape(y, (*sizes, y.shape[-1])) if self.kind == "pca" else self._inputs(xp, y, sizes)

    def unscale_values(self, xp, y, constants):
        if self.kind == "pca":
            rows, sizes = xp.reshape(y, (-1, y.shape[-1])), tuple(xp.shape(y)[:-1])
        else:
            rows, sizes = self._rows(xp, y)
        x = flat(xp, constants["mean"]).added_to(xp.matmul(rows, constants["inverse_matrix"].high))
        return self._inputs(xp, x, sizes)

    def inverse(self, y):
        if not self.built and self.kind == "pca":
            raise ValueError(f"Whiten {self.name!r} does not know the shape of its inputs yet: call or adapt it first.")
        return super().inverse(y)

    def compute_output_shape(self, input_shape):
        if self.kind == "zca":
            return input_shape
        if isinstance(input_shape, dict):
            return {name: self.compute_output_shape(shape) for name, shape in input_shape.items()}
        view = self.view_shape(input_shape)
        kept = kept_axes(self.view_axis, view)
        features = int(np.prod([view[each] for each in kept], dtype=int))
        return (*(view[each] for each in range(len(view)) if each not in kept), self._components(features))

    def get_config(self):
        arguments = {
            "kind": self.kind,
            "epsilon": self.epsilon,
            "num_components": self.num_components,
            "patch_size": self.patch_size,
            "data_format": self.data_format,
        }
        return {**super().get_config(), **arguments}
