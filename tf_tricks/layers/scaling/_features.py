"""Which values of an input belong to which feature: `axis` as Keras has it."""

import numpy as np


def kept_axes(axis, shape):
    """The axes of `shape`, in ascending order, along which each index is a feature; `axis` as Keras has it.

    Scalars in a batch, shape `(batch,)`, are one feature: their only axis is that of the batch.
    """
    ndim = len(shape)
    axes = () if axis is None else (axis,) if isinstance(axis, int) else axis
    if any(not -ndim <= each < ndim for each in axes):
        raise ValueError(f"`axis` must lie in [{-ndim}, {ndim}) for inputs of shape {shape}. Received: axis={axis!r}")
    kept = () if ndim == 1 else tuple(sorted({each % ndim for each in axes}))
    if any(shape[each] is None for each in kept):
        raise ValueError(f"`axis` must name axes of known size. Received: axis={axis!r} for inputs of shape {shape}")
    return kept


def columns_of(batch, kept):
    """`batch` as a table with one column a feature."""
    order = [each for each in range(batch.ndim) if each not in kept] + list(kept)
    features = int(np.prod([batch.shape[each] for each in kept], dtype=int))
    return batch.transpose(order).reshape(batch.size // max(1, features), features)
