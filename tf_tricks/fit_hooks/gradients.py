"""What one training step shows of its gradients, as plain functions on tensors.

Everything here runs inside the compiled step, on every backend. A norm is the L2 norm of one whole tensor, in float32.
"""

import keras
import numpy as np
from keras import ops

from tf_tricks._backend import BACKEND, tf, torch

# What a step can record, one value per trainable variable.
COLUMNS = ("grad_norm", "applied_grad_norm", "weight_norm", "update_norm")

# Squares of float32 overflow from 1.8e19 on, although the values are finite. Scaled by 2**-80 no float32 overflows.
_SMALL = 2.0**-80


def dense(gradient):
    """Return a dense tensor for TensorFlow's IndexedSlices (the gradient of an embedding), anything else as it is."""
    if BACKEND == "tensorflow" and isinstance(gradient, tf.IndexedSlices):
        return tf.convert_to_tensor(gradient)
    return gradient


def float32(value):
    """A tensor or number as float32 tensor; no gradient flows back, so that a record keeps no graph of Torch alive."""
    if BACKEND == "torch" and isinstance(value, torch.Tensor):
        return value.detach().float()
    return ops.stop_gradient(ops.cast(value, "float32"))


def norms(tensors, *, under_xla):
    """L2 norms of a list of n tensors: shape `(n,)`, float32; finite if and only if all values and the norm are.

    Huge but finite values (1e30) keep a finite norm. `under_xla` chooses the form that is fast there.
    """
    if not tensors:
        return ops.zeros((0,), "float32")
    if BACKEND == "torch":
        return _torch_norms(tensors)
    tensors = [_several(ops.cast(dense(tensor), "float32")) for tensor in tensors]
    plain = _square_sums(tensors, under_xla)

    def scaled():
        small = ops.sqrt(_square_sums([tensor * _SMALL for tensor in tensors], under_xla)) / _SMALL
        return ops.where(ops.isfinite(plain), ops.sqrt(plain), small)  # what did not overflow would underflow here

    if under_xla and BACKEND == "tensorflow":  # a branch here would make XLA round the update itself otherwise
        return ops.where(ops.isfinite(plain), ops.sqrt(plain), scaled())
    # A second pass over the gradients only when it is needed.
    return ops.cond(ops.all(ops.isfinite(plain)), lambda: ops.sqrt(plain), scaled)


def plain_norms(tensors, *, under_xla):
    """As `norms`, in one pass: a norm above 1.8e19 comes out as Inf. For weights and their changes."""
    if BACKEND == "torch":
        return torch.stack(torch._foreach_norm([float32(tensor) for tensor in tensors]))
    return ops.sqrt(_square_sums([ops.cast(tensor, "float32") for tensor in tensors], under_xla))


def _several(tensor):
    # Without a sum over several elements XLA turns (x * c) * (x * c) into (x * x) * (c * c): Inf times 0.
    if all(size == 1 for size in tensor.shape):
        return ops.pad(ops.reshape(tensor, (1,)), (0, 1))
    return tensor


def _square_sums(tensors, under_xla):
    if BACKEND == "tensorflow" and not under_xla:
        return 2.0 * tf.stack([tf.nn.l2_loss(tensor) for tensor in tensors])  # one kernel, no temporary
    return ops.stack([_square_sum(tensor) for tensor in tensors])


def _square_sum(tensor):
    if BACKEND == "jax":
        return ops.sum(ops.square(tensor))
    # TensorFlow's XLA on the CPU adds the values of one sum one by one; sums of columns side by side are vectorised.
    columns = ops.sum(ops.square(ops.reshape(tensor, (-1, tensor.shape[-1] if tensor.shape else 1))), axis=0)
    return ops.dot(columns, ops.ones_like(columns))  # not a second `sum`, which XLA would merge with the first


def _torch_norms(tensors):
    values = [float32(tensor) for tensor in tensors]
    plain = torch.stack(torch._foreach_norm(values))
    if plain.device.type == "cpu" and bool(torch.isfinite(plain).all()):
        return plain  # reading the flag costs nothing where there is no other device
    scaled = torch.stack(torch._foreach_norm(torch._foreach_mul(values, _SMALL))) / _SMALL
    return torch.where(torch.isfinite(plain), plain, scaled)


def global_norm(vector):
    """L2 norm of a vector of norms, along the last axis, without overflow for finite values."""
    largest = ops.maximum(ops.max(vector, axis=-1, keepdims=True), 1e-30)
    return ops.squeeze(largest, -1) * ops.sqrt(ops.sum(ops.square(vector / largest), axis=-1))


def loss_scale(optimizer, read):
    """The factor that mixed precision put on the loss, or None. `read(variable)` gives a variable's present value."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return read(optimizer.dynamic_scale)
    return optimizer.loss_scale_factor


def innermost(optimizer):
    """The optimizer that updates the weights: the one inside a LossScaleOptimizer."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def clipped_norms(grad_norms, optimizer):
    """Norms after `clipnorm` or `global_clipnorm`, from the norms before: NumPy, shape `(..., n)`."""
    grad_norms = np.asarray(grad_norms, "float64")
    if optimizer.clipnorm is not None:
        overflow = np.where(np.isinf(grad_norms), np.nan, 0.0)
        return np.where(_overflows(grad_norms), overflow, np.minimum(grad_norms, optimizer.clipnorm))
    if optimizer.global_clipnorm is not None:
        total = np.sqrt(np.sum(grad_norms**2, axis=-1, keepdims=True))
        factor = np.minimum(1.0, optimizer.global_clipnorm / np.maximum(total, 1e-300))
        return grad_norms * np.where(_overflows(total), np.nan, factor)
    return grad_norms


def _overflows(norms):
    # Keras sums squares in float32. From here on it divides by Inf: `clipnorm` then gives 0, `global_clipnorm` NaN.
    return norms > float(np.finfo("float32").max) ** 0.5
