"""RandomPerspective."""

import keras

from tf_tricks._checks import check_number
from tf_tricks.layers.augmentation import _geometry
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.geometric_augmentation import GeometricAugmentation


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomPerspective(GeometricAugmentation):
    """Show some of the images from a random point of view: their corners move.

    Takes the arguments of `keras.layers.RandomPerspective` and gives its images. The corner at the top left stays, as
    in Keras; each coordinate of the others is multiplied by a number drawn evenly from [1 - scale / 2, 1 + scale / 2).
    Above a scale of 2 / 3 a corner may move across the opposite diagonal; what then lies beyond the horizon is filled,
    where Keras shows it upside down.

    Args:
        factor: number in [0, 1] or pair of them: each image draws its probability to be changed evenly from
            [lower, upper). A number f stands for (0, f), as in Keras: 1.0 changes every second image, (1, 1) each.
        scale: float in [0, 1], how far the corners move, as a share of the image.
        interpolation, fill_value: as in `RandomRotation`.
        seed: None or int, the same seed gives the same images.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        fill_mode: as in `RandomRotation`; Keras has "constant" alone.
        bounding_box_format, min_visibility: as in `RandomRotation`.
        value_range, dtype: as for every augmentation layer.
    Shape:
        As in `RandomRotation`.
    Raises:
        ValueError: an argument is out of range.
        TypeError: `factor` or `scale` is not a number.
    Reference:
        Heckbert (1989), Fundamentals of Texture Mapping and Image Warping, section 2.2.3.
    Example:
        >>> layer = RandomPerspective(factor=(1.0, 1.0), scale=0.3, seed=1)
        >>> tuple(layer(np.zeros((2, 8, 8, 3)), training=True).shape)
        (2, 8, 8, 3)
    """

    projective = True

    def __init__(
        self,
        factor=1.0,
        scale=1.0,
        interpolation="bilinear",
        fill_value=0.0,
        seed=None,
        data_format=None,
        fill_mode="constant",
        **kwargs,
    ):
        super().__init__(fill_mode, fill_value, interpolation, seed=seed, data_format=data_format, **kwargs)
        self.factor = check_factor("factor", factor, minimum=0.0)
        self.scale = check_number("scale", scale, above=0.0, below=1.0, closed="[]")

    def matrix(self, xp, draws, size):
        changed = draws.uniform() < draws.uniform(*self.factor)
        stretch = 1.0 + draws.uniform(-0.5 * self.scale, 0.5 * self.scale, count=4)
        ones = xp.ones_like(stretch[:, 0])
        # Of an image of one pixel across there is one corner: any length does.
        height, width = (xp.maximum(each - 1.0, 1.0) for each in size)
        right, corner_x, bottom, corner_y = (stretch[:, i] for i in range(4))
        square = quadrilateral(xp, right, bottom, corner_x, corner_y)
        # From the output to the unit square, and from there to the input.
        stretched = _geometry.matrices(xp, ((ones * width, 0.0, 0.0), (0.0, height, 0.0), (0.0, 0.0, 1.0)))
        shrunk = _geometry.matrices(xp, ((ones / width, 0.0, 0.0), (0.0, 1.0 / height, 0.0), (0.0, 0.0, 1.0)))
        matrix = xp.matmul(stretched, xp.matmul(_geometry.inverse(xp, square), shrunk))
        return _geometry.choose(xp, changed, matrix, self.still(xp, ones, size))

    def get_config(self):
        return {**super().get_config(), "factor": list(self.factor), "scale": self.scale}


def quadrilateral(xp, right, bottom, corner_x, corner_y):
    """The matrix of the unit square to the corners (0, 0), (right, 0), (0, bottom), (corner_x, corner_y).

    Each `(batch,)`. Heckbert (1989), section 2.2.3.
    """
    # Its edges meet at the third corner: g and h say how fast the two axes run to their vanishing points.
    determinant = (right - corner_x) * (bottom - corner_y) - corner_x * corner_y
    determinant = xp.where(xp.abs(determinant) < 1e-6, -1e-6 * xp.ones_like(determinant), determinant)
    x, y = corner_x - right, corner_y - bottom
    g = (x * (bottom - corner_y) + corner_x * y) / determinant
    h = ((right - corner_x) * y + corner_y * x) / determinant
    rows = ((right * (1.0 + g), 0.0, 0.0), (0.0, bottom * (1.0 + h), 0.0), (g, h, 1.0))
    return _geometry.matrices(xp, rows)
