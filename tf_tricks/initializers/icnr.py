"""Kernels for sub-pixel upsampling without a checkerboard."""

import keras

from tf_tricks._checks import check_integer, check_one_of

ORDERS = ("depth_to_space", "pixel_shuffle")


@keras.saving.register_keras_serializable(package="tf_tricks")
class ICNR(keras.initializers.Initializer):
    """Kernel of the convolution before a sub-pixel upsampling: it begins as convolution and nearest-neighbour resize.

    A sub-pixel convolution computes scale^2 values per pixel, which are then laid out as a square. With independent
    kernels for these values, each image begins with a checkerboard, and training hardly ever gets rid of all of it.
    Here all values of a square begin with the same kernel.

    Args:
        scale: int >= 1, how many times longer the sides become.
        initializer: of the kernel that is repeated, `(*window, in, out / scale^2)`: name, dict or initializer.
        order: how the channels are laid out. "depth_to_space": position within the square first, then channel (as
            `tf.nn.depth_to_space`, and a reshape to (..., scale, scale, channels)); "pixel_shuffle": channel first
            (as `torch.nn.PixelShuffle`).
    Shape:
        Kernels `(*window, in, out)` of convolutions in 1 to 3 dimensions; out is a multiple of scale^dimensions.
    Raises:
        TypeError, ValueError: an argument is out of range; in a call: the kernel does not fit `scale`.
    Reference:
        Aitken et al. (2017), Checkerboard artifact free sub-pixel convolution, arXiv:1707.02937, section 2.
    Example:
        >>> kernel = keras.ops.convert_to_numpy(ICNR(2, "he_normal")((3, 3, 16, 12)))
        >>> bool((kernel[..., :3] == kernel[..., 9:]).all())
        True
    """

    def __init__(self, scale, initializer="glorot_uniform", order="depth_to_space"):
        self.scale = check_integer("scale", scale, 1)
        self.initializer = _initializer(initializer)
        self.order = check_one_of("order", order, ORDERS)

    def __call__(self, shape, dtype=None):
        repeats = self.scale ** (len(shape) - 2)
        if len(shape) < 3 or shape[-1] % repeats:
            raise ValueError(
                "ICNR: a convolution kernel with a multiple of scale^dimensions outputs is needed. "
                f"Received: scale={self.scale} and a kernel of shape {tuple(shape)}"
            )
        kernel = self.initializer((*shape[:-1], shape[-1] // repeats), dtype=dtype)
        if self.order == "pixel_shuffle":
            return keras.ops.repeat(kernel, repeats, axis=-1)
        return keras.ops.concatenate([kernel] * repeats, axis=-1)

    def get_config(self):
        return {
            "scale": self.scale,
            "initializer": keras.initializers.serialize(self.initializer),
            "order": self.order,
        }


def _initializer(initializer):
    accepted = "the name of a Keras initializer, its config or a keras.initializers.Initializer"
    try:
        found = keras.initializers.get(initializer)
    except ValueError:
        found = None
    if not isinstance(found, keras.initializers.Initializer):
        error = ValueError if isinstance(initializer, str) else TypeError
        raise error(f"`initializer` must be {accepted}. Received: initializer={initializer!r}")
    return found
