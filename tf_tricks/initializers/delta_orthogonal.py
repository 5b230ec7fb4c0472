"""Convolution kernels that are an orthogonal matrix at their centre and zero elsewhere."""

import math

import keras

from tf_tricks._checks import check_number
from tf_tricks.initializers._random import RandomInitializer, orthogonal, working_dtype


def at_centre(matrix, shape):
    """A kernel `(*window, in, out)` that is `matrix` at its centre and zero elsewhere.

    The centre of an even window is the entry that padding="same" puts over the pixel itself.
    """
    pads = [((size - 1) // 2, size - 1 - (size - 1) // 2) for size in shape[:-2]]
    matrix = keras.ops.reshape(matrix, (1,) * len(pads) + tuple(shape[-2:]))
    return keras.ops.pad(matrix, [*pads, (0, 0), (0, 0)])


@keras.saving.register_keras_serializable(package="tf_tricks")
class DeltaOrthogonal(RandomInitializer):
    """Convolution kernels that keep the norm of the signal at each pixel, at any depth.

    A random kernel averages over its window, and after some tens of layers what the pixels had of their own is gone. A
    random orthogonal matrix at the centre, zero elsewhere, mixes the channels and leaves the pixels apart; training
    then fills in the rest of the window. Padding with zeros does no harm, because nobody looks at the border.

    Args:
        gain: float > 0, factor of the orthogonal matrix, dimensionless. 1 for tanh (the edge of chaos, where gradients
            neither grow nor shrink) and for linear layers; sqrt(2) for relu.
        seed: None, int or `keras.random.SeedGenerator`. An int, and None too, gives the same values at each call.
    Shape:
        Kernels `(*window, in, out)` of convolutions in 1 to 3 dimensions without groups, in <= out. Those of transposed
        convolutions are `(*window, out, in)`: `ActivationScaling` has a `kind` for them.
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the kernel has more inputs than outputs (no
            matrix keeps the norm then) or fewer than three axes.
    Reference:
        Xiao et al. (2018), Dynamical Isometry and a Mean Field Theory of CNNs, arXiv:1806.05393, algorithm 2.
    Example:
        >>> kernel = keras.ops.convert_to_numpy(DeltaOrthogonal(seed=0)((3, 3, 8, 8)))
        >>> bool(np.allclose(kernel[1, 1] @ kernel[1, 1].T, np.eye(8), atol=1e-5)) and not kernel[0].any()
        True
    """

    def __init__(self, gain=1.0, seed=None):
        self.gain = check_number("gain", gain, above=0, below=math.inf)
        super().__init__(seed)

    def __call__(self, shape, dtype=None):
        dtype = keras.backend.standardize_dtype(dtype)
        if len(shape) < 3:
            raise ValueError(f"DeltaOrthogonal: a convolution kernel has three axes or more. Received: {tuple(shape)}")
        if shape[-2] > shape[-1]:
            raise ValueError(
                "DeltaOrthogonal: a kernel with more inputs than outputs cannot keep the norm. "
                f"Received: {tuple(shape)}"
            )
        matrix = orthogonal(shape[-2:], self.seed, working_dtype(dtype)) * self.gain
        return keras.ops.cast(at_centre(matrix, shape), dtype)

    def get_config(self):
        return {"gain": self.gain, **super().get_config()}
