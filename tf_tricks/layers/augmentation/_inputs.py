"""What a layer may be given: images, or a dict of images with what belongs to them; one image or a batch."""

import dataclasses

KEYS = ("images", "labels", "bounding_boxes", "segmentation_masks", "keypoints", "sample_weights")


@dataclasses.dataclass
class Inputs:
    """Images, their axes in the order that they came in, and what belongs to them, as a batch."""

    images: object
    others: dict
    is_dict: bool
    is_batch: bool


def unpack(xp, data, data_format, layer):
    """`Inputs` from the argument of a layer.

    Raises:
        TypeError, ValueError: the data is not what a layer takes; the message names it.
    """
    is_dict = isinstance(data, dict)
    if is_dict and "images" not in data:
        raise ValueError(f"{layer}: a dict must have the key 'images'. Received: the keys {', '.join(map(str, data))}")
    images = xp.convert_to_tensor(data["images"] if is_dict else data)
    rank = len(images.shape)
    if rank not in (3, 4):
        axes = "channels, height, width" if data_format == "channels_first" else "height, width, channels"
        raise ValueError(
            f"{layer}: images must have shape ({axes}), or (batch, {axes}). Received: shape {tuple(images.shape)}"
        )
    others = {key: value for key, value in data.items() if key != "images"} if is_dict else {}
    if unknown := set(others) - set(KEYS):
        raise ValueError(f"{layer}: the keys are {', '.join(KEYS)}. Received: {', '.join(sorted(map(repr, unknown)))}")
    others = map_nest(xp.convert_to_tensor, others)
    if rank == 3:
        images = images[None]
        others = map_nest(lambda value: value[None], others)
    return Inputs(images, others, is_dict, rank == 4)


def pack(inputs, images, others):
    """What the layer returns: the form that it was given."""
    if not inputs.is_batch:
        images = images[0]
        others = map_nest(lambda value: value[0], others)
    return {**others, "images": images} if inputs.is_dict else images


def map_nest(function, nest):
    """`function` on each leaf of nested dicts (bounding boxes are a dict of their own)."""
    if isinstance(nest, dict):
        return {key: map_nest(function, value) for key, value in nest.items()}
    return function(nest)
