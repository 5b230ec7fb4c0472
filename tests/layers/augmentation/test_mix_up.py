"""MixUp: weights against scipy's Beta, mixtures against the formula."""

import keras
import numpy as np
import pytest
from scipy import stats

from tf_tricks.layers.augmentation import Augmentation, MixUp
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def draws(count, seed=7):
    return Draws(OPS, keras.ops.convert_to_tensor(np.array([seed, 1], "int32")), count)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.49, 0.5, 1.0, 2.5, 20.0])
def test_weights_have_a_beta_distribution(alpha):
    weight = numpy(MixUp(alpha).draw(OPS, draws(10000), (4, 4))["weight"]).astype("float64")
    assert np.isfinite(weight).all()
    # float32 has no number between 1 - 6e-8 and 1, where a small alpha puts much of its weight: fold it to 0's side.
    assert abs(np.mean(weight > 0.5) - 0.5) < 0.025
    folded = np.minimum(weight, 1.0 - weight)
    coarse = np.maximum(folded, 1e-5)
    at = np.geomspace(1e-4, 0.499, 40)
    found = np.searchsorted(np.sort(coarse), at) / len(coarse)
    assert np.abs(found - 2.0 * stats.beta(alpha, alpha).cdf(at)).max() < 0.02
    if alpha >= 0.4:
        assert stats.kstest(weight, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_alpha_may_differ_between_images():
    alpha = keras.ops.convert_to_tensor(np.repeat([0.3, 3.0], 10000).astype("float32"))
    weight = numpy(draws(20000).symmetric_beta(alpha))
    for part, a in ((weight[:10000], 0.3), (weight[10000:], 3.0)):
        assert abs(part.var() - stats.beta(a, a).var()) < 0.005


def test_images_labels_weights_and_masks_share_weight_and_partner():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (6, 4, 5, 3)).astype("uint8")
    data = {
        "images": x,
        "labels": np.array([0, 1, 2, 0, 1, 2]),
        "sample_weights": np.arange(6, dtype="float32"),
        "segmentation_masks": rng.uniform(size=(6, 4, 5, 2)).astype("float32"),
    }
    layer = MixUp(1.0, num_classes=3, seed=2)
    drawn = {}
    original = layer.draw
    layer.draw = lambda *args: drawn.setdefault("of", original(*args))
    layer._draw = lambda xp, images, key: layer._draw_all(xp, images, key)  # not compiled: the tensors are looked at
    result = layer(data, training=True)
    order, w = (numpy(drawn["of"][name]) for name in ("order", "weight"))
    assert sorted(order) == list(range(6))
    for name, value in {**data, "labels": np.eye(3)[data["labels"]]}.items():
        share = w.reshape([-1] + [1] * (value.ndim - 1))
        expected = share * value.astype("float64") + (1 - share) * value[order]
        np.testing.assert_allclose(numpy(result[name]), expected, rtol=1e-4, atol=1e-3, err_msg=name)
    np.testing.assert_allclose(numpy(layer(data, training=False)["labels"]), np.eye(3)[data["labels"]])


def three_with_boxes(dtype="float32"):
    boxes = {"boxes": np.arange(24, dtype=dtype).reshape(3, 2, 4), "labels": np.arange(6).reshape(3, 2)}
    return {"images": np.zeros((3, 4, 4, 3), "float32"), "bounding_boxes": boxes}


def test_boxes_of_the_partner_are_appended():
    data = three_with_boxes()
    boxes = data["bounding_boxes"]
    layer = MixUp(1.0, seed=1, bounding_box_format="xyxy")
    layer.draw = lambda xp, *_: {"order": xp.convert_to_tensor([1, 2, 0]), "weight": xp.convert_to_tensor([0.5] * 3)}
    result = layer(data, training=True)
    found = {name: numpy(each) for name, each in result["bounding_boxes"].items()}
    assert found["boxes"].shape == (3, 4, 4)
    order = np.array([1, 2, 0])
    np.testing.assert_array_equal(found["boxes"], np.concatenate([boxes["boxes"], boxes["boxes"][order]], axis=1))
    np.testing.assert_array_equal(found["labels"], np.concatenate([boxes["labels"], boxes["labels"][order]], axis=1))


def test_boxes_of_a_partner_that_is_not_to_be_seen_are_no_boxes(uncompiled):
    data = three_with_boxes()
    layer = MixUp(1.0, bounding_box_format="xyxy")
    # The first image is its own partner, the second one keeps all of itself.
    layer.draw = lambda xp, *_: {
        "order": xp.convert_to_tensor([0, 2, 1]),
        "weight": xp.convert_to_tensor([0.5, 1.0, 0.5]),
    }
    found = {name: numpy(each) for name, each in layer(data, training=True)["bounding_boxes"].items()}
    np.testing.assert_array_equal(found["labels"], [[0, 1, -1, -1], [2, 3, -1, -1], [4, 5, 2, 3]])
    np.testing.assert_array_equal(found["boxes"][:2, 2:], np.zeros((2, 2, 4)))
    never = Augmentation([MixUp(bounding_box_format="xyxy")], probability=0.0, seed=1)
    assert (numpy(never(data, training=True)["bounding_boxes"]["labels"])[:, 2:] == -1).all()


def test_boxes_have_the_declared_shape_while_training_and_otherwise(uncompiled):
    data = three_with_boxes()
    boxes = {"boxes": keras.Input((2, 4), name="boxes"), "labels": keras.Input((2,), dtype="int32", name="labels")}
    inputs = {"images": keras.Input((4, 4, 3), name="images"), "bounding_boxes": boxes}
    outputs = MixUp(bounding_box_format="xyxy")(inputs)
    model = keras.Model(inputs, outputs)
    declared = {name: tuple(each.shape) for name, each in outputs["bounding_boxes"].items()}
    assert declared == {"boxes": (None, 4, 4), "labels": (None, 4)}
    for training in (True, False):
        found = model(data, training=training)["bounding_boxes"]
        assert {name: tuple(each.shape) for name, each in found.items()} == {"boxes": (3, 4, 4), "labels": (3, 4)}
    np.testing.assert_array_equal(numpy(found["labels"])[:, 2:], -1)


def test_one_image_stays_as_it_is():
    x = np.random.default_rng(0).uniform(0, 255, (4, 4, 3)).astype("float32")
    np.testing.assert_allclose(numpy(MixUp()(x, training=True)), x, rtol=1e-5)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"labels": np.array([1, 2])}, "labels must be one-hot, or `num_classes` be given"),
        ({"segmentation_masks": np.ones((2, 4, 4), "int32")}, "class numbers have no mean"),
        ({"keypoints": np.ones((2, 1, 2), "float32")}, "does not mix keypoints"),
        ({"sample_weights": np.ones(3, "float32")}, "`sample_weights` must be one for each of the 2 images"),
        ({"labels": np.array([1])}, "`labels` must be one for each of the 2 images. Received: shape \\(1,\\)"),
    ],
)
def test_what_cannot_be_mixed_is_refused(others, message):
    with pytest.raises(ValueError, match=message):
        MixUp()({"images": np.zeros((2, 4, 4, 3)), **others}, training=True)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`alpha` must lie in"):
        MixUp(0.0)
    with pytest.raises(ValueError, match="`num_classes` must be an int >= 2"):
        MixUp(num_classes=1)
