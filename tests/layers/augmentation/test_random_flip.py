"""RandomFlip: exact, four outcomes of four, equal shares."""

import itertools

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation import RandomFlip


def numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.mark.parametrize("mode", ["horizontal", "vertical", "horizontal_and_vertical"])
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_each_outcome_of_a_mode_comes_up_as_often(mode, dtype):
    one = np.random.default_rng(0).integers(0, 256, (6, 5, 3)).astype(dtype)
    got = numpy(RandomFlip(mode, seed=2, dtype=dtype)(np.stack([one] * 400), training=True))
    assert got.dtype == dtype
    flips = itertools.product(*([False, True] if axis in mode else [False] for axis in ("vertical", "horizontal")))
    counts = []
    for vertical, horizontal in flips:
        expected = one[:: -1 if vertical else 1, :: -1 if horizontal else 1]
        counts.append((got == expected).all(axis=(1, 2, 3)).sum())
    # Keras flips both axes or none in the mode of both: two outcomes of four.
    assert sum(counts) == 400 and min(counts) > 400 / len(counts) * 0.7


def test_boxes_of_a_flipped_image():
    images = np.zeros((40, 8, 10, 1), "float32")
    images[:, :, 0] = 1.0
    boxes = np.array([[[0.1, 0.25, 0.3, 0.5]]] * 40, "float32")
    layer = RandomFlip("horizontal", seed=1, bounding_box_format="rel_xyxy")
    got = layer({"images": images, "bounding_boxes": {"boxes": boxes, "labels": np.zeros((40, 1))}}, training=True)
    flipped = numpy(got["images"])[:, 0, -1, 0] == 1
    expected = np.where(flipped[:, None], [0.7, 0.25, 0.9, 0.5], [0.1, 0.25, 0.3, 0.5])
    np.testing.assert_allclose(numpy(got["bounding_boxes"]["boxes"])[:, 0], expected, atol=1e-5)
    assert 10 < flipped.sum() < 30
