"""TrivialAugment."""

import math

import keras

from tf_tricks._checks import check_integer
from tf_tricks.layers.augmentation import _operations
from tf_tricks.layers.augmentation._policy import Policy

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translation_x",
    "translation_y",
    "rotation",
    "multiplication",  # what the paper calls brightness
    "saturation",
    "gray_contrast",
    "sharpness",
    "posterization",
    "solarization",
    "auto_contrast",
    "equalization",
)
# The ranges of the paper's "wide" space.
_SLOPE, _PIXELS, _DEGREES, _ENHANCEMENT, _BITS = 0.99, 32.0, 135.0, 0.99, 6.0


@keras.saving.register_keras_serializable(package="tf_tricks")
class TrivialAugment(Policy):
    """Apply to each image one operation out of fourteen with a random strength: nothing is left to tune.

    The operations and strengths are those of the paper's wide space: nothing, shear in x or y (slope up to 0.99),
    translation in x or y (up to 32 pixels), rotation (up to 135 degrees), brightness, saturation, contrast and
    sharpness (factors from 0.01 to 1.99), posterisation (down to 2 bits), solarisation, auto-contrast, equalisation.

    Args:
        value_range: (low, high), the range of the pixels.
        num_magnitude_bins: int >= 2, among how many strengths, evenly spaced from none to full, one is drawn.
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
        Müller and Hutter (2021), TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation, section 3 and
        table 1, arXiv:2103.10158.
    Example:
        >>> TrivialAugment(seed=1)(np.zeros((2, 8, 8, 3)), training=True).shape == (2, 8, 8, 3)
        True
    """

    def __init__(
        self,
        value_range=(0, 255),
        num_magnitude_bins=31,
        interpolation="bilinear",
        seed=None,
        data_format=None,
        **kwargs,
    ):
        super().__init__(
            OPERATIONS,
            1,
            value_range=value_range,
            interpolation=interpolation,
            seed=seed,
            data_format=data_format,
            **kwargs,
        )
        self.num_magnitude_bins = check_integer("num_magnitude_bins", num_magnitude_bins, 2)

    def strength(self, xp, draws):
        return xp.cast(draws.integers(0, self.num_magnitude_bins), "float32") / (self.num_magnitude_bins - 1)

    def amount(self, xp, name, strength):
        if name in ("multiplication", "saturation", "gray_contrast", "sharpness"):
            return 1.0 + _ENHANCEMENT * strength
        if name == "posterization":
            return 8.0 - xp.round(_BITS * xp.abs(strength))
        if name == "solarization":
            return 256.0 / 255.0 - xp.abs(strength)  # above the highest value at strength 0
        return xp.ones_like(strength)

    def motion(self, xp, name, strengths, size):
        first, still = strengths[0], strengths[0] * 0.0
        if name == "rotation":
            return _operations.GEOMETRIC[name](xp, first * math.radians(_DEGREES), still, size)
        amount = first * (_SLOPE if name.startswith("shear") else _PIXELS)
        pair = (amount, still) if name.endswith("x") else (still, amount)
        return _operations.GEOMETRIC[name](xp, *pair, size)

    def get_config(self):
        return {**super().get_config(), "num_magnitude_bins": self.num_magnitude_bins}
