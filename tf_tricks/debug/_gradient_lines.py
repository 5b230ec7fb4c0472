"""The loss of a model along lines through its weights, and each of its layers on its own, for `check_gradients`."""

import contextlib

import keras
import numpy as np

from tf_tricks import _layer_calls
from tf_tricks.debug._finite_differences import compare, flatness, measured_noise
from tf_tricks.fit_hooks.functional import value_and_gradients

_JITTER = 0.05  # of a weight's scale: moves units off the kink that they sit on, changes little else


class Point:
    """A scalar function of a list of arrays, with its gradient, at one point.

    Args:
        value: callable, list of arrays -> float.
        arrays: list of arrays, the point.
        gradients: list of arrays, or None where the function does not depend on one.
        tolerance: float, relative error that is allowed.
    Attributes:
        origin: float, the value at the point.
        noise: float, the rounding error of a value.
    """

    def __init__(self, value, arrays, gradients, tolerance, generator):
        self._value, self._tensors, self._tolerance = value, arrays, tolerance
        self.arrays, self.gradients = arrays, gradients
        self.scales = [scale_of(array) for array in arrays]
        self.origin = value(arrays)
        # What an operation in float32 rounds shows over a long stretch; two, as one may hold a kink by chance.
        found = min(measured_noise(self._anywhere(generator), 1e-6) for _ in range(2))
        self.noise = max(found, float(np.finfo(arrays[0].dtype).eps) * abs(self.origin))

    def _anywhere(self, generator):
        directions = [s * generator.standard_normal(a.shape) for s, a in zip(self.scales, self.arrays, strict=True)]

        def along(t):
            return self._value([(a + t * d).astype(a.dtype) for a, d in zip(self.arrays, directions, strict=True)])

        return along

    def is_flat(self, position):
        """Is the gradient for one of the arrays None or zero throughout?"""
        gradient = self.gradients[position]
        return gradient is None or not np.any(gradient)

    def along(self, position, direction):
        """The function of the distance along `direction` from one of the arrays."""

        def value(t):
            arrays = list(self._tensors)
            arrays[position] = (self.arrays[position] + t * direction).astype(self.arrays[position].dtype)
            return self._value(arrays)

        return value

    def compared(self, position, direction):
        """A `Comparison` along a direction from one of the arrays."""
        gradient = self.gradients[position]
        analytic = float(np.sum(gradient * direction, dtype="float64"))
        floor = float(np.linalg.norm(gradient) * np.linalg.norm(direction)) / max(gradient.size, 1) ** 0.5
        return compare(
            self.along(position, direction), self.origin, analytic, self.step(), self.noise, self._tolerance, floor
        )

    def step(self):
        """float, the h that balances rounding and curvature, in units of the scale of the weights."""
        relative = self.noise / max(abs(self.origin), self.noise, 1e-300)
        return float(np.clip(relative ** (1 / 3), 1e-6, 1e-2))

    def has_slope(self, position, direction):
        """Does the function change to one side or the other, whatever the gradient says?"""
        along, h = self.along(position, direction), self.step()
        return max(abs(along(h) - self.origin), abs(along(-h) - self.origin)) > 100 * self.noise

    def flatness(self, position, direction):
        """Why is the gradient for one of the arrays zero? A word as in `_finite_differences.flatness`."""
        return flatness(self.along(position, direction), self.origin, 1.0, self.noise)


def scale_of(array):
    """float, the size of a typical entry, for arrays of zeros too."""
    size = float(np.sqrt(np.mean(np.square(array, dtype="float64")))) if array.size else 0.0
    return size if size > 1e-3 else 0.1


def tensors_of(structure):
    """The arrays of a structure as tensors."""
    return keras.tree.map_structure(lambda a: None if a is None else keras.ops.convert_to_tensor(a), structure)


def jittered(arrays, generator):
    """The arrays, each entry moved a little."""
    return [(a + _JITTER * scale_of(a) * generator.standard_normal(a.shape)).astype(a.dtype) for a in arrays]


def directions(gradient, scale, generator):
    """Endless directions: random ones, single entries, and ones along which the gradient is large."""
    shape, flat = gradient.shape, np.abs(gradient).ravel()
    while True:
        yield scale * generator.standard_normal(shape)
        for count in range(4):
            entry = np.zeros(flat.size)
            # Half of the entries where the gradient is not zero, half anywhere.
            choices = np.flatnonzero(flat) if count % 2 == 0 and flat.any() else np.arange(flat.size)
            entry[generator.choice(choices)] = scale
            yield entry.reshape(shape)
        yield scale * np.abs(generator.standard_normal(shape)) * np.sign(gradient)


def recorded_calls(run):
    """[(layer, args, kwargs)] of the first concrete call of each layer in `run()`, inner ones first."""
    found, seen = [], set()

    def answer(layer, call):
        known = id(layer) in seen
        seen.add(id(layer))
        outputs = call()
        if not known and not isinstance(layer, keras.layers.InputLayer):
            found.append((layer, call.args[1:], call.keywords))
        return outputs

    with _layer_calls.answered_by(answer):
        run()
    return found


def layer_point(call, variables, weights, scope, tolerance, generator):
    """A `Point` for one recorded layer call: a random combination of its outputs as function of inputs and weights.

    Args:
        call: an entry of `recorded_calls`.
        variables, weights: all trainable variables of the model, and their values as arrays.
        scope: callable, list of values -> context manager in which the variables have them.
    Returns:
        (Point, list of what each array is: None for an input, else the variable), or None if nothing can vary.
    """
    layer, args, kwargs = call
    leaves = keras.tree.flatten((args, kwargs))
    floats = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
    own = {id(v) for v in layer.trainable_variables}
    places = [i for i, variable in enumerate(variables) if id(variable) in own]
    inputs = [np.array(_layer_calls.to_numpy(leaves[i])) for i in floats]
    if not inputs and not places:
        return None
    projections = []

    def scalar(tensors):
        changed, values = list(leaves), list(weights)
        for i, tensor in zip(floats, tensors, strict=False):
            changed[i] = tensor
        for place, tensor in zip(places, tensors[len(floats) :], strict=True):
            values[place] = tensor
        new_args, new_kwargs = keras.tree.pack_sequence_as((args, kwargs), changed)
        with scope(values):
            outputs = [t for t in keras.tree.flatten(layer(*new_args, **new_kwargs)) if _is_float(t)]
        if not projections:
            projections.extend(generator.standard_normal(tuple(t.shape)) for t in outputs)
        products = [keras.ops.sum(t * keras.ops.cast(p, t.dtype)) for t, p in zip(outputs, projections, strict=True)]
        return sum(products[1:], products[0])

    def value(arrays):
        with _layer_calls.without_gradients():
            return float(keras.ops.convert_to_numpy(scalar([keras.ops.convert_to_tensor(a) for a in arrays])))

    arrays = [*inputs, *(weights[place] for place in places)]
    with contextlib.suppress(IndexError):  # a layer whose outputs are no floats has no gradient
        _, gradients = value_and_gradients(scalar, [keras.ops.convert_to_tensor(a) for a in arrays])
        gradients = [None if g is None else _layer_calls.to_numpy(g) for g in gradients]
        return Point(value, arrays, gradients, tolerance, generator), [None] * len(floats) + [
            variables[place] for place in places
        ]
    return None


def _is_float(leaf):
    return keras.ops.is_tensor(leaf) and keras.backend.is_float_dtype(keras.backend.standardize_dtype(leaf.dtype))
