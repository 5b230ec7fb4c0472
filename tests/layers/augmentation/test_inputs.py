"""What a layer makes of what belongs to the images: masks of sizes not known beforehand, labels without a sign."""

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation import RandomBrightness, RandomCrop, RandomTranslation
from tf_tricks.layers.augmentation._inputs import are_masks_first


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((2, 1, 8, 6), (8, 6), True),
        ((2, 8, 6, 1), (8, 6), False),
        ((2, 6, 6, 6), (6, 6), True),  # both: as the images are
        ((2, 5, 5, 5), (8, 6), True),  # neither
        ((None, None, None, 1), (8, 6), False),
        ((None, 1, None, None), (8, 6), True),
        ((None, None, None, 1), (None, None), False),
        ((None, 2, None, None), (None, None), True),
        ((None, 8, None, 1), (8, 6), False),  # 1 is no width
        ((None, 1, None, 6), (8, 6), True),
        ((None, None, None, None), (8, 6), True),
    ],
)
def test_where_masks_beside_images_channels_first_have_their_channels(shape, size, expected):
    assert are_masks_first("channels_first", shape, (2, 3, *size)) is expected
    assert not are_masks_first("channels_last", shape, (2, *size, 3))
    assert not are_masks_first("channels_first", shape[:3], (2, 3, *size))


def test_masks_of_unknown_size_are_cut_where_the_images_are():
    tf = pytest.importorskip("tensorflow")
    data = {"images": np.zeros((4, 3, 12, 12), "float32"), "segmentation_masks": np.zeros((4, 12, 12, 1), "int32")}
    signature = {
        "images": tf.TensorSpec((3, 12, 12), "float32"),
        "segmentation_masks": tf.TensorSpec((None, None, 1), "int32"),
    }
    rows = [{key: value[i] for key, value in data.items()} for i in range(4)]
    found = tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)
    got = next(iter(found.batch(4).map(RandomCrop(10, 9, data_format="channels_first"))))
    assert got["images"].shape == (4, 3, 10, 9)
    assert got["segmentation_masks"].shape == (4, 10, 9, 1)


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
@pytest.mark.parametrize("training", [True, False])
def test_labels_of_boxes_can_be_minus_one(dtype, training):
    expected = "int32" if dtype == "uint8" else dtype
    boxes = {"boxes": np.array([[[1, 1, 4, 4], [0, 0, 0, 0]]], "float32"), "labels": np.array([[7, 9]], dtype)}
    data = {"images": np.zeros((1, 8, 8, 3), "float32"), "bounding_boxes": boxes, "labels": np.array([3], dtype)}
    for layer in (
        RandomTranslation(0.0, (0.1, 0.1), bounding_box_format="xyxy"),
        RandomBrightness(0.1, bounding_box_format="xyxy"),
    ):
        labels = layer(data, training=training)["bounding_boxes"]["labels"]
        assert keras.backend.standardize_dtype(labels.dtype) == expected
        moved = training and isinstance(layer, RandomTranslation)
        assert keras.ops.convert_to_numpy(labels).tolist() == [[7, -1 if moved else 9]]
    symbols = {
        "images": keras.Input((8, 8, 3)),
        "bounding_boxes": {"boxes": keras.Input((2, 4)), "labels": keras.Input((2,), dtype=dtype)},
        "labels": keras.Input((), dtype=dtype),
    }
    outputs = layer(symbols)
    assert outputs["bounding_boxes"]["labels"].dtype == expected
    assert outputs["labels"].dtype == dtype
