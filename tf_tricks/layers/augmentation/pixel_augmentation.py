"""The base of the layers that change what a pixel shows and leave it where it is."""

from tf_tricks._checks import check_one_of
from tf_tricks.layers.augmentation import _kernels
from tf_tricks.layers.augmentation._boxes import FORMATS
from tf_tricks.layers.augmentation._colour import per_image as per_image  # its layers take it from here
from tf_tricks.layers.augmentation.augmentation_layer import AugmentationLayer


class PixelAugmentation(AugmentationLayer):
    """A layer that computes each value from its pixel, from where the pixel is, and from means over the image.

    In an `Augmentation` several of them share one pass. A layer that looks at neighbours is none: it would compute
    them again and again in such a pass.

    Args:
        bounding_box_format: None, or what Keras's layers take; the boxes stay where they are.
    """

    widens = True
    in_planes = True  # on Torch: are the channels best computed each in one piece?

    def __init__(self, bounding_box_format=None, **kwargs):
        super().__init__(**kwargs)
        self.bounding_box_format = check_one_of("bounding_box_format", bounding_box_format, (None, *FORMATS))

    def change(self, xp, pixels, parameters):
        """float32 `(batch, height, width, channels)` within `value_range` -> the same, clipped by `apply`."""
        raise NotImplementedError

    def apply(self, xp, pixels, parameters):
        """`change`, and back into `value_range`: what a pass that several layers share runs for each."""
        return _kernels.clip(xp, self.change(xp, pixels, parameters), *self.value_range)

    def transform(self, xp, images, parameters):
        pixels = _kernels.planes(xp, images) if self.in_planes else xp.cast(images, "float32")
        return self.apply(xp, pixels, parameters)

    def get_config(self):
        return {**super().get_config(), "bounding_box_format": self.bounding_box_format}
