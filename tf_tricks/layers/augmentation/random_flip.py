"""RandomFlip."""

import keras

from tf_tricks._checks import check_integer, check_one_of
from tf_tricks.layers.augmentation import _geometry, _loops
from tf_tricks.layers.augmentation.geometric_augmentation import GeometricAugmentation

MODES = ("horizontal", "vertical", "horizontal_and_vertical")


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomFlip(GeometricAugmentation):
    """Flip each image, or not, with probability one half; with both axes, each axis on its own.

    Takes the arguments of `keras.layers.RandomFlip`, which in mode "horizontal_and_vertical" flips both axes or none;
    this layer gives each of the four outcomes to a quarter of the images.

    Args:
        mode: "horizontal" (left and right change places), "vertical" (top and bottom) or "horizontal_and_vertical".
        seed: None or int, the same seed gives the same images.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        keypoint_pairs: pairs of indices of keypoints, such as ((1, 2), (3, 4)) for the left and right eye and ear.
            In an image that comes out mirrored they change places.
        bounding_box_format, min_visibility: as in `RandomRotation`.
        value_range, dtype: as for every augmentation layer; the values stay as they are.
    Shape:
        `(batch, height, width, channels)`, or without `batch`, or a dict with the key "images" -> the same. In a dict
        "segmentation_masks", "bounding_boxes" and "keypoints" `(batch, n, 2)`, (x, y) in pixels, are flipped too.
    Raises:
        ValueError: `mode` is none of these, or a keypoint is in two pairs.
        TypeError: an index is not an int.
    Reference:
        Krizhevsky, Sutskever and Hinton (2012), ImageNet Classification with Deep Convolutional Neural Networks,
        section 4.1.
    Example:
        >>> layer = RandomFlip("horizontal", seed=1)
        >>> tuple(layer(np.zeros((2, 8, 8, 3)), training=True).shape)
        (2, 8, 8, 3)
    """

    exact = True
    looks_outside = False

    def __init__(self, mode="horizontal_and_vertical", seed=None, data_format=None, keypoint_pairs=(), **kwargs):
        super().__init__(seed=seed, data_format=data_format, **kwargs)
        self.mode = check_one_of("mode", mode, MODES)
        self.keypoint_pairs = _check_pairs(keypoint_pairs)

    def matrix(self, xp, draws, size):
        signs = {
            axis: 1.0 - 2.0 * xp.cast(draws.chance(0.5), "float32")
            for axis in ("horizontal", "vertical")
            if axis in self.mode
        }
        ones = xp.ones_like(next(iter(signs.values())))
        x, y = (signs.get(axis, ones) for axis in ("horizontal", "vertical"))
        return _geometry.about(xp, x, 0.0, 0.0, y, _geometry.centre_of(size))

    def transform(self, xp, images, parameters):
        # Two reversals and two choices, which XLA fuses into one copy: cheaper than a gather.
        matrix = parameters["matrix"]
        for axis, row, mode in ((2, 0, "horizontal"), (1, 1, "vertical")):
            if mode not in self.mode:
                continue
            flipped = matrix[:, row, row] < 0.0
            images = _loops.where(xp, flipped, lambda images, _, axis=axis: xp.flip(images, axis), images)
        return images

    def get_config(self):
        pairs = [list(pair) for pair in self.keypoint_pairs]
        return {**super().get_config(), "mode": self.mode, "keypoint_pairs": pairs}


def _check_pairs(pairs):
    accepted = f"`keypoint_pairs` must be pairs of int >= 0, none twice. Received: keypoint_pairs={pairs!r}"
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise ValueError(accepted)
    pairs = tuple(tuple(check_integer("keypoint_pairs", index, 0) for index in pair) for pair in pairs)
    indices = [index for pair in pairs for index in pair]
    if len(set(indices)) < len(indices):
        raise ValueError(accepted)
    return pairs
