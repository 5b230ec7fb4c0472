"""RandomErasing."""

import keras

from tf_tricks.layers.augmentation import _loops, _masks
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomErasing(PixelAugmentation):
    """Replace a rectangle of each image by a colour or by noise.

    The rectangle's width is the root of a random share of the image's width, its height another one of the height, and
    it lies anywhere inside, as with `keras.layers.RandomErasing`.

    Args:
        factor: the probability that an image is changed: a pair (lower, upper) in [0, 1] between which the probability
            of each image is drawn, or a number f for the pair (0, f): 1.0 changes every second image. `(1.0, 1.0)`
            changes all.
        scale: a pair (lower, upper) in [0, 1], or a number f for (0, f): the square of the share of the width, and of
            the height, that is erased.
        fill_value: a number or one for each channel, clipped to `value_range`; None for noise: normal, times the upper
            end of the range, clipped.
        value_range: (low, high), the range of the pixels.
        seed: None or int. The same seed gives the same numbers on every backend.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        **kwargs: `bounding_box_format`, `dtype`, `name` as in every augmentation layer.
    Shape:
        `(batch, height, width, channels)`, or without `batch`, or a dict with the key "images"; any number of channels
        -> the same.
    Raises:
        TypeError, ValueError: an argument is none of what is accepted; `fill_value` has not one number for each
            channel.
    Reference:
        Zhong, Zheng, Kang, Li and Yang (2020), Random Erasing Data Augmentation, arXiv:1708.04896.
    Example:
        >>> layer = RandomErasing(factor=(1.0, 1.0), scale=(0.25, 0.25), fill_value=0, seed=1)
        >>> float(keras.ops.mean(layer(np.ones((8, 8, 3)), training=True)))
        0.75
    """

    in_planes = False

    def __init__(
        self,
        factor=1.0,
        scale=(0.02, 0.33),
        fill_value=None,
        value_range=(0, 255),
        seed=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(value_range=value_range, seed=seed, data_format=data_format, **kwargs)
        self.factor = check_factor("factor", factor, minimum=0.0)
        self.scale = check_factor("scale", scale, minimum=0.0)
        self.fill_value = _masks.check_fill("fill_value", fill_value)

    def draw(self, xp, draws, size):
        kept = draws.chance(draws.uniform(*self.factor))
        ends = []
        for length in (size[1], size[0]):
            length = xp.cast(length, "float32")
            extent = xp.sqrt(draws.uniform(*self.scale)) * length
            begin = draws.uniform() * (length - extent)
            ends.append((begin, xp.where(kept, begin + extent, begin)))
        (left, right), (top, bottom) = ends
        drawn = {"box": (left, top, right, bottom)}
        return {**drawn, "salt": draws.bits()[:, 0]} if self.fill_value is None else drawn

    def change(self, xp, pixels, parameters):
        box, fill = parameters["box"], (self.fill_value, parameters.get("salt"), self.value_range, type(self).__name__)
        if _loops.has_one_image():
            return _masks.filled_box(pixels, box, *fill)
        return _masks.filled(xp, pixels, _masks.rectangle(xp, pixels, box), *fill)

    def get_config(self):
        return {
            **super().get_config(),
            "factor": list(self.factor),
            "scale": list(self.scale),
            "fill_value": list(self.fill_value) if isinstance(self.fill_value, tuple) else self.fill_value,
        }
