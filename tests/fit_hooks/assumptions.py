"""What the tests of our assumptions about Keras share: the register of the allow lists' entries, and a tiny `fit`."""

import inspect

import keras
import numpy as np
from keras import layers, ops

from tf_tricks._backend import BACKEND

COVERED = {}  # entry of a PRIVATE_ATTRIBUTES -> names of the tests that check it
JIT = BACKEND == "jax"


def assumes(*entries):
    """Mark a test as the one that checks these entries of `PRIVATE_ATTRIBUTES`."""

    def register(test):
        for entry in entries:
            COVERED.setdefault(entry, []).append(test.__name__)
        return test

    return register


def build(optimizer=None, units=1):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(units)])
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse", jit_compile=JIT)
    return model


def data(num_batches=4):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(num_batches * 4, 3)), generator.normal(size=(num_batches * 4, 1))
    return x.astype("float32"), y.astype("float32")


def fit(model, *callbacks, **options):
    options = {"batch_size": 4, "shuffle": False, "verbose": 0, **options}
    return model.fit(*data(), callbacks=list(callbacks), **options)


def array(value):
    return ops.convert_to_numpy(value)


class AtBegin(keras.callbacks.Callback):
    """Calls a function with the model in `on_train_begin`."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def on_train_begin(self, logs=None):
        self.function(self.model)


def local_of_fit(name):
    """The local variable `name` of the `fit` that the caller runs inside of, None if there is none."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code.co_name != "fit":
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get(name)
