"""What one warp does to the images and to what belongs to them, for one layer or for several fused into one."""

from tf_tricks.layers.augmentation import _geometry, _kernels
from tf_tricks.layers.augmentation._boxes import warp_boxes
from tf_tricks.layers.augmentation._compiled import Compiled
from tf_tricks.layers.augmentation._inputs import are_known, check_masks
from tf_tricks.layers.augmentation._resample import resample


class Warp:
    """Layers that move pixels, as one: their matrices are multiplied, the first layer's first.

    Args:
        layers: list of `GeometricAugmentation`.
    """

    def __init__(self, layers):
        self.layers = layers
        self._masks = Compiled(self._warp_masks)
        self._points = Compiled(self._warp_points)

    @property
    def leader(self):
        """The layer that says how to resample: the first that looks outside of the image, or else is not exact."""
        found = [layer for layer in self.layers if layer.looks_outside] or [
            layer for layer in self.layers if not layer.exact
        ]
        return (found or self.layers)[0]

    def output_size(self, size):
        for layer in self.layers:
            size = layer.output_size(size)
        return size

    def is_exact(self, size):
        """Does each output pixel show one input pixel, or none?"""
        for layer in self.layers:
            if not layer.is_exact(size):
                return False
            size = layer.output_size(size)
        return True

    def images(self, xp, images, matrix):
        """Images `(batch, height, width, channels)` seen through `matrix`."""
        size, leader = tuple(xp.shape(images)[1:3]), self.leader
        interpolation = "nearest" if self.is_exact(size) else leader.interpolation
        if interpolation == "nearest" and leader.fill_mode == "constant" and leader.fill_value % 1 != 0:
            images = xp.cast(images, "float32")  # an integer would not hold what is filled in
        return self._resample(xp, images, matrix, interpolation, leader.fill_value)

    def others(self, xp, others, matrix, size):
        """What belongs to images of `size` (height, width): a dict with keys of `_inputs.KEYS`.

        Raises:
            ValueError: there are boxes and no format, or keypoints, boxes or masks of a shape that they cannot have.
        """
        size, changed = tuple(size), dict(others)
        if "segmentation_masks" in others:
            changed["segmentation_masks"] = self._warp_all_masks(xp, others["segmentation_masks"], matrix, size)
        if points := {key: others[key] for key in ("bounding_boxes", "keypoints") if key in others}:
            # JAX would compile each of the many small operations. Elsewhere they run as they are: the number of boxes
            # may be another one in each batch.
            warp = self._points if _kernels.is_on(xp, "jax") else self._warp_points
            changed.update(warp(xp, matrix, {"points": points, "size": size}))
        return changed

    def _warp_points(self, xp, matrix, parameters):
        changed, size = dict(parameters["points"]), parameters["size"]
        if "bounding_boxes" in changed:
            boxes, box_format = self._check_boxes(changed["bounding_boxes"]), self._box_format()
            visibility = max(layer.min_visibility for layer in self.layers)
            sizes = (size, self.output_size(size))
            changed["bounding_boxes"] = warp_boxes(xp, boxes, matrix, box_format, *sizes, visibility)
        if "keypoints" in changed:
            changed["keypoints"] = self._warp_keypoints(xp, changed["keypoints"], matrix)
        return changed

    # --- masks ---------------------------------------------------------------------------------------------------

    def _warp_all_masks(self, xp, masks, matrix, size):
        shape = tuple(masks.shape)
        check_masks(self._name, shape, size)
        if len(shape) == 3:
            return self._masks(xp, masks[..., None], matrix)[..., 0]
        if are_known(*shape[1:], *size) and shape[1:3] != size:  # channels first
            return xp.transpose(self._masks(xp, xp.transpose(masks, (0, 2, 3, 1)), matrix), (0, 3, 1, 2))
        return self._masks(xp, masks, matrix)

    def _warp_masks(self, xp, masks, matrix):
        # With the background: what images are filled with is a brightness, and no class.
        return self._resample(xp, masks, matrix, "nearest", 0.0)

    def _resample(self, xp, images, matrix, interpolation, fill_value):
        leader, size = self.leader, self.output_size(tuple(xp.shape(images)[1:3]))
        projective = any(layer.projective for layer in self.layers)
        options = {"fill_mode": leader.fill_mode, "fill_value": fill_value, "projective": projective}
        return resample(xp, images, matrix, size, interpolation=interpolation, **options)

    # --- boxes ---------------------------------------------------------------------------------------------------

    def _check_boxes(self, boxes):
        if not isinstance(boxes, dict) or "boxes" not in boxes:
            received = f"the keys {sorted(map(str, boxes))}" if isinstance(boxes, dict) else type(boxes).__name__
            raise ValueError(
                f"{self._name}: `bounding_boxes` must be a dict of 'boxes' and 'labels'. Received: {received}"
            )
        shape = tuple(getattr(boxes["boxes"], "shape", ()))
        if len(shape) != 3 or shape[-1] != 4:
            raise ValueError(f"{self._name}: boxes must have shape (batch, n, 4). Received: shape {shape}")
        return boxes

    def _box_format(self):
        formats = {layer.bounding_box_format for layer in self.layers} - {None}
        if len(formats) != 1:
            raise ValueError(
                f"{self._name}: `bounding_boxes` came in, so `bounding_box_format` must be given, the same for all "
                f"layers, such as bounding_box_format='xyxy'. Received: {sorted(formats) or None}"
            )
        return formats.pop()

    # --- keypoints -----------------------------------------------------------------------------------------------

    def _warp_keypoints(self, xp, keypoints, matrix):
        keypoints = xp.convert_to_tensor(keypoints)
        if len(keypoints.shape) != 3 or keypoints.shape[-1] < 2:
            raise ValueError(
                f"{self._name}: `keypoints` must have shape (batch, n, 2), or more than 2 of which the first are x "
                f"and y. Received: shape {tuple(keypoints.shape)}"
            )
        keypoints = xp.cast(keypoints, "float32")
        moved = _geometry.transform(xp, _geometry.inverse(xp, matrix), keypoints[..., 0], keypoints[..., 1])
        moved = xp.concatenate([xp.stack(moved, axis=-1), keypoints[..., 2:]], axis=-1)
        pairs = tuple(dict.fromkeys(pair for layer in self.layers for pair in layer.keypoint_pairs))
        if not pairs:
            return moved
        count = keypoints.shape[1]
        if count is not None and max(max(pair) for pair in pairs) >= count:
            raise ValueError(
                f"{self._name}: `keypoint_pairs` names a keypoint that is not there: the indices are 0 to {count - 1}. "
                f"Received: keypoint_pairs={pairs}"
            )
        order = xp.arange(xp.shape(keypoints)[1], dtype="int32")
        for one, other in pairs:
            swapped = xp.where(xp.equal(order, other), one, order)
            order = xp.where(xp.equal(order, one), other, swapped)
        # Whatever mirrored the image, alone or within a chain, made a left hand a right one; a half turn did not.
        mirrored = _geometry.mirrors(xp, matrix)[:, None, None]
        return xp.where(mirrored, xp.take(moved, order, axis=1), moved)

    @property
    def _name(self):
        return " + ".join(type(layer).__name__ for layer in self.layers)
