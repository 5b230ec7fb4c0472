"""The same arithmetic on the backend, in a TensorFlow graph whatever the backend, and in NumPy.

A scaling layer writes its formula once, as a function of a namespace `xp`. The namespaces hold the few functions that
such formulas need, under NumPy's names.
"""

import math
import sys
import types

import keras
import numpy as np

from tf_tricks._backend import BACKEND

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


def _in_tensorflow(tf):
    return types.SimpleNamespace(
        abs=tf.abs,
        arcsinh=tf.asinh,
        arctanh=tf.atanh,
        cast=tf.cast,
        clip=tf.clip_by_value,
        erf=tf.math.erf,
        expm1=tf.math.expm1,
        log=tf.math.log,
        log1p=tf.math.log1p,
        matmul=tf.matmul,
        reshape=tf.reshape,
        shape=lambda x: [tf.shape(x)[i] if size is None else size for i, size in enumerate(x.shape)],
        sign=tf.sign,
        sinh=tf.sinh,
        sqrt=tf.sqrt,
        take=tf.gather,
        tanh=tf.tanh,
        transpose=tf.transpose,
        where=tf.where,
    )


def namespace_of(x):
    """Where to compute on `x`: in OPS, unless the backend cannot or would lose digits.

    It cannot inside tf.data, which hands TensorFlow's symbolic tensors to a layer of another backend. JAX turns 64-bit
    NumPy arrays into 32-bit ones before the layer sees them: those are scaled first, in NumPy.
    """
    tf = sys.modules.get("tensorflow")  # whoever made the tensor has imported it
    if BACKEND != "tensorflow" and tf is not None and tf.is_tensor(x) and tf.is_symbolic_tensor(x):
        return _in_tensorflow(tf)
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
