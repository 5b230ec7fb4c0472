"""Leave no trace: what a replayed batch may disturb, noted beforehand and put back afterwards.

Keras variables need no care here: the replay runs in a `keras.StatelessScope`, where an assignment stays in the scope.
What remains are plain Python attributes of layers, buffers of Torch modules, and generators of random numbers.
"""

import contextlib
import random

import keras
import numpy as np

from tf_tricks._backend import torch


def sublayers(layer):
    """Every layer reachable through the attributes of `layer`, itself first."""
    found, waiting, seen = [], [layer], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, keras.layers.Layer):
            found.append(item)
            waiting.extend(vars(item).values())
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            waiting.extend(item)
    return found


@contextlib.contextmanager
def unchanged_attributes(layers):
    """Give the `layers` back the attributes they have now, and the lists, sets and dicts among these their contents."""
    # The old value travels along: a `set` of ids or a list of losses is changed in place, not replaced.
    saved = [
        (layer, dict(vars(layer)), [(v, _copied(v)) for v in vars(layer).values() if isinstance(v, (list, set, dict))])
        for layer in layers
    ]
    try:
        yield
    finally:
        for layer, attributes, contents in saved:
            for container, items in contents:
                _refill(container, items)
            namespace = vars(layer)
            for name in [name for name in namespace if name not in attributes]:
                del namespace[name]
            namespace.update(attributes)


def _copied(container):
    return dict(container) if isinstance(container, dict) else list(container)


def _refill(container, items):
    now = _copied(container)
    if len(now) == len(items) and _identical(now, items):
        return  # Keras locks its tracked lists after `build`: touch only what has changed
    container.clear()
    container.update(items) if isinstance(container, (dict, set)) else container.extend(items)


def _identical(a, b):
    if isinstance(a, dict):
        return list(a) == list(b) and all(a[key] is b[key] for key in a)
    return all(x is y for x, y in zip(a, b, strict=True))


@contextlib.contextmanager
def unchanged_random_state():
    """Give Python's, NumPy's and Torch's generators back the state they have now."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.random.get_rng_state() if torch else None
    cuda_states = torch.cuda.get_rng_state_all() if torch and torch.cuda.is_available() else None
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if torch_state is not None:
            torch.random.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


@contextlib.contextmanager
def unchanged_buffers(model):
    """Give the buffers of wrapped Torch modules (running statistics) back the values they have now."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()] if torch else []
    try:
        yield
    finally:
        for buffer, value in buffers:
            with torch.no_grad():
                buffer.copy_(value)


@contextlib.contextmanager
def untouched(model):
    """Everything about `model` and the random state is afterwards as it was, also when the body raises."""
    with unchanged_random_state(), unchanged_buffers(model), unchanged_attributes(sublayers(model)):
        yield
