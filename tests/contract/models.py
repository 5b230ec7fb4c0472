"""Tiny models and runs of `fit` that the contracts share."""

import keras
import numpy as np

BACKEND = keras.backend.backend()
EPOCHS, STEPS, BATCH = 2, 5, 8
ROWS = STEPS * BATCH

# How a user may have compiled the model. Keras refuses more than one step per execution on Torch, and a compiled Torch
# step takes half a minute to build, so that one has a test of its own.
MODES = {
    "xla": {"jit_compile": True},
    "graph": {"jit_compile": False},
    "eager": {"jit_compile": False, "run_eagerly": True},
    "several_steps": {"steps_per_execution": 4},
}
# The mode in which a step is ready soonest; JAX without a compiler runs each operation by itself.
QUICK = "xla" if BACKEND == "jax" else "graph"
if BACKEND == "torch":
    MODES = {name: MODES[name] for name in ("graph", "eager")}
if BACKEND == "jax":
    del MODES["graph"]  # without the compiler a step is an eager step


def data(rows=ROWS):
    """`x` (rows, 4) and `y` (rows, 1), float32."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4)).astype("float32")
    return x, (x @ np.array([[1.0], [-2.0], [0.5], [0.0]]) + 0.1 * rng.normal(size=(rows, 1))).astype("float32")


def _layers():
    return [keras.layers.Dense(4, activation="tanh"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.25)]


def sequential():
    return keras.Sequential([keras.Input((4,)), *_layers(), keras.layers.Dense(1, dtype="float32")])


class Subclassed(keras.Model):
    """Layers made in the constructor, one of them inside another layer's list; called in Python."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.body = _layers()
        self.head = keras.layers.Dense(1, dtype="float32")

    def call(self, x, training=False):
        for layer in self.body:
            x = layer(x, training=training) if isinstance(layer, keras.layers.Dropout) else layer(x)
        return self.head(x)


class CustomStep(Subclassed):
    """A `train_step` written by hand, as Keras's guides show it for each backend: twice the usual loss."""

    def train_step(self, *args):
        return getattr(self, f"_{BACKEND}_step")(*args)

    def _tensorflow_step(self, batch):
        import tensorflow as tf

        x, y = batch
        with tf.GradientTape() as tape:
            loss = 2.0 * self.compute_loss(x, y, self(x, training=True))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return self._logs(loss)

    def _torch_step(self, batch):
        import torch

        x, y = batch
        self.zero_grad()
        loss = 2.0 * self.compute_loss(x, y, self(x, training=True))
        loss.backward()
        with torch.no_grad():
            self.optimizer.apply([v.value.grad for v in self.trainable_variables], self.trainable_variables)
        return self._logs(loss)

    def _jax_step(self, state, batch):
        import jax

        trainable, others, optimizer, metrics = state
        x, y = batch

        def loss_of(trainable, others):
            y_pred, others = self.stateless_call(trainable, others, x, training=True)
            return 2.0 * self.compute_loss(x, y, y_pred), others

        (loss, others), grads = jax.value_and_grad(loss_of, has_aux=True)(trainable, others)
        trainable, optimizer = self.optimizer.stateless_apply(optimizer, grads, trainable)
        return {"loss": loss}, (trainable, others, optimizer, metrics)

    def _logs(self, loss):
        return {"loss": loss}


def several_inputs_and_outputs():
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    both = keras.layers.Concatenate()([keras.layers.Dense(3)(first), keras.layers.Dense(3)(second)])
    return keras.Model(
        {"first": first, "second": second},
        {"mean": keras.layers.Dense(1, name="mean")(both), "sign": keras.layers.Dense(1, name="sign")(both)},
    )


SHAPES = {"subclassed": Subclassed, "custom_train_step": CustomStep, "several_outputs": several_inputs_and_outputs}


class Run:
    """A compiled model that can be fitted many times from the same beginning, so that its step is compiled once."""

    def __init__(self, build=sequential, learning_rate=0.01, **compile_arguments):
        keras.utils.set_random_seed(0)
        self.model = build()
        x, y = data()
        self.x, self.y = x, y
        if build is several_inputs_and_outputs:
            self.x, self.y = {"first": x, "second": x[::-1]}, {"mean": y, "sign": np.sign(y)}
        self.model(self.x)
        optimizer = keras.optimizers.Adam(learning_rate)
        if keras.config.dtype_policy().name == "mixed_float16":
            # The default scale overflows in the first steps, by design: their gradients are nothing to check.
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
        self.model.compile(optimizer, "mse", **compile_arguments)
        self.model.optimizer.build(self.model.trainable_variables)
        self._variables = [*self.model.variables, *self.model.optimizer.variables]
        self._has_run = False
        self._beginning = [np.array(v.numpy() if BACKEND != "jax" else v.value) for v in self._variables]

    def reset(self):
        for variable, value in zip(self._variables, self._beginning, strict=True):
            variable.assign(value)
        self.model.stop_training = False
        keras.utils.set_random_seed(0)

    def fit(self, callbacks=(), **arguments):
        """Fit from the beginning; returns `(state, history)`."""
        if not self._has_run:
            # The first `fit` of a model draws random numbers while it builds metrics and loss; later ones do not.
            self._has_run = True
            self.fit(epochs=1)
        self.reset()
        arguments = {"x": self.x, "y": self.y, "epochs": EPOCHS, "batch_size": BATCH, "verbose": 0, **arguments}
        history = self.model.fit(callbacks=list(callbacks), **arguments).history
        return self.state(), history

    def state(self):
        """Weights and optimizer variables as arrays, in the order of the variables."""
        variables = [*self.model.weights, *self.model.optimizer.variables]
        return [np.array(keras.ops.convert_to_numpy(v), copy=True) for v in variables]


def assert_same_bits(got, expected):
    assert len(got) == len(expected)
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        np.testing.assert_array_equal(a, b, err_msg=f"variable number {i}", strict=True)
