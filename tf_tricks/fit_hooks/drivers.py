"""How each backend calls the instrumented step: draw batches, run them, put the state in place.

`fit` calls `model.train_function` with other arguments on each backend, and Keras hides the batch inside it on
TensorFlow. A driver turns the three into one shape: `draw` gives batches, `run` trains on them.
"""

import contextlib

import keras
from keras import ops

from tf_tricks._backend import BACKEND, tf, torch

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "Model.train_function": "`fit` calls whatever stands here; there is no public way to see a batch or a step",
    "Model.train_step": "overriding it in a subclass is public; setting it on the instance while we build is not",
    "Model._jax_state_synced": "tells `fit` on JAX that the variables hold the state, so that it reads them again",
    "Model._symbolic_build": "creates all variables from the data's specification; TensorFlow does it while tracing",
    "Model.make_train_function": "builds `train_function` from `train_step`, `jit_compile` and `run_eagerly`",
}


@contextlib.contextmanager
def _attributes(instance, **values):
    """Set attributes for a while, past the tracking of Keras, and take them away again."""
    before = {name: vars(instance).get(name, contextlib) for name in values}
    for name, value in values.items():
        object.__setattr__(instance, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is contextlib:  # it had none of its own
                object.__delattr__(instance, name)
            else:
                object.__setattr__(instance, name, value)


class Driver:
    """Runs an instrumented step the way this backend does."""

    free_look = False  # has a step ended when it returns, so that looking at it costs nothing?

    def __init__(self, model, instrument, arguments):
        self.model = model
        self.instrument = instrument
        self._step = instrument.stateless_step if BACKEND == "jax" else instrument.stateful_step
        # One step a call: the loop over `steps_per_execution` is ours, so that every step's record comes out.
        with _attributes(model, train_step=self._step, steps_per_execution=1, train_function=None):
            model.make_train_function(force=True)
            self._one_step = model.train_function

    def open(self, arguments):
        """Take the arguments of `train_function`; returns where batches come from."""
        return arguments[0]

    def close(self, logs):
        """What `train_function` shall return."""
        return logs

    def draw(self, source, count):
        """Up to `count` batches; raises StopIteration when there is none."""
        return [source[0]]

    def run(self, batches, controls):
        """Train on batches; returns the last logs and one record a batch."""
        records = []
        for batch, control in zip(batches, controls, strict=True):
            control = {**control, "guard": records[-1]["guard"]} if records else control
            logs, record = self._call(batch, control)
            records.append(record)
        return logs, records

    def _call(self, batch, control):
        with _attributes(self.model, train_step=self._step):  # Torch looks it up at every call
            return self._one_step([(batch, control)])

    def data(self, batch):
        """What `train_step` was given for a batch: `(x,)`, `(x, y)` or `(x, y, sample_weight)`."""
        return batch

    def random_state(self):
        """The random state that lies outside of the model's variables, before a step."""

    def set_random_state(self, state):
        """Put back what `random_state` returned."""

    def publish(self):
        """Give the model's variables the present state, so that anybody can read them."""

    def collect(self):
        """Take the model's variables as the present state."""

    def release(self):
        """Let go of the state between two steps: the variables hold it."""

    def rescue(self):
        """Give the model its state back after a step that was interrupted."""

    def value(self, variable):
        """The present value of one of the optimizer's variables, as NumPy array, during a step."""
        return ops.convert_to_numpy(ops.convert_to_tensor(variable))


class TorchDriver(Driver):
    """Torch: a step is eager, and unseeded layers draw from Torch's own generators."""

    def __init__(self, model, instrument, arguments):
        super().__init__(model, instrument, arguments)
        devices = {variable.value.device for variable in instrument.variables}
        self._accelerators = [device for device in devices if device.type == "cuda"]
        self.free_look = all(device.type == "cpu" for device in devices)

    def random_state(self):
        return torch.get_rng_state(), [torch.cuda.get_rng_state(device) for device in self._accelerators]

    def set_random_state(self, state):
        torch.set_rng_state(state[0])
        for device, value in zip(self._accelerators, state[1], strict=True):
            torch.cuda.set_rng_state(value, device)


class JaxDriver(Driver):
    """JAX: the state goes through the step; the variables are empty shells meanwhile."""

    def __init__(self, model, instrument, arguments):
        self.model = model
        self.open(arguments)
        self._assign()  # Keras reads each variable's sharding while it builds the step
        super().__init__(model, instrument, arguments)

    def open(self, arguments):
        self._state, source = arguments
        self._published = False
        return source

    def close(self, logs):
        if self._published:
            self.publish()  # the steps since then used up the arrays that the variables were given
        state, self._state = self._state, None
        return logs, state

    def draw(self, source, count):
        return _up_to(count, source)

    def _call(self, batch, control):
        (logs, record), self._state = self._one_step(self._state, iter([(batch, control)]))
        return logs, record

    def _variables(self):
        model = self.model
        return (
            model.trainable_variables,
            model.non_trainable_variables,
            model.optimizer.variables,
            model.metrics_variables,
        )

    def _assign(self):
        for variables, values in zip(self._variables(), self._state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)

    def publish(self):
        self._assign()
        self.model._jax_state_synced = True  # else the next look at `callback.model` puts an older state there
        self._published = True

    def release(self):
        self._state = None

    def rescue(self):
        # `fit` would put the state of the step before into the variables, arrays that this step has used up.
        if self._state is not None:
            self.publish()
            self.release()

    def value(self, variable):
        position = [id(each) for each in self.model.optimizer.variables].index(id(variable))
        return ops.convert_to_numpy(self._state[2][position])

    def collect(self):
        self._state = tuple([variable.value for variable in variables] for variables in self._variables())


class TensorFlowDriver(Driver):
    """TensorFlow: the loop over several steps is one compiled function, and gives the batches back by reference."""

    def __init__(self, model, instrument, arguments):
        super().__init__(model, instrument, arguments)
        if model.run_eagerly:
            return
        self._run_many = tf.function(super().run, reduce_retracing=True)
        self._run_drawn = tf.function(self._draw_and_run, reduce_retracing=True)
        self._element_spec, self._traced = None, set()

    def _draw_and_run(self, iterator, control):
        batch = iterator.get_next()
        return batch, *self._call(batch, control)

    def draw(self, source, count):
        self._element_spec = getattr(source, "element_spec", None)
        return _up_to(count, source)

    def run(self, batches, controls):
        if self.model.run_eagerly:
            return super().run(batches, controls)
        self._trace_for_any_shape(len(batches), controls)
        return self._run_many(batches, controls)

    def _trace_for_any_shape(self, count, controls):
        """Trace for shapes as unknown as in `fit`: knowing more, TensorFlow picks kernels that round differently.

        A batch that waited while the device held still shall be trained on with the same bits.
        """
        leaves = keras.tree.flatten(self._element_spec)
        if count not in self._traced and all(isinstance(leaf, tf.TensorSpec) for leaf in leaves):
            self._run_many.get_concrete_function([self._element_spec] * count, controls)
        self._traced.add(count)

    def draw_and_run(self, source, control):
        """One step with the drawing of its batch inside the compiled function, as `fit` does it."""
        self._element_spec = source.element_spec
        batch, logs, record = self._run_drawn(source, control)
        return [batch], logs, [record]


def _up_to(count, source):
    batches = []
    for _ in range(count):
        try:
            batches.append(next(source))
        except StopIteration:
            if not batches:
                raise
            break
    return batches


def build_all(model, source):
    """Have model, optimizer, metrics and loss create their variables now, without a batch. Returns whether they exist.

    JAX and Torch do this before `fit` begins. TensorFlow leaves it to the first traced step, where we could not yet
    keep what a bad first step has to give back.
    """
    if BACKEND == "tensorflow" and not tf.distribute.in_cross_replica_context():
        try:
            model._symbolic_build(data_batch=keras.tree.map_structure(_symbolic, source.element_spec))
        except Exception:  # ragged or untyped data, a model that cannot be traced without values
            return bool(model.built and model.optimizer.built)
    return True


def _symbolic(spec):
    if not isinstance(spec, tf.TensorSpec):
        return None
    return keras.KerasTensor(tuple(spec.shape), spec.dtype.name)


def make_driver(model, instrument, arguments):
    """The driver of the backend that runs; `arguments` are those of the call of `train_function` that comes first."""
    drivers = {"jax": JaxDriver, "tensorflow": TensorFlowDriver, "torch": TorchDriver}
    return drivers[BACKEND](model, instrument, arguments)


def to_device(value, dtype):
    """A small host value as a tensor that can be passed to the step again and again."""
    return ops.convert_to_tensor(value, dtype)
