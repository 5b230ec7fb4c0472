"""Augmentation: one pass against the chain of single layers, order, probabilities, members, plan and picture."""

import keras
import matplotlib
import numpy as np
import pytest

from tf_tricks.layers.augmentation import (
    Augmentation,
    MixUp,
    RandomBrightness,
    RandomCrop,
    RandomFlip,
    RandomGaussianBlur,
    RandomGrayscale,
    RandomRotation,
    RandomTranslation,
    RandomZoom,
)
from tf_tricks.layers.augmentation._namespaces import OPS


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def smooth(count=4, size=48):
    """Images that interpolation hardly changes: a few waves."""
    y, x = np.mgrid[:size, :size] / size * 2 * np.pi
    waves = [np.sin(x * (1 + i % 2) + i) * np.cos(y + i) for i in range(count)]
    return (127.5 + 110 * np.stack(waves))[..., None].repeat(3, -1).astype("float32")


def key_of(layer):
    return keras.ops.convert_to_tensor(np.array([3, 4], "int32"))


def test_one_pass_equals_the_chain_and_is_sharper():
    members = [RandomFlip("horizontal"), RandomRotation(0.05), RandomTranslation(0.1, 0.1), RandomZoom(0.1)]
    x = keras.ops.convert_to_tensor(smooth())
    fused = Augmentation(members)
    assert len(fused.stages()) == 1
    together = fused.stages()[0].transform(OPS, x, fused._draw_all(OPS, x, key_of(fused))[0])
    one_by_one = x
    for number, member in enumerate(members):
        single = Augmentation([member])
        single.stages()[0].members[:] = [(number, member, 1.0)]
        drawn = single._draw_all(OPS, x, key_of(single))[0]
        one_by_one = single.stages()[0].transform(OPS, one_by_one, drawn)
    together, one_by_one = (numpy(each)[:, 12:-12, 12:-12] for each in (together, one_by_one))
    error = np.mean((together - one_by_one) ** 2)
    assert 10 * np.log10(255**2 / error) >= 40
    energy = [sum(np.sum(np.diff(each, axis=axis) ** 2) for axis in (1, 2)) for each in (together, one_by_one)]
    assert energy[0] >= energy[1]
    assert np.abs(together - numpy(x)[:, 12:-12, 12:-12]).max() > 20  # something happened


def test_the_order_stays():
    x = np.full((2, 2, 2, 1), 200.0, "float32")
    up, down = RandomBrightness((0.5, 0.5)), RandomBrightness((-0.5, -0.5))
    np.testing.assert_allclose(numpy(Augmentation([up, down])(x, training=True)), 127.5)  # clipped at 255 in between
    np.testing.assert_allclose(numpy(Augmentation([down, up])(x, training=True)), 200.0)
    plan = Augmentation([RandomFlip(), RandomBrightness(0.1), RandomRotation(0.1), RandomFlip()]).summary_text()
    assert plan.splitlines() == [
        "pass 1: one resampling: RandomFlip",
        "pass 2: values: RandomBrightness",
        "pass 3: one resampling: RandomRotation, RandomFlip",
    ]


def test_members_that_fill_differently_have_passes_of_their_own():
    layer = Augmentation([RandomRotation(0.1, fill_mode="constant"), RandomZoom(0.1, fill_mode="reflect")])
    assert len(layer.stages()) == 2


def test_what_a_member_draws_does_not_depend_on_the_others():
    x = np.zeros((8, 4, 4, 1), "float32") + 100
    alone = Augmentation([RandomFlip(), RandomBrightness(0.3)], seed=1)
    other = Augmentation([RandomRotation(0.2), RandomBrightness(0.3)], probability=[0.5, 1.0], seed=1)
    np.testing.assert_allclose(numpy(alone(x, training=True)), numpy(other(x, training=True)), rtol=1e-5)


@pytest.mark.parametrize("member", [RandomBrightness((0.4, 0.4)), keras.layers.RandomBrightness((0.4, 0.4), seed=1)])
def test_probability_is_that_of_each_image(member):
    x = np.zeros((2000, 1, 1, 1), "float32")
    got = numpy(Augmentation([member], probability=0.3, seed=1)(x, training=True))[:, 0, 0, 0]
    assert set(np.round(np.unique(got))) == {0.0, 102.0}
    assert abs(np.mean(got > 0) - 0.3) < 0.04


def test_probability_of_geometry_mixing_and_nested_members():
    x = smooth(6, 8)
    never = Augmentation(
        [RandomRotation(0.2), MixUp(1.0), Augmentation([RandomFlip(), RandomBrightness(0.5)])], probability=0.0, seed=1
    )
    data = {"images": x, "labels": np.eye(6, dtype="float32")}
    result = never(data, training=True)
    np.testing.assert_allclose(numpy(result["images"]), x, atol=1e-3)
    np.testing.assert_allclose(numpy(result["labels"]), np.eye(6), atol=1e-6)
    nested = Augmentation([Augmentation([RandomFlip(), RandomBrightness(0.5)])], seed=1)
    assert np.abs(numpy(nested(x, training=True)) - x).max() > 5


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_probability_of_nested_members_that_mix(probability, uncompiled):
    boxes = {"boxes": np.tile(np.float32([0, 0, 2, 2]), (8, 1, 1)), "labels": np.arange(8).reshape(8, 1)}
    x = np.arange(8, dtype="float32").reshape(8, 1, 1, 1) * np.ones((8, 2, 2, 1), "float32")
    data = {"images": x, "labels": np.arange(8) % 5, "bounding_boxes": boxes}
    blur = RandomGaussianBlur((1.0, 1.0), sigma=(1.0, 1.0))
    inner = Augmentation(
        [
            MixUp(1.0, num_classes=5, bounding_box_format="xyxy"),
            RandomBrightness((0.4, 0.4)),
            blur,
            Augmentation([blur]),
        ]
    )
    layer = Augmentation([inner, RandomFlip(bounding_box_format="xyxy")], probability=[probability, 1.0], seed=1)
    result = layer(data, training=True)
    left_out = numpy(result["images"])[:, 0, 0, 0] < 100
    np.testing.assert_allclose(numpy(result["images"])[left_out], x[left_out], atol=1e-4)
    labels, found = numpy(result["labels"]), numpy(result["bounding_boxes"]["labels"])
    np.testing.assert_allclose(labels.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(labels[left_out], np.eye(5)[data["labels"]][left_out])
    np.testing.assert_array_equal(found[left_out, 1], -1)
    if probability == 0.0:
        assert left_out.all()
    else:
        assert 0 < left_out.sum() < 8
        assert (found[~left_out, 1] >= 0).any()


def test_members_of_keras_run_in_their_place_with_the_whole_dict():
    tf = pytest.importorskip("tensorflow")
    flip = keras.layers.RandomFlip("horizontal", bounding_box_format="xyxy", seed=1)
    contrast = keras.layers.RandomContrast(0.0, bounding_box_format="xyxy")
    layer = Augmentation([RandomBrightness((0.1, 0.1)), keras.layers.Rescaling(0.5), contrast, flip])
    x = smooth(4, 8)
    boxes = {"boxes": np.array([[[1.0, 2.0, 3.0, 4.0]]] * 4, "float32"), "labels": np.zeros((4, 1), "float32")}
    data = {"images": x, "bounding_boxes": boxes}
    # A member of ours that moves no pixels leaves boxes alone.
    result = layer(data, training=True)
    expected = np.clip(x + 25.5, 0, 255) / 2
    mirrored = np.abs(numpy(result["images"]) - expected).max((1, 2, 3)) > 1
    np.testing.assert_allclose(numpy(result["images"])[~mirrored], expected[~mirrored], rtol=1e-4)
    left = numpy(result["bounding_boxes"]["boxes"])[:, 0, 0]
    np.testing.assert_allclose(left, np.where(mirrored, 5.0, 1.0))
    np.testing.assert_allclose(numpy(layer(x, training=False)), x / 2, rtol=1e-5)
    plain = Augmentation([RandomBrightness((0.1, 0.1)), keras.layers.Rescaling(0.5)], dtype="uint8")
    (batch,) = tf.data.Dataset.from_tensor_slices(x).batch(4).map(plain)
    np.testing.assert_allclose(batch.numpy(), np.round(expected), atol=1)


def test_config_file_and_fit(tmp_path, backend):
    layer = Augmentation([RandomFlip(), RandomRotation(0.1), RandomBrightness(0.2)], probability=[1, 0.5, 0.5], seed=1)
    again = Augmentation.from_config(layer.get_config())
    x = smooth(4, 8)
    np.testing.assert_array_equal(numpy(again(x, training=True)), numpy(layer(x, training=True)))
    pool = keras.layers.GlobalAveragePooling2D()
    model = keras.Sequential([keras.Input((8, 8, 3)), layer, pool, keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=backend != "torch")
    model.fit(x / 255, np.zeros((4, 1)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)


def test_a_member_that_changes_the_size():
    layer = Augmentation([RandomCrop(6, 5), RandomRotation(0.1)], seed=1)
    assert layer.compute_output_shape((None, 8, 8, 3)) == (None, 6, 5, 3)
    assert tuple(layer(smooth(2, 8), training=True).shape) == (2, 6, 5, 3)
    assert tuple(layer(smooth(2, 8), training=False).shape) == (2, 6, 5, 3)
    for member in (RandomCrop(31, 37), keras.layers.RandomCrop(6, 5), keras.layers.Resizing(31, 37)):
        with pytest.raises(ValueError, match="`probability` must be 1 for R[a-zA-Z]+, which changes the size"):
            Augmentation([member], probability=0.5)


class Inverted(keras.layers.Layer):
    """A user's layer, which does not say what comes out."""

    def call(self, images):
        return 255 - images


def test_a_member_of_the_user_need_not_say_its_size(uncompiled):
    layer = Augmentation([Inverted(), RandomFlip()], probability=[0.5, 1.0], seed=1)
    got = numpy(layer(np.zeros((64, 2, 2, 1), "float32"), training=True))
    assert set(np.unique(got)) == {0.0, 255.0}


@pytest.mark.parametrize(
    ("member", "key", "message"),
    [
        (keras.layers.RandomRotation(0.25), "keypoints", "RandomRotation .*does not move keypoints"),
        (keras.layers.Resizing(4, 4), "keypoints", "Resizing .*does not move keypoints"),
        (keras.layers.ZeroPadding2D(2), "segmentation_masks", "ZeroPadding2D changes the size .* 'segmentation_masks'"),
        (keras.layers.ZeroPadding2D(2), "bounding_boxes", "ZeroPadding2D changes the size .* 'bounding_boxes'"),
        (keras.layers.ZeroPadding2D(2), "keypoints", "ZeroPadding2D changes the size .* 'keypoints'"),
        (keras.Sequential([RandomFlip()]), "segmentation_masks", "Sequential is given images only"),
        (keras.Sequential([keras.layers.RandomFlip()]), "keypoints", "Sequential is given images only"),
    ],
)
def test_members_of_keras_do_not_leave_behind_what_belongs_to_the_images(member, key, message):
    others = {
        "segmentation_masks": np.ones((2, 8, 8), "int32"),
        "bounding_boxes": {"boxes": np.ones((2, 1, 4), "float32"), "labels": np.ones((2, 1), "int32")},
        "keypoints": np.ones((2, 1, 2), "float32"),
    }
    for training in (True, False):
        with pytest.raises(ValueError, match=message):
            Augmentation([member])({"images": smooth(2, 8), key: others[key]}, training=training)


def test_keypoints_stay_with_members_of_keras_that_move_no_pixels():
    members = [keras.layers.RandomContrast(0.1), keras.layers.Rescaling(0.5), keras.Sequential([RandomBrightness(0.1)])]
    data = {"images": smooth(2, 8), "keypoints": np.ones((2, 1, 2), "float32")}
    np.testing.assert_array_equal(numpy(Augmentation(members)(data, training=True)["keypoints"]), data["keypoints"])


def test_the_range_of_a_nested_composition_matters_if_a_member_cares():
    bright = RandomBrightness(0.2, value_range=(0, 1))
    assert Augmentation([Augmentation([RandomFlip(), RandomGrayscale()]), bright]).value_range == (0, 1)
    assert Augmentation([Augmentation([RandomFlip()], value_range=(0, 1)), bright]).value_range == (0, 1)
    for inner in (Augmentation([RandomBrightness(0.2)]), Augmentation([RandomFlip()], value_range=(0, 255))):
        with pytest.raises(ValueError, match="`value_range` must be the same for all layers"):
            Augmentation([inner, bright])


@pytest.mark.parametrize("nested", [False, True])
def test_an_image_that_is_not_blurred_stays_as_it_is(nested):
    layer = Augmentation([RandomGaussianBlur((1.0, 1.0), 3, (1.0, 1.0), value_range=(0, 1))], 0.5, seed=3)
    layer = Augmentation([layer]) if nested else layer
    images = np.random.default_rng(0).uniform(-1, 1, (16, 8, 8, 3)).astype("float32")
    images[:, 4, 4] = np.nan
    left = [
        np.array_equal(a, b, equal_nan=True) for a, b in zip(numpy(layer(images, training=True)), images, strict=True)
    ]
    assert 2 < sum(left) < 14  # the others are clipped at least


def test_the_summary_shows_the_passes_within_a_member():
    inner = Augmentation([RandomFlip(), RandomBrightness(0.1)])
    layer = Augmentation([RandomGaussianBlur(), inner], probability=[1.0, 0.5])
    assert layer.summary_text().splitlines() == [
        "pass 1: on its own: RandomGaussianBlur (step 1 of 2)",
        "pass 2: on its own: RandomGaussianBlur (step 2 of 2)",
        "pass 3: on its own: Augmentation (p=0.5)",
        "    pass 1: one resampling: RandomFlip",
        "    pass 2: values: RandomBrightness",
    ]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layers": RandomFlip()}, TypeError, "`layers` must be a list of layers"),
        ({"layers": []}, ValueError, "`layers` must hold at least one layer"),
        ({"layers": ["flip"]}, TypeError, r"`layers\[0\]` must be an augmentation layer or a layer of Keras"),
        ({"layers": [RandomFlip()], "probability": 1.5}, ValueError, r"`probability` must lie in \[0, 1\]"),
        ({"layers": [RandomFlip()], "probability": [0.5, 1]}, ValueError, "a list of one for each of the 1 layers"),
        ({"layers": [RandomFlip()], "probability": [2]}, ValueError, r"`probability\[0\]` must lie in"),
        (
            {"layers": [RandomBrightness(0.1), RandomBrightness(0.1, value_range=(0, 1))]},
            ValueError,
            "`value_range` must be the same for all layers",
        ),
        (
            {"layers": [Augmentation([keras.layers.Rescaling(0.5)])]},
            ValueError,
            "must not be an Augmentation that holds a layer of Keras",
        ),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        Augmentation(**arguments)


def test_preview_draws_originals_versions_boxes_masks_and_labels():
    layer = Augmentation([RandomFlip(bounding_box_format="xyxy"), RandomBrightness(0.2)], seed=1)
    mask = np.zeros((3, 8, 8, 1), "uint8")
    mask[:, 2:4, 2:4] = 1
    data = {
        "images": smooth(3, 8),
        "labels": np.array([0, 1, 0]),
        "segmentation_masks": mask,
        "bounding_boxes": {"boxes": np.array([[[1.0, 2, 3, 4]]] * 3, "float32"), "labels": np.zeros((3, 1), "int32")},
    }
    figure = layer.preview(data, columns=2, names=["cat", "dog"])
    assert isinstance(figure, matplotlib.figure.Figure)
    assert len(figure.axes) == 8
    first = figure.axes[0]
    assert first.get_ylabel() == "original"
    assert [ax.get_title() for ax in figure.axes[:2]] == ["cat", "dog"]
    np.testing.assert_allclose(first.images[0].get_array(), data["images"][0] / 255, atol=1e-6)
    assert len(first.images) == 2  # the mask
    np.testing.assert_allclose(first.lines[0].get_xdata(), [0.5, 2.5, 2.5, 0.5, 0.5])
    assert len(layer.preview(smooth(2, 8)[..., :1]).axes) == 8
    for wrong in (smooth(1, 8)[0], smooth(1, 8)[:0]):
        with pytest.raises(ValueError, match="`images` must be a batch"):
            layer.preview(wrong)
    matplotlib.pyplot.close("all")


def shown(figure):
    """The picture of the first original, what lies over it, and how many boxes are drawn."""
    first = figure.axes[0]
    return [np.asarray(image.get_array()) for image in first.images], len(first.lines)


def test_preview_draws_masks_channels_first():
    mask = np.zeros((2, 1, 8, 8), "int32")
    mask[:, :, 2:4, 2:4] = 1
    layer = Augmentation([RandomFlip()], data_format="channels_first")
    (_, over), _ = shown(layer.preview({"images": smooth(2, 8).transpose(0, 3, 1, 2), "segmentation_masks": mask}))
    np.testing.assert_array_equal(over, mask[0, 0])
    matplotlib.pyplot.close("all")


def test_preview_draws_boxes_in_the_format_of_any_member_with_any_labels():
    layer = Augmentation([Augmentation([RandomFlip(bounding_box_format="center_yxhw")])])
    boxes = np.array([[[4.0, 3, 2, 4], [2, 2, 2, 2]]] * 2, "float32")
    for labels, count in (
        ({}, 2),
        ({"labels": np.array([[[1.0, 0], [-1, -1]]] * 2)}, 1),
        ({"labels": boxes[..., 0]}, 2),
    ):
        figure = layer.preview({"images": smooth(2, 8), "bounding_boxes": {"boxes": boxes, **labels}})
        assert shown(figure)[1] == count
        np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), [0.5, 4.5, 4.5, 0.5, 0.5])
        np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [2.5, 2.5, 4.5, 4.5, 2.5])
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize(("scale", "offset"), [(1 / 255, 0.0), (1.0, 0.0), (2 / 255, -1.0)])
def test_preview_finds_the_range_of_images_where_no_member_knows_it(scale, offset):
    x = smooth(1, 8)
    x[0, 0, :2] = [[0.0] * 3, [255.0] * 3]
    (picture,), _ = shown(Augmentation([RandomFlip()]).preview(x * np.float32(scale) + np.float32(offset)))
    np.testing.assert_allclose(picture, x[0] / 255, atol=1e-6)
    matplotlib.pyplot.close("all")
