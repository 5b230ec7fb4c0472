"""Where augmentation computes: on the backend, or in a TensorFlow graph whatever the backend.

Each function of this room that computes takes such a namespace `xp` first: `keras.ops`, or TensorFlow's functions
inside `tf.data` on another backend.
"""

import keras

from tf_tricks.layers import _in_tensorflow

OPS = keras.ops


def namespace_of(x):
    """Where to compute on `x`: OPS, or TensorFlow's functions for TensorFlow's tensors on another backend."""
    return _in_tensorflow.functions() if _in_tensorflow.is_foreign(x) else OPS
