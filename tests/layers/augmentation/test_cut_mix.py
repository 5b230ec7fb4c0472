"""CutMix: the labels follow the pixels that were pasted, the rectangles their distribution."""

import keras
import numpy as np
import pytest
from scipy import stats

from tf_tricks.layers.augmentation import CutMix
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws


def numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_labels_and_masks_are_mixed_as_the_pixels_are(data_format):
    x = np.broadcast_to(np.arange(8, dtype="uint8")[:, None, None, None], (8, 10, 12, 3))
    given = x if data_format == "channels_last" else x.transpose(0, 3, 1, 2)
    data = {"images": given, "labels": np.eye(8, dtype="float32"), "segmentation_masks": x[..., 0]}
    result = {name: numpy(v) for name, v in CutMix(seed=3, data_format=data_format)(data, training=True).items()}
    images = result["images"] if data_format == "channels_last" else result["images"].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(images[..., 0], result["segmentation_masks"])
    shares = np.stack([(images[..., 0] == k).mean((1, 2)) for k in range(8)], axis=1)
    np.testing.assert_allclose(result["labels"], shares, atol=1e-6)
    assert ((shares > 0).sum(axis=1) == 2).any()
    for i in range(8):  # what was pasted is a rectangle
        rows, columns = np.nonzero(images[i, ..., 0] != i)
        if len(rows):
            assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_shares_have_a_beta_distribution_and_rectangles_lie_anywhere():
    draws = Draws(OPS, keras.ops.convert_to_tensor(np.array([1, 2], "int32")), 10000)
    drawn = CutMix(factor=(1.0, 1.0)).draw(OPS, draws, (2000, 3000))
    assert stats.kstest(numpy(drawn["weight"]), "uniform").statistic < 0.02
    top, left, bottom, right = numpy(drawn["box"]).T
    place = top / np.maximum(2000 - (bottom - top), 1)
    assert stats.kstest(place, "uniform").statistic < 0.02
    assert min(top.min(), left.min()) >= 0
    assert bottom.max() <= 2000
    assert right.max() <= 3000


def test_integer_labels_become_one_hot_in_training_and_otherwise():
    data = {"images": np.zeros((4, 4, 4, 1)), "labels": np.array([[0], [1], [2], [1]])}
    layer = CutMix(num_classes=3, seed=1)
    np.testing.assert_allclose(numpy(layer(data, training=True)["labels"]).sum(axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(numpy(layer(data, training=False)["labels"]), np.eye(3)[[0, 1, 2, 1]])


def test_boxes_are_refused_and_arguments_checked():
    boxes = {"boxes": np.zeros((2, 1, 4)), "labels": np.zeros((2, 1))}
    with pytest.raises(ValueError, match="CutMix does not mix bounding boxes"):
        CutMix()({"images": np.zeros((2, 4, 4, 3)), "bounding_boxes": boxes}, training=True)
    with pytest.raises(ValueError, match="`factor` must lie in"):
        CutMix(factor=2.0)
