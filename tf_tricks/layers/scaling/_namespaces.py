"""The same arithmetic on the backend, in a TensorFlow graph whatever the backend, and in NumPy.

A scaling layer writes its formula once, as a function of a namespace `xp`. The namespaces hold the few functions that
such formulas need, under NumPy's names.
"""

import math
import types

import keras
import numpy as np

from tf_tricks._backend import BACKEND
from tf_tricks.layers import _in_tensorflow

OPS = keras.ops
NUMPY = types.SimpleNamespace(
    abs=np.abs,
    arcsinh=np.arcsinh,
    arctanh=np.arctanh,
    cast=lambda x, dtype: np.asarray(x, dtype),
    clip=np.clip,
    erf=np.vectorize(math.erf, otypes=["float64"]),
    expm1=np.expm1,
    log=np.log,
    log1p=np.log1p,
    matmul=np.matmul,
    reshape=np.reshape,
    shape=np.shape,
    sign=np.sign,
    sinh=np.sinh,
    sqrt=np.sqrt,
    take=np.take,
    tanh=np.tanh,
    transpose=np.transpose,
    where=np.where,
)
WIDE = ("float64", "int32", "uint32", "int64", "uint64")  # float32 has no room for all of their values


def namespace_of(x):
    """Where to compute on `x`: in OPS, unless the backend cannot or would lose digits.

    It cannot inside tf.data, which hands TensorFlow's symbolic tensors to a layer of another backend. JAX turns 64-bit
    NumPy arrays into 32-bit ones before the layer sees them: those are scaled first, in NumPy.
    """
    if _in_tensorflow.is_foreign(x) and _in_tensorflow.tensorflow().is_symbolic_tensor(x):
        return _in_tensorflow.functions()
    if BACKEND == "jax" and isinstance(x, np.ndarray | np.generic) and x.dtype.name in WIDE:
        return NUMPY
    return OPS


def working_dtype(x, xp):
    """The dtype to scale `x` in: float64 where `x` needs it and the device has it, else float32; never less."""
    if xp is not OPS:  # on the CPU, and TensorFlow's graph optimizer would join `high` and `low` again
        return "float64"
    on_apple_gpu = getattr(getattr(x, "device", None), "type", None) == "mps"
    dtype = keras.backend.standardize_dtype(x.dtype)
    wide = dtype in WIDE and BACKEND != "jax" and not on_apple_gpu
    return "float64" if dtype == "float64" or wide else "float32"
