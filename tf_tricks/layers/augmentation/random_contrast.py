"""RandomContrast."""

import keras

from tf_tricks._backend import BACKEND
from tf_tricks.layers.augmentation import _colour
from tf_tricks.layers.augmentation._factors import check_spread
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomContrast(PixelAugmentation):
    """Stretch or squeeze the values of each channel of an image about their mean, by one random number for each image.

    `(x - mean) * c + mean`, clipped, with `c` uniform in `[1 - lower, 1 + upper]`. These are the values of
    `keras.layers.RandomContrast` and the range of its documentation: Keras 3.15 sorts the pair (lower, upper), and
    draws from `[1, 1 + factor]` where `factor` is a number, so that it never lowers the contrast.

    Args:
        factor: number in [0, 1], for lower and upper alike, or a pair (lower, upper) of them.
        value_range: (low, high), the range of the pixels, kept by the result.
        seed: None or int. The same seed gives the same numbers on every backend.
        **kwargs: `data_format`, `bounding_box_format`, `dtype`, `name` as in every augmentation layer.
    Shape:
        `(batch, height, width, channels)`, or without `batch`, or a dict with the key "images"; any number of channels
        -> the same.
    Raises:
        TypeError, ValueError: an argument is none of what is accepted.
    Reference:
        Howard (2013), Some Improvements on Deep Convolutional Neural Network Based Image Classification, section 2.1.
    Example:
        >>> image = np.array([[[100.0], [200.0]]])
        >>> float(RandomContrast(factor=0.0)(image, training=True)[0, 0, 0])
        100.0
    """

    rereads = True  # for the mean and once more
    by_image = "fast" if BACKEND == "jax" else None  # where XLA sums an image faster than a batch

    def __init__(self, factor, value_range=(0, 255), seed=None, **kwargs):
        super().__init__(value_range=value_range, seed=seed, **kwargs)
        self.factor = check_spread("factor", factor)

    def draw(self, xp, draws, size):
        lower, upper = self.factor
        return {"contrast": draws.uniform(1.0 - lower, 1.0 + upper)}

    def change(self, xp, pixels, parameters):
        return _colour.contrast(xp, pixels, parameters["contrast"])

    def get_config(self):
        return {**super().get_config(), "factor": list(self.factor)}
