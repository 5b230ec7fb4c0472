"""RandomHue."""

import keras

from tf_tricks.layers.augmentation import _colour
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation


def draw_turns(xp, draws, factor):
    """Full turns in [-0.5, 0.5]: half of a number from the pair `factor`, to either side."""
    turns = draws.uniform(*factor) * 0.5
    return xp.where(draws.chance(0.5), -turns, turns)


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomHue(PixelAugmentation):
    """Turn the hue of each image, as HSV defines it, by a random angle of its own.

    The values of `keras.layers.RandomHue`.

    Args:
        factor: number in [0, 1], for a range of 0 to `factor`, or a pair (lower, upper) of them. 1 is half a turn; the
            direction is drawn too.
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
        >>> cyan = RandomHue(factor=(1.0, 1.0))(np.array([[[255.0, 0.0, 0.0]]]), training=True)
        >>> [float(each) for each in cyan[0, 0]]
        [0.0, 255.0, 255.0]
    """

    rereads = True

    def __init__(self, factor, value_range=(0, 255), data_format=None, seed=None, **kwargs):
        super().__init__(value_range=value_range, data_format=data_format, seed=seed, **kwargs)
        self.factor = check_factor("factor", factor, minimum=0.0)

    def draw(self, xp, draws, size):
        return {"turns": draw_turns(xp, draws, self.factor)}

    def change(self, xp, pixels, parameters):
        _colour.check_rgb(type(self).__name__, pixels)
        return _colour.hue_and_saturation(xp, pixels, parameters["turns"], None, self.value_range)

    def get_config(self):
        return {**super().get_config(), "factor": list(self.factor)}
