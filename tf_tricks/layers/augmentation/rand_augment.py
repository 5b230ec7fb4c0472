"""RandAugment."""

import math

import keras

from tf_tricks._checks import check_integer
from tf_tricks.layers.augmentation import _operations
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation._policy import Policy

OPERATIONS = (
    "shear",
    "translation",
    "rotation",
    "brightness",
    "saturation",
    "contrast",
    "sharpness",
    "posterization",
    "solarization",
    "auto_contrast",
    "equalization",
)


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandAugment(Policy):
    """Apply to each image a few operations, drawn for it alone from eleven.

    They are Keras's: shear, translation, rotation, brightness, saturation, contrast, sharpness, posterisation,
    solarisation, auto-contrast and equalisation. Each draw takes one with equal chance, a strength between the two of
    `factor`, and a direction: left or right, brighter or darker, more or less. They follow one another in the order
    drawn, but what moves pixels is combined into one resampling, where the first of them stands.

    A strength of 1 means: a slope of 1 (shear), the size of the image (translation), a full turn (rotation), the whole
    range (brightness), twice or none of it (saturation, contrast, sharpness), one bit (posterisation), all values
    inverted (solarisation); 0 changes nothing. Keras draws the operations once for a batch, goes one way only in all
    but shear, and lets posterisation and solarisation grow weaker with `factor`.

    Args:
        value_range: (low, high), the range of the pixels.
        num_ops: int >= 0, how many operations an image gets.
        factor: float in [0, 1] or a pair of them: strengths from (0, factor), or from the pair.
        interpolation: "bilinear" or "nearest".
        seed: None or int.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        fill_mode: what shows where nothing was: "reflect", "wrap", "constant" or "nearest".
        fill_value: number, for "constant".
        bounding_box_format: None or the format of `bounding_boxes`, as in Keras.
        dtype: None, a dtype or a policy, that of the images that come out. "uint8" rounds and clips.
    Shape:
        `(batch, height, width, channels)`, 1 or 3 channels, or without `batch`, or a dict with the key "images" -> the
        same.
    Raises:
        TypeError, ValueError: an argument is out of range; images of another number of channels are passed.
    Reference:
        Cubuk, Zoph, Shlens and Le (2020), RandAugment: Practical automated data augmentation with a reduced search
        space, section 3, arXiv:1909.13719.
    Example:
        >>> RandAugment(num_ops=2, factor=0.3, seed=1)(np.zeros((2, 8, 8, 3)), training=True).shape == (2, 8, 8, 3)
        True
    """

    def __init__(
        self,
        value_range=(0, 255),
        num_ops=2,
        factor=0.5,
        interpolation="bilinear",
        seed=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(
            OPERATIONS,
            check_integer("num_ops", num_ops, 0),
            value_range=value_range,
            interpolation=interpolation,
            seed=seed,
            data_format=data_format,
            **kwargs,
        )
        self.factor = check_factor("factor", factor, minimum=0.0)

    def strength(self, xp, draws):
        return draws.uniform(*self.factor)

    def amount(self, xp, name, strength):
        if name == "brightness":
            return strength
        if name in ("saturation", "contrast", "sharpness"):
            return 1.0 + strength
        if name == "posterization":
            return 8.0 - xp.round(7.0 * xp.abs(strength))
        if name == "solarization":
            return 256.0 / 255.0 - xp.abs(strength)  # above the highest value at strength 0
        return xp.ones_like(strength)

    def motion(self, xp, name, strengths, size):
        first, second = strengths
        if name == "translation":
            first, second = first * size[1], second * size[0]
        elif name == "rotation":
            first = first * (2.0 * math.pi)
        return _operations.GEOMETRIC[name](xp, first, second, size)

    def get_config(self):
        return {**super().get_config(), "num_ops": self.num_ops, "factor": list(self.factor)}
