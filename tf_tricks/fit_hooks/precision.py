"""Let a borrowed model compute in another floating-point type."""

import contextlib

import keras
import numpy as np

from tf_tricks._backend import BACKEND, jax
from tf_tricks.fit_hooks.replay_state import sublayers

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "keras.backend.result_type.BIT64_TO_BIT32_DTYPE": "turns doubles into float32 in every operation on JAX and Torch",
}


@contextlib.contextmanager
def computing_in(dtype, model):
    """All layers and losses of a borrowed `model` compute in `dtype`, "float64" or "float32", in this process.

    Weights keep their type: hand those of the other type over as values. The loan gives the layers their policies back.
    """
    policies = [layer.dtype_policy for layer in sublayers(model)]
    special = (keras.dtype_policies.DTypePolicyMap, keras.dtype_policies.QuantizedDTypePolicy)
    if not any(isinstance(policy, special) for policy in policies):
        for layer in sublayers(model):
            layer.dtype_policy = dtype
    floatx, of_losses = keras.config.floatx(), keras.losses.Loss.dtype
    promotions = keras.backend.result_type.__globals__["BIT64_TO_BIT32_DTYPE"]
    of_doubles = promotions["float64"]
    with jax.enable_x64(dtype == "float64") if BACKEND == "jax" else contextlib.nullcontext():
        keras.config.set_floatx(dtype)
        promotions["float64"] = dtype
        keras.losses.Loss.dtype = property(lambda loss: dtype)  # a loss fixes its own when it is constructed
        try:
            yield
        finally:
            promotions["float64"] = of_doubles
            keras.losses.Loss.dtype = of_losses
            keras.config.set_floatx(floatx)


def as_dtype(dtype, structure):
    """The arrays of a structure, those of floats as `dtype`."""

    def cast(array):
        if array is None or not keras.backend.is_float_dtype(keras.backend.standardize_dtype(array.dtype)):
            return array
        return np.asarray(array).astype(dtype)

    return keras.tree.map_structure(cast, structure)
