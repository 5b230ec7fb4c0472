"""RandomShotNoise."""

import keras

from tf_tricks.layers.augmentation import _random
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation, per_image


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomShotNoise(PixelAugmentation):
    """Add the noise of counted photons: its variance is proportional to the value, black stays black.

    A normal approximation of Poisson noise: `x + s sqrt(x) n` on the range scaled to [0, 1], with `s` drawn for each
    image, and `n` the noise of `RandomGaussianNoise`. White then stands for `1 / s**2` photons. Where a value stands
    for fewer than about 10, Poisson noise would be visibly skewed and this one is not.

    Args:
        factor: number in [0, 1], for `s` from 0 to `factor`, or a pair (lower, upper) of them: the standard deviation
            at white, in units of the range.
        value_range: (low, high), the range of the pixels, kept by the result; `low` is black.
        seed: None or int. The same seed gives the same noise on every backend.
        **kwargs: `data_format`, `bounding_box_format`, `dtype`, `name` as in every augmentation layer.
    Shape:
        `(batch, height, width, channels)`, or without `batch`, or a dict with the key "images"; any number of channels
        -> the same.
    Raises:
        TypeError, ValueError: an argument is none of what is accepted.
    Reference:
        Foi, Trimeche, Katkovnik and Egiazarian (2008), Practical Poissonian-Gaussian Noise Modeling and Fitting for
        Single-Image Raw-Data, IEEE Transactions on Image Processing 17(10), section II.
    Example:
        >>> dark = RandomShotNoise(factor=(0.2, 0.2), seed=1)(np.zeros((4, 4, 3)), training=True)
        >>> float(keras.ops.max(dark))
        0.0
    """

    in_planes = False

    def __init__(self, factor, value_range=(0, 255), seed=None, **kwargs):
        super().__init__(value_range=value_range, seed=seed, **kwargs)
        self.factor = check_factor("factor", factor, minimum=0.0)

    def draw(self, xp, draws, size):
        return {"stddev": draws.uniform(*self.factor), "salt": draws.bits()[:, 0]}

    def change(self, xp, pixels, parameters):
        low, high = self.value_range
        noise = _random.normal_field(xp, parameters["salt"], pixels)
        deviation = xp.sqrt(xp.maximum(pixels - low, 0.0) * (high - low))  # at `s` = 1
        return pixels + noise * deviation * per_image(xp, parameters["stddev"])

    def get_config(self):
        return {**super().get_config(), "factor": list(self.factor)}
