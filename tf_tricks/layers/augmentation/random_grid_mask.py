"""RandomGridMask."""

import math

import keras

from tf_tricks._checks import check_number
from tf_tricks.layers.augmentation import _masks
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomGridMask(PixelAugmentation):
    """Replace the squares of a regular grid in each image by a colour or by noise.

    The grid repeats every `d` pixels both ways; in each unit a square of side `(1 - ratio) d` is replaced. `d` and the
    place of the grid are drawn for each image. Of the pixels `ratio (2 - ratio)` stay: 84 % at the paper's ratio.

    Args:
        unit: number in (0, 1], or a pair (lower, upper) of them: `d` as a share of the shorter side of the image, at
            least two pixels. The default is the paper's on ImageNet, 96 to 224 pixels of 224.
        ratio: number in [0, 1], the share of `d` that is no square; 0 replaces everything, 1 nothing.
        rotation_factor: number or pair in [-1, 1], by how much the grid is turned, in full turns; a number f stands for
            -|f| to |f|.
        fill_value: a number or one for each channel, clipped to `value_range`; None for noise.
        probability: number in [0, 1], how often an image is changed. The paper raises it from 0 to 0.8 in the course of
            a training.
        value_range: (low, high), the range of the pixels.
        seed: None or int. The same seed gives the same numbers on every backend.
        **kwargs: `data_format`, `bounding_box_format`, `dtype`, `name` as in every augmentation layer.
    Shape:
        `(batch, height, width, channels)`, or without `batch`, or a dict with the key "images"; any number of channels
        -> the same.
    Raises:
        TypeError, ValueError: an argument is none of what is accepted; `fill_value` has not one number for each
            channel.
    Reference:
        Chen, Liu, Zhao and Jia (2020), GridMask Data Augmentation, arXiv:2001.04086, section 3.
    Example:
        >>> layer = RandomGridMask(unit=(0.5, 0.5), ratio=0.5, seed=1)
        >>> float(keras.ops.mean(layer(np.ones((8, 8, 3)), training=True)))
        0.75
    """

    def __init__(
        self,
        unit=(0.43, 1.0),
        ratio=0.6,
        rotation_factor=0.0,
        fill_value=0.0,
        probability=1.0,
        value_range=(0, 255),
        seed=None,
        **kwargs,
    ):
        super().__init__(value_range=value_range, seed=seed, **kwargs)
        pair = unit if isinstance(unit, list | tuple) else (unit, unit)
        for each in pair:
            check_number("unit", each, above=0.0, below=1.0, closed="]")
        self.unit = check_factor("unit", pair, minimum=0.0)
        self.ratio = check_number("ratio", ratio, above=0.0, below=1.0, closed="[]")
        self.rotation_factor = check_factor("rotation_factor", rotation_factor)
        self.fill_value = _masks.check_fill("fill_value", fill_value)
        self.probability = check_number("probability", probability, above=0.0, below=1.0, closed="[]")

    def draw(self, xp, draws, size):
        shorter = xp.minimum(*(xp.cast(each, "float32") for each in size))
        drawn = {
            "unit": xp.maximum(draws.uniform(*self.unit) * shorter, 2.0),
            "offset": (draws.uniform(), draws.uniform()),
            "kept": draws.chance(self.probability),
        }
        if self.rotation_factor != (0.0, 0.0):
            drawn["angle"] = draws.uniform(*self.rotation_factor) * (2.0 * math.pi)
        return {**drawn, "salt": draws.bits()[:, 0]} if self.fill_value is None else drawn

    def change(self, xp, pixels, parameters):
        unit, offset, angle = parameters["unit"], parameters["offset"], parameters.get("angle")
        mask = _masks.grid(xp, pixels, unit, 1.0 - self.ratio, offset, angle)
        mask = xp.logical_and(mask, _masks.per_image(xp, parameters["kept"]))
        name, salt = type(self).__name__, parameters.get("salt")
        return _masks.filled(xp, pixels, mask, self.fill_value, salt, self.value_range, name)

    def get_config(self):
        return {
            **super().get_config(),
            "unit": list(self.unit),
            "ratio": self.ratio,
            "rotation_factor": list(self.rotation_factor),
            "fill_value": list(self.fill_value) if isinstance(self.fill_value, tuple) else self.fill_value,
            "probability": self.probability,
        }
