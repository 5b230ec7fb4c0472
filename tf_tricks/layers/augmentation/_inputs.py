"""What a layer may be given: images, or a dict of images with what belongs to them; one image or a batch."""

import dataclasses

import keras

from tf_tricks.layers._in_tensorflow import tensorflow
from tf_tricks.layers.augmentation._namespaces import namespace_of

# Under such a key nothing would follow the images, and nobody be told.
_MEANT = {
    "bounding_box": "bounding_boxes",
    "boxes": "bounding_boxes",
    "keypoint": "keypoints",
    "mask": "segmentation_masks",
    "masks": "segmentation_masks",
    "segmentation_mask": "segmentation_masks",
}
KEYS = ("images", "labels", "bounding_boxes", "segmentation_masks", "keypoints", "sample_weights")
_PLAIN = bool | int | float | list | tuple


@dataclasses.dataclass
class Inputs:
    """Images, their axes in the order that they came in, and what belongs to them, as a batch; masks channels last."""

    images: object
    others: dict
    is_dict: bool
    is_batch: bool
    masks_are_first: bool  # did the masks come channels first?


def take_apart(data, layer, mixes_images):
    """(a dict of what a layer changes, a dict of what is only handed on), of which Python's numbers become tensors.

    Raises:
        ValueError: there are no images, a key is nearly one that is known, or what is handed on would have to be mixed.
    """
    if "images" not in data:
        raise ValueError(f"{layer}: a dict must have the key 'images'. Received: the keys {', '.join(map(str, data))}")
    rest = {key: value for key, value in data.items() if key not in KEYS}
    if wrong := [key for key in rest if key in _MEANT]:
        raise ValueError(f"{layer}: the keys are {', '.join(KEYS)}. Received: {wrong[0]!r}, for {_MEANT[wrong[0]]!r}?")
    if rest and mixes_images:
        raise ValueError(
            f"{layer}: images are mixed, and what belongs to them with them, under the keys {', '.join(KEYS)}. "
            f"Received: {', '.join(map(repr, rest))}; take it out of the dict"
        )
    xp = namespace_of(data["images"])
    known = {key: value for key, value in data.items() if key not in rest}
    return map_nest(lambda value: xp.convert_to_tensor(value) if isinstance(value, _PLAIN) else value, known), rest


def check_training(layer, training):
    """Raise TypeError unless `training` is known while a function is traced."""
    if not isinstance(training, bool | int | None):
        raise TypeError(
            f"{layer}: `training` must be True or False of Python: it says what is traced and compiled. "
            f"Received: training={training!r}"
        )


def unpack(xp, data, data_format, layer):
    """`Inputs` from the argument of a layer.

    Raises:
        TypeError, ValueError: the data is not what a layer takes; the message names it.
    """
    is_dict = isinstance(data, dict)
    images = xp.convert_to_tensor(data["images"] if is_dict else data)
    rank = len(images.shape)
    if rank not in (3, 4):
        axes = "channels, height, width" if data_format == "channels_first" else "height, width, channels"
        raise ValueError(
            f"{layer}: images must have shape ({axes}), or (batch, {axes}). Received: shape {tuple(images.shape)}"
        )
    others = {key: value for key, value in without_ragged(data, layer).items() if key != "images"} if is_dict else {}
    others = with_signed_labels(xp, map_nest(xp.convert_to_tensor, others))
    if rank == 3:
        images = images[None]
        others = map_nest(lambda value: value[None], others)
    masks_are_first = "segmentation_masks" in others and are_masks_first(
        data_format, tuple(others["segmentation_masks"].shape), tuple(images.shape)
    )
    if masks_are_first:
        others["segmentation_masks"] = xp.transpose(others["segmentation_masks"], (0, 2, 3, 1))
    return Inputs(images, others, is_dict, rank == 4, masks_are_first)


def are_masks_first(data_format, shape, images_shape):
    """Are masks of a shape, for a batch of images of another, `(batch, channels, height, width)`?"""
    if data_format != "channels_first" or len(shape) != 4:
        return False
    last, first = (_may_be_equal(shape[at : at + 2], images_shape[2:4]) for at in (1, 2))
    if first and last and (shape[1] is None) != (shape[3] is None):
        return shape[1] is not None  # of the axes that would be the channels, this one is of a known length
    return first or not last


def are_known(*lengths):
    """Are they all numbers, none None or a tensor?"""
    return all(isinstance(each, int) for each in lengths)


def check_masks(layer, shape, size):
    """Raise ValueError unless masks of a shape are of the size (height, width) of the images, as far as it is known."""
    if len(shape) in (3, 4) and (not are_known(*shape[1:], *size) or tuple(size) in (shape[1:3], shape[2:])):
        return
    raise ValueError(
        f"{layer}: `segmentation_masks` must have shape (batch, height, width), or that with channels, of the size of "
        f"the images, {tuple(size)}. Received: shape {shape}"
    )


def _may_be_equal(one, other):
    return all(None in pair or pair[0] == pair[1] for pair in zip(one, other, strict=True))


def is_ragged(value):
    """Is it a `tf.RaggedTensor`, such as a batch of images of different sizes?"""
    return tensorflow() is not None and isinstance(value, tensorflow().RaggedTensor)


def without_ragged(data, layer):
    """The dict with ragged boxes, another number for each image, made dense as Keras does: extent 0 and label -1.

    Raises:
        ValueError: keypoints are ragged.
    """
    if is_ragged(data.get("keypoints")):  # nothing would tell the padding from a keypoint
        raise ValueError(
            f"{layer}: `keypoints` must be as many for each image. Received: a tf.RaggedTensor of shape "
            f"{tuple(data['keypoints'].shape)}; pad them, with a third column that says which are there"
        )
    boxes = data.get("bounding_boxes")
    if not isinstance(boxes, dict) or not any(map(is_ragged, boxes.values())):
        return data
    padded = {}
    for key, value in boxes.items():
        if is_ragged(value):
            value = tensorflow().cast(value, dtype_of_box_labels(value.dtype)) if key == "labels" else value
            shape = [None, None, 4] if key == "boxes" else None
            value = value.to_tensor(default_value=-1 if key == "labels" else 0, shape=shape)
        padded[key] = value
    return {**data, "bounding_boxes": padded}


def dtype_of_box_labels(dtype):
    """int32 for an unsigned one, which has no -1, the label of a box that is not there."""
    name = keras.backend.standardize_dtype(dtype)
    return "int32" if name.startswith("uint") else name


def with_signed_labels(xp, others):
    """What belongs to the images, the labels of the boxes in `dtype_of_box_labels`."""
    boxes = others.get("bounding_boxes")
    if not isinstance(boxes, dict) or "labels" not in boxes:
        return others
    found, dtype = boxes["labels"], dtype_of_box_labels(boxes["labels"].dtype)
    if dtype == keras.backend.standardize_dtype(found.dtype):
        return others
    return {**others, "bounding_boxes": {**boxes, "labels": xp.cast(found, dtype)}}


def pack(xp, inputs, images, others):
    """What the layer returns: the form that it was given."""
    if inputs.masks_are_first:
        masks = xp.transpose(others["segmentation_masks"], (0, 3, 1, 2))
        others = {**others, "segmentation_masks": masks}
    if not inputs.is_batch:
        images = images[0]
        others = map_nest(lambda value: value[0], others)
    return {**others, "images": images} if inputs.is_dict else images


def map_nest(function, nest):
    """`function` on each leaf of nested dicts (bounding boxes are a dict of their own)."""
    if isinstance(nest, dict):
        return {key: map_nest(function, value) for key, value in nest.items()}
    return function(nest)
