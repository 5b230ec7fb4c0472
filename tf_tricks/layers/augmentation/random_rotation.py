"""RandomRotation."""

import math

import keras

from tf_tricks.layers.augmentation import _geometry
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation.geometric_augmentation import GeometricAugmentation


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomRotation(GeometricAugmentation):
    """Rotate each image about its centre by a random angle.

    Takes the arguments of `keras.layers.RandomRotation` and gives its images.

    Args:
        factor: number in [-1, 1] or pair of them, in turns: each image is rotated by an angle drawn evenly from
            [lower, upper) * 360 degrees, against the clock where positive. A number f stands for (-f, f).
        fill_mode: what shows where nothing was: "reflect" (d c b a | a b c d | d c b a), "wrap"
            (a b c d | a b c d | a b c d), "constant" (k k k k | a b c d | k k k k) or "nearest"
            (a a a a | a b c d | d d d d).
        interpolation: "bilinear" or "nearest".
        seed: None or int, the same seed gives the same images.
        fill_value: number, k of "constant", in the unit of the images.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        bounding_box_format: None, or the format of `bounding_boxes`, as in Keras: "xyxy", "yxyx", "xywh",
            "center_xywh", "center_yxhw", "rel_xyxy", "rel_yxyx", "rel_xywh" or "rel_center_xywh".
        min_visibility: float in [0, 1). A box of whose area no more than this share remains within the image gets the
            label -1, as Keras marks boxes that are not there, and no extent.
        value_range, dtype: as for every augmentation layer.
    Shape:
        `(batch, height, width, channels)`, or without `batch`, or a dict with the key "images" -> the same. In a dict
        "segmentation_masks" (nearest pixel, their dtype stays), "bounding_boxes" (a dict of "boxes" `(batch, n, 4)`
        and "labels" `(batch, n)`) and "keypoints" (`(batch, n, 2)`, (x, y) in pixels, whole numbers at their
        centres) are rotated too.
    Raises:
        ValueError: an argument is out of range, or boxes came in and `bounding_box_format` was not given.
        TypeError: `factor` is not a number.
    Reference:
        Simard, Steinkraus and Platt (2003), Best Practices for Convolutional Neural Networks Applied to Visual
        Document Analysis, section 2.
    Example:
        >>> layer = RandomRotation(0.1, seed=1)
        >>> tuple(layer(np.zeros((2, 8, 8, 3)), training=True).shape)
        (2, 8, 8, 3)
    """

    def __init__(
        self,
        factor,
        fill_mode="reflect",
        interpolation="bilinear",
        seed=None,
        fill_value=0.0,
        data_format=None,
        **kwargs,
    ):
        super().__init__(fill_mode, fill_value, interpolation, seed=seed, data_format=data_format, **kwargs)
        self.factor = check_factor("factor", factor)

    def matrix(self, xp, draws, size):
        angle = draws.uniform(*self.factor) * (2.0 * math.pi)
        cos, sin = xp.cos(angle), xp.sin(angle)
        # A rotation of the picture against the clock; the y axis points down.
        return _geometry.about(xp, cos, -sin, sin, cos, _geometry.centre_of(size))

    def get_config(self):
        return {**super().get_config(), "factor": list(self.factor)}
