"""RandomGrayscale."""

import keras

from tf_tricks._checks import check_number
from tf_tricks.layers.augmentation import _colour, _loops
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomGrayscale(PixelAugmentation):
    """Make an image gray, with a given probability: its luminance in all three channels.

    The values of `keras.layers.RandomGrayscale`, computed in float32, also on uint8 images. Since a luminance lies
    between the values that it is made of, the layer needs no `value_range` and clips nothing.

    Args:
        factor: number in [0, 1], the probability.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        seed: None or int. The same seed gives the same numbers on every backend.
        **kwargs: `value_range`, `bounding_box_format`, `dtype`, `name` as in every augmentation layer.
    Shape:
        `(batch, height, width, 3)`, or without `batch`, or a dict with the key "images" -> the same. Images of one
        channel stay as they are.
    Raises:
        TypeError, ValueError: an argument is none of what is accepted; the images have neither 1 nor 3 channels.
    Reference:
        ITU-R BT.601 for the weights of the channels; Chen, Kornblith, Norouzi and Hinton (2020), A Simple Framework for
        Contrastive Learning of Visual Representations, appendix A.
    Example:
        >>> gray = RandomGrayscale(factor=1.0)(np.array([[[0.0, 100.0, 0.0]]]), training=True)
        >>> [round(float(each), 1) for each in gray[0, 0]]
        [58.7, 58.7, 58.7]
    """

    range_matters = False

    def __init__(self, factor=0.5, data_format=None, seed=None, **kwargs):
        super().__init__(data_format=data_format, seed=seed, **kwargs)
        self.factor = check_number("factor", factor, above=0.0, below=1.0, closed="[]")

    def draw(self, xp, draws, size):
        return {"gray": draws.chance(self.factor)}

    def transform(self, xp, images, parameters):
        were_bytes = "int" in keras.backend.standardize_dtype(images.dtype)
        return self.change(xp, xp.cast(images, "float32"), parameters, were_bytes)

    def change(self, xp, pixels, parameters, were_bytes=False):
        if pixels.shape[-1] == 1:
            return pixels
        _colour.check_rgb(type(self).__name__, pixels)

        def gray(pixels, _):
            return _colour.grayscale(xp, pixels, were_bytes)

        return _loops.where(xp, parameters["gray"], gray, pixels)

    def apply(self, xp, pixels, parameters):
        return self.change(xp, pixels, parameters)

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}
