"""MixUp: weights against scipy's Beta, mixtures against the formula."""

import keras
import numpy as np
import pytest
from scipy import stats

from tf_tricks.layers.augmentation import MixUp
from tf_tricks.layers.augmentation._random import Draws


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def draws(count, seed=7):
    return Draws(keras.ops, keras.ops.convert_to_tensor(np.array([seed, 1], "int32")), count)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.49, 0.5, 1.0, 2.5, 20.0])
def test_weights_have_a_beta_distribution(alpha):
    weight = numpy(MixUp(alpha).draw(keras.ops, draws(10000), (4, 4))["weight"]).astype("float64")
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


def test_boxes_of_the_partner_are_appended():
    boxes = {"boxes": np.arange(24, dtype="float32").reshape(3, 2, 4), "labels": np.arange(6).reshape(3, 2)}
    data = {"images": np.zeros((3, 4, 4, 3)), "bounding_boxes": boxes}
    result = MixUp(seed=1, bounding_box_format="xyxy")(data, training=True)
    found = {name: numpy(each) for name, each in result["bounding_boxes"].items()}
    assert found["boxes"].shape == (3, 4, 4)
    order = found["labels"][:, 2] // 2
    np.testing.assert_array_equal(found["boxes"], np.concatenate([boxes["boxes"], boxes["boxes"][order]], axis=1))
    np.testing.assert_array_equal(found["labels"], np.concatenate([boxes["labels"], boxes["labels"][order]], axis=1))


def test_one_image_stays_as_it_is():
    x = np.random.default_rng(0).uniform(0, 255, (4, 4, 3)).astype("float32")
    np.testing.assert_allclose(numpy(MixUp()(x, training=True)), x, rtol=1e-5)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"labels": np.array([1, 2])}, "labels must be one-hot, or `num_classes` be given"),
        ({"segmentation_masks": np.ones((2, 4, 4), "int32")}, "class numbers have no mean"),
        ({"keypoints": np.ones((2, 1, 2), "float32")}, "does not mix keypoints"),
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
