"""The few array functions that augmentation needs, on the backend and in a TensorFlow graph whatever the backend.

Each function of this room that computes takes such a namespace `xp` first. Inside `tf.data` a layer of the JAX or Torch
backend is handed TensorFlow's tensors, and so gets TensorFlow's functions; everywhere else it gets `keras.ops`.
"""

import functools
import sys
import types

import keras

from tf_tricks._backend import BACKEND

OPS = keras.ops


def _in_tensorflow():
    tf = sys.modules["tensorflow"]  # whoever made the tensor has imported it
    return types.SimpleNamespace(
        abs=tf.abs,
        arange=tf.range,
        argsort=tf.argsort,
        bitwise_and=tf.bitwise.bitwise_and,
        bitwise_xor=tf.bitwise.bitwise_xor,
        cast=tf.cast,
        clip=tf.clip_by_value,
        concatenate=lambda tensors, axis=0: tf.concat(tensors, axis),
        convert_to_tensor=tf.convert_to_tensor,
        cond=lambda condition, yes, no: tf.cond(condition, yes, no),
        cos=tf.cos,
        cumsum=tf.cumsum,
        equal=tf.equal,
        exp=tf.exp,
        flip=lambda x, axis: tf.reverse(x, [axis]),
        floor=tf.floor,
        log=tf.math.log,
        logical_and=tf.logical_and,
        logical_not=tf.logical_not,
        logical_or=tf.logical_or,
        matmul=tf.matmul,
        max=tf.reduce_max,
        maximum=tf.maximum,
        mean=tf.reduce_mean,
        min=tf.reduce_min,
        minimum=tf.minimum,
        one_hot=tf.one_hot,
        ones_like=tf.ones_like,
        pad=tf.pad,
        reshape=tf.reshape,
        right_shift=tf.bitwise.right_shift,
        round=tf.round,
        segment_sum=lambda data, segments, num_segments: tf.math.unsorted_segment_sum(data, segments, num_segments),
        shape=lambda x: [tf.shape(x)[i] if size is None else size for i, size in enumerate(x.shape)],
        sin=tf.sin,
        sqrt=tf.sqrt,
        stack=tf.stack,
        sum=tf.reduce_sum,
        switch=lambda i, branches, *values: tf.switch_case(i, [functools.partial(each, *values) for each in branches]),
        take=tf.gather,
        tan=tf.tan,
        transpose=tf.transpose,
        where=tf.where,
        zeros_like=tf.zeros_like,
    )


def namespace_of(x):
    """Where to compute on `x`: OPS, or TensorFlow's functions for TensorFlow's tensors on another backend."""
    tf = sys.modules.get("tensorflow")
    if BACKEND != "tensorflow" and tf is not None and tf.is_tensor(x):
        return _in_tensorflow()
    return OPS
