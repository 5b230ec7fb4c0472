"""What all scaling layers share: the constants come from statistics of the training data, in one pass over it."""

import copy

import numpy as np

from tf_tricks._checks import check_bool, check_integer, check_one_of, check_optional
from tf_tricks.layers.scaling._adapt_data import batches_of, count_batches, with_progress
from tf_tricks.layers.scaling._constants import check_float32
from tf_tricks.layers.scaling._constants_layer import ConstantsLayer
from tf_tricks.layers.scaling._features import columns_of, kept_axes
from tf_tricks.layers.scaling.statistics import Statistics

_ALONE = None  # the name of the features where they do not come in a dict


class ScalingLayer(ConstantsLayer):
    """Base of the layers that scale features with constants that come from statistics of the data.

    A subclass says which statistics it needs (`kinds`), which constants it makes of them (`constant_shapes`,
    `constants_from`) and how they are applied (`scale_values`, `unscale_values`). All else is here.

    Args:
        axis: int, tuple of int or None, the axes that keep their own statistics for each index; None: one for all.
    """

    kinds = ("moments",)

    def __init__(self, axis=-1, **kwargs):
        super().__init__(axis, **kwargs)
        self._statistics = None

    def constants_from(self, statistics):
        """A dict of the constants, float64 arrays, from a `Statistics` of the training data; what a subclass says."""
        raise NotImplementedError

    @property
    def statistics(self):
        """The `Statistics` of the last `adapt` or `from_statistics`, a dict of them for a dict of features, or None.

        They are kept in memory only, also by `copy.deepcopy` and `pickle` of the layer: a saved model holds the
        constants. `to_dict` turns them into JSON.
        """
        if self._parts:
            return {name: part.statistics for name, part in self._parts.items()}
        return self._statistics

    def adapt(self, data, steps=None, *, reset=True, verbose="auto"):
        """Learn the constants from `data` in one pass, with one batch in memory, and the one that is being made.

        Call it before `fit`, and before the layer is mapped over a `tf.data.Dataset`: on JAX and Torch such a pipeline
        keeps the constants that the layer had when it was traced. Data and constants may be up to 3.4e38 in size; below
        about 1e-31 they lose digits.

        Args:
            data: a NumPy array, a tensor, a `tf.data.Dataset`, a `keras.utils.PyDataset`, a DataLoader, or an iterable
                of batches; with or without labels. Or a dict of arrays, or batches that are dicts: each entry gets
                statistics of its own, and the layer takes and returns a dict. NaN counts as missing and is left out.
            steps: int >= 1 or None, the number of batches to look at; needed if the data has no end. None for a dict of
                arrays, which has no batches.
            reset: bool. True: start anew. False: go on, as if the data came behind that of the calls before.
            verbose: "auto", 0 or 1. A progress bar appears after three seconds, unless 0.
        Raises:
            TypeError, ValueError: an argument is out of range; the data is empty, a tuple of arrays, has no end and
                `steps` is None, holds an infinite value, a tuple of several inputs, a ragged batch, a feature without
                any value or another number of features than before. The layer is then as it was.
        """
        steps = check_optional(check_integer, "steps", steps, 1)
        check_bool("reset", reset)
        check_one_of("verbose", verbose, ("auto", 0, 1))
        self._refuse_if_given("adapt")
        found = {} if reset else self._statistics_so_far()
        shapes = {}
        for batch in with_progress(batches_of(data, steps), count_batches(data, steps), verbose):
            for name, columns in (batch if isinstance(batch, dict) else {_ALONE: batch}).items():
                self._update(found, shapes, name, columns)
        if not shapes:
            raise ValueError(f"`data` must hold at least one batch. Received: data={type(data).__name__} without any")
        self._take(found, shapes)

    def _statistics_so_far(self):
        so_far = self.statistics
        if so_far is None or (isinstance(so_far, dict) and None in so_far.values()):
            if self.built and self._is_known():
                raise ValueError(
                    f"{type(self).__name__}: `reset=False` has nothing to go on from: a file holds the constants, not "
                    "the statistics. Adapt to all of the data, or save `layer.statistics.to_dict()` as well and make "
                    "the layer with `from_statistics`."
                )
            return {}
        return copy.deepcopy(so_far if isinstance(so_far, dict) else {_ALONE: so_far})

    def _update(self, found, shapes, name, batch):
        if (self.built or self._parts) and (name is _ALONE) == bool(self._parts):
            takes = "a dict of features" if self._parts else "an array"
            raise ValueError(f"`data` must hold {takes}, as the layer was built. Received: data of another kind")
        if self._parts and name not in self._parts:
            raise ValueError(f"`data` must hold the features {', '.join(self._parts)}. Received: data with {name!r}")
        if batch.ndim == 0:
            raise ValueError(f"`data` must hold batches of at least one axis. Received: data with {batch!r}")
        layer = self._parts[name] if self._parts else self
        expected = shapes.setdefault(name, layer._shape if layer.built else batch.shape)
        if self._kept_sizes(batch.shape) != self._kept_sizes(expected):
            raise ValueError(
                f"`data` must match the shape {tuple(expected)}, this is an incompatible shape. Received: data with a "
                f"batch of shape {batch.shape}{'' if name is _ALONE else f' for {name!r}'}"
            )
        try:
            found.setdefault(name, Statistics(self.kinds)).update(self._columns(batch))
        except (TypeError, ValueError) as error:
            if name is _ALONE:
                raise
            raise type(error)(f"In feature {name!r}: {error}") from error

    def _columns(self, batch):
        view = batch.reshape(self.view_shape(batch.shape))
        return columns_of(view, kept_axes(self.view_axis, view.shape))

    def _kept_sizes(self, shape):
        view = self.view_shape(shape)
        return tuple(view[each] for each in kept_axes(self.view_axis, view))

    def _without_batch(self, shape):
        """`shape` with None for the batch, unless that axis is kept."""
        kept = kept_axes(self.view_axis, self.view_shape(shape))
        return tuple(shape) if 0 in kept else (None, *shape[1:])

    def _take(self, found, shapes):
        """Turn statistics into constants, of this layer or of one part for each name."""
        lacking = sorted(set(self._parts) - set(found))
        if lacking:
            raise ValueError(
                f"`data` must hold the features {', '.join(self._parts)}. Received: data without {lacking}"
            )
        constants = {name: self._checked(each) for name, each in found.items()}  # nothing has changed if one raises
        for name in found:
            self._parts.get(name, self)._pending = ()  # of a `from_statistics` before, over other features perhaps
        if not self.built:
            shapes = {name: self._without_batch(shape) for name, shape in shapes.items()}
            self.build(shapes.get(_ALONE, shapes))
        for name, statistics in found.items():
            layer = self._parts.get(name, self)
            layer._set(constants[name])
            layer._statistics = statistics

    def _checked(self, statistics):
        """The constants from `statistics`, if those are all that is needed."""
        if not hasattr(statistics, "features"):
            raise TypeError(f"`statistics` must be Statistics, or a dict of them. Received: statistics={statistics!r}")
        lacking = [kind for kind in self.kinds if getattr(statistics, kind, None) is None]
        if lacking:
            raise ValueError(
                f"`statistics` must hold {', '.join(self.kinds)}: Statistics(kinds={self.kinds!r}). "
                f"Received: statistics without {', '.join(lacking)}"
            )
        if statistics.features is None:
            raise ValueError("`statistics` must have seen data. Received: statistics of nothing")
        for kind in self.kinds:
            empty = np.flatnonzero(np.atleast_1d(getattr(statistics, kind).count) == 0)
            if empty.size and kind == "covariance":  # it counts rows
                raise ValueError("`data` must have a row without missing values. Received: data without one")
            if empty.size:
                raise ValueError(f"`data` must have a value for every feature. Received: data without one for {empty}")
        constants = self.constants_from(statistics)
        for name, value in constants.items():
            check_float32(name, value)
        return constants

    @classmethod
    def from_statistics(cls, statistics, **arguments):
        """Return a layer with the constants that `statistics` give.

        They become weights when the layer is built, by its first call. Only from then on does a copy of a model around
        it, or a file, hold them; `keras.models.clone_model` copies no weights anyway.

        Args:
            statistics: a `Statistics`, for instance from `tf_tricks.beam.FeatureStatistics`, with the layer's `kinds`;
                or a dict of them, one for each feature of a dict.
            arguments: the arguments of the layer.
        Raises:
            TypeError: `statistics` is something else.
            ValueError: the statistics are not of the kinds that the layer needs, or have seen no data.
        """
        layer = cls(**arguments)
        layer._refuse_if_given("from_statistics")
        layer._remember(copy.deepcopy(statistics))
        return layer

    def _remember(self, statistics):
        """Keep `statistics`, and the constants for weights that are not there yet."""
        if isinstance(statistics, dict) and statistics:
            self._make_parts(statistics)
        for name, each in (statistics if self._parts else {_ALONE: statistics}).items():
            part = self._parts.get(name, self)
            if not part.built:
                part._pending = tuple(part._checked(each).items())
            part._statistics = each

    def __reduce__(self):
        # Keras copies and pickles by way of a file, which has room for neither.
        return *super().__reduce__(), {"statistics": self.statistics}

    def __setstate__(self, state):
        statistics = state["statistics"]
        known = statistics.values() if isinstance(statistics, dict) else [statistics]
        if all(each is not None for each in known):
            self._remember(statistics)

    def _refuse_if_given(self, method):
        if self._given:
            raise ValueError(f"{type(self).__name__}: `{method}` has nothing to do, the constants were given.")
