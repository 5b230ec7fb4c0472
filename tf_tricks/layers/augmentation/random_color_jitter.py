"""RandomColorJitter."""

import keras

from tf_tricks._checks import check_one_of, check_optional
from tf_tricks.layers.augmentation import _colour, _kernels, _loops
from tf_tricks.layers.augmentation._factors import check_factor, check_spread
from tf_tricks.layers.augmentation.pixel_augmentation import PixelAugmentation
from tf_tricks.layers.augmentation.random_hue import draw_turns
from tf_tricks.layers.augmentation.random_saturation import saturation_from

MODES = ("exact", "matrix")


@keras.saving.register_keras_serializable(package="tf_tricks")
class RandomColorJitter(PixelAugmentation):
    """Change brightness, contrast, saturation and hue of each image, in this order, by random numbers of its own.

    Args:
        value_range: (low, high), the range of the pixels, kept by the result; `low` is black.
        brightness_factor: None, or the `factor` of `RandomBrightness`.
        contrast_factor: None, or the `factor` of `RandomContrast`.
        saturation_factor: None, or the `factor` of `RandomSaturation`.
        hue_factor: None, or the `factor` of `RandomHue`.
        seed: None or int. The same seed gives the same numbers on every backend.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        mode: "exact", the values of `keras.layers.RandomColorJitter` (saturation and hue as in HSV, each step clipped),
            or "matrix", one 3x4 matrix for each image, faster: the hue turns about the gray axis in YIQ, which is
            another change of the same kind (about 8 of 255 levels from the HSV one on average); the saturation is the
            distance from the luminance; the result is clipped once; images of 64 pixels and more have the mean that
            the contrast needs taken from every fourth row and column.
        **kwargs: `bounding_box_format`, `dtype`, `name` as in every augmentation layer.
    Shape:
        `(batch, height, width, 3)`, or without `batch`, or a dict with the key "images" -> the same. With brightness
        and contrast alone any number of channels in the exact mode.
    Raises:
        TypeError, ValueError: an argument is none of what is accepted; the images have no 3 channels.
    Reference:
        Howard (2013), Some Improvements on Deep Convolutional Neural Network Based Image Classification, section 2.1;
        Smith (1978), Color Gamut Transform Pairs, SIGGRAPH '78, for HSV.
    Example:
        >>> layer = RandomColorJitter(brightness_factor=0.2, contrast_factor=0.2, hue_factor=0.1, seed=1)
        >>> tuple(layer(np.zeros((2, 8, 8, 3)), training=True).shape)
        (2, 8, 8, 3)
    """

    rereads = True

    def __init__(
        self,
        value_range=(0, 255),
        brightness_factor=None,
        contrast_factor=None,
        saturation_factor=None,
        hue_factor=None,
        seed=None,
        data_format=None,
        mode="exact",
        **kwargs,
    ):
        super().__init__(value_range=value_range, seed=seed, data_format=data_format, **kwargs)
        self.brightness_factor = check_optional(check_factor, "brightness_factor", brightness_factor)
        self.contrast_factor = check_optional(check_spread, "contrast_factor", contrast_factor)
        self.saturation_factor = check_optional(check_factor, "saturation_factor", saturation_factor, minimum=0.0)
        self.hue_factor = check_optional(check_factor, "hue_factor", hue_factor, minimum=0.0)
        self.mode = check_one_of("mode", mode, MODES)
        self.by_image = "fast" if self.mode == "exact" else None

    def draw(self, xp, draws, size):
        drawn = {}
        if self.brightness_factor is not None:
            low, high = self.value_range
            drawn["shift"] = draws.uniform(*self.brightness_factor) * (high - low)
        if self.contrast_factor is not None:
            below, above = self.contrast_factor
            drawn["contrast"] = draws.uniform(1.0 - below, 1.0 + above)
        if self.saturation_factor is not None:
            drawn["saturation"] = saturation_from(draws.uniform(*self.saturation_factor))
        if self.hue_factor is not None:
            drawn["turns"] = draw_turns(xp, draws, self.hue_factor)
        return drawn

    def change(self, xp, pixels, parameters):
        if not parameters:
            return pixels
        change = self._change_exactly if self.mode == "exact" else self._change_by_matrix
        return change(xp, pixels, parameters)

    def _change_exactly(self, xp, pixels, parameters):
        if "shift" in parameters:
            pixels = self._settled(xp, lambda pixels: pixels + _colour.per_image(xp, parameters["shift"]), pixels)
        if "contrast" in parameters:
            pixels = self._settled(xp, lambda pixels: _colour.contrast(xp, pixels, parameters["contrast"]), pixels)
        turns, saturation = parameters.get("turns"), parameters.get("saturation")
        if turns is None and saturation is None:
            return pixels
        _colour.check_rgb(type(self).__name__, pixels)
        return _colour.hue_and_saturation(xp, pixels, turns, saturation, self.value_range)

    def _settled(self, xp, change, pixels):
        return _loops.settled(xp, lambda: _kernels.clip(xp, change(pixels), *self.value_range))

    def _change_by_matrix(self, xp, pixels, parameters):
        _colour.check_rgb(type(self).__name__, pixels)
        steps = []
        shift = parameters.get("shift")
        if shift is not None:
            steps.append(_colour.shift_matrix(xp, shift))
        if "contrast" in parameters:
            centre = _colour.quick_mean(xp, pixels)
            centre = centre if shift is None else centre + xp.reshape(shift, (-1, 1))
            steps.append(_colour.contrast_matrix(xp, parameters["contrast"], centre))
        if "saturation" in parameters:
            steps.append(_colour.saturation_matrix(xp, parameters["saturation"]))
        if "turns" in parameters:
            steps.append(_colour.hue_matrix(xp, parameters["turns"]))
        return _colour.apply(xp, pixels, _colour.chain(xp, *steps))

    def get_config(self):
        factors = {
            "brightness_factor": self.brightness_factor,
            "contrast_factor": self.contrast_factor,
            "saturation_factor": self.saturation_factor,
            "hue_factor": self.hue_factor,
        }
        as_lists = {name: None if factor is None else list(factor) for name, factor in factors.items()}
        return {**super().get_config(), **as_lists, "mode": self.mode}
