"""Notice that the inputs of evaluation and prediction do not look like those of training."""

import warnings

import keras
import numpy as np

from tf_tricks._backend import BACKEND, jax, tf
from tf_tricks.fit_hooks.running_evaluation import call_at_end
from tf_tricks.layers.scaling._match import GRID, ROUNDING, Moved, accumulate, moved_features
from tf_tricks.layers.scaling._namespaces import OPS, namespace_of
from tf_tricks.layers.scaling._scaling_layer import ScalingLayer

LISTED = 10  # features in a warning
STASH = 1 << 16  # values that wait on Torch: its kernels cost microseconds each, so a few small batches share them


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

    The warning comes at the end of `evaluate`, also that of `fit`, and of `predict`, once; a second `adapt` lets it
    come again. The whole run is judged, and alone; under `MirroredStrategy` what the first replica saw. No step of XLA
    can call the host on TensorFlow, so the counts are in a weight until then. `predict_on_batch`, and calls of your
    own, have no end: call `check()` after them, or what they saw is judged with the next run. Inside `tf.data` nothing
    is looked at. The model's compiled `test_function` and `predict_function` stay in a wrapper that tells of their
    runs, until the model is compiled again.

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
        self._stash, self._stashed = [], 0  # on Torch: batches that are not in it yet, and how many values

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
        # A step that is traced lives on after the next `adapt`, whatever was found before it.
        is_looking = not training and (self._found is None or _is_traced(inputs))
        if is_looking and 0 not in tuple(inputs.shape) and not _is_in_tf_data():
            self._look_at(inputs)
        return inputs

    def inverse(self, y):
        """Return `y`: the layer hands its inputs through."""
        if isinstance(y, dict):
            self._check_names(y)
        return y

    def compute_output_spec(self, inputs, training=None):
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, x.dtype), inputs)

    def _look_at(self, inputs):
        if getattr(getattr(inputs, "device", None), "type", None) == "meta":
            return  # Torch, when Keras asks for a shape
        order = [each for each in range(len(inputs.shape)) if each not in self._kept] + list(self._kept)
        inputs = keras.ops.stop_gradient(inputs)
        columns = keras.ops.reshape(keras.ops.transpose(inputs, order), (-1, self._features))
        rows = 1 if 0 in self._kept else keras.ops.shape(inputs)[0]
        if BACKEND == "torch":
            self._put_on_stash(columns, rows)
        else:
            self._accumulate(columns, rows)
        call_at_end(self.check, compiled=_is_traced(columns))

    def _put_on_stash(self, columns, rows):
        if self._stash and self._stash[0][0].dtype != columns.dtype:
            self._accumulate_stash()
        self._stashed += columns.shape[0] * columns.shape[1]
        if self._stashed < STASH:
            columns = keras.ops.copy(columns)  # whoever made the batch may write the next one into it
        self._stash.append((columns, rows))
        if self._stashed >= STASH:
            self._accumulate_stash()

    def _accumulate_stash(self):
        stash, self._stash, self._stashed = self._stash, [], 0
        if stash:
            columns, rows = zip(*stash, strict=True)
            columns = keras.ops.concatenate([keras.ops.transpose(each) for each in columns], axis=1)
            self._accumulate(columns, sum(rows), axis=1)

    def _accumulate(self, columns, rows, axis=0):
        rounding = ROUNDING.get(keras.backend.standardize_dtype(columns.dtype), 2.0**-23)
        seen, quantiles = keras.ops.convert_to_tensor(self._seen), self._constants(OPS, "float32")["quantiles"].high
        self._seen.assign(accumulate(seen, keras.ops.cast(columns, "float32"), rows, quantiles, rounding, axis))

    def check(self):
        """Judge now what was seen since the last judgement, warn unless that was done, and return what was found.

        Returns:
            tuple of `Moved`, empty if all matched since `adapt`; a dict of them for a dict of features.
        """
        if self._parts:
            return {name: part.check() for name, part in self._parts.items()}
        if self._seen is not None and self._found is None and self._is_known():
            self._accumulate_stash()
            seen = keras.ops.convert_to_numpy(self._seen).astype("float64")
            if seen[0].any():
                self._forget()
                self._judge(seen)
        return self._found or ()

    def _judge(self, seen):
        constants = self._host_constants()
        count, mean, quantiles = (
            constants[name].astype("float64").sum(axis=0) for name in ("count", "mean", "quantiles")
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

    def _forget(self):
        self._found, self._stash, self._stashed = None, [], 0
        if self._seen is not None:
            self._seen.assign(np.zeros(self._seen.shape, "float32"))

    def _set(self, constants):
        super()._set(constants)
        self._forget()

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self._forget()
