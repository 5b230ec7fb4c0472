"""Convolution kernels that begin as the identity."""

import keras
import numpy as np

from tf_tricks._checks import check_integer
from tf_tricks.initializers.delta_orthogonal import at_centre


@keras.saving.register_keras_serializable(package="tf_tricks")
class Dirac(keras.initializers.Initializer):
    """A convolution that begins by passing its input on, channel by channel.

    With strides it takes the pixels that it visits; outputs beyond the number of inputs begin at zero, inputs beyond
    the number of outputs are left out. Dense layers: `keras.initializers.Identity`.

    Args:
        groups: int >= 1, the same as the layer's `groups`; the outputs of each group begin with its own inputs.
    Shape:
        Kernels `(*window, in / groups, out)` of convolutions in 1 to 3 dimensions with padding="same".
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the kernel has fewer than three axes, or
            `groups` does not divide its outputs.
    Reference:
        Zagoruyko and Komodakis (2017), DiracNets, arXiv:1706.00388, section 3.
    Example:
        >>> layer = keras.layers.Conv2D(3, 5, padding="same", kernel_initializer=Dirac())
        >>> image = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype("float32")
        >>> bool(np.allclose(keras.ops.convert_to_numpy(layer(image)), image))
        True
    """

    def __init__(self, groups=1):
        self.groups = check_integer("groups", groups, 1)

    def __call__(self, shape, dtype=None):
        if len(shape) < 3:
            raise ValueError(f"Dirac: a convolution kernel has three axes or more. Received: {tuple(shape)}")
        if shape[-1] % self.groups:
            raise ValueError(
                f"Dirac: `groups` must divide the number of outputs. Received: groups={self.groups} and a kernel of "
                f"shape {tuple(shape)}"
            )
        group = np.eye(shape[-2], shape[-1] // self.groups)
        matrix = keras.ops.convert_to_tensor(np.tile(group, self.groups), dtype=keras.backend.standardize_dtype(dtype))
        return at_centre(matrix, shape)

    def get_config(self):
        return {"groups": self.groups}
