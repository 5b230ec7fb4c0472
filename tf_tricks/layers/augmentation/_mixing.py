"""The base of the layers that mix each image with another one of its batch."""

import keras

from tf_tricks._checks import check_integer, check_one_of, check_optional
from tf_tricks.layers.augmentation import _kernels
from tf_tricks.layers.augmentation._boxes import FORMATS
from tf_tricks.layers.augmentation.augmentation_layer import AugmentationLayer


class MixingAugmentation(AugmentationLayer):
    """Each image gets a partner from the batch, a random permutation, and keeps a share `weight` of itself.

    Args:
        num_classes: None or int >= 2. None: labels are one-hot, or whatever may be averaged; an int: integer labels
            become one-hot ones of so many classes, while training and otherwise.
        bounding_box_format: None, or the format of `bounding_boxes`.
    """

    range_matters = False
    mixes_images = True

    def __init__(self, num_classes=None, bounding_box_format=None, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = check_optional(check_integer, "num_classes", num_classes, 2)
        self.bounding_box_format = check_one_of("bounding_box_format", bounding_box_format, (None, *FORMATS))

    def mix_images(self, xp, images, partners, parameters):
        """Images `(batch, height, width, channels)` and their partners, mixed."""
        raise NotImplementedError

    def mix_masks(self, xp, masks, partners, parameters, size):
        """Segmentation masks `(batch, height, width, ...)` and those of the partners, mixed."""
        raise NotImplementedError

    def mix_boxes(self, xp, boxes, partners, parameters):
        """A dict with `boxes` `(batch, n, 4)` and `labels` `(batch, n)`, and that of the partners, mixed."""
        raise NotImplementedError

    def with_partners(self, xp, images, parameters):
        """The parameters with the other image of each image, one of `images`: what `transform` then needs no more."""
        return {**parameters, "partners": xp.take(images, parameters["order"], axis=0)}

    def transform(self, xp, images, parameters):
        if "partners" not in parameters:
            parameters = self.with_partners(xp, images, parameters)
        return self.mix_images(xp, images, parameters["partners"], parameters)

    def transform_others(self, xp, others, parameters, size):
        order, weight = parameters["order"], parameters["weight"]
        self._check_counts(order.shape[0], others)
        mixed = {}
        for name, value in others.items():
            if name == "keypoints":
                raise ValueError(f"{type(self).__name__} does not mix keypoints. Received: a dict with 'keypoints'")
            if name == "bounding_boxes":
                partners = {key: xp.take(each, order, axis=0) for key, each in value.items()}
                mixed[name] = self.mix_boxes(xp, value, partners, parameters)
                continue
            value = self._one_hot(xp, value) if name == "labels" else value
            partners = xp.take(value, order, axis=0)
            if name == "segmentation_masks":
                mixed[name] = self.mix_masks(xp, value, partners, parameters, size)
                continue
            if _is_integer(value):  # labels that are one-hot integers; class numbers have no mean
                if name == "labels" and len(value.shape) < 2:
                    raise ValueError(
                        f"{type(self).__name__}: labels must be one-hot, or `num_classes` be given. "
                        f"Received: labels of shape {tuple(value.shape)} and dtype {_dtype(value)}"
                    )
                value, partners = xp.cast(value, "float32"), xp.cast(partners, "float32")
            mixed[name] = blend(xp, value, partners, weight)
        return mixed

    def at_rest(self, xp, images, others):
        self._check_counts(images.shape[0], others)
        if "labels" in others:
            others = {**others, "labels": self._one_hot(xp, others["labels"])}
        return images, others

    def spec_of(self, name, shape, dtype):
        if name == "labels" and self.num_classes is not None:
            shape = shape[:-1] if len(shape) == 2 and shape[-1] == 1 else shape
            return (*shape, self.num_classes), "float32"
        is_integer = "int" in str(dtype) and name in ("labels", "sample_weights")
        return super().spec_of(name, shape, "float32" if is_integer else dtype)

    def _check_counts(self, count, others):
        for name, value in others.items():
            shape = tuple(getattr(value, "shape", ()))  # boxes are a dict
            if shape and None not in (count, shape[0]) and count != shape[0]:
                raise ValueError(
                    f"{type(self).__name__}: `{name}` must be one for each of the {count} images. "
                    f"Received: shape {shape}"
                )

    def _one_hot(self, xp, labels):
        if self.num_classes is None:
            return labels
        if len(labels.shape) == 2 and labels.shape[-1] == 1:
            labels = labels[:, 0]
        if len(labels.shape) != 1:
            raise ValueError(
                f"{type(self).__name__}: with `num_classes` labels must be integers of shape (batch,) or (batch, 1). "
                f"Received: shape {tuple(labels.shape)}"
            )
        classes = xp.reshape(xp.arange(self.num_classes, dtype="int32"), (1, -1))
        return xp.cast(xp.equal(xp.cast(labels, "int32")[:, None], classes), "float32")

    def get_config(self):
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "bounding_box_format": self.bounding_box_format,
        }


def blend(xp, values, partners, weight):
    """`weight` `(batch,)` of the values and the rest of the partners, in the dtype of the values."""
    weight = xp.cast(xp.reshape(weight, [-1] + [1] * (len(values.shape) - 1)), values.dtype)
    return _kernels.between(xp, partners, values, weight)


def _dtype(tensor):
    return keras.backend.standardize_dtype(tensor.dtype)


def _is_integer(tensor):
    return "int" in _dtype(tensor) or _dtype(tensor) == "bool"
