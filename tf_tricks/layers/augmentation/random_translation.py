"""RandomTranslation."""

import keras

from tf_tricks.layers.augmentation import _geometry
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.geometric_augmentation import GeometricAugmentation


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomTranslation(GeometricAugmentation):
    """Shift each image by a random distance.

    Takes the arguments of `keras.layers.RandomTranslation` and gives its images.

    Args:
        height_factor: number in [-1, 1] or pair of them, as a share of the height: each image is shifted down (up where
            negative) by a distance drawn evenly from [lower, upper). A number f stands for (-f, f).
        width_factor: the same as a share of the width, to the right (to the left where negative).
        fill_mode, interpolation, fill_value: as in `RandomRotation`.
        seed: None or int, the same seed gives the same images.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        bounding_box_format, min_visibility: as in `RandomRotation`.
        value_range, dtype: as for every augmentation layer.
    Shape:
        As in `RandomRotation`.
    Raises:
        ValueError: an argument is out of range.
        TypeError: a factor is not a number.
    Reference:
        LeCun, Bottou, Bengio and Haffner (1998), Gradient-Based Learning Applied to Document Recognition, section
        III.C.
    Example:
        >>> layer = RandomTranslation(height_factor=0.1, width_factor=(0.0, 0.2), seed=1)
        >>> tuple(layer(np.zeros((2, 8, 8, 3)), training=True).shape)
        (2, 8, 8, 3)
    """

    def __init__(
        self,
        height_factor,
        width_factor,
        fill_mode="reflect",
        interpolation="bilinear",
        seed=None,
        fill_value=0.0,
        data_format=None,
        **kwargs,
    ):
        super().__init__(fill_mode, fill_value, interpolation, seed=seed, data_format=data_format, **kwargs)
        self.height_factor = check_factor("height_factor", height_factor)
        self.width_factor = check_factor("width_factor", width_factor)

    def matrix(self, xp, draws, size):
        height, width = size
        down, right = draws.uniform(*self.height_factor) * height, draws.uniform(*self.width_factor) * width
        return _geometry.affine(xp, 1.0, 0.0, -right, 0.0, 1.0, -down)

    def get_config(self):
        factors = {"height_factor": list(self.height_factor), "width_factor": list(self.width_factor)}
        return {**super().get_config(), **factors}
