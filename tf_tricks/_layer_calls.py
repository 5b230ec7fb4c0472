"""See, and answer, every layer call of an eager run, on every backend, whatever kind of model it is.

`keras.Operation.__call__` is the one door that layers go through, after they are built and before their `call`. It is
replaced while the `with` block lasts, so nothing has to be found in or attached to the user's model.
"""

import contextlib
import functools
import threading

import keras
import numpy as np

from tf_tricks._backend import BACKEND, jax, torch

# Held by whoever replaces `keras.Operation.__call__`: two that overlap would put back each other's replacement.
DOOR = threading.RLock()


@contextlib.contextmanager
def answered_by(answer):
    """Let `answer(layer, call)` return the outputs of each layer call; `call()` gives those of the layer itself.

    `call` may be made several times; it is a `functools.partial`: `call.args` (the layer itself comes first) and
    `call.keywords` are what the layer gets, and `call.func` takes others. Calls on symbols, inside of a traced function
    and of other threads are left alone.
    """
    own_thread = threading.get_ident()

    def __call__(operation, *args, **kwargs):
        is_layer = isinstance(operation, keras.layers.Layer)
        if not is_layer or threading.get_ident() != own_thread or not are_concrete((args, kwargs)):
            return original(operation, *args, **kwargs)
        return answer(operation, functools.partial(original, operation, *args, **kwargs))

    with DOOR:
        original = keras.Operation.__call__
        keras.Operation.__call__ = __call__
        try:
            yield
        finally:
            keras.Operation.__call__ = original


def traced(function):
    """[(operation, tensors that it takes, tensors that it gives)] of each call in `function()`, in the order they end.

    Of layers and of what a functional model is made of; on symbols and inside of a traced function, too.
    """
    own_thread, found = threading.get_ident(), []

    def __call__(operation, *args, **kwargs):
        outputs = original(operation, *args, **kwargs)
        if threading.get_ident() == own_thread:
            found.append((operation, *(tensors_of(each) for each in ((args, kwargs), outputs))))
        return outputs

    with DOOR:
        original = keras.Operation.__call__
        keras.Operation.__call__ = __call__
        try:
            function()
        finally:
            keras.Operation.__call__ = original
    return found


def tensors_of(structure):
    """List of the tensors in `structure`, symbols included."""
    return [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor) or keras.ops.is_tensor(x)]


def are_concrete(structure):
    """Do all tensors in `structure` have values now?"""
    return all(_is_concrete(x) for x in keras.tree.flatten(structure) if hasattr(x, "dtype"))


def _is_concrete(x):
    if isinstance(x, keras.KerasTensor):
        return False
    if BACKEND == "jax":
        return not isinstance(x, jax.core.Tracer)
    if BACKEND == "torch":
        return not torch.is_tensor(x) or x.device.type != "meta"
    return not keras.ops.is_tensor(x) or not hasattr(x, "graph") or hasattr(x, "numpy")


def to_numpy(x):
    """The values of a tensor as a float32 or float64 array."""
    array = keras.ops.convert_to_numpy(keras.ops.stop_gradient(x))
    return array if array.dtype == "float64" else array.astype("float32")


def check_finite(name, structure):
    """Raise ValueError if a tensor of a batch holds NaN or an infinity: what the layers make of it says nothing."""
    for tensor in keras.tree.flatten(structure):
        if keras.backend.is_float_dtype(keras.backend.standardize_dtype(tensor.dtype)):
            places = np.argwhere(~np.isfinite(to_numpy(tensor)))
            if len(places):
                raise ValueError(f"`{name}` must be finite. Received: NaN or an infinity at {places[0].tolist()}")


def without_gradients():
    """Torch records each operation for a backward pass, and keeps all tensors for it, unless told not to."""
    return torch.no_grad() if torch else contextlib.nullcontext()


def inference_or_training(model, x, training):
    """Run `model` on `x`; a model whose `call` takes no `training` is run without it."""
    try:
        return model(x, training=training)
    except TypeError as error:
        if "training" not in str(error):
            raise
        return model(x)
