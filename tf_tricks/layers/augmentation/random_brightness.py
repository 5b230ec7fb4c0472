"""RandomBrightness."""

import keras

from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation, per_image


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomBrightness(PixelAugmentation):
    """Add one random number to all values of an image.

    Computed in float32 and clipped, also on uint8 images, on which `keras.layers.RandomBrightness` wraps modulo 256.

    Args:
        factor: number f in [-1, 1], for a range of -|f| to |f|, or a pair (lower, upper) in [-1, 1]. In units of the
            range: -1 makes an image black, 1 white.
        value_range: (low, high), the range of the pixels, kept by the result.
        seed: None or int. The same seed gives the same numbers on every backend.
        **kwargs: `data_format`, `bounding_box_format`, `dtype`, `name` as in every augmentation layer.
    Shape:
        `(batch, height, width, channels)`, or without `batch`, or a dict with the key "images"; any number of channels
        -> the same.
    Raises:
        TypeError, ValueError: an argument is none of what is accepted.
    Reference:
        Krizhevsky, Sutskever and Hinton (2012), ImageNet Classification with Deep Convolutional Neural Networks,
        section 4.1, who shift colours; arguments and values of `keras.layers.RandomBrightness`.
    Example:
        >>> layer = RandomBrightness(factor=(0.2, 0.2))
        >>> float(layer(np.full((1, 2, 2, 3), 240, "uint8"), training=True)[0, 0, 0, 0])
        255.0
    """

    in_planes = False

    def __init__(self, factor, value_range=(0, 255), seed=None, **kwargs):
        super().__init__(value_range=value_range, seed=seed, **kwargs)
        self.factor = check_factor("factor", factor)

    def draw(self, xp, draws, size):
        return {"shift": draws.uniform(*self.factor)}

    def change(self, xp, pixels, parameters):
        low, high = self.value_range
        return pixels + per_image(xp, parameters["shift"]) * (high - low)

    def get_config(self):
        return {**super().get_config(), "factor": list(self.factor)}
