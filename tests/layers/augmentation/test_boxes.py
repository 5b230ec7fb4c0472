"""Bounding boxes against Keras's converters, and against masks that go through the same warp."""

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation._boxes import FORMATS, from_corners, to_corners, warp_boxes
from tf_tricks.layers.augmentation._compiled import Compiled
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._resample import resample

pytestmark = pytest.mark.usefixtures("uncompiled")


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def random_boxes(rng, batch, count, size):
    """Boxes "xyxy" within an image of `size` (height, width)."""
    limit = np.array([size[1], size[0]])
    points = np.sort(rng.uniform(0, 1, (batch, count, 2, 2)), axis=2) * limit
    return points.reshape(batch, count, 4).astype("float32")


@pytest.mark.parametrize("box_format", FORMATS)
def test_formats_are_those_of_keras(box_format):
    boxes = random_boxes(np.random.default_rng(0), 3, 4, (20, 30))
    given = keras.utils.bounding_boxes.convert_format(boxes, "xyxy", box_format, height=20, width=30)
    corners = to_corners(OPS, given, box_format, (20.0, 30.0))
    np.testing.assert_allclose(np.stack([numpy(v) for v in corners], -1), boxes, atol=1e-4)
    back = from_corners(OPS, corners, box_format, (20.0, 30.0))
    np.testing.assert_allclose(numpy(back), numpy(given), atol=1e-4)


def random_warps(rng, batch, size):
    """Turned, stretched, sheared, mirrored, moved, some seen at an angle; the inverse of what maps to the output."""
    height, width = size
    centre, back = np.eye(3), np.eye(3)
    centre[:2, 2], back[:2, 2] = ((width - 1) / 2, (height - 1) / 2), (-(width - 1) / 2, -(height - 1) / 2)
    angle = rng.uniform(0, 2 * np.pi, batch)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1).reshape(-1, 2, 2)
    linear = turn @ (np.eye(2) + rng.uniform(-0.3, 0.3, (batch, 2, 2))) * rng.choice([-1, 1], (batch, 1, 2))
    matrix = np.tile(np.eye(3), (batch, 1, 1))
    matrix[:, :2, :2] = linear
    matrix[:, :2, 2] = rng.uniform(-0.5, 0.5, (batch, 2)) * (width, height)
    matrix[:, 2, :2] = rng.uniform(-0.0006, 0.0006, (batch, 2)) * rng.choice([0, 1], (batch, 1))
    return (centre @ matrix @ back).astype("float32")


def extents(masks):
    """Boxes "xyxy" around what is set in masks `(batch, height, width)`; NaN where nothing is."""
    found = []
    for axis in (1, 2):
        line = masks.any(axis=axis)
        first, last = line.argmax(axis=1), line.shape[1] - line[:, ::-1].argmax(axis=1)
        found.append(np.where(line.any(axis=1), (first, last), np.nan))
    return np.stack([found[0][0], found[1][0], found[0][1], found[1][1]], axis=-1)


def overlap(a, b):
    """Intersection over union of boxes `(n, 4)`."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    inside = np.prod(np.maximum(sides, 0), axis=1)
    return inside / (np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1) - inside)


def test_a_thousand_boxes_enclose_their_warped_masks():
    # The masks come out four times as large as the images, so that their edges are known to a quarter of a pixel.
    rng, cases, side, fine = np.random.default_rng(3), 1500, 64, 4
    warps = random_warps(rng, cases, (side, side))
    sides = rng.integers(34, side - 4, (cases, 1, 2))
    first = rng.integers(0, side - sides + 1)
    boxes = np.concatenate([first, first + sides], axis=-1).astype("float32")
    rows, columns = np.arange(side)[None, :, None] + 0.5, np.arange(side)[None, None] + 0.5
    left, top, right, bottom = (boxes[:, 0, k][:, None, None] for k in range(4))
    masks = (columns > left) & (columns < right) & (rows > top) & (rows < bottom)
    # From pixel centres of the fine output to those of the coarse one.
    shrink = np.array([[1 / fine, 0, 0.5 / fine - 0.5], [0, 1 / fine, 0.5 / fine - 0.5], [0, 0, 1]], "float32")

    labels = np.zeros((cases, 1), "int32")
    given = {"boxes": keras.ops.array(boxes), "labels": keras.ops.array(labels)}
    sizes = ((side, side), (side, side))
    warp = Compiled(lambda xp, warps, given: warp_boxes(xp, given, warps, "xyxy", *sizes, 0.0), has_gradient=False)
    got = warp(OPS, keras.ops.array(warps), given)
    boxes, labels = numpy(got["boxes"])[:, 0], numpy(got["labels"])[:, 0]

    options = {"interpolation": "nearest", "fill_mode": "constant", "fill_value": 0.0, "projective": True}
    draw = Compiled(lambda xp, masks, warps: resample(xp, masks, warps, (side * fine, side * fine), **options))
    masks, warps = masks[..., None].astype("uint8"), warps @ shrink
    parts = [tuple(keras.ops.array(each[i : i + 100]) for each in (masks, warps)) for i in range(0, cases, 100)]
    seen = np.concatenate([extents(numpy(draw(OPS, *part))[..., 0]) for part in parts])
    seen = seen / fine

    # Whatever can be seen has a box, to within half a pixel on each side; whatever cannot is marked.
    present = ~np.isnan(seen[:, 0])
    assert np.abs(seen[present] - boxes[present]).max() < 0.8
    assert (labels[present] == 0).all() and (boxes[labels == -1] == 0).all()
    # Of a narrow strip that is left at the edge, a quarter of a pixel is more than two percent.
    wide = np.nan_to_num(np.minimum(seen[:, 2] - seen[:, 0], seen[:, 3] - seen[:, 1])) >= 30
    ratios = overlap(seen[wide], boxes[wide])
    assert wide.sum() >= 1000 and ratios.min() >= 0.98


def test_a_box_that_leaves_is_clipped_and_below_the_visible_share_marked_as_keras_pads():
    shift = np.tile(np.eye(3, dtype="float32"), (2, 1, 1))
    shift[:, 0, 2] = -6.0  # to the right
    boxes = np.array([[[0, 0, 8, 4], [6, 2, 10, 6], [0, 0, 0, 0]]] * 2, "float32")
    labels = np.array([[3, 5, -1], [0, 1, -1]], "int32")
    given = {"boxes": keras.ops.array(boxes), "labels": keras.ops.array(labels), "scores": 7}
    for share, third in ((0.0, [[6, 0, 10, 4], [0, 0, 0, 0], [0, 0, 0, 0]]), (0.6, np.zeros((3, 4)))):
        got = warp_boxes(OPS, given, keras.ops.array(shift), "xyxy", (8, 10), (8, 10), share)
        np.testing.assert_allclose(numpy(got["boxes"]), [third] * 2, atol=1e-5)
        kept = share == 0.0
        np.testing.assert_array_equal(numpy(got["labels"]), [[3 if kept else -1, -1, -1], [0 if kept else -1, -1, -1]])
        assert got["scores"] == 7
    one_hot = {**given, "labels": keras.ops.ones((2, 3, 4))}
    got = warp_boxes(OPS, one_hot, keras.ops.array(shift), "xyxy", (8, 10), (8, 10), 0.0)
    np.testing.assert_array_equal(numpy(got["labels"])[:, :, 0], [[1, -1, -1]] * 2)


@pytest.mark.parametrize("batch, count", [(0, 3), (2, 0)])
def test_no_images_and_no_boxes_are_as_good(batch, count):
    given = {"boxes": keras.ops.zeros((batch, count, 4)), "labels": keras.ops.zeros((batch, count), "int32")}
    got = warp_boxes(OPS, given, keras.ops.zeros((batch, 3, 3)), "xywh", (8, 10), (8, 10), 0.0)
    assert tuple(got["boxes"].shape) == (batch, count, 4) and tuple(got["labels"].shape) == (batch, count)
