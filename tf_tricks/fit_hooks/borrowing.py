"""Borrow a model for an experiment: train it, change its layers, and have all of it back afterwards, to the bit.

A model of any kind can be borrowed, a subclassed one too, of which nobody can make a copy. What is noted beforehand and
put back: the values of all variables that hang on the model (weights, statistics, optimizers, metrics, seeds), the
attributes of its layers, optimizers, metrics and losses, and the random states of the process.
"""

import contextlib

import keras
import numpy as np

from tf_tricks._backend import BACKEND, tf, torch
from tf_tricks.fit_hooks import random_state
from tf_tricks.fit_hooks.gradients import innermost
from tf_tricks.fit_hooks.learning_rate import optimizer_rate
from tf_tricks.fit_hooks.replay_state import reachable, unchanged_attributes

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "Model.train_function": "the compiled step: the user's is put aside, so that the experiment compiles its own",
    "Model._symbolic_build": "creates the variables of model, optimizer, metrics and losses from one batch's shapes",
    "Optimizer._learning_rate": "a schedule cannot be replaced by a float in public",
}
_HOLDERS = (
    keras.layers.Layer,
    keras.optimizers.Optimizer,
    keras.metrics.Metric,
    keras.losses.Loss,
    keras.random.SeedGenerator,
    *((torch.nn.Module,) if torch else ()),
)
_VARIABLES = (keras.Variable, *((tf.Variable,) if tf else ()), *((torch.Tensor,) if torch else ()))
_STEPS = ("train_function", "test_function", "predict_function")


@contextlib.contextmanager
def borrowed(model, x, y=None, sample_weight=None):
    """Do with `model` what you like; afterwards it is as it was, also after an exception and Ctrl-C.

    Args:
        model: keras.Model of any kind. What is not built is built from the batch and stays so: the model itself only;
            variables of optimizer, metrics and losses that come into being meanwhile are gone afterwards.
        x, y, sample_weight: one batch of arrays, as `train_on_batch` takes it.
    Yields:
        A `Loan`.
    """
    state = random_state.Snapshot()
    try:
        if not all(layer.built for layer in [model, *model.layers]):
            before = _Values(model)
            with _strategy_of(model):
                model(keras.tree.map_structure(keras.ops.convert_to_tensor, x))
            before.put_back()
        before = _Values(model)
        try:
            with unchanged_attributes(reachable(model, _HOLDERS)):
                yield Loan(model, (x, y, sample_weight))
        finally:
            before.put_back()
    finally:
        state.put_back()


class Loan:
    """A borrowed model, which forgets at will what an experiment did to it.

    The compiled steps of the user are put aside, so a change of a layer, a loss or an optimizer takes effect. On
    TensorFlow the steps are plain graphs, because XLA takes longer to compile one than most experiments last, and a
    call is one step, whatever `steps_per_execution` is.

    Attributes:
        model: the model itself.
    """

    def __init__(self, model, batch):
        self.model, self._train_step = model, model.train_step
        self.forget_steps()
        if getattr(model, "compiled", False):
            model.steps_per_execution = 1
            if BACKEND == "tensorflow":
                model.jit_compile = False
            with _strategy_of(model):
                self._build(batch)
        self._start, self._random = _Values(model), random_state.Snapshot()

    def forget_steps(self):
        """Have Keras trace the model anew: call it after a change that the next step shall see."""
        # Another function each time: JAX remembers what it compiled for one.
        vars(self.model)["train_step"] = _with_data_as_in_fit(self._train_step)
        forget_steps(self.model)

    def reset(self):
        """Give all variables and random generators the values that they had at the begin of the loan."""
        self._start.put_back()
        self._random.put_back()

    def step(self, x, y=None, sample_weight=None):
        """One step of training on a batch, by the model's own `train_step`; returns the loss before the update."""
        if torch:  # `fit` gives tensors to `train_step`, `train_on_batch` the arrays that it was given
            x, y, sample_weight = (keras.tree.map_structure(_as_in_fit, each) for each in (x, y, sample_weight))
        logs = self.model.train_on_batch(x, y, sample_weight, return_dict=True)
        if "loss" not in logs:
            raise ValueError(
                f"The `train_step` of {type(self.model).__name__} must return the loss under the name 'loss'. "
                f"Received: {sorted(logs)}"
            )
        return float(logs["loss"])

    @property
    def learning_rate(self):
        """float, the rate of the next step. Setting it works whatever the optimizer has: a schedule, too."""
        return float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))

    @learning_rate.setter
    def learning_rate(self, rate):
        optimizer = innermost(self.model.optimizer)
        if not isinstance(optimizer_rate(optimizer), keras.Variable):
            with _strategy_of(self.model):
                variable = optimizer.add_variable((), "zeros", "float32", name="learning_rate_of_an_experiment")
            object.__setattr__(optimizer, "_learning_rate", variable)
            self.forget_steps()
        optimizer.learning_rate = rate

    def _build(self, batch):
        try:
            self.model._symbolic_build(data_batch=batch)
        except Exception:  # a model that cannot be traced without values builds the rest in its first step
            if self.model.optimizer is not None and not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)


def forget_steps(model):
    """Have Keras compile a model's steps anew, after a change that they would not see, as of the schedule."""
    for name in _STEPS:
        object.__setattr__(model, name, None)


class _Values:
    """The values of all variables that hang on a model, on the host, and whether each is trained and regularised."""

    def __init__(self, model):
        found = [each for each in reachable(model, _HOLDERS, _VARIABLES) if isinstance(each, _VARIABLES)]
        inside = {id(each.value) for each in found if isinstance(each, keras.Variable)}  # Torch's own parameters
        self._kept = [(each, _read(each), *_settings(each)) for each in found if id(each) not in inside]
        # An experiment leaves its last gradient on Torch's parameters, as large as the model.
        leaves = [each for each in found if torch and isinstance(each, torch.Tensor) and each.is_leaf]
        self._grads = [(each, each.grad) for each in leaves]

    def put_back(self):
        for variable, value, regularizer, trainable in self._kept:
            if isinstance(variable, keras.Variable):
                if variable.regularizer is not regularizer:
                    variable.regularizer = regularizer
                if variable.trainable != trainable:
                    variable.trainable = trainable
            _write(variable, value)
        for parameter, grad in self._grads:
            parameter.grad = grad


def _strategy_of(model):
    """The scope in which variables come into being as those of the model's `tf.distribute` strategy."""
    return model.distribute_strategy.scope() if tf else contextlib.nullcontext()


def _with_data_as_in_fit(train_step):
    """`train_on_batch` hands it (x, y, None) or (x, None, None), where `fit` hands it (x, y), or x as it is."""

    def train_step_with_data_as_in_fit(*arguments):
        *others, data = arguments
        data = keras.utils.pack_x_y_sample_weight(*keras.utils.unpack_x_y_sample_weight(data))
        return train_step(*others, data)

    return train_step_with_data_as_in_fit


def _as_in_fit(array):
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        return array
    return keras.ops.convert_to_tensor(array, keras.config.floatx() if array.dtype.kind == "f" else None)


def _settings(variable):
    return (variable.regularizer, variable.trainable) if isinstance(variable, keras.Variable) else (None, None)


def _read(variable):
    if torch and isinstance(variable, torch.Tensor):
        return variable.detach().clone()
    copies = _copies(variable)
    if copies is not None:
        return [copy.numpy() for copy in copies]
    return np.array(keras.ops.convert_to_numpy(variable.value) if isinstance(variable, keras.Variable) else variable)


def _write(variable, value):
    copies = _copies(variable)
    if torch and isinstance(variable, torch.Tensor):
        with torch.no_grad():
            variable.copy_(value)
    elif copies is not None:
        for copy, each in zip(copies, value, strict=True):
            copy.assign(each)
    else:
        variable.assign(value)


def _copies(variable):
    """The copies of a variable of a `tf.distribute` strategy, one for each device; None for any other variable."""
    # Those of a metric differ: read as one they are added up, and what is written is shared out among them.
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return value.values if tf and isinstance(value, tf.distribute.DistributedValues) else None
