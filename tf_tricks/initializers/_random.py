"""What the random initializers share: a seed as Keras's own initializers take it, and orthogonal matrices."""

import random

import keras


class RandomInitializer(keras.initializers.Initializer):
    """An initializer with a `seed`: an int, a `keras.random.SeedGenerator`, or None to draw an int once."""

    def __init__(self, seed=None):
        self._given_seed = seed
        self.seed = as_seed(seed)

    def get_config(self):
        return {"seed": keras.saving.serialize_keras_object(self._given_seed)}


def as_seed(seed):
    """The int or `SeedGenerator` to draw with; raises TypeError for anything else."""
    if isinstance(seed, dict):  # of a config
        seed = keras.saving.deserialize_keras_object(seed)
    if seed is None:
        # Python's generator, as Keras has it: `keras.utils.set_random_seed` sets it.
        return random.randint(1, int(1e9))
    if isinstance(seed, bool) or not isinstance(seed, (int, keras.random.SeedGenerator)):
        raise TypeError(f"`seed` must be None, an int or a keras.random.SeedGenerator. Received: seed={seed!r}")
    return seed


def working_dtype(dtype):
    """The dtype to draw and decompose in: a QR of half precision exists on no backend and would not be orthogonal."""
    return "float64" if dtype == "float64" else "float32"


def orthogonal(shape, seed, dtype):
    """A tensor of matrices `(..., rows, columns)`, each uniform among those with orthonormal rows or columns."""
    *batch, rows, columns = shape
    tall = (*batch, max(rows, columns), min(rows, columns))
    q, r = keras.ops.qr(keras.random.normal(tall, dtype=dtype, seed=seed))
    # Without the signs, what QR returns is not uniformly distributed (Mezzadri 2007).
    q = q * keras.ops.expand_dims(keras.ops.sign(keras.ops.diagonal(r, axis1=-2, axis2=-1)), -2)
    return q if rows >= columns else keras.ops.swapaxes(q, -1, -2)
