"""The loss of a model as a function of its weights: pure, compiled where the backend compiles, nothing assigned.

Random layers draw the same numbers in every call as long as the model's seeds stay as they are, so the function can be
differentiated by differences, too.
"""

import contextlib
import functools

import keras
import numpy as np

from tf_tricks._backend import BACKEND, jax, tf, torch
from tf_tricks.fit_hooks.quick_jit import jit_quickly
from tf_tricks.fit_hooks.replay import training_argument
from tf_tricks.fit_hooks.replay_state import reachable


class UnknownLossError(ValueError):
    """Only the `train_step` of a model knows its loss."""


class LossFunction:
    """`model.compute_loss` of the model's own outputs, as `fit` minimises it: regularisation and `add_loss` included.

    Args:
        model: a built and compiled keras.Model; it is not changed.
        training: bool, the argument of that name for its layers.
        compiled: bool, or "quickly", for few calls. False: eager on TensorFlow and JAX, too, which suits a batch that
            is seen once.
    Attributes:
        variables: list of keras.Variable, the trainable ones: what gradients are with respect to.
        draw: int, 0 at first: for another number random layers draw other numbers.
    """

    def __init__(self, model, training=True, compiled=True):
        self.model, self.training = model, training
        self.variables = list(model.trainable_variables)
        chosen = {id(variable) for variable in self.variables}
        self._others = [variable for variable in model.variables if id(variable) not in chosen]
        generators = reachable(model, (keras.layers.Layer, keras.random.SeedGenerator))
        self._seeds = {id(g.state) for g in generators if isinstance(g, keras.random.SeedGenerator)}
        self.draw, self._lacks_loss = 0, False
        jit = jit_quickly if compiled == "quickly" else jax and jax.jit
        wrap = {"tensorflow": tf and tf.function, "jax": jit}.get(BACKEND) if compiled else None
        self._value, self._with_gradient, self._with_shares = (
            wrap(each) if wrap else each for each in (self._loss, self._loss_and_gradient, self._loss_and_shares)
        )

    def value(self, x, y=None, sample_weight=None, weights=None):
        """float, the loss of a batch of arrays with the model's present weights, or with the list `weights`."""
        with _without_gradients(), self._says_what_is_missing():
            return float(keras.ops.convert_to_numpy(self._value(*self._arguments(weights, x, y, sample_weight))))

    def gradient(self, x, y=None, sample_weight=None, weights=None):
        """(float loss, list of arrays): the gradient for each of `variables`; None where the loss does not depend."""
        with self._says_what_is_missing():
            loss, gradients = self._with_gradient(*self._arguments(weights, x, y, sample_weight))
        return float(keras.ops.convert_to_numpy(loss)), [None if g is None else _array(g) for g in gradients]

    def shares(self, x, y=None, sample_weight=None):
        """(float loss, array or None): the derivative for a factor on the weight of each sample, at a factor of 1."""
        arguments = self._arguments(None, x, y, sample_weight)
        leaf = keras.tree.flatten(arguments[2])[0]
        with self._says_what_is_missing():
            loss, shares = self._with_shares(keras.ops.ones((leaf.shape[0],), keras.config.floatx()), *arguments)
        return float(keras.ops.convert_to_numpy(loss)), None if shares is None else _array(shares)

    def added_loss(self, x):
        """float, what layers add to the loss of a batch by `add_loss`, regularisation included."""
        with _without_gradients(), self.scope([v.value for v in self.variables]):
            self._outputs(keras.tree.map_structure(_tensor, x))
            return sum(float(np.sum(_array(loss))) for loss in self.model.losses)

    def predictions(self, x):
        """The outputs for a batch, as arrays in the model's structure."""
        with _without_gradients(), self.scope([v.value for v in self.variables]):
            return keras.tree.map_structure(_array, self._outputs(keras.tree.map_structure(_tensor, x)))

    def _arguments(self, weights, *data):
        weights = [variable.value for variable in self.variables] if weights is None else [_tensor(w) for w in weights]
        tensors = [keras.tree.map_structure(_tensor, each) for each in data]
        others = [variable.value for variable in self._others]
        if self.draw:
            seeds = [id(variable) in self._seeds for variable in self._others]
            others = [o + keras.ops.cast(self.draw, o.dtype) if s else o for o, s in zip(others, seeds, strict=True)]
        return weights, others, *tensors

    def _loss(self, weights, others, x, y, sample_weight):
        with self.scope(weights, others), self.same_numbers():
            compute = functools.partial(self.model.compute_loss, **self._argument(self.model.compute_loss))
            outputs = self._outputs(x)
            own = type(self.model).compute_loss is not keras.Model.compute_loss
            if not (own or self.model.loss is not None or self.model.losses):  # JAX would take it for 0
                self._lacks_loss = True
                raise UnknownLossError
            return compute(x, y, outputs, sample_weight)

    @contextlib.contextmanager
    def _says_what_is_missing(self):
        """Outside of what is traced: TensorFlow would put a report of many lines around the message."""
        self._lacks_loss = False
        try:
            yield
        except Exception:
            if not self._lacks_loss:
                raise
            raise UnknownLossError(
                "`model` must be compiled with a loss, have a `compute_loss` of its own or call `add_loss`: what its "
                f"`train_step` alone computes cannot be looked into. Received: a {type(self.model).__name__} without"
            ) from None

    def _loss_and_gradient(self, weights, *rest):
        return value_and_gradients(lambda weights: self._loss(weights, *rest), weights)

    def _loss_and_shares(self, factors, weights, others, x, y, sample_weight):
        def weighted(factors):
            return self._loss(weights, others, x, y, _times(factors[0], sample_weight))

        loss, gradients = value_and_gradients(weighted, [factors])
        return loss, gradients[0]

    def _outputs(self, x):
        return self.model(x, **self._argument(self.model.call))

    def _argument(self, function):
        return {name: self.training for name in training_argument(function)}

    def same_numbers(self):
        """On Torch layers draw from its global generators, which begin anew in every call; elsewhere from the seeds."""
        if torch is None:
            return contextlib.nullcontext()
        stack = contextlib.ExitStack()
        stack.enter_context(torch.random.fork_rng(devices=range(torch.cuda.device_count())))
        torch.manual_seed(self.draw)
        return stack

    def scope(self, weights, others=None):
        """A context manager in which `variables` have the values `weights`, and nothing is assigned."""
        # In it no variable is assigned: statistics, seeds and metrics stay as they are.
        others = [variable.value for variable in self._others] if others is None else others
        mapping = [*zip(self.variables, weights, strict=True), *zip(self._others, others, strict=True)]
        scope = keras.StatelessScope(collect_losses=True)
        for update in mapping:  # as a mapping they would be cast to the variables' dtype, and doubles lose their digits
            scope.add_update((update[0], _tensor(update[1])))
        return scope


def value_and_gradients(function, tensors):
    """(value, list of gradients) of a scalar function of a list of tensors; None where it does not depend on one."""
    if BACKEND == "jax":
        return jax.value_and_grad(function)(tensors)
    if BACKEND == "tensorflow":
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tensors = [tf.identity(each) for each in tensors]
            tape.watch(tensors)
            value = function(tensors)
        found = tape.gradient(value, tensors)
        return value, [g if g is None else tf.convert_to_tensor(g) for g in found]
    tensors = [each.detach().requires_grad_() for each in tensors]
    value = function(tensors)
    if not value.requires_grad:
        return value, [None] * len(tensors)
    return value, list(torch.autograd.grad(value, tensors, allow_unused=True))


def _times(factors, sample_weight):
    """The weights of the samples times `factors`, one for each sample."""
    if sample_weight is None:
        return factors

    def times(weight):
        weight = keras.ops.cast(weight, factors.dtype)
        return weight * keras.ops.reshape(factors, (-1,) + (1,) * (len(weight.shape) - 1))

    return keras.tree.map_structure(lambda weight: None if weight is None else times(weight), sample_weight)


def _without_gradients():
    return torch.no_grad() if torch else contextlib.nullcontext()


def _tensor(value):
    return None if value is None else keras.ops.convert_to_tensor(value)


def _array(tensor):
    return keras.ops.convert_to_numpy(keras.ops.stop_gradient(tensor))
