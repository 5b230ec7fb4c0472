"""What all layers that move pixels share: masks, boxes and keypoints follow, any shape and dtype, configs."""

import keras
import numpy as np
import pytest

from tf_tricks.layers import augmentation
from tf_tricks.layers.augmentation import (
    Augmentation,
    RandomCrop,
    RandomFlip,
    RandomPerspective,
    RandomResizedCrop,
    RandomRotation,
    RandomShear,
    RandomTranslation,
    RandomZoom,
)
from tf_tricks.layers.augmentation._compiled import Compiled
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws

pytestmark = pytest.mark.usefixtures("uncompiled")
ARGUMENTS = {
    "RandomFlip": {},
    "RandomRotation": {"factor": 0.1},
    "RandomTranslation": {"height_factor": 0.2, "width_factor": 0.2},
    "RandomZoom": {"height_factor": 0.3, "width_factor": 0.2},
    "RandomShear": {"x_factor": 0.2, "y_factor": 0.2},
    "RandomPerspective": {"factor": (1.0, 1.0), "scale": 0.4},
    "RandomCrop": {"height": 9, "width": 7},
    "RandomResizedCrop": {"height": 9, "width": 7, "scale": (0.4, 1.0)},
}
SIZED = {"RandomCrop": (9, 7), "RandomResizedCrop": (9, 7)}
LAYERS = sorted(ARGUMENTS)


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def make(name, **arguments):
    return getattr(augmentation, name)(**{**ARGUMENTS[name], "seed": 3, **arguments})


def draw(layer, batch, size):
    compiled = Compiled(lambda xp, key, _: layer.draw(xp, Draws(xp, key, batch), size))
    return compiled(OPS, keras.ops.convert_to_tensor(np.array([0, 1], "int32")), keras.ops.zeros((1,)))


def transformed(layer, images, drawn):
    return numpy(Compiled(layer.transform)(OPS, keras.ops.array(images), drawn))


@pytest.mark.parametrize("name", ["RandomCrop", "RandomPerspective", "RandomRotation"])
def test_compiled_it_gives_what_it_gives_uncompiled(name):
    images = np.random.default_rng(0).uniform(0, 255, (2, 12, 10, 3)).astype("float32")
    layer, twin = make(name), make(name)
    drawn = twin._draw_all(OPS, keras.ops.array(images), twin._key(OPS))[0]
    plain = numpy(twin.transform(OPS, keras.ops.array(images), drawn))
    np.testing.assert_allclose(numpy(layer(images, training=True)), plain, atol=0.01)


@pytest.mark.parametrize("name", LAYERS)
def test_shapes_dtypes_and_formats(name):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 12, 10, 3)).astype("uint8")
    height, width = SIZED.get(name, (12, 10))
    layer = make(name)
    result = layer(images, training=True)
    assert tuple(result.shape) == (2, height, width, 3) == layer.compute_output_shape(images.shape)
    assert keras.backend.standardize_dtype(result.dtype) == "float32"
    assert tuple(layer(images[0], training=True).shape) == (height, width, 3)
    assert tuple(layer(images[:0], training=True).shape) == (0, height, width, 3)
    first = make(name, data_format="channels_first")(images.transpose(0, 3, 1, 2), training=True)
    np.testing.assert_allclose(numpy(first).transpose(0, 2, 3, 1), numpy(result), atol=0.05)
    whole = make(name, dtype="uint8")(images, training=True)
    assert keras.backend.standardize_dtype(whole.dtype) == "uint8"
    assert np.abs(numpy(whole) - np.round(numpy(result))).max() <= 1  # a half may be rounded either way
    for dtype in ("float16", "bfloat16"):
        low = make(name, dtype=dtype)(keras.ops.cast(images, dtype), training=True)
        assert keras.backend.standardize_dtype(low.dtype) == dtype
        np.testing.assert_allclose(numpy(keras.ops.cast(low, "float32")), numpy(result), atol=1.5)
    assert np.isfinite(numpy(layer(np.ones((2, 1, 1, 5), "float32"), training=True))).all()


@pytest.mark.parametrize("name", LAYERS)
def test_config_seed_and_rest(name):
    images = np.random.default_rng(0).uniform(0, 255, (4, 12, 10, 3)).astype("float32")
    options = {"bounding_box_format": "xywh", "min_visibility": 0.25, "value_range": (0, 1)}
    options |= {"fill_mode": "constant", "fill_value": 0.5, "interpolation": "nearest"}
    layer = make(name, **options)
    config = layer.get_config()
    twin = type(layer).from_config(config)
    assert twin.get_config() == config
    assert {"seed", "data_format", *ARGUMENTS[name]} <= set(config)
    for key, value in options.items():
        assert getattr(twin, key) == value
    np.testing.assert_array_equal(numpy(layer(images, training=True)), numpy(twin(images, training=True)))
    assert not np.array_equal(numpy(layer(images, training=True)), numpy(twin(images, training=False)))
    if name not in SIZED:
        np.testing.assert_array_equal(numpy(layer(images, training=False)), images)


@pytest.mark.parametrize("name", LAYERS)
def test_no_two_images_of_a_batch_get_the_same(name):
    if name == "RandomFlip":
        pytest.skip("four outcomes")
    matrices = numpy(draw(make(name), 6, (120, 120))["matrix"])
    assert len(np.unique(matrices.reshape(6, 9), axis=0)) == 6


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("fill_mode", ["constant", "nearest"])
def test_the_images_are_what_keras_makes_of_the_matrices(name, fill_mode):
    if name in SIZED:
        pytest.skip("Keras's affine transform keeps the size")
    images = np.random.default_rng(1).uniform(0, 255, (3, 12, 10, 2)).astype("float32")
    fill = {} if name == "RandomFlip" else {"fill_mode": fill_mode, "fill_value": 30.0}
    layer = make(name, **fill)
    drawn = draw(layer, 3, (12, 10))
    matrix = numpy(drawn["matrix"])
    got = transformed(layer, images, drawn)
    if name == "RandomPerspective":  # only TensorFlow's affine transform looks at the last row
        corners = np.array([[0, 0], [9, 0], [0, 11], [9, 11]], "float32")
        seen = np.concatenate([corners, np.ones((4, 1))], axis=1) @ np.linalg.inv(matrix).transpose(0, 2, 1)
        seen = (seen[..., :2] / seen[..., 2:]).astype("float32")
        assert np.abs(seen - corners).max() > 1
        if fill_mode == "constant":
            starts = np.repeat(corners[None], 3, axis=0)
            wanted = numpy(keras.ops.image.perspective_transform(images, starts, seen, fill_value=30.0))
            np.testing.assert_allclose(got, wanted, atol=0.1)
        return
    rows = matrix.reshape(3, 9)[:, :8].copy()
    wanted = keras.ops.image.affine_transform(images, rows, fill_mode=fill_mode, fill_value=30.0)
    np.testing.assert_allclose(got, numpy(wanted), atol=0.05)


@pytest.mark.parametrize("name", LAYERS)
def test_masks_keypoints_and_boxes_follow_the_images(name):
    batch, size = 6, (40, 36)
    arguments = {"height": 30, "width": 32} if name in SIZED else {}
    out = (30, 32) if name in SIZED else size
    fill = {} if name in (*SIZED, "RandomFlip") else {"fill_mode": "constant"}
    layer = make(name, bounding_box_format="xyxy", **arguments, **fill)
    boxes = np.array([[[12, 14, 24, 26], [0, 0, 36, 40]]] * batch, "float32")
    masks = np.zeros((batch, *size), "int64")
    masks[:, 14:26, 12:24] = 7
    points = np.array([[[12, 14], [23, 14], [17, 20]]] * batch, "float32")
    images = np.repeat((masks == 7)[..., None] * 200.0, 3, axis=-1).astype("float32")
    data = {
        "images": images,
        "labels": np.arange(batch),
        "segmentation_masks": masks,
        "bounding_boxes": {"boxes": boxes, "labels": np.ones((batch, 2), "int32")},
        "keypoints": points,
    }
    got = {key: value if isinstance(value, dict) else numpy(value) for key, value in layer(data, training=True).items()}
    np.testing.assert_array_equal(got["labels"], np.arange(batch))
    warped = got["segmentation_masks"]
    assert warped.shape == (batch, *out) and set(np.unique(warped)) <= {0, 7}
    if keras.backend.backend() != "jax":  # which has no int64
        assert warped.dtype == np.int64
    # The mask is where the picture is bright, and the box is around it.
    assert np.mean((got["images"][..., 0] > 100) != (warped == 7)) < 0.005
    seen = numpy(got["bounding_boxes"]["boxes"])[:, 0]
    kept = numpy(got["bounding_boxes"]["labels"])[:, 0] == 1
    assert kept.sum() >= 3
    for i in np.flatnonzero(kept):
        ys, xs = np.nonzero(warped[i] == 7)
        limits = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(seen[i], limits, atol=1.3)
        for point in got["keypoints"][i][2:]:  # in the middle of what is bright
            x, y = np.round(point).astype(int)
            if 0 <= x < out[1] and 0 <= y < out[0]:
                assert warped[i, y, x] == 7
    drawn = draw(layer, batch, size)
    with_channels, without, first = (
        layer.transform_others(OPS, {"segmentation_masks": keras.ops.array(each)}, drawn, size)
        for each in (masks[..., None], masks, masks[:, None])
    )
    for other, axis in ((with_channels, 3), (first, 1)):
        np.testing.assert_array_equal(
            numpy(other["segmentation_masks"]).squeeze(axis), numpy(without["segmentation_masks"])
        )


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("bounding_boxes", {"boxes": np.zeros((2, 3, 4)), "labels": np.zeros((2, 3))}, "bounding_box_format"),
        ("bounding_boxes", {"labels": np.zeros((2, 3))}, "RandomRotation: `bounding_boxes` must be a dict"),
        ("bounding_boxes", {"boxes": np.zeros((2, 3, 5)), "labels": np.zeros((2, 3))}, r"\(batch, n, 4\)"),
        ("keypoints", np.zeros((2, 3)), r"RandomRotation: `keypoints` must have shape \(batch, n, 2\)"),
        ("segmentation_masks", np.zeros((2, 5, 8)), r"of the size of the images, \(8, 8\)"),
    ],
)
def test_what_cannot_follow_is_refused(key, value, message):
    layer = RandomRotation(0.1)
    with pytest.raises(ValueError, match=message):
        layer({"images": np.zeros((2, 8, 8, 3)), key: value}, training=True)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: RandomRotation(1.5), ValueError, "`factor` must lie in"),
        (lambda: RandomRotation(0.1, fill_mode="mirror"), ValueError, "`fill_mode` must be one of"),
        (lambda: RandomRotation(0.1, interpolation="cubic"), ValueError, "`interpolation` must be one of"),
        (lambda: RandomRotation(0.1, bounding_box_format="xxyy"), ValueError, "`bounding_box_format` must be one of"),
        (lambda: RandomRotation(0.1, min_visibility=1.0), ValueError, "`min_visibility` must lie in"),
        (lambda: RandomRotation(0.1, fill_value="black"), TypeError, "`fill_value` must be a number"),
        (lambda: RandomTranslation(0.1, 2.0), ValueError, "`width_factor` must lie in"),
        (lambda: RandomZoom((-1.0, 0.5)), ValueError, r"`height_factor` must lie in \(-1, 1\]"),
        (lambda: RandomShear(-0.1), ValueError, "`x_factor` must lie in"),
        (lambda: RandomPerspective(scale=1.5), ValueError, "`scale` must lie in"),
        (lambda: RandomCrop(0, 5), ValueError, "`height` must be an int >= 1"),
        (lambda: RandomCrop(5, 2.5), TypeError, "`width` must be an int >= 1"),
        (lambda: RandomResizedCrop(5, 5, scale=(0.5, 2.0)), ValueError, "`scale` must lie in"),
        (lambda: RandomResizedCrop(5, 5, ratio=(2.0, 1.0)), ValueError, "`ratio` must be a pair"),
        (lambda: RandomFlip("diagonal"), ValueError, "`mode` must be one of"),
        (lambda: RandomFlip(keypoint_pairs=((0, 1), (1, 2))), ValueError, "`keypoint_pairs` must be pairs"),
    ],
)
def test_bad_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_masks_are_filled_with_the_background():
    layer = RandomTranslation((0.5, 0.5), (0.0, 0.0), fill_mode="constant", fill_value=127.5)
    data = {"images": np.zeros((1, 4, 2, 1), "float32"), "segmentation_masks": np.ones((1, 4, 2), "uint8")}
    got = layer(data, training=True)
    np.testing.assert_array_equal(numpy(got["images"])[0, :, 0, 0], [127.5, 127.5, 0, 0])
    np.testing.assert_array_equal(numpy(got["segmentation_masks"])[0, :, 0], [0, 0, 1, 1])


def test_a_mirror_swaps_the_pairs_of_keypoints_also_within_a_fused_chain():
    points = np.array([[[2, 3, 1], [7, 3, 0], [5, 5, 1]]] * 32, "float32")  # left eye, right eye, nose
    data = {"images": np.zeros((32, 10, 12, 3), "float32"), "keypoints": points}
    flip = RandomFlip("horizontal_and_vertical", seed=1, keypoint_pairs=((0, 1),))
    drawn = draw(flip, 32, (10, 12))
    matrix = numpy(drawn["matrix"])
    got = numpy(flip.transform_others(OPS, {"keypoints": keras.ops.array(points)}, drawn, (10, 12))["keypoints"])
    for i in range(32):
        x, y = matrix[i, 0, 0] < 0, matrix[i, 1, 1] < 0
        order = [1, 0, 2] if x != y else [0, 1, 2]  # both flips are a half turn: a left eye stays one
        expected = points[i][order].copy()
        expected[:, 0] = 11 - expected[:, 0] if x else expected[:, 0]
        expected[:, 1] = 9 - expected[:, 1] if y else expected[:, 1]
        np.testing.assert_allclose(got[i], expected, atol=1e-4)

    chain = Augmentation([RandomRotation(0.03), RandomFlip("horizontal", keypoint_pairs=((0, 1),))], seed=5)
    moved = numpy(chain(data, training=True)["keypoints"])
    # Whatever was done, the left eye is to the left of the right one.
    assert (moved[:, 0, 0] < moved[:, 1, 0]).all()
    unpaired = Augmentation([RandomRotation(0.03), RandomFlip("horizontal")], seed=5)
    mixed = numpy(unpaired(data, training=True)["keypoints"])
    assert 5 < (mixed[:, 0, 0] > mixed[:, 1, 0]).sum() < 27
    with pytest.raises(ValueError, match="names a keypoint that is not there: the indices are 0 to 2"):
        RandomFlip(keypoint_pairs=((0, 3),))(data, training=True)


def test_a_chain_is_one_warp_for_boxes_and_masks_too():
    layers = [RandomRotation(0.05, fill_mode="constant"), RandomFlip(bounding_box_format="xywh"), RandomCrop(30, 28)]
    chain = Augmentation(layers, seed=2)
    assert len(chain.stages()) == 1
    masks = np.zeros((8, 40, 36, 1), "uint8")
    masks[:, 14:26, 12:24] = 1
    boxes = {"boxes": np.array([[[12, 14, 12, 12]]] * 8, "float32"), "labels": np.zeros((8, 1), "int32")}
    data = {"images": masks * 200.0, "segmentation_masks": masks, "bounding_boxes": boxes}
    got = chain(data, training=True)
    warped, seen = numpy(got["segmentation_masks"])[..., 0], numpy(got["bounding_boxes"]["boxes"])[:, 0]
    assert warped.shape == (8, 30, 28) and warped.dtype == np.uint8
    assert np.mean((numpy(got["images"])[..., 0] > 100) != (warped == 1)) < 0.01
    for mask, (x, y, width, height) in zip(warped, seen, strict=True):
        ys, xs = np.nonzero(mask)
        limits = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose([x, y, x + width, y + height], limits, atol=1.3)
