"""RandomGaussianBlur."""

import keras

from tf_tricks._checks import check_integer, check_number, check_one_of
from tf_tricks.layers.augmentation import _kernels
from tf_tricks.layers.augmentation._boxes import FORMATS
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.augmentation_layer import AugmentationLayer


def gaussian_weights(xp, stddev, size):
    """Weights `(batch, size)` with sum 1, from `(batch,)` standard deviations in pixels."""
    place = xp.cast(xp.arange(size, dtype="int32"), "float32") - (size - 1) / 2
    weights = xp.exp(-0.5 * (place[None] / (stddev[:, None] + 1e-6)) ** 2)
    return weights / xp.sum(weights, axis=1, keepdims=True)


def smooth(xp, pixels, weights, axis):
    """Each value replaced by the weighted sum of its neighbours along axis 1 or 2; the edge goes on outside."""
    if _kernels.is_on(xp, "torch"):
        return _smooth_in_place(pixels, weights[..., None, None, None], axis)
    size, length = weights.shape[1], xp.shape(pixels)[axis]
    reach = size // 2
    if axis == 1:  # whole rows are copied, which a gather does best
        rows = xp.clip(xp.arange(size - 1 + length, dtype="int32") - reach, 0, length - 1)
        wider = xp.take(pixels, rows, axis=1)
        parts = [wider[:, i : i + length] for i in range(size)]
    else:
        wider = xp.concatenate([pixels[:, :, :1]] * reach + [pixels] + [pixels[:, :, -1:]] * reach, axis=2)
        parts = [wider[:, :, i : i + length] for i in range(size)]
    return sum(part * weights[:, i][:, None, None, None] for i, part in enumerate(parts))


def _smooth_in_place(pixels, weights, axis):
    """`smooth` on Torch: each neighbour adds its share to what is there; `weights` is `(batch, size, 1, 1, 1)`."""
    reach, length = weights.shape[1] // 2, pixels.shape[axis]
    smoothed = pixels * weights[:, reach]
    if length == 0:
        return smoothed
    for away in range(1, reach + 1):
        outside = min(away, length)
        inside = length - outside
        before, after = weights[:, reach - away], weights[:, reach + away]
        for weight, first, source, edge in ((before, outside, 0, 0), (after, 0, outside, length - 1)):
            part = smoothed.narrow(axis, first, inside)
            part.addcmul_(pixels.narrow(axis, source, inside), weight)
            part = smoothed.narrow(axis, 0 if first else inside, outside)
            part.addcmul_(pixels.narrow(axis, edge, 1), weight)
    return smoothed


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomGaussianBlur(AugmentationLayer):
    """Blur each image with a Gaussian whose standard deviations along height and width are drawn for each image.

    The inside of the image is that of `keras.layers.RandomGaussianBlur`; that layer draws two standard deviations for
    the whole batch, and lets black in from outside, so that its borders darken. Here the edge goes on outside.

    Args:
        factor: the probability that an image is blurred: a pair (lower, upper) in [0, 1] between which the probability
            of each image is drawn, or a number f for the pair (0, f): 1.0 blurs every second image. `(1.0, 1.0)` blurs
            all.
        kernel_size: odd int, or a pair of them for height and width, in pixels.
        sigma: number >= 0, for standard deviations of 0 to `sigma`, or a pair (lower, upper) of them, in pixels.
        value_range: (low, high), the range of the pixels, kept by the result.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        seed: None or int. The same seed gives the same numbers on every backend.
        **kwargs: `bounding_box_format`, `dtype`, `name` as in every augmentation layer.
    Shape:
        `(batch, height, width, channels)`, or without `batch`, or a dict with the key "images"; any number of channels
        -> the same.
    Raises:
        TypeError, ValueError: an argument is none of what is accepted.
    Reference:
        Chen, Kornblith, Norouzi and Hinton (2020), A Simple Framework for Contrastive Learning of Visual
        Representations, appendix A.
    Example:
        >>> layer = RandomGaussianBlur(factor=(1.0, 1.0), kernel_size=5, sigma=(1.0, 1.0))
        >>> round(float(layer(np.full((1, 9, 9, 3), 100.0), training=True)[0, 0, 0, 0]), 2)
        100.0
    """

    def __init__(
        self,
        factor=1.0,
        kernel_size=3,
        sigma=1.0,
        value_range=(0, 255),
        data_format=None,
        seed=None,
        bounding_box_format=None,
        **kwargs,
    ):
        super().__init__(value_range=value_range, data_format=data_format, seed=seed, **kwargs)
        self.bounding_box_format = check_one_of("bounding_box_format", bounding_box_format, (None, *FORMATS))
        self.factor = check_factor("factor", factor, minimum=0.0)
        self.kernel_size = _check_kernel_size(kernel_size)
        self.sigma = _check_sigma(sigma)
        # One pass for each direction: in one for both XLA would compute the first again for each weight of the second.
        self._stages = [_Direction(self, axis) for axis in (1, 2)]

    def stages(self):
        return self._stages

    def draw(self, xp, draws, size):
        blurred = draws.chance(draws.uniform(*self.factor))
        weights = [gaussian_weights(xp, draws.uniform(*self.sigma), each) for each in self.kernel_size]
        for i, (each, length) in enumerate(zip(weights, self.kernel_size, strict=True)):
            alone = xp.cast(xp.arange(length, dtype="int32") == length // 2, "float32")
            weights[i] = xp.where(blurred[:, None], each, alone[None])
        return {"weights": tuple(weights)}

    def transform(self, xp, images, parameters):
        for stage in self._stages:
            images = stage.transform(xp, images, parameters)
        return images

    def get_config(self):
        return {
            **super().get_config(),
            "factor": list(self.factor),
            "kernel_size": list(self.kernel_size),
            "sigma": list(self.sigma),
            "bounding_box_format": self.bounding_box_format,
        }


class _Direction:
    """The pass along one axis. Both draw the same numbers."""

    widens = True
    by_image = None
    mixes_images = moves_pixels = changes_at_rest = False
    rereads = True  # one pixel is in the sums of several

    def __init__(self, layer, axis):
        self._layer, self._axis = layer, axis

    def draw(self, xp, draws, size):
        return self._layer.draw(xp, draws.child(0), size)

    def without(self, xp, parameters, kept):
        return None  # with the weights of an image that is not blurred it would still be clipped

    def transform(self, xp, images, parameters):
        pixels = smooth(xp, xp.cast(images, "float32"), parameters["weights"][self._axis - 1], self._axis)
        return _kernels.clip(xp, pixels, *self._layer.value_range)

    def transform_others(self, xp, others, parameters, size):
        return others

    def output_size(self, size):
        return size


def _check_kernel_size(value):
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2:
        raise ValueError(f"`kernel_size` must be an odd int or a pair of them. Received: kernel_size={value!r}")
    height, width = (check_integer("kernel_size", each, 1) for each in pair)
    if height % 2 == 0 or width % 2 == 0:
        raise ValueError(f"`kernel_size` must be an odd int or a pair of them. Received: kernel_size={value!r}")
    return height, width


def _check_sigma(value):
    pair = value if isinstance(value, list | tuple) else (0.0, value)
    if len(pair) != 2:
        raise ValueError(f"`sigma` must be a number >= 0 or a pair (lower, upper). Received: sigma={value!r}")
    lower, upper = sorted(check_number("sigma", each, above=0.0, closed="[") for each in pair)
    return lower, upper
