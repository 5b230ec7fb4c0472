"""Where augmentation computes: on the backend, or in a TensorFlow graph whatever the backend.

Each function of this room that computes takes such a namespace `xp` first: OPS, which is `keras.ops`, on Torch
with less between it and the backend's functions, or TensorFlow's functions inside `tf.data` on another backend; what is
drawn for Torch on a CPU, NumPy's.
"""

import keras
import numpy as np

from tf_tricks._backend import BACKEND
from tf_tricks.layers import _in_tensorflow
from tf_tricks.layers.augmentation import _in_torch

OPS = _in_torch.Functions() if BACKEND == "torch" else keras.ops


class _NumPy:
    """NumPy with the functions that it lacks: for a few numbers it takes a tenth of the time of `keras.ops`."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def cast(x, dtype):
        return np.asarray(x).astype(dtype)

    @staticmethod
    def convert_to_tensor(x, dtype=None):
        return np.asarray(x, dtype)

    @staticmethod
    def shape(x):
        return tuple(x.shape)


NUMPY = _NumPy()


def namespace_of(x):
    """Where to compute on `x`: OPS, or TensorFlow's functions for TensorFlow's tensors on another backend."""
    return _in_tensorflow.functions() if _in_tensorflow.is_foreign(x) else OPS
