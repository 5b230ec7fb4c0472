"""What a model makes of its inputs: what arrives at its first layers, what comes out, what its loss takes."""

import contextlib
import dataclasses

import keras
import numpy as np

from tf_tricks import _layer_calls
from tf_tricks.debug._data import one_batch
from tf_tricks.debug._layer_signals import replaced_calls
from tf_tricks.debug._targets import losses_of_outputs, output_names
from tf_tricks.fit_hooks.borrowing import borrowed
from tf_tricks.fit_hooks.functional import LossFunction
from tf_tricks.fit_hooks.replay_state import sublayers


@dataclasses.dataclass
class Probe:
    """What a few samples did.

    Attributes:
        outputs: list of arrays, one per output; empty if the model did not run.
        losses: list as long, the compiled loss of each, or None.
        names: list as long, of outputs, or None where they have none.
        arriving: dict, number of an input -> (name of the first layer with a kernel that sees it, array it sees in
            training).
        pictures: list of (name of a layer, (n, h, w, c) array), what comes out of a reshaping layer or arrives at a
            convolution before any other layer with a kernel.
        data_format: str or None, of its convolutions.
        error: str or None, why the model did not run.
        losses_of_shapes: None, or two floats: the loss with the targets as they are, and in the shape of the outputs.
    """

    outputs: list = dataclasses.field(default_factory=list)
    losses: list = dataclasses.field(default_factory=list)
    names: list = dataclasses.field(default_factory=list)
    arriving: dict = dataclasses.field(default_factory=dict)
    pictures: list = dataclasses.field(default_factory=list)
    data_format: str | None = None
    error: str | None = None
    losses_of_shapes: tuple | None = None


def probe(model, data):
    """A `Probe` of `Samples`, without consequences for the model."""
    found, data = Probe(), one_batch(model, data)
    leaves = keras.tree.flatten(data.x)
    with contextlib.ExitStack() as stack:
        try:
            loan = stack.enter_context(borrowed(model, *data))
            outputs, calls = _run(model, data.x, training=False)
        except Exception as error:  # data that does not fit the model is a finding, in Keras's own words
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            found.error = f"{type(error).__name__}: {' '.join(lines)[:300]}"
            return found
        found.outputs = [_array(each) for each in keras.tree.flatten(outputs)]
        found.names, found.losses = output_names(model, outputs), losses_of_outputs(model, outputs)
        kernels = [call for call in calls if call[0] == "kernel"]
        first = next((i for i, call in enumerate(calls) if call[0] == "kernel"), len(calls))
        found.pictures = [(layer.name, array) for _, layer, array in calls[: first + 1] if array.ndim == 4]
        found.data_format = next((layer.data_format for _, layer, _ in kernels if hasattr(layer, "data_format")), None)
        first_seen = ({0: 0} if kernels else {}) if len(leaves) == 1 else _first_seen(model, data.x, kernels)
        in_training = _kernels_in_training(model, loan, data.x, kernels)
        found.arriving = {i: (kernels[k][1].name, in_training[k][2]) for i, k in first_seen.items()}
        found.losses_of_shapes = _losses_of_shapes(model, loan, data, found.outputs)
    return found


def _run(model, x, training):
    """(outputs, list of (kind, layer, array) of the calls): "kernel" with what arrives, "reshape" with what leaves."""
    calls = []

    def see(layer, inputs, outputs):
        tensors = [t for t in keras.tree.flatten(inputs) if hasattr(t, "dtype")]
        if isinstance(layer, keras.layers.Reshape):
            calls.append(("reshape", layer, _array(outputs)))
        elif tensors and _has_kernel(layer):
            calls.append(("kernel", layer, _array(tensors[0])))

    with _layer_calls.without_gradients(), _watched(_innermost(model), see):
        outputs = _layer_calls.inference_or_training(model, x, training)
    return outputs, calls


def _kernels_in_training(model, loan, x, kernels):
    """The same calls in training mode: there a layer that learns its scale scales from the first batch on.

    In inference mode a new `BatchNormalization` does nothing yet, and data that it will scale would be called unscaled.
    """
    try:
        _, calls = _run(model, x, training=True)
    except Exception:  # a model that trains on more than its inputs
        return kernels
    finally:
        loan.reset()
    found = [call for call in calls if call[0] == "kernel"]
    return found if [call[1] for call in found] == [call[1] for call in kernels] else kernels


def _first_seen(model, x, kernels):
    """Which kernel sees which input: the first one that notices when the samples of that input change places."""
    leaves, found = keras.tree.flatten(x), {}
    for i, leaf in enumerate(leaves):
        moved = [*leaves[:i], np.roll(leaf, 1, axis=0), *leaves[i + 1 :]]
        _, calls = _run(model, keras.tree.pack_sequence_as(x, moved), training=False)
        others = [call for call in calls if call[0] == "kernel"]
        for k, ((_, _, before), (_, _, after)) in enumerate(zip(kernels, others, strict=False)):
            if before.shape != after.shape or not np.array_equal(before, after, equal_nan=True):
                found[i] = k
                break
    return found


def _losses_of_shapes(model, loan, data, outputs):
    y = keras.tree.flatten(data.y)
    if len(outputs) != 1 or len(y) != 1 or y[0] is None:
        return None
    if y[0].shape == outputs[0].shape or y[0].size != outputs[0].size or data.size < 2:
        return None
    shaped = y[0].reshape(outputs[0].shape)
    try:
        if type(model).train_step is not keras.Model.train_step:  # its loss is its own
            before = loan.step(data.x, y[0], data.sample_weight)
            loan.reset()
            return before, loan.step(data.x, shaped, data.sample_weight)
        loss = LossFunction(model, training=False, compiled=False)
        return tuple(loss.value(data.x, each, data.sample_weight) for each in (y[0], shaped))
    except Exception:  # a loss that takes other shapes than the outputs' refuses one of them
        return None


def _innermost(model):
    """The layers that hold no other layer; a recurrent layer counts as one, whatever cell runs in its loop."""
    found, waiting, seen = [], [model], set()
    while waiting:
        layer = waiting.pop()
        inside = [each for each in sublayers(layer) if each is not layer]
        if isinstance(layer, keras.layers.RNN) or not inside:
            if id(layer) not in seen and layer is not model:
                found.append(layer)
            seen.update(id(each) for each in [layer, *inside])
        elif id(layer) not in seen:
            seen.add(id(layer))
            # Recurrent layers first: they cover their cells.
            waiting += sorted(inside, key=lambda each: isinstance(each, keras.layers.RNN))
    return found


def _has_kernel(layer):
    if isinstance(layer, keras.layers.Embedding):
        return False
    return any(len(weight.shape) > 1 for weight in layer.weights)


def _watched(layers, see):
    """Let `see(layer, inputs, outputs)` know of every call with values of each of the `layers`."""

    def watching(layer):
        call = layer.call

        def watched_call(*args, **kwargs):
            outputs = call(*args, **kwargs)
            if _layer_calls.are_concrete((args, kwargs, outputs)):
                see(layer, args or kwargs, outputs)
            return outputs

        return watched_call

    return replaced_calls(layers, watching)


def _array(tensor):
    array = keras.ops.convert_to_numpy(keras.ops.stop_gradient(tensor))
    return array.astype("float32") if array.dtype.kind == "V" else array  # bfloat16, which is no number to NumPy
