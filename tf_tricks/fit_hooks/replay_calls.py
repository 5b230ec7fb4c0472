"""Watch every layer call, every graph operation and the elementary functions below them while a model runs eagerly.

`keras.Operation.__call__` is the one door that layers and the operations of a functional graph go through; it is
replaced for as long as `CallRecorder.installed()` lasts. So are the elementary functions whose domain has an edge
(log, sqrt, division, ...), because "log of 0" says more than "a layer gave NaN".
"""

import contextlib
import dataclasses
import functools
import numbers
import threading
import typing

import keras
import numpy as np

from tf_tricks._backend import BACKEND, jax, tf, torch
from tf_tricks._layer_calls import DOOR

# What Keras does not document and this module uses all the same.
PRIVATE_ATTRIBUTES = {}

_SYNONYMS = {
    "true_divide": "divide",
    "truediv": "divide",
    "div": "divide",
    "__truediv__": "divide",
    "__rtruediv__": "reversed_divide",
    "pow": "power",
    "float_power": "power",
    "__pow__": "power",
    "acos": "arccos",
    "asin": "arcsin",
    "reduce_std": "std",
    "vector_norm": "norm",
    "log2": "log",
    "log10": "log",
}
_ELEMENTARY = ("log", "log1p", "sqrt", "rsqrt", "exp", "expm1", "square", "power", "divide", "reciprocal", "norm")
_ELEMENTARY += ("std", "arccos", "arcsin", "mean", *(name for name in _SYNONYMS if not name.startswith("__")))
_SMALL = 65536  # entries; arrays up to this size are kept for every call, larger ones only where a fault starts
_OPERATORS = ("__truediv__", "__rtruediv__", "__pow__")


@dataclasses.dataclass
class Value:
    """What is kept of one tensor: a few numbers, and the array itself only where a fault starts."""

    shape: tuple
    dtype: str
    finite: bool
    largest: float  # largest magnitude among the finite entries
    zeros: int
    negatives: int
    tensor: bool
    array: np.ndarray | None = None
    gradient: np.ndarray | None = None
    alias: tuple | None = None  # (call, position) of the inner call whose output this is

    @property
    def is_float(self):
        return "float" in self.dtype


@dataclasses.dataclass
class Call:
    """One call of a layer, of an operation in a functional graph, of an elementary function, or of the loss."""

    kind: str  # "layer" | "operation" | "function" | "loss"
    name: str
    type_name: str
    parent: int | None
    index: int
    layer: typing.Any = None
    inputs: list = dataclasses.field(default_factory=list)
    outputs: list = dataclasses.field(default_factory=list)
    children: list = dataclasses.field(default_factory=list)
    path: tuple = ()  # names and ordinals from the outermost call down to this one
    finished: int = -1  # order of completion; -1 where the call raised

    @property
    def breaks(self):
        """Is this where finite numbers become non-finite?"""
        return all(v.finite for v in self.inputs) and not all(v.finite for v in self.outputs)


def is_tensor(x):
    """Is `x` a dense tensor of the running backend?"""
    return isinstance(x, (tf.Tensor if tf else jax.Array if jax else torch.Tensor))


def to_numpy(x):
    """A float array of at least 32 bits, or whatever NumPy makes of `x`."""
    x = np.asarray(keras.ops.convert_to_numpy(x.detach() if torch and is_tensor(x) else x))
    # NumPy's own float16 loses precision in sums and ml_dtypes' bfloat16 lacks half of the functions.
    return x.astype("float32") if x.dtype.name in ("float16", "bfloat16") or "float8" in x.dtype.name else x


def is_value(x):
    """Is `x` a tensor, an array or a number?"""
    return is_tensor(x) or isinstance(x, (np.ndarray, keras.Variable, numbers.Real)) and not isinstance(x, bool)


def describe(x):
    """The `Value` of a tensor, array or number; None for anything else and for values that exist only in a trace."""
    x = x.value if isinstance(x, keras.Variable) else x
    if not is_value(x):
        return None
    if isinstance(x, numbers.Real):
        array, dtype = np.asarray(float(x)), "float"
    elif is_tensor(x) and not is_concrete(x):
        return None
    else:
        array, dtype = to_numpy(x), keras.backend.standardize_dtype(x.dtype)
    if array.dtype.kind not in "fiu":
        return Value(array.shape, dtype, True, 0.0, 0, 0, is_tensor(x))
    mask = np.isfinite(array)
    finite = bool(mask.all())
    kept = array if finite else array[mask]
    largest = float(np.max(np.abs(kept))) if kept.size else 0.0
    counts = (int(array.size - np.count_nonzero(array)), int(np.count_nonzero(array < 0)))
    return Value(array.shape, dtype, finite, largest, *counts, is_tensor(x), array)


def is_concrete(x):
    """Has `x` a value now? Inside a traced loop (`lax.scan`, `tf.function`) it has none."""
    if BACKEND == "tensorflow":
        return hasattr(x, "numpy")
    if BACKEND == "jax":
        return not isinstance(x, jax.core.Tracer)
    return x.device.type != "meta"


class CallRecorder:
    """Record the calls of one eager run (first pass), or add a tap to each recorded tensor (second pass).

    Args:
        plan: None to record; the list of `Call`s of the first pass to tap the same calls again.
        taps: dict from (call, "inputs" | "outputs", position) to a tensor of -0.0, for the second pass.
    """

    def __init__(self, plan=None, taps=None):
        self.plan, self.taps = plan, taps or {}
        self.calls, self.stack, self.finished = [], [], 0
        self._producers, self._silent, self._ordinals = {}, 0, {}
        self._by_path = {call.path: call for call in plan or ()}
        self._thread = threading.get_ident()
        # Under `jax.grad` values are tracers; those of a loop or jit inside have another type than the taps.
        self._tracer = type(next(iter(self.taps.values()))) if self.taps else None

    # --- one call -----------------------------------------------------------------------------------------------------
    def run(self, kind, name, type_name, function, args, kwargs, layer=None):
        """Call `function(*args, **kwargs)` as the next call on record."""
        if not self._observable(args, kwargs):
            with self.silence():
                return function(*args, **kwargs)
        call = self._begin(kind, name, type_name, layer)
        planned = self._by_path.get(call.path)
        if self.plan is None:
            flat = keras.tree.flatten((args, kwargs))
            call.inputs = [v for v in map(describe, flat) if v is not None]
        elif planned is not None and not planned.children and kind != "loss":
            args, kwargs = self._tapped((args, kwargs), planned, "inputs")
        self.stack.append(call.index)
        try:
            # The time steps inside a recurrent layer run in a traced loop on one backend and in Python on another:
            # the layer is one call on all of them. So is an elementary function.
            with self.silence() if kind == "function" or isinstance(layer, keras.layers.RNN) else _nothing():
                outputs = function(*args, **kwargs)
        finally:
            self.stack.pop()
        if self.plan is None:
            self._finish(call, outputs)
        elif planned is not None and kind != "loss":
            outputs = self._tapped(outputs, planned, "outputs")
        return outputs

    def _begin(self, kind, name, type_name, layer):
        parent = self.calls[self.stack[-1]] if self.stack else None
        # The two passes find each other's calls by path, not by number: code that is compiled once and
        # then taken from a cache shows its inside in one of the passes only.
        outer = parent.path if parent else ()
        ordinal = self._ordinals[outer, kind, name] = self._ordinals.get((outer, kind, name), -1) + 1
        call = Call(kind, name, type_name, parent.index if parent else None, len(self.calls), layer)
        call.path = (*outer, (kind, name, ordinal))
        self.calls.append(call)
        if parent is not None and kind in ("layer", "operation"):
            parent.children.append(call.index)
        return call

    def _finish(self, call, outputs):
        for x in keras.tree.flatten(outputs):
            value = describe(x)
            if value is None:
                continue
            if call.children and id(x) in self._producers and self._producers[id(x)][0] > call.index:
                value.alias = self._producers[id(x)][:2]
            else:
                self._producers[id(x)] = (call.index, len(call.outputs), x)  # `x` is held so that its id stays its own
            call.outputs.append(value)
        call.finished, self.finished = self.finished, self.finished + 1
        if not call.breaks:
            for value in (*call.inputs, *call.outputs):
                value.array = value.array if value.array is not None and value.array.size <= _SMALL else None

    def _tapped(self, structure, planned, side):
        position = iter(range(len(getattr(planned, side))))

        def tap(x):
            if not is_value(x):
                return x
            x = x.value if isinstance(x, keras.Variable) else x
            key = (planned.index, side, next(position, -1))
            extra = self.taps.get(key)
            if extra is None or not is_tensor(x) or (tuple(extra.shape), extra.dtype) != (tuple(x.shape), x.dtype):
                return x
            return x + extra  # x + (-0.0) is x, for every x, to the bit

        with self.silence():
            return keras.tree.map_structure(tap, structure)

    def _observable(self, args, kwargs):
        if self._silent or threading.get_ident() != self._thread:
            return False
        for x in keras.tree.flatten((args, kwargs)):
            if isinstance(x, keras.KerasTensor):
                return False
            if is_tensor(x) and not is_concrete(x) and not (self.plan and type(x) is self._tracer):
                return False
        return True

    @contextlib.contextmanager
    def silence(self):
        self._silent += 1
        try:
            yield
        finally:
            self._silent -= 1

    # --- the doors ----------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def installed(self):
        """Send every layer, operation and elementary function through this recorder; put all back at the end."""
        with DOOR, contextlib.ExitStack() as stack:
            stack.enter_context(_replaced(keras.Operation, "__call__", self._layer_door(keras.Operation.__call__)))
            for owner, name in elementary_functions():
                stack.enter_context(_replaced(owner, name, self._function_door(getattr(owner, name), name)))
            yield self

    def _layer_door(self, original):
        recorder = self

        @functools.wraps(original)
        def __call__(operation, *args, **kwargs):
            layer = operation if isinstance(operation, keras.layers.Layer) else None
            inside = recorder.calls[recorder.stack[-1]] if recorder.stack else None
            # An operation object outside a functional graph is a detail of the layer that uses it.
            if layer is None and not (inside is not None and isinstance(inside.layer, keras.Model)):
                return original(operation, *args, **kwargs)
            kind = "operation" if layer is None else "layer"
            function = functools.partial(original, operation)
            return recorder.run(kind, operation.name, type(operation).__name__, function, args, kwargs, layer)

        return __call__

    def _function_door(self, original, name):
        recorder, name = self, _SYNONYMS.get(name, name)

        @functools.wraps(original)
        def function(*args, **kwargs):
            if recorder._silent or not recorder.stack:
                return original(*args, **kwargs)
            return recorder.run("function", name, name, original, args, kwargs)

        return function


@contextlib.contextmanager
def _nothing():
    yield


@contextlib.contextmanager
def _replaced(owner, name, new):
    # Whether the name is the owner's own or inherited decides how to take the replacement away again.
    own, old = name in vars(owner), getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, old) if own else delattr(owner, name)


def elementary_functions():
    """(owner, name) of each function and operator to watch: those of `keras.ops` and those of the backend below it."""
    if BACKEND == "tensorflow":
        owners, classes = (tf, tf.math, tf.linalg), (type(tf.constant(0.0)),)
    elif BACKEND == "jax":
        owners, classes = (jax.numpy, jax.numpy.linalg), (type(jax.numpy.zeros(())), jax.core.Tracer)
    else:
        owners, classes = (torch, torch.linalg), ()
    found = [(owner, name) for owner in (keras.ops, *owners) for name in _ELEMENTARY if hasattr(owner, name)]
    if BACKEND == "jax":
        found.append((jax.lax, "rsqrt"))
    if BACKEND == "torch":
        found += [(torch.Tensor, name) for name in (*_ELEMENTARY, *_OPERATORS) if hasattr(torch.Tensor, name)]
    return found + [(each, name) for each in classes for name in _OPERATORS if hasattr(each, name)]
