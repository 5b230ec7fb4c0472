"""Torch's functions under NumPy's names: on a small batch `keras.ops` takes longer to find them than they take."""

import keras

from tf_tricks._backend import torch


class Functions:
    """The namespace: Torch's own functions where they give the values and the dtype that `keras.ops` gives, else those.

    A gradient may differ where two values are equal: `maximum(x, 0.0)` is a `clamp`, which hands all of it on.
    """

    def __init__(self):
        for name in ("abs", "ceil", "cos", "exp", "floor", "log", "round", "sin", "sqrt"):
            setattr(self, name, _of_floats(getattr(torch, name), getattr(keras.ops, name)))
        self.maximum = _of_two(torch.maximum, lambda x, low: x.clamp(min=low), keras.ops.maximum)
        self.minimum = _of_two(torch.minimum, lambda x, high: x.clamp(max=high), keras.ops.minimum)
        self.bitwise_and = _of_integers(torch.bitwise_and, keras.ops.bitwise_and)
        self.bitwise_xor = _of_integers(torch.bitwise_xor, keras.ops.bitwise_xor)
        self.right_shift = _of_integers(torch.bitwise_right_shift, keras.ops.right_shift)
        self.logical_and = _of_booleans(torch.logical_and, keras.ops.logical_and)
        self.logical_or = _of_booleans(torch.logical_or, keras.ops.logical_or)

    def __getattr__(self, name):
        return getattr(keras.ops, name)

    @staticmethod
    def cast(x, dtype):
        if not torch.is_tensor(x):
            return keras.ops.cast(x, dtype)
        return x.to(dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype))

    @staticmethod
    def concatenate(tensors, axis=0):
        return torch.cat(tensors, axis) if _are_alike(tensors) else keras.ops.concatenate(tensors, axis)

    @staticmethod
    def reshape(x, shape):
        return torch.reshape(x, tuple(shape)) if torch.is_tensor(x) else keras.ops.reshape(x, shape)

    @staticmethod
    def shape(x):
        return tuple(x.shape)

    @staticmethod
    def stack(tensors, axis=0):
        return torch.stack(tensors, axis) if _are_alike(tensors) else keras.ops.stack(tensors, axis)

    @staticmethod
    def transpose(x, axes):
        return torch.permute(x, axes)

    @staticmethod
    def where(condition, yes, no):
        if torch.is_tensor(condition) and _are_alike((yes, no)):
            return torch.where(condition, yes, no)
        return keras.ops.where(condition, yes, no)

    @staticmethod
    def matmul(x, y):
        with torch.autocast(x.device.type, enabled=False):  # places in an image need more than the 8 bits of bfloat16
            return torch.matmul(x, y)

    @staticmethod
    def mean(x, axis, keepdims=False):
        return torch.mean(x, axis, keepdims) if x.is_floating_point() else keras.ops.mean(x, axis, keepdims)

    @staticmethod
    def zeros_like(x):
        return torch.zeros_like(x)

    @staticmethod
    def ones_like(x):
        return torch.ones_like(x)


def _are_alike(values):
    """Are they tensors of one dtype, which Keras would not promote?"""
    return all(map(torch.is_tensor, values)) and len({each.dtype for each in values}) == 1


def _of_floats(function, other):
    return lambda x: function(x) if torch.is_tensor(x) and x.is_floating_point() else other(x)


def _of_two(function, with_number, other):
    def compute(x, y):
        if torch.is_tensor(x) and x.is_floating_point() and isinstance(y, float):
            return with_number(x, y)
        return function(x, y) if _are_alike((x, y)) else other(x, y)

    return compute


def _of_integers(function, other):
    def compute(x, y):
        is_plain = torch.is_tensor(x) and x.dtype == torch.int32 and (isinstance(y, int) or _are_alike((x, y)))
        return function(x, y) if is_plain else other(x, y)

    return compute


def _of_booleans(function, other):
    def compute(x, y):
        return function(x, y) if _are_alike((x, y)) and x.dtype == torch.bool else other(x, y)

    return compute
