"""RandomSaltAndPepper."""

import keras

from tf_tricks._checks import check_number
from tf_tricks.layers.augmentation import _random
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation, per_image


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomSaltAndPepper(PixelAugmentation):
    """Make some pixels of an image white and some black, a share that is drawn for each image.

    A pixel is hit as a whole, all its channels.

    Args:
        factor: number in [0, 1], for shares of 0 to `factor`, or a pair (lower, upper) of them: the probability that a
            pixel is hit.
        salt: number in [0, 1], the probability that a pixel that is hit becomes white.
        value_range: (low, high), black and white.
        seed: None or int. The same seed hits the same pixels on every backend.
        **kwargs: `data_format`, `bounding_box_format`, `dtype`, `name` as in every augmentation layer.
    Shape:
        `(batch, height, width, channels)`, or without `batch`, or a dict with the key "images"; any number of channels
        -> the same.
    Raises:
        TypeError, ValueError: an argument is none of what is accepted.
    Reference:
        Gonzalez and Woods (2018), Digital Image Processing, 4th edition, section 5.2.
    Example:
        >>> noisy = RandomSaltAndPepper(factor=(1.0, 1.0), salt=0.0)(np.full((2, 2, 3), 100.0), training=True)
        >>> float(keras.ops.max(noisy))
        0.0
    """

    def __init__(self, factor, salt=0.5, value_range=(0, 255), seed=None, **kwargs):
        super().__init__(value_range=value_range, seed=seed, **kwargs)
        self.factor = check_factor("factor", factor, minimum=0.0)
        self.salt = check_number("salt", salt, above=0.0, below=1.0, closed="[]")

    def draw(self, xp, draws, size):
        return {"share": draws.uniform(*self.factor), "salt": draws.bits()[:, 0]}

    def change(self, xp, pixels, parameters):
        low, high = self.value_range
        number = _random.unit_interval(xp, _random.field(xp, parameters["salt"], pixels, channels=1))
        share = per_image(xp, parameters["share"])
        kind = xp.where(number < share * self.salt, xp.ones_like(pixels) * high, xp.ones_like(pixels) * low)
        return xp.where(number < share, kind, pixels)

    def get_config(self):
        return {**super().get_config(), "factor": list(self.factor), "salt": self.salt}
