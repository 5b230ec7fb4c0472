"""RandomZoom."""

import keras

from tf_tricks.layers.augmentation import _geometry
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.geometric_augmentation import GeometricAugmentation


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomZoom(GeometricAugmentation):
    """Zoom into or out of the centre of each image by a random factor.

    Takes the arguments of `keras.layers.RandomZoom` and gives its images.

    Args:
        height_factor: number in (-1, 1] or pair of them: the height that an image shows is 1 + f times its own, f drawn
            evenly from [lower, upper): out where positive, in where negative. A number f stands for (-f, f).
        width_factor: the same for the width; None takes the factor of the height, which keeps the aspect.
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
        Simonyan and Zisserman (2015), Very Deep Convolutional Networks for Large-Scale Image Recognition, section 3.1
        (training at several scales).
    Example:
        >>> layer = RandomZoom(height_factor=(-0.2, 0.1), seed=1)
        >>> tuple(layer(np.zeros((2, 8, 8, 3)), training=True).shape)
        (2, 8, 8, 3)
    """

    def __init__(
        self,
        height_factor,
        width_factor=None,
        fill_mode="reflect",
        interpolation="bilinear",
        seed=None,
        fill_value=0.0,
        data_format=None,
        **kwargs,
    ):
        super().__init__(fill_mode, fill_value, interpolation, seed=seed, data_format=data_format, **kwargs)
        self.height_factor = _check_zoom("height_factor", height_factor)
        self.width_factor = None if width_factor is None else _check_zoom("width_factor", width_factor)

    def matrix(self, xp, draws, size):
        y = 1.0 + draws.uniform(*self.height_factor)
        x = y if self.width_factor is None else 1.0 + draws.uniform(*self.width_factor)
        return _geometry.about(xp, x, 0.0, 0.0, y, _geometry.centre_of(size))

    def get_config(self):
        width_factor = None if self.width_factor is None else list(self.width_factor)
        return {**super().get_config(), "height_factor": list(self.height_factor), "width_factor": width_factor}


def _check_zoom(name, value):
    factor = check_factor(name, value)
    given = value if isinstance(value, list | tuple) else [value]
    if min(given) <= -1.0:  # an image that shows nothing of itself; (-1, 1) from the number 1 is Keras's too
        raise ValueError(f"`{name}` must lie in (-1, 1]. Received: {name}={value!r}")
    return factor
