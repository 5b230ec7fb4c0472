"""Models of the tests of this room, and a child process that trains one on another backend."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np

from tf_tricks import checkpoints

X = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")


# What starts soonest: TensorFlow traces slowly, JAX compiles each operation that is not in a compiled step.
QUICK = {"run_eagerly": keras.backend.backend() == "tensorflow", "jit_compile": keras.backend.backend() == "jax"}


def make_model(
    units=4, optimizer="adam", dtype="float32", dropout=0.5, shape=(3,), names=("hidden", "head"), **options
):
    keras.config.set_dtype_policy(dtype)  # the fixture gives the old one back
    layers = [keras.Input(shape)] if shape else []
    layers += [
        keras.layers.Dense(units, activation="tanh", name=names[0]),
        keras.layers.BatchNormalization(),
        *([keras.layers.Dropout(dropout, seed=1)] if dropout else []),  # without a seed Torch uses its global state
        keras.layers.Dense(1, name=names[1]),
    ]
    model = keras.Sequential(layers)
    if optimizer:
        model.compile(optimizer, "mse", metrics=["mae"], **{**QUICK, **options})
    return model


def fit(model, epochs=1):
    return model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, shuffle=False).history


def fill(model, steps=8):
    """Give the model and its optimizer the look of `steps` steps without the time that compiling one takes."""
    rng = np.random.default_rng(steps)
    if model.optimizer is not None:
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        moments = [variable for variable in optimizer.variables if tuple(variable.shape)]
        optimizer.iterations.assign(steps)
    for variable in [*model.weights, *(moments if model.optimizer is not None else [])]:
        variable.assign(rng.uniform(0.1, 1, variable.shape).astype("float32"))


def bits(variables):
    return [np.array(keras.ops.convert_to_numpy(variable)).tobytes() for variable in variables]


def state(model):
    """All that a restored run must have in common with the saved one."""
    return bits([*model.variables, *model.optimizer.variables])


def predict(model):
    return keras.ops.convert_to_numpy(model(X, training=False)).astype("float32")


def train_elsewhere(backend, folder):
    """Start a child that trains on `backend`, saves to `folder`, trains on, and notes what it got."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    code = f"from tests.checkpoints.models import child; child({str(folder)!r})"
    root = pathlib.Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", code], cwd=root, env=environment, stderr=subprocess.PIPE, text=True)


def child(folder):
    model = make_model(dropout=None)
    fit(model, 3)
    checkpoints.save(f"{folder}/run.safetensors", model, epoch=3)
    before = predict(model)
    fit(model)
    np.savez(f"{folder}/results.npz", before=before, after=predict(model))
