"""The base of the layers that move pixels."""

from tf_tricks._checks import check_number, check_one_of
from tf_tricks.layers.augmentation import _geometry
from tf_tricks.layers.augmentation._boxes import FORMATS
from tf_tricks.layers.augmentation._resample import FILL_MODES, INTERPOLATIONS
from tf_tricks.layers.augmentation._warp import Warp
from tf_tricks.layers.augmentation.augmentation_layer import AugmentationLayer


class GeometricAugmentation(AugmentationLayer):
    """A layer that moves pixels: `matrix` says where each output pixel comes from; the rest follows from it.

    Args:
        fill_mode: what shows where nothing was: "reflect" (d c b a | a b c d | d c b a), "wrap"
            (a b c d | a b c d | a b c d), "constant" (k k k k | a b c d | k k k k) or "nearest"
            (a a a a | a b c d | d d d d).
        fill_value: number, k of "constant". Masks are filled with 0, the background.
        interpolation: "bilinear" or "nearest".
        bounding_box_format: None, or the format of `bounding_boxes`, as in Keras: "xyxy", "yxyx", "xywh",
            "center_xywh", "center_yxhw", "rel_xyxy", "rel_yxyx", "rel_xywh" or "rel_center_xywh".
        min_visibility: float in [0, 1). A box of whose area no more than this share remains within the image gets the
            label -1, as Keras marks boxes that are not there.
        value_range, seed, data_format, dtype: as in `AugmentationLayer`.
    """

    range_matters = False  # where an image shows a pixel does not depend on the range of its values
    moves_pixels = True

    projective = False  # does the last row of `matrix` differ from (0, 0, 1)?
    exact = False  # does each output pixel show one input pixel, or none? See `is_exact`.
    looks_outside = True  # may an output pixel show what lies outside of the image?
    keypoint_pairs = ()  # pairs of keypoints that change places in a mirror

    def __init__(
        self,
        fill_mode="reflect",
        fill_value=0.0,
        interpolation="bilinear",
        bounding_box_format=None,
        min_visibility=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.fill_mode = check_one_of("fill_mode", fill_mode, FILL_MODES)
        self.fill_value = check_number("fill_value", fill_value)
        self.interpolation = check_one_of("interpolation", interpolation, INTERPOLATIONS)
        self.bounding_box_format = check_one_of("bounding_box_format", bounding_box_format, (None, *FORMATS))
        self.min_visibility = check_number("min_visibility", min_visibility, above=0.0, below=1.0, closed="[")
        self._warp = Warp((self,))

    def matrix(self, xp, draws, size):
        """float32 `(batch, 3, 3)`, see `_geometry`: from a point of the output to the point of the input.

        `size` is (height, width) of the input, float32.
        """
        raise NotImplementedError

    def still(self, xp, like, size):
        """The matrix of images that the layer is to leave alone, as many as `like` has entries; `size` as in `draw`."""
        return _geometry.identity(xp, like)

    def is_exact(self, size):
        """Does each pixel of what comes out of images of `size` show one input pixel, or none?"""
        return self.exact

    def draw(self, xp, draws, size):
        return {"matrix": self.matrix(xp, draws, tuple(xp.cast(each, "float32") for each in size))}

    def transform(self, xp, images, parameters):
        return self._warp.images(xp, images, parameters["matrix"])

    def transform_others(self, xp, others, parameters, size):
        return self._warp.others(xp, others, parameters["matrix"], size)

    def fills_like(self, other):
        """Do two layers resample in the same way?"""
        outside = ("fill_mode", "fill_value") if self.looks_outside and other.looks_outside else ()
        names = ("interpolation", *outside)
        return self.exact or other.exact or all(getattr(self, name) == getattr(other, name) for name in names)

    def get_config(self):
        return {
            **super().get_config(),
            "fill_mode": self.fill_mode,
            "fill_value": self.fill_value,
            "interpolation": self.interpolation,
            "bounding_box_format": self.bounding_box_format,
            "min_visibility": self.min_visibility,
        }
