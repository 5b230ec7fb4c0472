"""RandomRGBShift."""

import keras

from tf_tricks.layers.augmentation._colour import check_rgb
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomRGBShift(PixelAugmentation):
    """Add a random number to the red values of an image, another one to the green and a third to the blue.

    Args:
        factor: number f in [-1, 1], for a range of -|f| to |f|, or a pair (lower, upper) in [-1, 1]; in units of the
            range.
        value_range: (low, high), the range of the pixels, kept by the result.
        seed: None or int. The same seed gives the same numbers on every backend.
        **kwargs: `data_format`, `bounding_box_format`, `dtype`, `name` as in every augmentation layer.
    Shape:
        `(batch, height, width, 3)`, or without `batch`, or a dict with the key "images" -> the same.
    Raises:
        TypeError, ValueError: an argument is none of what is accepted; the images have no 3 channels.
    Reference:
        Wu, Yan, Shan, Dang and Sun (2015), Deep Image: Scaling up Image Recognition, arXiv:1501.02876, section 4.2
        (color casting).
    Example:
        >>> shifted = RandomRGBShift(factor=(0.1, 0.2), seed=1)(np.zeros((1, 1, 3)), training=True)
        >>> bool(25 <= keras.ops.min(shifted) and keras.ops.max(shifted) <= 51)
        True
    """

    in_planes = False

    def __init__(self, factor, value_range=(0, 255), seed=None, **kwargs):
        super().__init__(value_range=value_range, seed=seed, **kwargs)
        self.factor = check_factor("factor", factor)

    def draw(self, xp, draws, size):
        return {"shift": draws.uniform(*self.factor, count=3)}

    def change(self, xp, pixels, parameters):
        check_rgb(type(self).__name__, pixels)
        low, high = self.value_range
        return pixels + parameters["shift"][:, None, None, :] * (high - low)

    def get_config(self):
        return {**super().get_config(), "factor": list(self.factor)}
