"""Bounding boxes: Keras's formats, and what remains to be seen of them after a warp.

Pixel coordinates of a box are those of edges: an image of width w reaches from 0 to w. A matrix maps the centres of
pixels, half a pixel away.
"""

import functools

from tf_tricks.layers.augmentation import _geometry

FORMATS = (
    "xyxy", "yxyx", "xywh", "center_xywh", "center_yxhw", "rel_xyxy", "rel_yxyx", "rel_xywh", "rel_center_xywh"
)  # fmt: skip


def to_corners(xp, boxes, box_format, size):
    """`(left, top, right, bottom)`, each `(batch, n)` in pixels, from boxes `(batch, n, 4)` in an image of `size`."""
    relative, centred, letters = _parts(box_format)
    values = {}
    for i, letter in enumerate(letters):
        axis = {"x": 1, "w": 1, "y": 0, "h": 0}[letter]
        # "xyxy" has each letter twice: the first time the start.
        name = letter.upper() if letter in letters[:i] else letter
        values[name] = boxes[..., i] * (size[axis] if relative else 1.0)
    starts, ends = [], []
    for start, end, length in (("x", "X", "w"), ("y", "Y", "h")):
        first = values[start] - 0.5 * values[length] if centred else values[start]
        starts.append(first)
        ends.append(first + values[length] if length in values else values[end])
    return (*starts, *ends)


def from_corners(xp, corners, box_format, size):
    """Boxes `(batch, n, 4)` in a format, from `(left, top, right, bottom)`: the inverse of `to_corners`."""
    relative, centred, letters = _parts(box_format)
    left, top, right, bottom = corners
    values = {"X": right, "Y": bottom, "w": right - left, "h": bottom - top}
    values["x"] = 0.5 * (left + right) if centred else left
    values["y"] = 0.5 * (top + bottom) if centred else top
    columns = []
    for i, letter in enumerate(letters):
        axis = {"x": 1, "w": 1, "y": 0, "h": 0}[letter]
        value = values[letter.upper() if letter in letters[:i] else letter]
        columns.append(value / size[axis] if relative else value)
    return xp.stack(columns, axis=-1)


def _parts(box_format):
    relative = box_format.startswith("rel_")
    rest = box_format.removeprefix("rel_")
    return relative, rest.startswith("center_"), rest.removeprefix("center_")


def warp_boxes(xp, bounding_boxes, matrix, box_format, size, output_size, min_visibility):
    """The smallest upright boxes around what remains to be seen of boxes.

    Args:
        bounding_boxes: dict of "boxes" `(batch, n, 4)` and "labels" `(batch, n)` or `(batch, n, classes)`.
        matrix: float32 `(batch, 3, 3)`, see `_geometry`.
        size, output_size: (height, width) before and after.
        min_visibility: share of the area of the warped box of which more has to be seen. A box below gets the label
            -1 and no extent, as Keras pads.
    """
    boxes = xp.cast(xp.convert_to_tensor(bounding_boxes["boxes"]), "float32")
    size, output_size = (tuple(xp.cast(each, "float32") for each in pair) for pair in (size, output_size))
    left, top, right, bottom = to_corners(xp, boxes, box_format, size)

    # The four corners in turn, in the output.
    x, y = xp.stack([left, right, right, left], axis=-1), xp.stack([top, top, bottom, bottom], axis=-1)
    x, y = (v + 0.5 for v in _geometry.transform(xp, _geometry.inverse(xp, matrix), x - 0.5, y - 0.5))
    full = (_most(xp, x) - _least(xp, x)) * (_most(xp, y) - _least(xp, y))

    # What is seen is the common part of two convex figures, the warped box and the output. Its corners are ends of
    # those parts of the box's edges that lie within the output, or corners of the output within the box.
    height, width = output_size
    starts, ends, seen = _clip_edges(xp, x, y, width, height)
    zero = xp.zeros_like(width)
    frame_x, frame_y = (xp.stack(each)[None] * xp.ones_like(matrix[:, :1, 0]) for each in (
        (zero, width, width, zero), (zero, zero, height, height)
    ))  # fmt: skip
    source_x, source_y = (v[:, None] + 0.5 for v in _geometry.transform(xp, matrix, frame_x - 0.5, frame_y - 0.5))
    within = xp.logical_and(
        xp.logical_and(source_x >= left[..., None], source_x <= right[..., None]),
        xp.logical_and(source_y >= top[..., None], source_y <= bottom[..., None]),
    )
    seen = xp.concatenate([seen, seen, within], axis=-1)
    far, corners = 1e9, []
    for axis, frame, limit in ((0, frame_x, width), (1, frame_y, height)):
        frame = frame[:, None] * xp.ones_like(x)
        points = xp.clip(xp.concatenate([starts[axis], ends[axis], frame], axis=-1), 0.0 * limit, limit)
        corners.append(
            (_least(xp, xp.where(seen, points, far * xp.ones_like(points))),
             _most(xp, xp.where(seen, points, -far * xp.ones_like(points))))
        )  # fmt: skip
    (left, right), (top, bottom) = corners
    area = xp.maximum(right - left, 0.0) * xp.maximum(bottom - top, 0.0)
    visible = xp.logical_and(area > 0.0, area > min_visibility * full)
    corners = [xp.where(visible, each, xp.zeros_like(each)) for each in (left, top, right, bottom)]
    result = {**bounding_boxes, "boxes": from_corners(xp, corners, box_format, output_size)}
    if "labels" in bounding_boxes:
        labels = xp.convert_to_tensor(bounding_boxes["labels"])
        kept = visible if len(labels.shape) == 2 else visible[..., None]
        result["labels"] = xp.where(kept, labels, -xp.ones_like(labels))
    return result


def _least(xp, points):
    """The minimum along the last axis, which is short; also where there is no image or no box at all."""
    return functools.reduce(xp.minimum, [points[..., i] for i in range(points.shape[-1])])


def _most(xp, points):
    return functools.reduce(xp.maximum, [points[..., i] for i in range(points.shape[-1])])


def _clip_edges(xp, x, y, width, height):
    """The part of each edge of polygons `(batch, n, 4)` within an image, after Liang and Barsky (1984).

    Returns `(starts, ends, is there such a part)`; starts and ends as `(x, y)`.
    """
    low, high, steps = xp.zeros_like(x), xp.ones_like(x), []
    for v, limit in ((x, width), (y, height)):
        step = xp.concatenate([v[..., 1:], v[..., :1]], axis=-1) - v
        steps.append(step)
        # Along an edge that does not move the ends of the image lie very far away: both ahead or both behind, or not.
        divisor = xp.where(xp.abs(step) < 1e-6, 1e-6 * xp.ones_like(step), step)
        one, other = -v / divisor, (limit - v) / divisor
        low, high = xp.maximum(low, xp.minimum(one, other)), xp.minimum(high, xp.maximum(one, other))
    starts, ends = ((x + steps[0] * share, y + steps[1] * share) for share in (low, high))
    return starts, ends, low <= high
