"""Image by image on a CPU, where XLA compiles and on Torch: the result of all at once, with steps kept apart."""

import types

import keras
import numpy as np
import pytest

from tests.contract.augmentation_rows import AUGMENTATIONS
from tf_tricks.layers.augmentation import (
    Augmentation,
    CutMix,
    MixUp,
    RandAugment,
    RandomBrightness,
    RandomColorJitter,
    RandomContrast,
    RandomCrop,
    RandomErasing,
    RandomFlip,
    RandomGaussianBlur,
    RandomGaussianNoise,
    RandomGrayscale,
    RandomPerspective,
    RandomRotation,
    RandomTranslation,
    _compiled,
    _kernels,
    _loops,
)
from tf_tricks.layers.augmentation._namespaces import OPS, namespace_of

JITTER = {"brightness_factor": 0.2, "contrast_factor": 0.5, "saturation_factor": (0.3, 0.7), "hue_factor": 0.2}
LAYERS = {
    "pipeline": lambda **kw: Augmentation(
        [RandomFlip(), RandomRotation(0.1), RandomColorJitter(**JITTER), RandomGaussianNoise(0.1), RandomErasing()],
        probability=[1, 0.5, 0.5, 1, 1],
        **kw,
    ),
    "blur": lambda **kw: RandomGaussianBlur((1.0, 1.0), kernel_size=(3, 5), sigma=2.0, **kw),
    "contrast": lambda **kw: RandomContrast(0.9, **kw),
    "mixed at the end": lambda **kw: Augmentation([RandomRotation(0.1), RandomContrast(0.5), MixUp(0.5)], **kw),
    "mixed at first": lambda **kw: Augmentation([MixUp(0.5), RandomContrast(0.5), RandomRotation(0.1)], **kw),
    "Keras within": lambda **kw: Augmentation(
        [RandomRotation(0.1), RandomBrightness(0.1), keras.layers.Rescaling(0.5), RandomRotation(0.1), RandAugment()],
        **kw,
    ),
}


def images(batch=6, shape=(10, 12, 3), dtype="float32"):
    return np.random.default_rng(0).uniform(0, 255, (batch, *shape)).astype(dtype)


def augmented(layer, x):
    return keras.ops.convert_to_numpy(layer(x, training=True))


@pytest.fixture
def turns_of(monkeypatch):
    """Have a turn take so many images of 10x12x3, 0 for no loop; returns a list of the steps kept apart."""
    kept_apart, apart = [], _loops.apart

    def spy(*args):
        kept_apart.append(args)
        return apart(*args)

    def set_to(count):
        monkeypatch.setattr(_loops, "LEAST_VALUES", 1 if count else 10**9)
        monkeypatch.setattr(_loops, "MOST_VALUES", 360 * max(count, 1))
        monkeypatch.setattr(_loops, "CACHED_VALUES", 0)
        monkeypatch.setattr(_loops, "apart", spy)
        return kept_apart

    return set_to


@pytest.mark.parametrize(
    ("name", "count"), [("pipeline", 1), ("pipeline", 6), *((name, 4) for name in LAYERS)]
)  # of six images 4 at most are 3
def test_images_in_turns_are_what_they_are_together(name, count, turns_of):
    for dtype in ("float32", "uint8"):
        turns_of(0)
        together = augmented(LAYERS[name](seed=3, dtype=dtype), images(dtype=dtype))
        steps = turns_of(count)
        layer = LAYERS[name](seed=3, dtype=dtype)
        found = augmented(layer, images(dtype=dtype))
        assert found.dtype == together.dtype == dtype
        error = np.abs(found.astype("float32") - together)
        assert error.max() <= (0.01 if dtype == "float32" else 1)
        if name in ("pipeline", "blur"):
            assert bool(steps) == (keras.backend.backend() != "torch")
        assert np.abs(found.astype("float32") - images(dtype=dtype)).max() > 5


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's loops are slow")
def test_a_layer_alone_takes_no_turns_for_a_batch_in_the_cache(turns_of, monkeypatch):
    monkeypatch.setattr(RandomColorJitter, "_settled", lambda self, xp, change, pixels: change(pixels))
    for cached in (True, False):
        steps = turns_of(1)
        steps.clear()
        monkeypatch.setattr(_loops, "CACHED_VALUES", 6 * 360 if cached else 6 * 360 - 1)
        augmented(RandomColorJitter(**JITTER), images())
        assert bool(steps) != cached


ALONE = {
    "flip": RandomFlip,
    "crop": lambda **kw: RandomCrop(7, 8, **kw),
    "rotation": lambda **kw: RandomRotation(0.1, **kw),
    "grayscale": RandomGrayscale,
    "erasing": lambda **kw: RandomErasing(fill_value=(1, 2, 3), **kw),
    "mixup": MixUp,
    "cutmix": lambda **kw: CutMix((1.0, 1.0), **kw),
    "sometimes": lambda **kw: Augmentation([RandomBrightness((0.2, 0.2))], probability=0.5, **kw),
}


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="only Python takes turns for these alone")
@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_in_python_every_layer_takes_turns(name, data_format, turns_of, monkeypatch):
    axes = (0, 3, 1, 2) if data_format == "channels_first" else (0, 1, 2, 3)
    turns, put_together = [], _loops._put_together
    monkeypatch.setattr(_loops, "_put_together", lambda *args: turns.append(args[2]) or put_together(*args))
    for dtype in ("float32", "uint8"):
        x = images(dtype=dtype).transpose(axes)
        turns_of(0)
        together = augmented(ALONE[name](seed=3, dtype=dtype, data_format=data_format), x)
        assert not turns
        for count in (1, 4):  # of six images: the last turn takes two
            turns_of(count)
            found = augmented(ALONE[name](seed=3, dtype=dtype, data_format=data_format), x)
            assert turns.pop() == count
            np.testing.assert_allclose(found, together, atol=0.01 if dtype == "float32" else 1)
            assert found.dtype == dtype
        differs = (found != x).reshape(6, -1).any(axis=1) if found.shape == x.shape else np.array([True])
        assert differs.any()


def test_members_of_others_see_the_images_as_they_are(turns_of):
    seen = []

    class Spy(keras.layers.Layer):
        def call(self, x):
            if tuple(x.shape) == (6, 10, 12, 3):  # Keras asks for the shape of what comes out with others
                seen.append(keras.backend.standardize_dtype(x.dtype))
            return x

    for count in (0, 1):
        turns_of(count)
        layer = Augmentation([RandomFlip(), Spy(dtype="uint8")], seed=1, dtype="uint8")
        augmented(layer, images(dtype="uint8"))
    assert set(seen) == {"uint8"}


on_torch = pytest.mark.skipif(keras.backend.backend() != "torch", reason="Torch's own ways to call a layer")


def tensor_and_layers():
    layers = [RandomFlip(seed=1), CutMix(seed=1), RandomGrayscale(seed=1)]
    layers.append(RandomColorJitter(**JITTER, mode="matrix", seed=1))
    layers.append(Augmentation([RandomBrightness(0.1), RandomGaussianNoise(0.1)], seed=1, probability=0.5))
    return keras.ops.convert_to_tensor(images()), layers


@on_torch
@pytest.mark.parametrize("count", [0, 1])
def test_autocast_and_strict_numpy_change_nothing(count, turns_of):
    import torch

    turns_of(count)
    x, layers = tensor_and_layers()
    expected = [augmented(layer, x) for layer in layers]
    for layer, result in zip(tensor_and_layers()[1], expected, strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16), np.errstate(all="raise"):
            np.testing.assert_array_equal(augmented(layer, x), result)
    with np.errstate(all="raise"):
        assert np.isfinite(augmented(MixUp(1e-40, seed=1), x)).all()


@on_torch
def test_autocast_changes_no_matrix_drawn_on_the_device():
    import torch

    key = torch.tensor([3, 0], dtype=torch.int32)
    for layer in (
        Augmentation([RandomRotation(0.1), RandomTranslation(0.2, 0.2)], seed=3),
        RandomPerspective(seed=3),
        RandAugment(seed=3),
    ):
        expected = layer._draw(OPS, tensor_and_layers()[0], key)[0]["matrix"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer._draw(OPS, tensor_and_layers()[0], key)[0]["matrix"], expected)


@on_torch
@pytest.mark.parametrize("count", [0, 1])
def test_a_layer_is_mapped_over_batches(count, turns_of):
    import torch

    turns_of(count)
    x, layers = tensor_and_layers()
    for i, other in enumerate(layers):
        found = torch.vmap(lambda x: tensor_and_layers()[1][i](x, training=True))(torch.stack([x, x]))  # noqa: B023
        expected = augmented(other, x)
        np.testing.assert_allclose(found.numpy(), np.stack([expected, expected]), atol=1e-3)


@on_torch
@pytest.mark.parametrize("dtype", ["uint16", "uint32", "int16", "int64", "float16"])
def test_images_of_every_dtype_are_flipped(dtype):
    x = images().astype(dtype)
    found = augmented(RandomFlip("horizontal", seed=1, dtype=dtype), x)
    flipped = (found != x).any(axis=(1, 2, 3))
    assert 0 < flipped.sum() < len(x)
    np.testing.assert_array_equal(found, np.where(flipped[:, None, None, None], x[:, :, ::-1], x))


OF_COLOURS = {"RandomColorJitter", "RandomHue", "RandomSaturation", "RandomRGBShift"}


@on_torch
@pytest.mark.parametrize(
    ("name", "shape"),
    [(name, shape) for name in sorted(AUGMENTATIONS) for shape in ((3, 8, 8, 3), (1, 3, 8, 8))]
    + [(name, (1, 8, 8, 1)) for name in sorted(set(AUGMENTATIONS) - OF_COLOURS)],
)
def test_a_result_is_contiguous_and_no_one_elses(name, shape):
    import torch

    data_format = "channels_first" if shape[1] == 3 else "channels_last"
    for seed in range(4):  # in some nothing is drawn to happen
        x = torch.full(shape, 100.0)
        layer = AUGMENTATIONS[name].make(seed=seed, data_format=data_format)
        given = {"images": x, "labels": torch.eye(3)[: len(x)]} if AUGMENTATIONS[name].labels else x
        found = layer(given, training=True)
        found = found["images"] if AUGMENTATIONS[name].labels else found
        assert found.is_contiguous()
        found.add_(1.0)
        assert (x == 100.0).all()


@on_torch
@pytest.mark.parametrize("count", [0, 1])
def test_a_gradient_by_transformation_is_that_of_backward(count, turns_of):
    import torch

    turns_of(count)
    x, layers = tensor_and_layers()
    for i, other in enumerate(layers):
        # A generator of Keras made outside would not count.
        found = torch.func.grad(lambda x: (tensor_and_layers()[1][i](x, training=True) ** 2).sum())(x)  # noqa: B023
        given = x.clone().requires_grad_()
        (other(given, training=True) ** 2).sum().backward()
        assert torch.equal(found, given.grad)


DIFFERENTIABLE = sorted(set(AUGMENTATIONS) - {"RandAugment", "TrivialAugment"})  # they have steps


@on_torch
@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("count", [0, 1])
def test_the_gradient_is_that_of_central_differences(name, count, turns_of):
    import torch

    turns_of(count)
    shape = (4, 10, 12, 3)
    x, direction, weights = (torch.from_numpy(each) for each in np.random.default_rng(0).uniform(-1, 1, (3, *shape)))
    x, labels = (128 + 60 * x).to(torch.float32), torch.eye(4)

    def loss(x):
        layer = AUGMENTATIONS[name].make(seed=3)
        y = layer({"images": x, "labels": labels} if AUGMENTATIONS[name].labels else x, training=True)
        y = y["images"] if AUGMENTATIONS[name].labels else y
        return (y.to(torch.float64) * weights[:, : y.shape[1], : y.shape[2]]).sum()

    given = x.clone().requires_grad_()
    loss(given).backward()
    found = (given.grad.to(torch.float64) * direction).sum()
    step = (0.02 * direction).to(torch.float32)
    expected = (loss(x + step) - loss(x - step)) / 0.04
    assert abs(found) > 0.01
    assert abs(found - expected) < 0.02 * max(abs(expected), 1.0)


@pytest.mark.parametrize("which", [(0, 0, 0), (1, 1, 1), (0, 1, 1)])
@pytest.mark.parametrize("in_planes", [False, True])
def test_the_images_chosen_change_with_parameters_of_their_own(which, in_planes):
    x, which = keras.ops.convert_to_tensor(images(3)), np.array(which, bool)
    x = _kernels.planes(OPS, x) if in_planes else x
    amounts = keras.ops.convert_to_tensor([1.0, 2.0, 3.0])

    def change(pixels, parameters):
        return pixels + keras.ops.reshape(parameters["amounts"], (-1, 1, 1, 1))

    found = _loops.where(OPS, keras.ops.convert_to_tensor(which), change, x, {"amounts": amounts})
    expected = images(3) + (which * [1.0, 2.0, 3.0]).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), expected, rtol=1e-6)
    if keras.backend.backend() == "torch":
        assert _kernels.has_planes(OPS, found) == in_planes


@on_torch
def test_torch_compile_gives_the_same():
    import torch

    x, (*_, layer) = tensor_and_layers()
    compiled = torch.compile(lambda x: layer(x, training=True), backend="eager")
    np.testing.assert_allclose(compiled(x).numpy(), augmented(tensor_and_layers()[1][-1], x), atol=1e-3)


def test_channels_first_and_a_batch_of_one(turns_of):
    turns_of(1)
    layer, other = (LAYERS["pipeline"](seed=3, data_format=f"channels_{where}") for where in ("first", "last"))
    for batch in (3, 1):
        x = images(batch)
        expected = augmented(other, x)
        found = augmented(layer, x.transpose(0, 3, 1, 2))
        np.testing.assert_allclose(found.transpose(0, 2, 3, 1), expected, atol=0.01)


def of_shape(shape, device="cpu"):
    return types.SimpleNamespace(shape=shape, device=types.SimpleNamespace(type=device))


def test_how_many_images_a_turn_takes():
    in_python = keras.backend.backend() == "torch"
    if in_python:
        assert _loops.images_in_a_turn(OPS, of_shape((64, 224, 224, 3), "cuda")) == 0
    for shape, count in {
        (64, 224, 224, 3): 1,
        (None, 224, 224, 3): 1,
        (256, 32, 32, 3): 0 if in_python else 32,
        (None, 32, 32, 3): 0,  # one image alone is too few
        (512, 32, 32, 3): 32,
        (509, 32, 32, 3): 32 if in_python else 0,  # a prime: XLA's turns all take as many
        (8, 32, 32, 3): 0,  # few, and all in the cache
        (0, 224, 224, 3): 0,
        (4, 0, 224, 3): 0,
        (4, None, None, 3): 0,
    }.items():
        assert _loops.images_in_a_turn(OPS, of_shape(shape)) == count, shape


def test_the_gradient_goes_through_the_turns(turns_of):
    turns_of(1)
    layer = Augmentation([RandomFlip("horizontal"), RandomBrightness(0.1), RandomContrast(0.3)], seed=1)
    x = images(3) * 0.1 + 110.0  # nothing is clipped
    weights = np.random.default_rng(1).normal(size=(3, 1, 1, 3)).astype("float32")  # each image and channel its own
    if keras.backend.backend() == "jax":
        import jax

        layer.build(x.shape)
        state = [each.value for each in layer.non_trainable_variables]
        call = lambda x: keras.ops.sum(layer.stateless_call([], state, x, training=True)[0] * weights)  # noqa: E731
        found = np.asarray(jax.jit(jax.grad(call))(x))
    elif keras.backend.backend() == "torch":
        given = keras.ops.convert_to_tensor(x).requires_grad_()
        (layer(given, training=True) * keras.ops.convert_to_tensor(weights)).sum().backward()
        found = given.grad.numpy()
    else:
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def gradient(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(layer(x, training=True) * weights)
            return tape.gradient(y, x)

        found = gradient(tf.constant(x)).numpy()
    # A flip moves values, brightness adds, contrast keeps the mean: each sum is what it was.
    np.testing.assert_allclose(found.mean(axis=(1, 2)), weights[:, 0, 0], rtol=1e-3)


on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's functions")


@on_tensorflow
@pytest.mark.parametrize("mode", ["graph", "XLA", "eager"])
@pytest.mark.parametrize(
    ("name", "batch", "in_a_turn"),
    [
        ("flip and brightness", 3, 1),
        ("flip and brightness", 3, 0),
        ("flip and brightness", 1, 1),
        ("flip and brightness", None, 1),
        ("blur", None, 1),
        ("jitter", 3, 1),
    ],
)
def test_the_gradient_goes_through_a_layer_whatever_compiles_around_it(mode, name, batch, in_a_turn, turns_of):
    if batch is None and mode == "eager":
        pytest.skip("eager, the batch is known")
    import tensorflow as tf

    turns_of(in_a_turn)
    layer = {
        "flip and brightness": lambda: Augmentation([RandomFlip("horizontal"), RandomBrightness(0.1)], seed=1),
        "blur": lambda: RandomGaussianBlur((1.0, 1.0), 3, seed=1),
        "jitter": lambda: RandomColorJitter(brightness_factor=0.1, contrast_factor=0.1, seed=1),
    }[name]()
    x = images(batch or 3) * 0.1 + 110.0  # nothing is clipped
    weights = np.random.default_rng(1).normal(size=(len(x), 1, 1, 3)).astype("float32")

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(layer(x, training=True) * weights)
        return tape.gradient(y, x)

    if mode != "eager":
        spec = [tf.TensorSpec((batch, *x.shape[1:]))]
        gradient = tf.function(gradient, input_signature=spec, jit_compile=mode == "XLA")
    # A flip moves values, brightness adds, contrast keeps the mean, and so does a blur: each sum is what it was.
    found = gradient(tf.constant(x)).numpy().mean(axis=(1, 2))
    np.testing.assert_allclose(found, weights[:, 0, 0], rtol=1e-3, atol=1e-6)


@on_tensorflow
def test_the_gradient_has_a_gradient(turns_of):
    import tensorflow as tf

    turns_of(1)
    layer = Augmentation([RandomFlip("horizontal"), RandomBrightness(0.1)], seed=1)

    @tf.function
    def second(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(layer(x, training=True) ** 2)
            total = tf.reduce_sum(inner.gradient(y, x))
        return outer.gradient(total, x)

    np.testing.assert_allclose(second(tf.constant(images(3) * 0.1 + 110.0)), 2.0)


@on_tensorflow
def test_bytes_have_no_gradient():
    import tensorflow as tf

    layer, x = Augmentation([RandomFlip(), RandomBrightness(0.1)], seed=1, dtype="uint8"), tf.constant(images(2))
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.cast(layer(x, training=True), "float32")
    assert tape.gradient(y, x) is None


def test_tensorflow_loops_on_the_cpu_unless_it_sees_a_gpu(monkeypatch):
    tf = pytest.importorskip("tensorflow")
    seen = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["a GPU, hidden"])
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: seen)
    xp, shape = namespace_of(tf.zeros(())), (64, 224, 224, 3)
    assert _loops.images_in_a_turn(xp, of_shape(shape)) == 1
    seen.append("a GPU")
    in_pipeline = xp is not OPS  # `tf.data`, of another backend: on the CPU in any case
    assert _loops.images_in_a_turn(xp, of_shape(shape)) == in_pipeline


@on_tensorflow
def test_where_nothing_is_compiled_nothing_loops(turns_of, monkeypatch):
    import tensorflow as tf

    turns_of(1)
    loops, one_by_one = [], _loops.one_by_one
    monkeypatch.setattr(_loops, "one_by_one", lambda *args: loops.append(args) or one_by_one(*args))
    results = []
    for most in (16, 0):  # sizes that are compiled
        monkeypatch.setattr(_compiled, "MOST_SIZES", most)
        layer = Augmentation([RandomFlip(), RandomBrightness(0.1)], seed=1)
        results.append(tf.function(lambda x, layer=layer: layer(x, training=True))(tf.constant(images())).numpy())
        assert bool(loops) == (most > 0)
        loops.clear()
    np.testing.assert_allclose(*results, atol=0.01)
