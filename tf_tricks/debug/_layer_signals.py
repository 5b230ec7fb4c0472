"""What goes through each layer of one eager run, forwards and backwards, without consequences for the model."""

import contextlib
import typing

import keras
import numpy as np

from tf_tricks import _layer_calls
from tf_tricks.fit_hooks.replay import replay_forward, replay_gradient
from tf_tricks.fit_hooks.replay_state import untouched

_SATURATED = 0.01  # of the range of an activation with two limits: so near to one of them


class LayerSignal(typing.NamedTuple):
    """One call of one layer.

    Attributes:
        layer: str, its name; with "#2" for a second call.
        mean, stddev: float, of the output over samples, positions and units.
        sample_stddev: float, the part of `stddev` that the samples make (positions count as samples).
        zeros: float, share of the outputs that are exactly 0.
        saturated: float or None, share of the outputs within 1 % of the range from a limit of the layer's own
            activation (tanh, sigmoid, ...); None where it has not two limits.
        gradient_stddev: float or None, of the loss with respect to the output.
        has_kernel: bool, whether a weight with two axes or more is the layer's own, and no embedding: the verdict looks
            at these.
        normalizes: bool, whether the layer sets the scale of the signal anew, whatever it was before.
    """

    layer: str
    mean: float
    stddev: float
    sample_stddev: float
    zeros: float
    saturated: float | None
    gradient_stddev: float | None
    has_kernel: bool
    normalizes: bool


def layer_signals(model, x, y):
    """(list of `LayerSignal`s in the order of the run, list of the layers they belong to); `y` may be None."""
    forward = _forward(model, x)
    gradients = {} if y is None else _gradients(model, x, y)
    rows = [signal._replace(gradient_stddev=gradients.get(key)) for key, _, signal in forward]
    return rows, [layer for _, layer, _ in forward]


def _forward(model, x):
    """(key, layer, signal) of each innermost layer call; the key is (id of the layer, number of the call)."""
    found, numbers, children, inside_rnn = [], {}, [0], []

    def answer(layer, call):
        children[-1] += 1
        children.append(0)
        if inside_rnn:  # its steps run in a traced loop on one backend and in Python on another: one call on all
            outputs = call()
        elif isinstance(layer, keras.layers.RNN):
            inside_rnn.append(layer)
            try:
                outputs = call()
            finally:
                inside_rnn.pop()
            children[-1] = 0
        else:
            outputs = call()
        if children.pop() == 0 and not inside_rnn:
            number = numbers[id(layer)] = numbers.get(id(layer), 0) + 1
            signal = _signal(layer, number, outputs)
            if signal is not None:
                found.append(((id(layer), number), layer, signal))
        return outputs

    with untouched(model), keras.StatelessScope(collect_losses=True), _layer_calls.without_gradients():
        with _layer_calls.answered_by(answer):
            _layer_calls.inference_or_training(model, x, True)
    return found


def _signal(layer, number, outputs):
    tensors = [t for t in keras.tree.flatten(outputs) if t is not None and hasattr(t, "dtype")]
    if not tensors or "float" not in keras.backend.standardize_dtype(tensors[0].dtype):
        return None
    if isinstance(layer, keras.layers.InputLayer):
        return None
    values = _layer_calls.to_numpy(tensors[0])
    with np.errstate(all="ignore"):  # an exploded signal has no moments, and that is what the table is to show
        mean, stddev = float(np.mean(values, dtype="float64")), float(np.std(values, dtype="float64"))
        samples = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values[:, None]
        sample_stddev = float(np.sqrt(np.mean(np.var(samples, axis=0, dtype="float64"))))
    zeros = float(np.mean(values == 0))
    name = layer.name if number == 1 else f"{layer.name}#{number}"
    is_table = isinstance(layer, keras.layers.Embedding)  # its scale is a choice: most models normalise it away
    has_kernel = not is_table and any(len(weight.shape) > 1 for weight in layer.weights)
    inner = inner_layer(layer)
    # Also those that are not Keras's own.
    normalizes = any("norm" in type(each).__name__.lower() for each in (layer, inner))
    return LayerSignal(
        name, mean, stddev, sample_stddev, zeros, _saturated(inner, values), None, has_kernel, normalizes
    )


def inner_layer(layer):
    """What a `TimeDistributed` applies, else the layer itself: that wrapper calls `layer.call`, which nobody sees."""
    while isinstance(layer, keras.layers.TimeDistributed):
        layer = layer.layer
    return layer


def _saturated(layer, values):
    low, high = limits(getattr(layer, "activation", None))
    if low is None or high is None:
        return None
    margin = _SATURATED * (high - low)
    return float(np.mean((values < low + margin) | (values > high - margin)))


def limits(activation):
    """The values that an activation approaches at -inf and +inf, lower one first; None where it has no limit."""
    if not callable(activation) or isinstance(activation, keras.layers.Layer):
        return None, None
    points = np.array([[-1e4, -1e3, 0.0, 1e3, 1e4]], "float32")
    try:
        values = keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(points)))[0]
        far_left, left, _, right, far_right = values
    except Exception:  # an activation that is not elementwise (glu) does not take, or not return, five numbers
        return None, None
    found = sorted((float(a), float(b)) for a, b in [(far_left, left), (far_right, right)])
    ends = [far if abs(far - near) < 1e-2 else None for far, near in found]
    return tuple(ends) if None in ends or ends[0] < ends[1] else (None, None)


def _gradients(model, x, y):
    """Key of a layer call -> stddev of the gradient of the loss with respect to its output."""
    replayed = replay_forward(model, x, y, None)
    if replayed.error is None:
        replayed = replay_gradient(model, x, y, None, replayed)
    if replayed.error is not None:
        raise ValueError(f"`y` must fit the model and its loss. Received: y={_shapes(y)}; Keras says: {replayed.error}")
    found, numbers = {}, {}
    for call in sorted((c for c in replayed.calls if c.kind == "layer" and not c.children), key=lambda c: c.finished):
        number = numbers[id(call.layer)] = numbers.get(id(call.layer), 0) + 1
        gradient = call.outputs[0].gradient if call.outputs else None
        if gradient is not None:
            with np.errstate(all="ignore"):
                found[id(call.layer), number] = float(np.std(gradient, dtype="float64"))
    return found


def _shapes(structure):
    return keras.tree.map_structure(lambda t: tuple(t.shape), structure)


def bypassed(layers):
    """Let each of the `layers` return its input, in all that runs meanwhile in this process."""
    return replaced_calls(layers, lambda layer: lambda inputs, *args, **kwargs: inputs)


@contextlib.contextmanager
def replaced_calls(layers, make):
    """Let `make(layer)` stand for the `call` of each of the `layers`, in all that runs meanwhile in this process."""
    before = [(vars(layer), vars(layer).get("call")) for layer in layers]
    for layer in layers:
        vars(layer)["call"] = make(layer)
    try:
        yield
    finally:
        for namespace, call in before:
            if call is None:
                del namespace["call"]
            else:
                namespace["call"] = call
