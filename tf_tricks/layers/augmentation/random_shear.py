"""RandomShear."""

import keras

from tf_tricks.layers.augmentation import _geometry
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.geometric_augmentation import GeometricAugmentation


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomShear(GeometricAugmentation):
    """Shear each image along its axes by random amounts.

    Takes the arguments of `keras.layers.RandomShear` and gives its images: row y is shifted by `x_factor * y` pixels to
    the left or to the right, column x by `y_factor * x` up or down, the corner at the top left stays. The two
    directions are drawn independently, where Keras draws one for both axes when given pairs.

    Args:
        x_factor: number in [0, 1] or pair of them: the amount is drawn evenly from [lower, upper), its sign by chance.
            A number f stands for (0, f).
        y_factor: the same along the other axis.
        interpolation, fill_mode, fill_value: as in `RandomRotation`.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        seed: None or int, the same seed gives the same images.
        bounding_box_format, min_visibility: as in `RandomRotation`.
        value_range, dtype: as for every augmentation layer.
    Shape:
        As in `RandomRotation`.
    Raises:
        ValueError: an argument is out of range.
        TypeError: a factor is not a number.
    Reference:
        Cubuk, Zoph, Mane, Vasudevan and Le (2019), AutoAugment, arXiv:1805.09501, table 6 (ShearX, ShearY).
    Example:
        >>> layer = RandomShear(x_factor=0.2, y_factor=(0.1, 0.2), seed=1)
        >>> tuple(layer(np.zeros((2, 8, 8, 3)), training=True).shape)
        (2, 8, 8, 3)
    """

    def __init__(
        self,
        x_factor=0.0,
        y_factor=0.0,
        interpolation="bilinear",
        fill_mode="reflect",
        fill_value=0.0,
        data_format=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(fill_mode, fill_value, interpolation, seed=seed, data_format=data_format, **kwargs)
        self.x_factor = check_factor("x_factor", x_factor, minimum=0.0)
        self.y_factor = check_factor("y_factor", y_factor, minimum=0.0)

    def matrix(self, xp, draws, size):
        x, y = (draws.uniform(*factor) for factor in (self.x_factor, self.y_factor))
        x, y = (xp.where(draws.chance(0.5), -each, each) for each in (x, y))
        return _geometry.affine(xp, 1.0, x, 0.0, y, 1.0, 0.0)

    def get_config(self):
        return {**super().get_config(), "x_factor": list(self.x_factor), "y_factor": list(self.y_factor)}
