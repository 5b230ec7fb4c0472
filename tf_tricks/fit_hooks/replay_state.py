"""Leave no trace: what a replayed batch may disturb, noted beforehand and put back afterwards.

Keras variables need no care here: the replay runs in a `keras.StatelessScope`, where an assignment stays in the scope.
What remains are plain Python attributes of layers, buffers of Torch modules, and generators of random numbers.
"""

import contextlib
import functools
import random

import keras
import numpy as np

from tf_tricks._backend import torch

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "Layer._tracker": "notes the ids of what the layer holds: one left there would hide a later variable with that id",
}


def sublayers(layer):
    """Every layer reachable through the attributes of `layer`, itself first."""
    return reachable(layer, keras.layers.Layer)


def reachable(root, classes, leaves=()):
    """Every instance of `classes` or `leaves` reachable through attributes of the former and through containers."""
    found, waiting, seen = [], [root], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, classes):
            found.append(item)
            waiting.extend(vars(item).values())
        elif isinstance(item, leaves):
            found.append(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            waiting.extend(item)
    return found


@contextlib.contextmanager
def unchanged_attributes(holders):
    """Give the `holders` (layers, ...) back the attributes they have now, and lists, sets and dicts their contents."""
    # The old value travels along: a `set` of ids or a list of losses is changed in place, not replaced.
    saved = [(holder, dict(vars(holder)), _contents(vars(holder))) for holder in holders]
    try:
        yield
    finally:
        for holder, attributes, contents in saved:
            for container, items in contents:
                _refill(container, items)
            namespace = vars(holder)
            for name in [name for name in namespace if name not in attributes]:
                del namespace[name]
            namespace.update(attributes)


def _contents(namespace):
    """(container, copy) of each list, set and dict among the values, those inside of others and of trackers too."""
    found, waiting, seen = [], list(namespace.values()), set()
    waiting += [vars(tracker) for tracker in [namespace.get("_tracker")] if hasattr(tracker, "stored_ids")]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or not isinstance(item, (list, tuple, set, dict)):
            continue
        seen.add(id(item))
        if not isinstance(item, tuple):
            found.append((item, _copied(item)))
        waiting.extend(item.values() if isinstance(item, dict) else item)
    return found


def _copied(container):
    return dict(container) if isinstance(container, dict) else list(container)


def _refill(container, items):
    now = _copied(container)
    if len(now) == len(items) and _identical(now, items):
        return
    clear, fill = _methods(container)
    clear()
    fill(items)


def _methods(container):
    """How to empty and to fill a list, set or dict."""
    kind = next(cls for cls in (dict, set, list) if isinstance(container, cls))
    fill = "extend" if kind is list else "update"
    if type(container).__module__.startswith("keras."):
        # Keras's tracked containers tell their tracker of a change, which may be locked, and is put back on its own.
        return functools.partial(kind.clear, container), functools.partial(getattr(kind, fill), container)
    return container.clear, getattr(container, fill)


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
