"""RandAugment: its draws against their distribution, its operations against formulas, its loop against none."""

import keras
import numpy as np
import pytest
from scipy import stats

from tf_tricks.layers.augmentation import RandAugment
from tf_tricks.layers.augmentation import _operations as operations
from tf_tricks.layers.augmentation._compiled import Compiled
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws
from tf_tricks.layers.augmentation.rand_augment import OPERATIONS


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


def draw(layer, count, size=(20, 30)):
    key = keras.ops.convert_to_tensor(np.array([5, 6], "int32"))
    return layer.draw(OPS, Draws(OPS, key, count), size)


class One(RandAugment):
    """Always the operation `which`, with strength 0.5 and a positive sign."""

    which = 0

    def strength(self, xp, draws):
        return draws.uniform(0.5, 0.5)

    def _signed(self, xp, draws):
        return self.strength(xp, draws)

    def draw(self, xp, draws, size):
        class Fixed(Draws):
            def integers(draws, low, high):  # noqa: N805
                return xp.cast(draws.uniform(0.0, 0.0), "int32") + self.which

        return super().draw(xp, Fixed(xp, draws._key, draws._batch), size)


def test_each_image_draws_each_operation_equally_often_and_on_its_own():
    layer = RandAugment(factor=0.5, num_ops=2)
    drawn = draw(layer, 11000)
    steps = numpy(drawn["steps"])
    counts = np.bincount(steps[:, 0], minlength=10)
    assert counts[0] == 0  # the first operation of an image is never nothing
    assert abs(counts[1] / 11000 - 3 / 11) < 0.02  # the three that move pixels
    assert stats.chisquare(counts[2:]).pvalue > 1e-3
    table = np.histogram2d(steps[:-1, 0], steps[1:, 0], bins=[range(1, 11)] * 2)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3  # neighbours draw independently


def test_strengths_are_uniform_and_go_both_ways():
    drawn = draw(RandAugment(factor=(0.1, 0.4), num_ops=1), 40000)
    steps, amounts = (numpy(drawn[name])[:, 0] for name in ("steps", "amounts"))
    brightness = amounts[steps == 2]
    assert abs(np.mean(brightness > 0) - 0.5) < 0.03
    assert stats.kstest((np.abs(brightness) - 0.1) / 0.3, "uniform").pvalue > 1e-3
    bits = amounts[steps == 2 + OPERATIONS[3:].index("posterization")]
    assert set(np.unique(bits)) == {5.0, 6.0, 7.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("brightness", lambda x: np.clip(x + 127.5, 0, 255)),
        ("contrast", lambda x: np.clip(x * 1.5 - x.mean((1, 2), keepdims=True) * 0.5, 0, 255)),
        ("posterization", lambda x: np.floor(x / 16) * 16),
        ("solarization", lambda x: np.where(x < 255 * (256 / 255 - 0.5), x, 255 - x)),
        ("translation", lambda x: np.roll(x, (3, 4), (1, 2))),
    ],
)
def test_one_operation_on_all_images(name, expected):
    x = images(3, 6, 8, 3)
    layer = One(num_ops=1, factor=1.0, fill_mode="wrap")
    layer.which = OPERATIONS.index(name)
    got = numpy(layer.transform(OPS, keras.ops.convert_to_tensor(x), draw(layer, 3, (6, 8))))
    np.testing.assert_allclose(got, expected(x), atol=1e-2)


def test_the_loop_equals_one_image_after_the_other_and_all_forms_agree():
    x = images(12, 8, 10, 3)
    layer = RandAugment(num_ops=2, factor=0.6, seed=3)
    drawn = draw(layer, 12, (8, 10))
    got = numpy(layer._draw and layer.transform(OPS, keras.ops.convert_to_tensor(x), drawn))
    steps, amounts, matrix = (drawn[each] for each in ("steps", "amounts", "matrix"))
    branches = layer._branches(OPS)
    for i in range(12):
        pixels = keras.ops.convert_to_tensor(x[i : i + 1])
        for k in range(2):
            pixels = branches[int(steps[i, k])](pixels, amounts[i : i + 1, k], matrix[i : i + 1])
        np.testing.assert_allclose(got[i], numpy(pixels)[0], atol=2e-2)
    assert got.min() >= 0
    assert got.max() <= 255


def test_two_operations_that_move_pixels_resample_once():
    layer = One(num_ops=2, factor=1.0)
    layer.which = OPERATIONS.index("rotation")  # half a turn, twice
    drawn = draw(layer, 2, (8, 10))
    np.testing.assert_allclose(numpy(drawn["matrix"]), np.broadcast_to(np.eye(3), (2, 3, 3)), atol=1e-4)
    np.testing.assert_array_equal(numpy(drawn["steps"]), [[1, 0], [1, 0]])


def test_no_strength_and_no_operations_change_nothing():
    x = images(4, 8, 6, 3)
    np.testing.assert_array_equal(numpy(RandAugment(num_ops=0)(x, training=True)), x)
    still = [each for each in OPERATIONS if each not in ("auto_contrast", "equalization")]
    layer = One(num_ops=1)
    layer.strength = lambda xp, draws: draws.uniform(0.0, 0.0)
    for name in still:
        layer.which = OPERATIONS.index(name)
        got = layer.transform(OPS, keras.ops.convert_to_tensor(x), draw(layer, 4, (8, 6)))
        np.testing.assert_allclose(numpy(got), x, atol=1e-2, err_msg=name)


def test_without_leaves_the_images_alone():
    x = keras.ops.convert_to_tensor(images(4, 8, 6, 3))
    layer = RandAugment(num_ops=2)
    kept = keras.ops.convert_to_tensor(np.array([True, False, True, False]))
    got = numpy(layer.transform(OPS, x, layer.without(OPS, draw(layer, 4, (8, 6)), kept)))
    np.testing.assert_array_equal(got[[1, 3]], numpy(x)[[1, 3]])


def test_boxes_and_masks_follow_the_geometry():
    layer = One(num_ops=1, bounding_box_format="xyxy", seed=1)
    layer.which = OPERATIONS.index("rotation")  # half a turn
    mask = np.zeros((1, 8, 10, 1), "uint8")
    mask[0, 1:3, 2:6] = 1
    boxes = {"boxes": np.array([[[2.0, 1.0, 6.0, 3.0]]], "float32"), "labels": np.array([[1]])}
    data = {"images": images(1, 8, 10, 3), "segmentation_masks": mask, "bounding_boxes": boxes}
    result = layer(data, training=True)
    np.testing.assert_array_equal(numpy(result["segmentation_masks"]), mask[:, ::-1, ::-1])
    np.testing.assert_allclose(numpy(result["bounding_boxes"]["boxes"]), [[[4.0, 5.0, 8.0, 7.0]]], atol=1e-3)


def test_in_a_pipeline_and_in_a_model(backend):
    """One layer and few shapes: it is the one that takes seconds to compile."""
    tf = pytest.importorskip("tensorflow")
    x = images(4, 8, 6, 3).astype("uint8")
    layer = RandAugment(seed=1, dtype="uint8")
    (batch,) = tf.data.Dataset.from_tensor_slices(x).batch(4).map(layer)
    assert batch.dtype == tf.uint8
    assert batch.shape == x.shape
    sizes = tf.data.Dataset.from_generator(
        lambda: (x[i, : 5 + i] for i in range(3)), output_signature=tf.TensorSpec((None, None, 3), "uint8")
    )
    assert [image.shape[0] for image in sizes.map(layer)] == [5, 6, 7]
    inside = RandAugment(seed=1)
    pool = keras.layers.GlobalAveragePooling2D()
    model = keras.Sequential([keras.Input((8, 6, 3)), inside, pool, keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=backend != "torch")
    model.fit(x.astype("float32") / 255.0, np.zeros((4, 1)), batch_size=4, verbose=0)
    assert tuple(inside(np.zeros((0, 8, 6, 3)), training=True).shape) == (0, 8, 6, 3)


def test_no_images_of_an_unknown_number_under_jit(backend):
    if backend != "tensorflow":
        pytest.skip("only a graph of TensorFlow does not know how many images there are")
    import tensorflow as tf

    layer, twin = RandAugment(num_ops=1, seed=1), RandAugment(num_ops=1, seed=1)
    call = tf.function(
        lambda x: layer(x, training=True), jit_compile=True, input_signature=[tf.TensorSpec((None, 4, 5, 1))]
    )
    x = images(3, 4, 5, 1)
    np.testing.assert_allclose(numpy(call(x)), numpy(twin(x, training=True)), atol=1e-3)
    assert tuple(call(x[:0]).shape) == (0, 4, 5, 1)


def test_the_gradient_goes_through_the_loop(backend):
    x = keras.ops.convert_to_tensor(images(3, 4, 5, 3))
    layer = One(num_ops=2)
    layer.which = OPERATIONS.index("contrast")  # keeps the mean
    drawn = draw(layer, 3, (4, 5))

    compiled = Compiled(layer.transform)

    def total(x):
        return keras.ops.sum(compiled(OPS, x * 0.1 + 120.0, drawn))

    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            y = total(x)
        found = tape.gradient(y, x)
    elif backend == "jax":
        import jax

        found = jax.grad(total)(x)
    else:
        x.requires_grad_()
        total(x).backward()
        found = x.grad
    np.testing.assert_allclose(numpy(found), 0.1, rtol=1e-3)


def test_arguments_and_channels_are_checked():
    with pytest.raises(ValueError, match="`num_ops` must be an int >= 0"):
        RandAugment(num_ops=-1)
    with pytest.raises(ValueError, match=r"`factor` must lie in \[0, 1\]"):
        RandAugment(factor=1.5)
    with pytest.raises(ValueError, match="RandAugment: images must have 1 or 3 channels. Received: 2"):
        RandAugment()(np.zeros((1, 4, 4, 2)), training=True)
    assert set(OPERATIONS) <= {*operations.GEOMETRIC, *operations.VALUES}
    layer = RandAugment(factor=(0.1, 0.2), num_ops=3, fill_mode="constant", fill_value=7.0, seed=4)
    assert RandAugment.from_config(layer.get_config()).get_config() == layer.get_config()
