"""Array functions in a TensorFlow graph, under NumPy's names, for a layer of another backend inside `tf.data`.

There a layer of the JAX or Torch backend is handed TensorFlow's tensors, with which `keras.ops` can do nothing.
"""

import functools
import sys
import types

from tf_tricks._backend import BACKEND


def tensorflow():
    """The module, which is not imported for its own sake: whoever made a tensor of it has imported it. Else None."""
    return sys.modules.get("tensorflow")


def is_foreign(x):
    """Is `x` a tensor of TensorFlow, and the backend another?"""
    return BACKEND != "tensorflow" and tensorflow() is not None and tensorflow().is_tensor(x)


@functools.cache
def functions():
    """The namespace."""
    tf = tensorflow()
    return types.SimpleNamespace(
        abs=tf.abs,
        arange=tf.range,
        arcsinh=tf.asinh,
        arctanh=tf.atanh,
        argsort=tf.argsort,
        bitwise_and=tf.bitwise.bitwise_and,
        bitwise_xor=tf.bitwise.bitwise_xor,
        cast=tf.cast,
        clip=tf.clip_by_value,
        concatenate=lambda tensors, axis=0: tf.concat(tensors, axis),
        cond=lambda condition, yes, no: tf.cond(condition, yes, no),
        convert_to_tensor=tf.convert_to_tensor,
        cos=tf.cos,
        cumsum=tf.cumsum,
        equal=tf.equal,
        erf=tf.math.erf,
        exp=tf.exp,
        expm1=tf.math.expm1,
        flip=lambda x, axis: tf.reverse(x, [axis]),
        floor=tf.floor,
        log=tf.math.log,
        log1p=tf.math.log1p,
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
        sign=tf.sign,
        sin=tf.sin,
        sinh=tf.sinh,
        sqrt=tf.sqrt,
        stack=tf.stack,
        sum=tf.reduce_sum,
        switch=lambda i, branches, *values: tf.switch_case(i, [functools.partial(each, *values) for each in branches]),
        take=tf.gather,
        tan=tf.tan,
        tanh=tf.tanh,
        transpose=tf.transpose,
        where=tf.where,
        zeros_like=tf.zeros_like,
    )
