"""MixUp."""

import keras

from tf_tricks._checks import check_number
from tf_tricks.layers.augmentation._mixing import MixingAugmentation, _dtype, _is_integer, blend


@keras.saving.register_keras_serializable(package="tf_tricks")
class MixUp(MixingAugmentation):
    """Blend each image of a batch, and its label, with another one.

    An image becomes `weight * image + (1 - weight) * partner`, its label likewise, `weight` from Beta(alpha, alpha),
    one for each image. The partners are a random permutation of the batch, so that some images stay as they are.

    Args:
        alpha: float > 0; small values leave most images nearly alone, 1 makes all weights equally likely.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        seed: None or int.
        num_classes: None or int >= 2. None: the labels are one-hot, or numbers that may be averaged; an int: integer
            labels `(batch,)` or `(batch, 1)` come out one-hot, `(batch, num_classes)`, also with `training=False`.
        bounding_box_format: None or any format of Keras: the partner's boxes are appended as they are. Where nothing of
            the partner is to be seen they get no extent and the label -1.
        dtype: None, a dtype or a policy, that of the images that come out. "uint8" rounds.
    Shape:
        `(batch, height, width, channels)`, or without `batch` (nothing to mix with: the same image), or a dict with
        `images` and `labels`, `sample_weights`, `segmentation_masks`, `bounding_boxes` -> the same; `n` boxes become
        `2 n`, also with `training=False`.
    Raises:
        TypeError, ValueError: an argument is out of range; integer labels without `num_classes`, more or fewer labels
            than images, masks of class numbers (which have no mean: give one-hot ones as floats) or keypoints are
            passed.
    Reference:
        Zhang, Cisse, Dauphin and Lopez-Paz (2018), mixup: Beyond Empirical Risk Minimization, section 2,
        arXiv:1710.09412. Boxes: Zhang et al. (2019), arXiv:1902.04103.
    Example:
        >>> data = {"images": np.ones((4, 8, 8, 3)), "labels": np.array([0, 1, 2, 1])}
        >>> mixed = MixUp(alpha=0.4, num_classes=3, seed=1)(data, training=True)
        >>> np.round(keras.ops.convert_to_numpy(mixed["labels"]).sum(axis=1), 3).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, alpha=0.2, data_format=None, seed=None, num_classes=None, **kwargs):
        super().__init__(data_format=data_format, seed=seed, num_classes=num_classes, **kwargs)
        self.alpha = check_number("alpha", alpha, above=0)

    def draw(self, xp, draws, size):
        return {"order": draws.permutation(), "weight": draws.symmetric_beta(self.alpha)}

    def without(self, xp, parameters, kept):
        weight = parameters["weight"]
        return {**parameters, "weight": xp.where(kept, weight, xp.ones_like(weight))}

    def mix_images(self, xp, images, partners, parameters):
        return blend(xp, xp.cast(images, "float32"), xp.cast(partners, "float32"), parameters["weight"])

    def mix_masks(self, xp, masks, partners, parameters, size):
        if _is_integer(masks):
            raise ValueError(
                "MixUp: segmentation masks must be one-hot floats, class numbers have no mean. "
                f"Received: masks of dtype {_dtype(masks)}"
            )
        return blend(xp, masks, partners, parameters["weight"])

    def mix_boxes(self, xp, boxes, partners, parameters):
        order, weight = parameters["order"], parameters["weight"]
        alone = xp.logical_or(weight >= 1.0, xp.equal(order, xp.arange(xp.shape(order)[0], dtype="int32")))
        mixed = {}
        for name, mine in boxes.items():
            its = xp.where(_beside(xp, alone, mine), _no_boxes(xp, name, mine), partners[name])
            mixed[name] = xp.concatenate([mine, its], axis=1)
        return mixed

    def at_rest(self, xp, images, others):
        images, others = super().at_rest(xp, images, others)
        if "bounding_boxes" in others:
            boxes = others["bounding_boxes"].items()
            twice = {name: xp.concatenate([each, _no_boxes(xp, name, each)], axis=1) for name, each in boxes}
            others = {**others, "bounding_boxes": twice}
        return images, others

    def spec_of(self, name, shape, dtype):
        shape, dtype = super().spec_of(name, shape, dtype)
        if name.startswith("bounding_boxes/") and len(shape) > 1 and shape[1] is not None:
            shape = (shape[0], 2 * shape[1], *shape[2:])
        return shape, dtype

    def get_config(self):
        return {**super().get_config(), "alpha": self.alpha}


def _no_boxes(xp, name, values):
    """As many rows of a dict of boxes that are no boxes: no extent, and the label -1."""
    return -xp.ones_like(values) if name == "labels" else xp.zeros_like(values)


def _beside(xp, per_image, values):
    return xp.reshape(per_image, [-1] + [1] * (len(values.shape) - 1))
