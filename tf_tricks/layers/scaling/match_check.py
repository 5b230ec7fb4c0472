"""Notice that the inputs of evaluation and prediction do not look like those of training."""

import warnings
from typing import NamedTuple

import keras
import numpy as np

from tf_tricks._backend import BACKEND, jax, tf
from tf_tricks.layers.scaling._namespaces import OPS, namespace_of
from tf_tricks.layers.scaling._scaling_layer import ScalingLayer

GRID = np.linspace(0, 1, 21)
FEWEST = 32  # values of a feature: a batch with fewer of them says too little
SHIFT = 2.0  # standard deviations that a mean may move, beyond four standard errors
RARE = 0.1  # of the training range, taken for the standard deviation where that is less: most values are equal then
NARROW = 0.02  # least width of a batch, as a share of the width of nine tenths of the training data
OUTSIDE = 0.2  # share of values that may lie outside the range of the training data
LISTED = 10  # features in a warning


class Moved(NamedTuple):
    """A feature whose distribution moved, as `MatchCheck` found it.

    Attributes:
        feature: int, its index.
        mean, minimum, maximum: float, of the first batch that did not match, in the unit of the feature.
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


def compare(columns, mean, stddev, quantiles):
    """Which features of a batch do not match the training data.

    Returns a tensor (7, features): 1 where it moved; mean, minimum, maximum of the batch; those of the training data.

    Any one of four is enough: the mean is far off; many values lie outside of the training range; all values lie where
    a twentieth of the training data did, at most; or they differ, but hardly. That is what another unit or scale does
    to a feature, and what a batch that holds one class only, or a rare value not at all, does not do.

    Args:
        columns: tensor (n, features), NaN where missing.
        mean, stddev: tensors (features,) of the training data.
        quantiles: tensor (len(GRID), features), its quantiles at GRID.
    """
    ops = keras.ops
    valid = ops.logical_not(ops.isnan(columns))
    count = ops.sum(ops.cast(valid, columns.dtype), axis=0)
    share = ops.maximum(count, 1)
    low, high = quantiles[0], quantiles[-1]
    difference = ops.sum(ops.where(valid, columns - mean, 0.0), axis=0) / share
    minimum = ops.min(ops.where(valid, columns, np.inf), axis=0)
    maximum = ops.max(ops.where(valid, columns, -np.inf), axis=0)
    outside = ops.sum(ops.cast(valid & ((columns < low) | (columns > high)), columns.dtype), axis=0) / share
    held = ops.sum(ops.cast((quantiles >= minimum) & (quantiles <= maximum), columns.dtype), axis=0)
    spread = ops.maximum(stddev, RARE * (high - low))
    far = (spread > 0) & (ops.abs(difference) > spread * (SHIFT + 4 / ops.sqrt(share)))
    narrow = (maximum > minimum) & (maximum - minimum < NARROW * (quantiles[-2] - quantiles[1]))
    moved = (count >= FEWEST) & (far | (outside > OUTSIDE) | (held <= 1) | narrow)
    return ops.stack([ops.cast(moved, columns.dtype), mean + difference, minimum, maximum, mean, low, high])


def _is_traced(x):
    """Is `x` in a step that is compiled, where the host cannot see values?"""
    return (BACKEND == "tensorflow" and not tf.executing_eagerly()) or (
        BACKEND == "jax" and isinstance(x, jax.core.Tracer)
    )


def _values_are_made_up():
    """Does Keras call the layer with ones to learn the shape of its output, as it does on Torch?

    It does so in a stateless scope, where a variable cannot be made.
    """
    try:
        keras.Variable(0.0, trainable=False)
    except ValueError:
        return True
    return False


@keras.saving.register_keras_serializable(package="tf_tricks")
class MatchCheck(ScalingLayer):
    """Hand the inputs through, and warn once if those of evaluation or prediction are not like those of training.

    Test inputs that are scaled otherwise than the training inputs are the most common silent bug. `adapt` remembers
    mean, standard deviation and quantiles of each feature; outside of training, each batch with 32 or more values of a
    feature is compared with them on the device (`compare` says how). The warning names the features with both means and
    both ranges.

    When the warning comes:

    - Torch, and eagerly on every backend: in the call. The host waits for each batch of evaluation.
    - TensorFlow and JAX: at the end of `evaluate`, also that of `fit`. A step that XLA compiled cannot call the host on
      TensorFlow, and on JAX a call can block a step on several devices; so the layer keeps the first batch that did not
      match in a weight, and looks at it when Keras asks for its `metrics`. After `predict` Keras asks for nothing: call
      `check()`, or wait for the next `evaluate` or `fit`.

    Args:
        axis: int, tuple of int or None, the axes that are compared for each index; None: all values are one feature.
        kwargs: `name` and so on, as any layer has them.
    Shape:
        `(batch, ...)` of any real dtype -> the same, unchanged.
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the layer has no statistics yet.
    Reference:
        Sculley et al. (2015), Hidden Technical Debt in Machine Learning Systems, section 5 (input signals that change);
        Breck et al. (2019), Data Validation for Machine Learning, section 4.
    Example:
        >>> layer = MatchCheck()
        >>> layer.adapt(np.random.default_rng(0).uniform(0, 255, (1000, 1)))
        >>> import warnings
        >>> with warnings.catch_warnings(action="ignore"):
        ...     _ = layer(np.random.default_rng(1).uniform(0, 1, (64, 1)))
        >>> [moved.feature for moved in layer.check()]
        [0]
    """

    kinds = ("moments", "quantiles")

    def __init__(self, axis=-1, **kwargs):
        super().__init__(axis, **kwargs)
        self._found = None  # a tuple of `Moved` once there was a batch that did not match
        self._first = None  # the weight that holds that batch in a compiled step, as `compare` returns it

    def constant_shapes(self, features):
        return {"mean": (features,), "stddev": (features,), "quantiles": (len(GRID), features)}

    def constants_from(self, statistics):
        moments = statistics.moments
        return {"mean": moments.mean, "stddev": moments.stddev, "quantiles": statistics.quantiles.quantile(GRID)}

    def build(self, input_shape):
        super().build(input_shape)
        if not self._parts:
            self._first = self.add_weight(
                shape=(7, self._features),
                initializer="zeros",
                dtype="float32",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
                name="first_mismatch",
            )

    def call(self, inputs, training=None):
        if isinstance(inputs, dict):
            self._check_names(inputs)
            return {name: part(inputs[name], training=training) for name, part in self._parts.items()}
        if not self._is_known():
            raise ValueError(f"MatchCheck {self.name!r} has no statistics yet: call `adapt(data)`, or load weights.")
        if namespace_of(inputs) is not OPS:
            if not isinstance(inputs, np.ndarray | np.generic):
                return inputs  # inside tf.data
            inputs = keras.ops.convert_to_tensor(inputs)
        if not training and self._found is None and 0 not in tuple(inputs.shape):
            self._compare(inputs)
        return inputs

    def compute_output_spec(self, inputs, training=None):
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), inputs)

    def _compare(self, inputs):
        order = [each for each in range(len(inputs.shape)) if each not in self._kept] + list(self._kept)
        columns = keras.ops.reshape(keras.ops.transpose(inputs, order), (-1, self._features))
        constants = self._constants(OPS, "float32")
        mean, stddev = (keras.ops.reshape(constants[name].high, (-1,)) for name in ("mean", "stddev"))
        found = compare(keras.ops.cast(columns, "float32"), mean, stddev, constants["quantiles"].high)
        found = keras.ops.stop_gradient(found)
        if _is_traced(found):
            first = keras.ops.convert_to_tensor(self._first)
            self._first.assign(keras.ops.where(first[0] > 0, first, found))
        elif getattr(getattr(found, "device", None), "type", None) != "meta":  # Torch, when Keras asks for a shape
            self._report(keras.ops.convert_to_numpy(found))

    def _report(self, found):
        """Warn about what `compare` returned, if it says that a feature has moved and nothing was said before."""
        found = np.asarray(found, "float64")
        features = np.flatnonzero(found[0] > 0)
        if self._found is not None or not features.size or (BACKEND == "torch" and _values_are_made_up()):
            return
        self._found = tuple(Moved(int(i), *found[1:, i].tolist()) for i in features)
        lines = [str(moved) for moved in self._found[:LISTED]]
        if len(self._found) > LISTED:
            lines.append(f"and {len(self._found) - LISTED} more")
        warnings.warn(
            f"MatchCheck {self.name!r}: {len(self._found)} of {self._features} features do not look like the training "
            "data. Are they scaled in the same way?\n  " + "\n  ".join(lines),
            stacklevel=2,
        )

    def check(self):
        """Warn now about what was found since `adapt`, unless that was done, and return it.

        Returns:
            tuple of `Moved`, empty if all batches matched; a dict of them for a dict of features.
        """
        if self._parts:
            return {name: part.check() for name, part in self._parts.items()}
        if self._first is not None and self._found is None:
            self._report(keras.ops.convert_to_numpy(self._first))
        return self._found or ()

    @property
    def metrics(self):
        """Those of any layer: none. Keras asks for them at the end of `evaluate`, which is the time to look."""
        try:
            readable = self._first is not None and not _is_traced(self._first.value)
        except TypeError:  # on JAX, Keras takes the values out of the variables while steps run
            readable = False
        if readable:
            self.check()
        return super().metrics

    def _forget(self):
        self._found = None
        if self._first is not None:
            self._first.assign(np.zeros(self._first.shape, "float32"))

    def _set(self, constants):
        super()._set(constants)
        self._forget()

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self._forget()
