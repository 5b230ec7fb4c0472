"""What a layer of Keras, or the user's, does to images, and to what belongs to them, as a member of a composition."""

import keras

from tf_tricks.layers.augmentation.augmentation_layer import AugmentationLayer

# Of the layers of Keras that take a dict those that leave each pixel in its place. One that is not named here may move
# them; not every Keras has all of them.
_IN_PLACE = (
    "AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization", "Equalization", "MaxNumBoundingBoxes",
    "RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast", "RandomErasing",
    "RandomGaussianBlur", "RandomGrayscale", "RandomHue", "RandomInvert", "RandomPosterization", "RandomSaturation",
    "RandomSharpness", "Solarization",
)  # fmt: skip
_IN_PLACE = tuple(getattr(keras.layers, name) for name in _IN_PLACE if hasattr(keras.layers, name))
_SHAPED = ("segmentation_masks", "bounding_boxes", "keypoints")  # what says where something is


def is_channels_first(layer):
    return getattr(layer, "data_format", None) == "channels_first"


def takes_dict(layer):
    """Does a layer take and give the whole dict, as Keras's augmentation layers do? `Rescaling` takes images only."""
    return hasattr(layer, "transform_bounding_boxes")


def may_move(layer):
    """May a layer, or one within it, show a pixel at another place, or those of another image?"""
    if takes_dict(layer):
        return not isinstance(layer, _IN_PLACE)
    inner = getattr(layer, "layers", None)  # of a `Sequential`, a `Pipeline`, or an `Augmentation` within them
    if isinstance(inner, list | tuple):
        return any(map(may_move, inner))
    return isinstance(layer, AugmentationLayer) and (layer.moves_pixels or layer.mixes_images)


def size_after(layer, size):
    """(height, width) of what comes out of any layer for images of `size`; None: unknown."""
    if isinstance(layer, AugmentationLayer):
        return tuple(layer.output_size(size))
    first = is_channels_first(layer)
    shape = (1, 3, *size) if first else (1, *size, 3)
    try:
        found = layer.compute_output_shape(shape)
    except NotImplementedError:  # a layer of the user's need not say it
        if not all(isinstance(each, int | None) for each in size):
            raise
        found = layer.compute_output_spec(keras.KerasTensor(shape)).shape
    return tuple(found[2:4] if first else found[1:3])


def check_keeps(layer, others):
    """Raise if a layer may move pixels and leave behind what belongs to them, a dict with keys of `_inputs.KEYS`."""
    name, given = type(layer).__name__, [key for key in _SHAPED if key in others]
    if not given or not may_move(layer):
        return
    if not takes_dict(layer):
        raise ValueError(
            f"Augmentation: {name} is given images only, and has a layer that may move pixels: make its layers members "
            f"in its place. Received: a dict with {given[0]!r}"
        )
    if "keypoints" in given:
        raise ValueError(
            f"Augmentation: {name} of Keras does not move keypoints: put a layer of tf_tricks in its place. "
            "Received: a dict with 'keypoints'"
        )


def check_keeps_size(layer, before, after, others):
    """Raise if images `(batch, height, width, channels)` changed their size, and what belongs to them did not."""
    given = [key for key in _SHAPED if key in others]
    before, after = tuple(before)[1:3], tuple(after)[1:3]
    if given and None not in (*before, *after) and before != after:
        raise ValueError(
            f"Augmentation: {type(layer).__name__} changes the size of the images from {before} to {after}, and not "
            f"what belongs to them: put RandomCrop, RandomResizedCrop or a layer of Keras that takes a dict in its "
            f"place. Received: a dict with {given[0]!r}"
        )
