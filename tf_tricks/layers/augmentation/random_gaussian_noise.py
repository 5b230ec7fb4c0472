"""RandomGaussianNoise."""

import keras

from tf_tricks.layers.augmentation import _random
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation, per_image


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomGaussianNoise(PixelAugmentation):
    """Add normal noise to each value of an image, with a standard deviation that is drawn for each image.

    The noise is the sum of four bytes of a hash of the place and of a number for the image: mean 0, the standard
    deviation asked for, no correlation; the distribution function differs from the normal one by less than 0.01 and the
    tails end at 3.45 standard deviations. Clipping then shortens it near the ends of the range.

    Args:
        factor: number in [0, 1], for standard deviations of 0 to `factor`, or a pair (lower, upper) of them; in units
            of the range.
        value_range: (low, high), the range of the pixels, kept by the result.
        seed: None or int. The same seed gives the same noise on every backend.
        **kwargs: `data_format`, `bounding_box_format`, `dtype`, `name` as in every augmentation layer.
    Shape:
        `(batch, height, width, channels)`, or without `batch`, or a dict with the key "images"; any number of channels
        -> the same.
    Raises:
        TypeError, ValueError: an argument is none of what is accepted.
    Reference:
        Bishop (1995), Training with Noise is Equivalent to Tikhonov Regularization, Neural Computation 7;
        Salmon, Moraes, Dror and Shaw (2011), Parallel Random Numbers: As Easy as 1, 2, 3, SC '11, for the generator.
    Example:
        >>> noisy = RandomGaussianNoise(factor=(0.1, 0.1), seed=1)(np.full((1, 64, 64, 3), 127.5), training=True)
        >>> bool(25 < keras.ops.std(noisy) < 26)
        True
    """

    in_planes = False

    def __init__(self, factor, value_range=(0, 255), seed=None, **kwargs):
        super().__init__(value_range=value_range, seed=seed, **kwargs)
        self.factor = check_factor("factor", factor, minimum=0.0)

    def draw(self, xp, draws, size):
        return {"stddev": draws.uniform(*self.factor), "salt": draws.bits()[:, 0]}

    def change(self, xp, pixels, parameters):
        low, high = self.value_range
        stddev = per_image(xp, parameters["stddev"]) * (high - low)
        return pixels + _random.normal_field(xp, parameters["salt"], pixels, stddev)

    def get_config(self):
        return {**super().get_config(), "factor": list(self.factor)}
