"""Notice that the inputs of evaluation and prediction do not look like those of training."""

import warnings
from typing import NamedTuple

import keras
import numpy as np

from tf_tricks._backend import BACKEND, jax, tf
from tf_tricks.layers.scaling._namespaces import OPS, namespace_of
from tf_tricks.layers.scaling._scaling_layer import ScalingLayer

GRID = np.linspace(0, 1, 11)
FEWEST = 32  # rows, of training and of evaluation: fewer say too little
DISTANCE = 0.15  # by which the share of the values below some quantile may be off in the long run
CHANCE = 1.5  # the same, for what chance adds: this over the root of the number of rows
MANY = 128  # rows after which the outer tenths of the training data should have been seen: 0.9**128 = 1e-6
NARROW = 0.02  # least width of all values then, as a share of the width of the inner eight tenths
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # relative error of inputs that were cast on the way
LISTED = 10  # features in a warning


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


def accumulate(seen, columns, rows, quantiles, rounding):
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
    """
    ops = keras.ops
    valid = ops.logical_not(ops.isnan(columns))
    count = ops.sum(ops.cast(valid, columns.dtype), axis=0)
    minimum = ops.min(ops.where(valid, columns, np.inf), axis=0)
    maximum = ops.max(ops.where(valid, columns, -np.inf), axis=0)
    slack = rounding * ops.abs(quantiles)
    low, high = quantiles - slack, quantiles + slack
    sums = [ops.sum(ops.where(valid, columns, 0.0), axis=0)]
    sums += [ops.sum(ops.cast(columns < low[i], columns.dtype), axis=0) for i in range(len(GRID))]
    sums += [ops.sum(ops.cast(columns <= high[i], columns.dtype), axis=0) for i in range(len(GRID))]
    total = seen[0] + count
    rates = ops.stack(sums) / ops.maximum(count, 1)
    rates = seen[4:] + (rates - seen[4:]) * (count / ops.maximum(total, 1))
    begun = seen[0] > 0
    minimum = ops.where(begun, ops.minimum(seen[2], minimum), minimum)
    maximum = ops.where(begun, ops.maximum(seen[3], maximum), maximum)
    number = ops.cast(ops.maximum(ops.shape(columns)[0], 1), columns.dtype)
    rows = seen[1] + count * ops.cast(rows, columns.dtype) / number
    return ops.concatenate([ops.stack([total, rows, minimum, maximum]), rates])


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


def _is_traced(x):
    """Is `x` in a step that is compiled, where the host cannot see values?"""
    return (BACKEND == "tensorflow" and not tf.executing_eagerly()) or (
        BACKEND == "jax" and isinstance(x, jax.core.Tracer)
    )


def _is_in_tf_data():
    """Does TensorFlow trace a function of a `tf.data.Dataset`? Their graphs are named after `Dataset.map` and so on."""
    graph = tf.compat.v1.get_default_graph() if BACKEND == "tensorflow" and tf.inside_function() else None
    while graph is not None:
        if getattr(graph, "name", "").startswith("Dataset_"):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


@keras.saving.register_keras_serializable(package="tf_tricks")
class MatchCheck(ScalingLayer):
    """Hand the inputs through, and warn once if those of evaluation or prediction are not like those of training.

    Test inputs that are scaled otherwise than the training inputs are the most common silent bug. `adapt` remembers
    eleven quantiles of each feature. Outside of training the layer counts, on the device and over all batches, the
    values below each. A feature moved if one of these shares is off by more than 0.15 + 1.5 sqrt(1/n + 1/m), for `n`
    rows of evaluation and `m` of training (0.2 for 2000 rows of each); if all values of 128 or more rows
    lie within 2 % of the width of the inner eight tenths of the training data; or if a value is infinite. With fewer
    than 32 rows on either side nothing is judged. The warning names the features with both means and both ranges.

    The order of the data does not matter, nor do a few outliers. It cannot see: a change of less than about a sixth of
    the values; a factor below 2.5 of a normal feature with mean 0 (a factor of 3 takes about 300 rows, one of 10 takes
    64); a change that keeps each feature's distribution, such as swapped rows; an offset below float32's precision. A
    test set that really is another one, a single class for instance, is reported too.

    When the warning comes, on every backend: at the end of `evaluate`, also that of `fit`, when Keras asks the layer
    for its `metrics`. No step of XLA can call the host on TensorFlow, so the counts are in a weight until then. After
    `predict`, or calls of your own, Keras asks for nothing: call `check()`, or wait for the next `evaluate` or `fit`.
    Each evaluation is judged alone; under `MirroredStrategy` by what its first replica saw. On Torch, and with
    `run_eagerly=True`, Keras asks after each batch and once more at the end: the layer must not be inside of another
    layer of your own (in a model it may be), else that comes twice, and each batch is judged alone. Inside `tf.data`
    nothing is looked at.

    Args:
        axis: int, tuple of int or None, the axes that are compared for each index; None: all values are one feature.
        kwargs: `name` and so on, as any layer has them.
    Shape:
        `(batch, ...)` of any real dtype -> the same, unchanged.
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the layer has no statistics yet.
    Reference:
        Sculley et al. (2015), Hidden Technical Debt in Machine Learning Systems, section 5 (input signals that change);
        Breck et al. (2019), Data Validation for Machine Learning, section 4; Massart (1990), Annals of Probability
        18(3) (how far chance moves such shares).
    Example:
        >>> layer = MatchCheck()
        >>> layer.adapt(np.random.default_rng(0).uniform(0, 255, (1000, 1)))
        >>> _ = layer(np.random.default_rng(1).uniform(0, 1, (64, 1)))
        >>> import warnings
        >>> with warnings.catch_warnings(action="ignore"):
        ...     [moved.feature for moved in layer.check()]
        [0]
    """

    kinds = ("moments", "quantiles")

    def __init__(self, axis=-1, **kwargs):
        super().__init__(axis, **kwargs)
        self._found = None  # a tuple of `Moved` once there was an evaluation that did not match
        self._seen = None  # the weight with what was seen since the last judgement, as `accumulate` returns it
        self._is_waiting = False  # is there something to judge? A step that is compiled cannot tell
        self._asked = True  # did Keras ask for the metrics since that call?

    def constant_shapes(self, features):
        return {"count": (features,), "mean": (features,), "quantiles": (len(GRID), features)}

    def constants_from(self, statistics):
        moments = statistics.moments
        return {"count": moments.count, "mean": moments.mean, "quantiles": statistics.quantiles.quantile(GRID)}

    def build(self, input_shape):
        super().build(input_shape)
        if not self._parts:
            self._seen = self.add_weight(
                shape=(5 + 2 * len(GRID), self._features),
                initializer="zeros",
                dtype="float32",
                trainable=False,
                autocast=False,
                aggregation="only_first_replica",
                name="seen",
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
        if not training and self._found is None and 0 not in tuple(inputs.shape) and not _is_in_tf_data():
            self._look_at(inputs)
        return inputs

    def compute_output_spec(self, inputs, training=None):
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), inputs)

    def _look_at(self, inputs):
        if getattr(getattr(inputs, "device", None), "type", None) == "meta":
            return  # Torch, when Keras asks for a shape
        order = [each for each in range(len(inputs.shape)) if each not in self._kept] + list(self._kept)
        columns = keras.ops.reshape(keras.ops.transpose(inputs, order), (-1, self._features))
        columns = keras.ops.stop_gradient(keras.ops.cast(columns, "float32"))
        rows = 1 if 0 in self._kept else keras.ops.shape(inputs)[0]
        seen, quantiles = keras.ops.convert_to_tensor(self._seen), self._constants(OPS, "float32")["quantiles"].high
        rounding = ROUNDING.get(keras.backend.standardize_dtype(inputs.dtype), 2.0**-23)
        self._seen.assign(accumulate(seen, columns, rows, quantiles, rounding))
        self._is_waiting = True
        self._asked = _is_traced(columns) or BACKEND == "jax"  # whose steps ask where nothing can be read

    def check(self):
        """Judge now what was seen since the last judgement, warn unless that was done, and return what was found.

        Returns:
            tuple of `Moved`, empty if all matched since `adapt`; a dict of them for a dict of features.
        """
        if self._parts:
            return {name: part.check() for name, part in self._parts.items()}
        if self._seen is not None and self._found is None and self._is_known():
            self._is_waiting = False
            seen = keras.ops.convert_to_numpy(self._seen).astype("float64")
            if seen[0].any():
                self._forget()
                self._judge(seen)
        return self._found or ()

    def _judge(self, seen):
        count, mean, quantiles = (
            self._host_constants()[name].astype("float64").sum(axis=0) for name in ("count", "mean", "quantiles")
        )
        features = np.flatnonzero(moved_features(seen, count, quantiles))
        if not features.size:
            return
        table = np.stack([seen[4], seen[2], seen[3], mean, quantiles[0], quantiles[-1]])
        self._found = tuple(Moved(int(i), *table[:, i].tolist()) for i in features)
        lines = [str(moved) for moved in self._found[:LISTED]]
        if len(self._found) > LISTED:
            lines.append(f"and {len(self._found) - LISTED} more")
        warnings.warn(
            f"MatchCheck {self.name!r}: {len(self._found)} of {self._features} features do not look like the training "
            "data. Are they scaled in the same way?\n  " + "\n  ".join(lines),
            stacklevel=3,
        )

    @property
    def metrics(self):
        """Those of any layer: none. Keras asks for them at the end of `evaluate`, which is the time to look."""
        try:
            readable = self._seen is not None and not _is_traced(self._seen.value)
        except TypeError:  # on JAX, Keras takes the values out of the variables while steps run
            readable = False
        if readable and (self._is_waiting or BACKEND != "torch"):  # on Torch Keras asks in each step of training, too
            if self._asked:
                self.check()
            self._asked = True
        return super().metrics

    def _forget(self):
        self._found, self._is_waiting = None, False
        if self._seen is not None:
            self._seen.assign(np.zeros(self._seen.shape, "float32"))

    def _set(self, constants):
        super()._set(constants)
        self._forget()

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self._forget()
