"""Batches of images of different sizes, and of different numbers of boxes, as `Dataset.ragged_batch` makes them."""

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation import RandomBrightness, RandomCrop, RandomFlip, RandomResizedCrop

tf = pytest.importorskip("tensorflow")


def example(i):
    """An image of a size of its own, bright where its boxes, one to three of them, are."""
    image = np.zeros((10 + i, 14 - i, 3), "uint8")
    image[2:6, 3:7] = 200
    boxes = np.array([[3, 2, 7, 6]] * (1 + i % 3), "float32")
    bounding_boxes = {"boxes": boxes, "labels": np.full((len(boxes),), i, "int32")}
    return {
        "images": image,
        "labels": np.int32(i),
        "segmentation_masks": image[..., 0],
        "bounding_boxes": bounding_boxes,
    }


def data(batch=3):
    boxes = {"boxes": tf.TensorSpec((None, 4), "float32"), "labels": tf.TensorSpec((None,), "int32")}
    signature = {
        "images": tf.TensorSpec((None, None, 3), "uint8"),
        "labels": tf.TensorSpec((), "int32"),
        "segmentation_masks": tf.TensorSpec((None, None), "uint8"),
        "bounding_boxes": boxes,
    }
    found = tf.data.Dataset.from_generator(lambda: map(example, range(6)), output_signature=signature)
    return found.ragged_batch(batch)


@pytest.mark.parametrize("kind", [RandomCrop, RandomResizedCrop])
def test_crops_make_one_batch_of_images_of_different_sizes(kind):
    layer = kind(6, 7, bounding_box_format="xyxy", seed=1, dtype="uint8")
    cropped = data().map(layer)
    assert cropped.element_spec["images"] == tf.TensorSpec((None, 6, 7, 3), "uint8")
    assert cropped.element_spec["segmentation_masks"] == tf.TensorSpec((None, 6, 7), "uint8")
    batches = [tf.nest.map_structure(lambda value: value.numpy(), batch) for batch in cropped]
    assert [batch["labels"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5]]
    seen = 0
    for batch in batches:
        assert batch["bounding_boxes"]["boxes"].shape == (3, 3, 4)
        for i, number in enumerate(batch["labels"]):
            image, mask = batch["images"][i, ..., 0], batch["segmentation_masks"][i]
            assert np.mean((image > 100) != (mask > 100)) < 0.1
            boxes, labels = (batch["bounding_boxes"][key][i] for key in ("boxes", "labels"))
            assert (labels[1 + number % 3 :] == -1).all() and (boxes[labels == -1] == 0).all()
            if labels[0] == number and mask.any():
                ys, xs = np.nonzero(mask)
                np.testing.assert_allclose(boxes[0], [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], atol=1.3)
                seen += 1
    assert seen >= 2


def test_images_alone_and_the_middle_when_not_training():
    images = data(6).map(lambda each: each["images"])
    layer = RandomCrop(6, 7, seed=1)
    (got,) = images.map(lambda each: layer(each, training=False))
    for i, image in enumerate(got.numpy()):
        top, left = (4 + i) // 2, (7 - i) // 2
        np.testing.assert_array_equal(image, example(i)["images"][top : top + 6, left : left + 7])


def test_ragged_boxes_are_padded_for_every_layer():
    def with_images(batch):
        return {"images": tf.zeros((3, 8, 8, 3)), "bounding_boxes": batch["bounding_boxes"]}

    for layer in (RandomFlip(bounding_box_format="xyxy", seed=1), RandomBrightness(0.2, bounding_box_format="xyxy")):
        batch = next(iter(data().map(with_images).map(layer)))
        np.testing.assert_array_equal(batch["bounding_boxes"]["labels"], [[0, -1, -1], [1, 1, -1], [2, 2, 2]])
        boxes = batch["bounding_boxes"]["boxes"].numpy()
        assert boxes.shape == (3, 3, 4) and (boxes[0, 1:] == 0).all() and (boxes[2] > 0).all()


def test_ragged_labels_of_boxes_in_bytes_are_padded_too():
    def in_bytes(batch):
        boxes = batch["bounding_boxes"]
        return {**batch, "bounding_boxes": {**boxes, "labels": tf.cast(boxes["labels"], "uint8")}}

    batch = next(iter(data().map(in_bytes).map(RandomCrop(6, 7, bounding_box_format="xyxy", seed=1))))
    labels = batch["bounding_boxes"]["labels"]
    assert labels.dtype == "int32"
    np.testing.assert_array_equal(labels[:, 1:] >= 0, [[False, False], [True, False], [True, True]])


@pytest.mark.parametrize("layer", [RandomCrop(4, 4), RandomFlip()], ids=["RandomCrop", "RandomFlip"])
def test_ragged_keypoints_are_refused(layer):
    def with_keypoints(batch):
        images = batch["images"] if isinstance(layer, RandomCrop) else tf.zeros((3, 9, 9, 3))
        return {"images": images, "keypoints": batch["bounding_boxes"]["boxes"]}

    with pytest.raises(ValueError, match="`keypoints` must be as many for each image. Received: a tf.RaggedTensor of"):
        data().map(with_keypoints).map(layer)


def test_other_layers_refuse_images_of_different_sizes():
    with pytest.raises(ValueError, match="RandomFlip: images must all have one size. Received: a tf.RaggedTensor"):
        data().map(RandomFlip())
    if keras.backend.backend() == "tensorflow":
        with pytest.raises(ValueError, match="bring them to one size before"):
            RandomFlip()(next(iter(data()))["images"], training=True)
