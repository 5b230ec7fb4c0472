"""CutMix."""

import keras

from tf_tricks.layers.augmentation import _kernels, _loops
from tf_tricks.layers.augmentation._factors import check_factor
from tf_tricks.layers.augmentation._mixing import MixingAugmentation


@keras.saving.register_keras_serializable(package="tf_tricks")
class CutMix(MixingAugmentation):
    """Paste a rectangle of another image of the batch into each image, and mix the labels in proportion to its area.

    The share that an image keeps comes from Beta(alpha, alpha), one for each image; the rectangle has the shape of the
    image and lies anywhere within it. The weight of the labels is the share of pixels that were kept.

    Args:
        factor: float in [0, 1] or a pair of them: `alpha` is drawn for each image from (0, factor), or from the pair.
        seed: None or int.
        data_format: None (Keras's setting), "channels_last" or "channels_first".
        num_classes: None or int >= 2. None: the labels are one-hot, or numbers that may be averaged; an int: integer
            labels `(batch,)` or `(batch, 1)` come out one-hot, `(batch, num_classes)`, also with `training=False`.
        dtype: None, a dtype or a policy, that of the images that come out.
    Shape:
        `(batch, height, width, channels)`, or without `batch` (nothing to mix with: the same image), or a dict with
        `images` and `labels`, `sample_weights`, `segmentation_masks` -> the same.
    Raises:
        TypeError, ValueError: an argument is out of range; integer labels without `num_classes`, bounding boxes or
            keypoints are passed.
    Reference:
        Yun et al. (2019), CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features,
        section 3.1, arXiv:1905.04899. The rectangle lies within the image as in Keras, where the paper clips it.
    Example:
        >>> data = {"images": np.ones((4, 8, 8, 3)), "labels": np.array([0, 1, 2, 1])}
        >>> mixed = CutMix(num_classes=3, seed=1)(data, training=True)
        >>> np.round(keras.ops.convert_to_numpy(mixed["labels"]).sum(axis=1), 3).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(self, factor=1.0, seed=None, data_format=None, num_classes=None, **kwargs):
        super().__init__(data_format=data_format, seed=seed, num_classes=num_classes, **kwargs)
        self.factor = check_factor("factor", factor, minimum=0.0)

    def draw(self, xp, draws, size):
        height, width = (xp.cast(each, "float32") for each in size)
        alpha = draws.uniform(*self.factor) + 1e-6
        share = xp.sqrt(1.0 - draws.symmetric_beta(alpha))
        top, bottom = self._side(xp, draws, share, height)
        left, right = self._side(xp, draws, share, width)
        weight = 1.0 - (bottom - top) * (right - left) / (height * width)
        return {"order": draws.permutation(), "weight": weight, "box": xp.stack([top, left, bottom, right], axis=-1)}

    def _side(self, xp, draws, share, length):
        """Where the rectangle begins and ends, in whole pixels."""
        extent = xp.round(share * length)
        begin = xp.floor(draws.uniform() * (length - extent + 1.0))
        return begin, begin + extent

    def without(self, xp, parameters, kept):
        weight, box = parameters["weight"], parameters["box"]
        return {
            **parameters,
            "weight": xp.where(kept, weight, xp.ones_like(weight)),
            "box": xp.where(kept[:, None], box, xp.zeros_like(box)),
        }

    def mix_images(self, xp, images, partners, parameters):
        return self._paste(xp, images, partners, parameters)

    def mix_masks(self, xp, masks, partners, parameters, size):
        return self._paste(xp, masks, partners, parameters)

    def _paste(self, xp, images, partners, parameters):
        if _loops.has_one_image():
            top, left, bottom, right = map(int, parameters["box"][0])
            pasted = images.clone()
            pasted[:, top:bottom, left:right] = partners[:, top:bottom, left:right]
            return pasted
        height, width = xp.shape(images)[1:3]
        rank = len(images.shape)
        top, left, bottom, right = (xp.reshape(parameters["box"][:, i], [-1] + [1] * (rank - 1)) for i in range(4))
        row = xp.reshape(xp.cast(xp.arange(height, dtype="int32"), "float32"), [1, -1] + [1] * (rank - 2))
        column = xp.reshape(xp.cast(xp.arange(width, dtype="int32"), "float32"), [1, 1, -1] + [1] * (rank - 3))
        rows, columns = (xp.logical_and(i >= a, i < b) for i, a, b in ((row, top, bottom), (column, left, right)))
        if rank == 4:
            columns = _kernels.in_all_channels(xp, columns, images.shape[-1])
        return xp.where(xp.logical_and(rows, columns), partners, images)

    def mix_boxes(self, xp, boxes, partners, parameters):
        raise ValueError("CutMix does not mix bounding boxes. Received: a dict with 'bounding_boxes'")

    def get_config(self):
        return {**super().get_config(), "factor": list(self.factor)}
