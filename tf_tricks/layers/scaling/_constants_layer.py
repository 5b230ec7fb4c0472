"""A layer that applies constants to its inputs: its weights, dicts of features, and where the arithmetic runs."""

import inspect

import keras
import numpy as np

from tf_tricks._checks import check_axis
from tf_tricks.layers.scaling._constants import Split, check_float32, split, split_integers, value_outside_of_tracing
from tf_tricks.layers.scaling._features import kept_axes
from tf_tricks.layers.scaling._namespaces import NUMPY, OPS, WIDE, namespace_of, working_dtype


class ConstantsLayer(keras.layers.Layer):
    """Apply constants, a few numbers for each feature, to the inputs, and undo it.

    The constants are non-trainable weights, so that files, `set_weights` and checkpoints hold them and a compiled model
    sees new ones. `split` makes float32 weights of them, which loses nothing on any backend. A weight is NaN until it
    is known, and the layer raises then.

    Args:
        axis: int, tuple of int or None, the axes that keep constants of their own for each index; None: one for all.
    """

    subtracts_first = False  # does `scale_values` take a constant off `x`, and do nothing else with it?

    def __init__(self, axis=-1, **kwargs):
        super().__init__(**kwargs)
        self.axis = check_axis("axis", axis)
        self.supports_masking = True
        self.autocast = False  # a float16 has no room for what has not been scaled yet
        self._given = ()  # constants that are arguments: pairs (name, array); a subclass sets it
        self._pending = ()  # constants that are known before the weights are there
        self._known = False
        self._parts = {}  # one layer for each entry of a dict of features

    # --- what a subclass says ------------------------------------------------------------------------------------

    def constant_shapes(self, features):
        """A dict of the names of the constants and their shapes, `(features,)` for one number a feature."""
        raise NotImplementedError

    def view_shape(self, shape):
        """The shape in which inputs of `shape` are seen, for a layer that cuts its features out of the inputs."""
        return tuple(shape)

    @property
    def view_axis(self):
        """The `axis` of inputs of the shape `view_shape`."""
        return self.axis

    def scale_values(self, xp, x, constants):
        """The output for `x`, a float32 or float64 tensor of the namespace `xp`.

        Where the layer `subtracts_first`, integers that float32 has no room for come as a `Split`.

        `constants` is a dict of `Split`. Constants of shape `(features,)` come in a shape that broadcasts against `x`.
        """
        raise NotImplementedError

    def unscale_values(self, xp, y, constants):
        """The inverse of `scale_values`."""
        raise NotImplementedError

    # --- weights -------------------------------------------------------------------------------------------------

    def build(self, input_shape):
        if isinstance(input_shape, dict):
            self._make_parts(input_shape)
            for name, shape in input_shape.items():
                self._parts[name].build(shape)
            return
        self._shape = tuple(input_shape)
        view = self.view_shape(self._shape)
        self._kept = kept_axes(self.view_axis, view)
        self._kept_shape = tuple(view[each] for each in self._kept)
        self._features = int(np.prod(self._kept_shape, dtype=int))
        # Without the leading axes of size 1, so that single rows can be scaled, too.
        first = self._kept[0] if self._kept else len(view)
        self._broadcast_shape = tuple(view[each] if each in self._kept else 1 for each in range(first, len(view)))
        # Weights as well: XLA takes `x - high - low` for `x - (high + low)` where it knows both as constants.
        pending = {name: self._broadcast(name, value) for name, value in self._given} or dict(self._pending)
        for name, shape in self.constant_shapes(self._features).items():
            value = np.asarray(pending.get(name, np.full(shape, np.nan)))
            if value.shape != shape:
                raise ValueError(
                    f"{type(self).__name__}: inputs of shape {self._shape} with axis={self.axis!r} have "
                    f"{self._features} features, the statistics have another number: {name} has shape {value.shape}."
                )
            check_float32(name, value)
            self._add_constant(name, split(value))
        self._pending = ()

    def _broadcast(self, name, value):
        """A constant that was given, for each feature."""
        try:
            value = value.reshape(()) if value.size == 1 else value
            return np.broadcast_to(value, self._kept_shape).reshape(self._features)
        except ValueError:
            raise ValueError(
                f"`{name}` must broadcast to {self._kept_shape}, the sizes of the kept axes of inputs of shape "
                f"{self._shape}. Received: {name}={value.tolist()!r}"
            ) from None

    def _add_constant(self, name, value):
        def initial(shape, dtype=None):
            return keras.ops.convert_to_tensor(value, dtype)

        weight = self.add_weight(
            shape=value.shape, initializer=initial, dtype="float32", trainable=False, autocast=False, name=name
        )
        setattr(self, f"_{name}", weight)

    def _make_parts(self, names):
        for name in sorted(names):
            if name not in self._parts:
                config = {**self.get_config(), "name": str(name).replace("/", "_")}  # Keras allows no "/" there
                self._parts[name] = type(self).from_config(config)

    def _set(self, constants):
        for name, value in constants.items():
            getattr(self, f"_{name}").assign(split(value))
        self._known = True

    def _is_known(self):
        """Are the constants there? Weights that came from a file tell only by not being NaN."""
        if self._parts:
            return all(part._is_known() for part in self._parts.values())
        if self.built and not self._known:
            try:
                self._known = not any(np.isnan(value).any() for value in self._host_constants().values())
            except TypeError:  # Keras's JAX trainer has taken the value out of the variable: see `variables`
                pass
        return self._known

    def set_weights(self, weights):
        super().set_weights(weights)
        for layer in (self, *self._parts.values()):
            layer._known = False  # the new ones may be those of a layer without statistics

    def load_own_variables(self, store):
        super().load_own_variables(store)
        self._known = False

    @property
    def variables(self):
        # The JAX trainer asks for the variables before it takes their values out: the last moment to look at them.
        self._is_known()
        return super().variables

    def _host_constants(self):
        """A dict of the constants as NumPy arrays, split."""
        names = self.constant_shapes(self._features)
        return {name: value_outside_of_tracing(getattr(self, f"_{name}")) for name in names}

    def constant(self, name):
        """A constant as a float64 NumPy array of the rank of the inputs, or None where it is not known yet."""
        if not self.built or self._parts or not self._is_known():
            return None
        value = self._host_constants()[name].astype("float64").sum(axis=0)
        if value.shape != (self._features,):
            return value
        return value.reshape([1] * (len(self._shape) - len(self._broadcast_shape)) + list(self._broadcast_shape))

    def _constants(self, xp, dtype):
        if xp is OPS:
            names = self.constant_shapes(self._features)
            found = {name: keras.ops.convert_to_tensor(getattr(self, f"_{name}")) for name in names}
        else:
            found = self._host_constants()
        constants = {}
        for name, parts in found.items():
            shape = tuple(parts.shape[1:])
            shape = self._broadcast_shape if shape == (self._features,) else shape
            high, low, lowest = (xp.reshape(xp.cast(parts[i], dtype), shape) for i in range(3))
            exact = dtype == "float64"
            constants[name] = Split(high + low + lowest, xp.cast(0, dtype)) if exact else Split(high, low)
        return constants

    # --- call ----------------------------------------------------------------------------------------------------

    def __call__(self, inputs, *args, **kwargs):
        if isinstance(inputs, dict):
            if any(namespace_of(each) is not OPS for each in inputs.values()):
                if not self.built:
                    self.build({name: tuple(each.shape) for name, each in inputs.items()})
                return self._call_directly(inputs, *args, **kwargs)
            return super().__call__(inputs, *args, **kwargs)
        if not hasattr(inputs, "shape"):
            inputs = np.asarray(inputs)
        if namespace_of(inputs) is not OPS:
            if not self.built:
                self.build(tuple(inputs.shape))
            return self._call_directly(inputs, *args, **kwargs)
        return super().__call__(inputs, *args, **kwargs)

    def _call_directly(self, inputs, *args, **kwargs):
        if "training" not in inspect.signature(self.call).parameters:
            kwargs.pop("training", None)  # as Keras does it
        return self.call(inputs, *args, **kwargs)

    def call(self, inputs):
        if isinstance(inputs, dict):
            self._check_names(inputs)
            return {name: part(inputs[name]) for name, part in self._parts.items()}
        return self._apply(self.scale_values, inputs, self._shape, self.compute_dtype, self.subtracts_first)

    def inverse(self, y):
        """Return the inputs that the layer turns into `y`; float32, or float64 where `y` is, because they are raw.

        Args:
            y: tensor or array of the shape of the layer's output, or a dict of them.
        Raises:
            ValueError: the layer was not adapted.
        """
        if isinstance(y, dict):
            self._check_names(y)
            return {name: part.inverse(y[name]) for name, part in self._parts.items()}
        if not hasattr(y, "shape"):
            y = np.asarray(y)
        if not self.built:
            self.build(tuple(y.shape))
        # Components are not the features: the matrix product checks their number.
        expected = self._shape if tuple(self.compute_output_shape(self._shape)) == self._shape else None
        return self._apply(self.unscale_values, y, expected, None)

    def _apply(self, function, x, expected, dtype, subtracts_first=False):
        if not self._is_known():
            raise ValueError(
                f"{type(self).__name__} {self.name!r} has no statistics yet: call `adapt(data)` before the layer is "
                "used, make it with `from_statistics`, or load weights. A layer that was made from the config of "
                "another, as `clone_model` does it, has none."
            )
        if expected is not None:
            self._check_shape(x.shape)
        xp = namespace_of(x)
        if xp is OPS:
            x = keras.ops.convert_to_tensor(x)
        working = working_dtype(x, xp)
        is_wide = xp is OPS and working == "float32" and keras.backend.standardize_dtype(x.dtype) in WIDE
        x = split_integers(x) if subtracts_first and is_wide else xp.cast(x, working)
        with np.errstate(all="ignore"):  # NaN and overflow are for the user to see, as on every backend
            y = function(xp, x, self._constants(xp, working))
        if xp is NUMPY:
            return keras.ops.convert_to_tensor(y, dtype or keras.config.floatx())
        return xp.cast(y, dtype or working)

    def _check_shape(self, shape):
        """Raise unless inputs of `shape` have the features of the constants: what broadcasts is not always right."""
        if getattr(shape, "rank", 0) is None:
            return  # a TensorFlow graph that knows it later
        ndim, view = len(self.view_shape(self._shape)), self.view_shape(shape)
        offsets = [each - ndim for each in self._kept]  # from the end: a single row lacks the axis of the batch
        fits = -min(offsets, default=0) <= len(view) and all(
            view[offset] in (None, size) for offset, size in zip(offsets, self._kept_shape, strict=True)
        )
        if ndim == 1 and self.axis is not None:  # scalars; Keras makes (batch, 1) of them
            fits = all(size in (None, 1) for size in view[1:])
        if not fits:
            raise ValueError(
                f"{type(self).__name__} {self.name!r} has the constants of inputs of shape {self._shape} with "
                f"axis={self.axis!r}. Received: inputs of shape {tuple(shape)}. Adapt it to the same features, as one "
                "array or as batches of rows."
            )

    def _check_names(self, features):
        if set(features) != set(self._parts):
            raise ValueError(
                f"{type(self).__name__}: the features must be {', '.join(map(repr, self._parts))}. "
                f"Received: {', '.join(map(repr, features))}"
            )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "axis": self.axis}
