"""What a layer makes of what belongs to the images: masks of sizes not known beforehand, labels without a sign."""

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation import (
    Augmentation,
    CutMix,
    MixUp,
    RandAugment,
    RandomBrightness,
    RandomCrop,
    RandomFlip,
    RandomHue,
    RandomRotation,
    RandomTranslation,
)
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


def test_numbers_and_lists_of_python_are_taken():
    boxes = {"boxes": [[1, 1, 4, 4]], "labels": [2]}
    data = {"images": np.zeros((8, 6, 3), "float32"), "labels": 1, "sample_weights": 0.5, "bounding_boxes": boxes}
    got = RandomFlip("horizontal", bounding_box_format="xyxy")(data, training=True)
    assert int(got["labels"]) == 1 and float(got["sample_weights"]) == 0.5
    assert "int" in keras.backend.standardize_dtype(got["labels"].dtype)
    assert keras.ops.convert_to_numpy(got["bounding_boxes"]["labels"]).tolist() == [2]
    assert tuple(got["bounding_boxes"]["boxes"].shape) == (1, 4)


@pytest.mark.parametrize("training", [True, False])
def test_other_keys_are_handed_on(training):
    names, more = np.array(["a", "b"]), {"any": object()}
    data = {"image_id": names, "images": np.zeros((2, 8, 6, 3), "float32"), "labels": np.arange(2), "more": more}
    for layer in (RandomFlip(), Augmentation([RandomBrightness(0.1), RandomCrop(4, 4)])):
        got = layer(data, training=training)
        assert set(got) == set(data)
        assert got["image_id"] is names and got["more"] is more
    shapes = {"images": (8, 6, 3), "image_id": ()}
    symbols = {key: keras.Input(shape, name=key) for key, shape in shapes.items()}
    model = keras.Model(symbols, RandomFlip()(symbols))
    given = {"images": data["images"], "image_id": np.array([7, 9])}
    assert keras.ops.convert_to_numpy(model(given, training=training)["image_id"]).tolist() == [7, 9]


def test_other_keys_are_handed_on_in_tf_data():
    tf = pytest.importorskip("tensorflow")
    data = {"images": np.zeros((2, 8, 6, 3), "float32"), "file": np.array(["a", "b"])}
    got = tf.data.Dataset.from_tensor_slices(data).batch(2).map(RandomFlip())
    assert next(iter(got))["file"].numpy().tolist() == [b"a", b"b"]


@pytest.mark.parametrize("make", [MixUp, CutMix, lambda: Augmentation([RandomFlip(), Augmentation([MixUp()])])])
def test_what_would_have_to_be_mixed_is_refused_under_another_key(make):
    with pytest.raises(ValueError, match="images are mixed.*Received: 'depth'; take it out"):
        make()({"images": np.zeros((2, 8, 6, 3)), "depth": np.zeros((2, 8, 6))}, training=True)


def test_a_name_that_is_nearly_a_key_is_refused():
    with pytest.raises(ValueError, match="RandomFlip: the keys are.*Received: 'mask', for 'segmentation_masks'"):
        RandomFlip()({"images": np.zeros((2, 8, 6, 3)), "mask": np.zeros((2, 8, 6))}, training=True)


@pytest.mark.parametrize(
    "make", [lambda: RandomRotation(0.1), lambda: Augmentation([RandomBrightness(0.1), RandomFlip()])]
)
def test_masks_of_another_size_are_refused_also_at_rest(make):
    data = {"images": np.zeros((2, 8, 6, 3)), "segmentation_masks": np.zeros((2, 4, 3))}
    for training in (True, False):
        with pytest.raises(ValueError, match=r"of the size of the images, \(8, 6\). Received: shape \(2, 4, 3\)"):
            make()(data, training=training)
    # Where nothing moves it may be smaller, such as that of a network's last layer.
    assert RandomBrightness(0.1)(data, training=True)["segmentation_masks"].shape == (2, 4, 3)


def test_training_is_a_bool_of_python():
    layer, x = RandomFlip(), np.zeros((2, 8, 6, 3), "float32")
    for training in (keras.ops.convert_to_tensor(True), keras.Input((), dtype="bool")):
        with pytest.raises(TypeError, match="RandomFlip: `training` must be True or False of Python"):
            layer(x, training=training)
    assert layer(x, training=np.bool_(True)).shape == x.shape


def test_colours_of_an_unknown_number_of_channels_are_refused_with_what_to_do():
    tf = pytest.importorskip("tensorflow")
    spec = tf.TensorSpec((None, None, None), "uint8")
    found = tf.data.Dataset.from_generator(lambda: iter([np.zeros((4, 4, 3), "uint8")]), output_signature=spec)
    for layer in (RandomHue(0.1), RandAugment()):
        with pytest.raises(ValueError, match="unknown number of channels; call the tensor's `set_shape`"):
            found.map(layer)
