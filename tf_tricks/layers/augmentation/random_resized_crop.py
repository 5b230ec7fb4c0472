"""RandomResizedCrop."""

import math

import keras

from tf_tricks._checks import check_number
from tf_tricks.layers.augmentation import _geometry
from tf_tricks.layers.augmentation.random_crop import Cropping

ATTEMPTS = 10


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomResizedCrop(Cropping):
    """Show a random window of each image, of random area and aspect, resized to one size.

    The training images of Inception and of most ImageNet recipes, drawn as torchvision draws them. Resized without
    smoothing: a window of more than twice the size of the output is sampled, not averaged. When not training: the
    largest part of the output's aspect, from the middle, resized.

    Args:
        height, width: int >= 1, the size of what comes out, in pixels.
        scale: pair of numbers in (0, 1], the area of the window as a share of the image's.
        ratio: pair of numbers > 0, the width of the window divided by its height; its logarithm is drawn evenly. A
            window that does not fit is drawn again, up to ten times, then the middle of the image is taken.
        interpolation: "bilinear" or "nearest".
        seed: None or int, the same seed gives the same images.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        bounding_box_format, min_visibility: as in `RandomRotation`.
        value_range, dtype: as for every augmentation layer.
    Shape:
        `(batch, height_in, width_in, channels)`, or without `batch`, or a dict with the key "images" ->
        `(batch, height, width, channels)`. In a dict masks, boxes and keypoints follow, as in `RandomRotation`.
    Raises:
        ValueError: an argument is out of range.
        TypeError: an argument is not a number.
    Reference:
        Szegedy et al. (2015), Going Deeper with Convolutions, section 6.
    Example:
        >>> layer = RandomResizedCrop(6, 4, scale=(0.5, 1.0), seed=1)
        >>> tuple(layer(np.zeros((2, 8, 8, 3)), training=True).shape)
        (2, 6, 4, 3)
    """

    def __init__(
        self,
        height,
        width,
        scale=(0.08, 1.0),
        ratio=(3 / 4, 4 / 3),
        interpolation="bilinear",
        seed=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(height, width, interpolation=interpolation, seed=seed, data_format=data_format, **kwargs)
        self.scale = _check_pair("scale", scale, 1.0)
        self.ratio = _check_pair("ratio", ratio, math.inf)

    def matrix(self, xp, draws, size):
        window = self.window(xp, draws, size)
        return _geometry.window(xp, *window, (self.height, self.width))

    def window(self, xp, draws, size):
        """`(left, top, width, height)` in pixels, each `(batch,)`."""
        height, width = size
        area = draws.uniform(*self.scale, count=ATTEMPTS) * (height * width)
        ratio = xp.exp(draws.uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), count=ATTEMPTS))
        widths, heights = xp.round(xp.sqrt(area * ratio)), xp.round(xp.sqrt(area / ratio))
        fits = xp.logical_and(
            xp.logical_and(widths >= 1.0, widths <= width), xp.logical_and(heights >= 1.0, heights <= height)
        )
        first = xp.logical_and(fits, xp.equal(xp.cumsum(xp.cast(fits, "int32"), axis=1), 1))
        found_width, found_height = (
            xp.sum(xp.where(first, each, xp.zeros_like(each)), axis=1) for each in (widths, heights)
        )
        found = found_width > 0.0
        # None fitted: the middle, of an aspect that is allowed.
        whole_width, whole_height = (xp.ones_like(found_width) * each for each in (width, height))
        least, most = self.ratio
        shown_width = xp.maximum(xp.minimum(whole_width, xp.round(whole_height * most)), 1.0)
        shown_height = xp.maximum(xp.minimum(whole_height, xp.round(whole_width / least)), 1.0)
        shown_width = xp.where(found, found_width, shown_width)
        shown_height = xp.where(found, found_height, shown_height)
        room_x, room_y = whole_width - shown_width, whole_height - shown_height
        left = xp.where(found, xp.floor(draws.uniform() * (room_x + 1.0)), xp.floor(room_x * 0.5))
        top = xp.where(found, xp.floor(draws.uniform() * (room_y + 1.0)), xp.floor(room_y * 0.5))
        return left, top, shown_width, shown_height

    def get_config(self):
        return {**super().get_config(), "scale": list(self.scale), "ratio": list(self.ratio)}


def _check_pair(name, value, most):
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"`{name}` must be a pair (lower, upper). Received: {name}={value!r}")
    closed = "]" if most == 1.0 else ""
    lower, upper = (check_number(name, each, above=0.0, below=most, closed=closed) for each in value)
    if lower > upper:
        raise ValueError(f"`{name}` must be a pair (lower, upper), lower <= upper. Received: {name}={value!r}")
    return lower, upper
