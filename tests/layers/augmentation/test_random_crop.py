"""RandomCrop: exact windows, each image its own, in the middle when not training, resized when too small."""

import keras
import numpy as np
import pytest
import scipy.stats

from tf_tricks.layers.augmentation import RandomCrop
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws

pytestmark = pytest.mark.usefixtures("uncompiled")


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def numbered(batch, height, width):
    """Images of which each pixel says where it is: (image, row, column)."""
    axes = np.meshgrid(np.arange(batch), np.arange(height), np.arange(width), indexing="ij")
    return np.stack(axes, axis=-1).astype("float32")


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_each_image_is_cut_at_a_place_of_its_own(dtype):
    images = numbered(64, 20, 24).astype(dtype)
    got = numpy(RandomCrop(12, 10, seed=1, dtype=dtype)(images, training=True))
    assert got.shape == (64, 12, 10, 3) and got.dtype == dtype
    corners = got[:, 0, 0].astype(int)
    for i, (image, row, column) in enumerate(corners):
        assert image == i
        np.testing.assert_array_equal(got[i], images[i, row : row + 12, column : column + 10])
    assert len({tuple(corner) for corner in corners[:, 1:]}) > 30  # Keras cuts all of them at one


def test_places_are_drawn_evenly():
    layer = RandomCrop(12, 10)
    draws = Draws(OPS, keras.ops.array(np.array([1, 2], "int32")), 10_000)
    matrix = numpy(layer.draw(OPS, draws, (20, 24))["matrix"])
    for offsets, places in ((matrix[:, 1, 2], 9), (matrix[:, 0, 2], 15)):
        counts = np.bincount(offsets.astype(int), minlength=places)
        assert len(counts) == places and scipy.stats.chisquare(counts).pvalue > 0.01


def test_the_middle_when_not_training():
    images = numbered(2, 20, 25)
    got = RandomCrop(12, 10)(images, training=False)
    np.testing.assert_array_equal(numpy(got), images[:, 4:16, 7:17])
    mask = images[..., 1].astype("int32")
    data = {"images": images, "segmentation_masks": mask, "keypoints": np.array([[[7.0, 4.0]]] * 2, "float32")}
    data = RandomCrop(12, 10)(data, training=False)
    np.testing.assert_array_equal(numpy(data["segmentation_masks"]), mask[:, 4:16, 7:17])
    np.testing.assert_allclose(numpy(data["keypoints"]), 0.0, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_size_of_the_image_itself(training):
    images = numbered(2, 8, 6)
    np.testing.assert_array_equal(numpy(RandomCrop(8, 6)(images, training=training)), images)
    # One axis of the same size: Keras then takes the middle of the other.
    rows = numpy(RandomCrop(4, 6)(numbered(40, 8, 6), training=True))[:, 0, 0, 1]
    assert set(rows) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("training", [True, False])
def test_a_smaller_image_is_resized_as_keras_resizes(training):
    images = np.random.default_rng(0).uniform(0, 255, (2, 6, 9, 3)).astype("float32")
    got = numpy(RandomCrop(12, 18)(images, training=training))
    np.testing.assert_allclose(got, numpy(keras.ops.image.resize(images, (12, 18))), atol=0.02)
    # Of another aspect: the largest part of it, from the middle.
    got = numpy(RandomCrop(12, 12)(images, training=training))
    part = keras.ops.image.resize(images[:, :, 1:7], (12, 12))
    np.testing.assert_allclose(got[:, :, 1:-1], numpy(part)[:, :, 1:-1], atol=0.02)
