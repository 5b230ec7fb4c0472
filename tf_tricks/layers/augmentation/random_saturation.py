"""RandomSaturation."""

import keras

from tf_tricks.layers.augmentation import _colour
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation

EPSILON = 1e-7


def saturation_from(factor):
    """What the saturation is multiplied with: 0 at `factor` 0, 1 at 0.5, without bound towards 1."""
    return factor / (1.0 - factor + EPSILON)


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomSaturation(PixelAugmentation):
    """Multiply the saturation of each image, as HSV defines it, by a random number of its own.

    The values of `keras.layers.RandomSaturation` where the product stays below 1; above, this layer stops at full
    colour, where Keras 3.15 (which clips S to `value_range`) returns values below the range.

    Args:
        factor: number in [0, 1], for a range of 0 to `factor`, or a pair (lower, upper) of them. 0 is gray, 0.5 no
            change, 1 full colour: the saturation is multiplied by `factor / (1 - factor)`.
        value_range: (low, high), the range of the pixels, kept by the result; `low` is black.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        seed: None or int. The same seed gives the same numbers on every backend.
        **kwargs: `bounding_box_format`, `dtype`, `name` as in every augmentation layer.
    Shape:
        `(batch, height, width, 3)`, or without `batch`, or a dict with the key "images" -> the same.
    Raises:
        TypeError, ValueError: an argument is none of what is accepted; the images have no 3 channels.
    Reference:
        Smith (1978), Color Gamut Transform Pairs, SIGGRAPH '78.
    Example:
        >>> gray = RandomSaturation(factor=(0.0, 0.0))(np.array([[[200.0, 100.0, 50.0]]]), training=True)
        >>> [float(each) for each in gray[0, 0]]
        [200.0, 200.0, 200.0]
    """

    rereads = True

    def __init__(self, factor, value_range=(0, 255), data_format=None, seed=None, **kwargs):
        super().__init__(value_range=value_range, data_format=data_format, seed=seed, **kwargs)
        self.factor = check_factor("factor", factor, minimum=0.0)

    def draw(self, xp, draws, size):
        return {"saturation": saturation_from(draws.uniform(*self.factor))}

    def change(self, xp, pixels, parameters):
        _colour.check_rgb(type(self).__name__, pixels)
        return _colour.hue_and_saturation(xp, pixels, None, parameters["saturation"], self.value_range)

    def get_config(self):
        return {**super().get_config(), "factor": list(self.factor)}
