"""Freeze weights inside of the train step alone: between two steps model and optimizer are the user's.

`layer.trainable = False` would change `model.trainable_variables`, which the optimizer was built for, which files are
written by, and which on JAX say what belongs to which part of the state. So the variables stay trainable, and the step
is built (and traced) with three things in force: frozen gradients are dropped before anybody sees them, the optimizer
updates the others alone, and layers are told `trainable=False`, as batch normalisation understands it.
"""

import contextlib
import dataclasses
import threading

from keras import ops

from tf_tricks._backend import BACKEND

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "Layer._trainable": "what `call` reads as `self.trainable`; the public setter changes the variables, too",
    "Optimizer._get_variable_index": "how each update rule finds its moments, of Keras's and the backend's variables",
    "Optimizer._backend_update_step": "on Torch one call updates all variables, and so counts their steps alike",
}


@dataclasses.dataclass(frozen=True)
class Freeze:
    """What a step leaves alone.

    Attributes:
        frozen: frozenset of int, positions in `model.trainable_variables`.
        layers: tuple of layers that are run as if their `trainable` was False.
        since: tuple of int, for each trainable variable the `optimizer.iterations` with which its training began: a
            bias correction (Adam) counts from there, because its moments were zero then.
    """

    frozen: frozenset
    layers: tuple
    since: tuple


@contextlib.contextmanager
def in_force(freeze, variables):
    """While this lasts, the layers of `freeze` see `trainable=False`, and Torch computes no frozen gradient."""
    if freeze is None:
        yield
        return
    layers = [layer for layer in freeze.layers if layer.trainable]
    held = [variables[i].value for i in freeze.frozen] if BACKEND == "torch" else []
    try:
        for layer in layers:
            object.__setattr__(layer, "_trainable", False)
        for parameter in held:
            parameter.requires_grad_(False)
        yield
    finally:
        for layer in layers:
            object.__setattr__(layer, "_trainable", True)
        for parameter in held:
            parameter.requires_grad_(True)


def without_frozen(freeze, known, grads, variables):
    """The gradients of `variables`, None for those that are frozen; `known` is what the positions count."""
    if freeze is None:
        return grads
    frozen = {id(known[i]) for i in freeze.frozen}
    return [None if id(v) in frozen else grad for grad, v in zip(grads, variables, strict=True)]


def freezing_class(cls, freeze, variables, optimizer):
    """A subclass of the class of `optimizer` whose update leaves the frozen ones of `variables` alone."""
    if freeze is None:
        return cls
    try:
        position = {optimizer._get_variable_index(v): i for i, v in enumerate(variables)}
    except KeyError:
        raise ValueError(
            "GradualUnfreezing: the optimizer was built while other layers were trainable. Call `compile` again after "
            "a change of `trainable`."
        ) from None
    now = threading.local()  # TensorFlow's strategies run replicas side by side

    class Freezing(cls):
        @property
        def iterations(self):
            since = getattr(now, "since", 0)
            # A callback may have put an earlier state back: then the moments are zero again, too.
            return ops.maximum(super().iterations - since, 0) if since else super().iterations

        def apply(self, grads, trainable_variables=None):
            given = variables if trainable_variables is None else list(trainable_variables)
            kept = [i for i, v in enumerate(given) if self._position(v) not in freeze.frozen]
            if kept:
                super().apply([grads[i] for i in kept], [given[i] for i in kept])

        def _position(self, variable):
            try:
                return position.get(self._get_variable_index(variable))
            except KeyError:  # Keras says what is wrong with it
                return None

        def _since(self, variable):
            return freeze.since[self._position(variable)]

    if not any(freeze.since):
        return Freezing

    class CountingAnew(Freezing):
        if BACKEND == "torch":

            def _backend_update_step(self, grads, trainable_variables, learning_rate):
                groups = {}
                for grad, variable in zip(grads, trainable_variables, strict=True):
                    groups.setdefault(self._since(variable), []).append((grad, variable))
                for since, pairs in groups.items():
                    with _counting_from(now, since):
                        super()._backend_update_step(*map(list, zip(*pairs, strict=True)), learning_rate)
        else:

            def update_step(self, gradient, variable, learning_rate):
                with _counting_from(now, self._since(variable)):
                    super().update_step(gradient, variable, learning_rate)

    return CountingAnew


@contextlib.contextmanager
def _counting_from(now, since):
    now.since = since
    try:
        yield
    finally:
        now.since = 0
