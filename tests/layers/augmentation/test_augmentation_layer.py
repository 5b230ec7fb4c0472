"""What every augmentation layer does with its inputs, shown on a small one of its own and on one of each kind."""

import copy
import pickle

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation import (
    Augmentation,
    CutMix,
    MixUp,
    RandomBrightness,
    RandomCrop,
    RandomFlip,
    RandomRotation,
    _compiled,
)
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws
from tf_tricks.layers.augmentation.augmentation_layer import AugmentationLayer

KINDS = [
    pytest.param(lambda **kw: RandomFlip(**kw), id="flip"),
    pytest.param(lambda **kw: RandomRotation(0.1, **kw), id="rotation"),
    pytest.param(lambda **kw: RandomBrightness(0.3, **kw), id="brightness"),
    pytest.param(lambda **kw: MixUp(0.5, **kw), id="mix_up"),
]


class AddNumber(AugmentationLayer):
    """Adds a number from 0 to 9 of its own to each image, and keeps it."""

    def draw(self, xp, draws, size):
        return {"number": xp.cast(draws.integers(0, 10), "float32")}

    def transform(self, xp, images, parameters):
        return xp.cast(images, "float32") + parameters["number"][:, None, None, None]

    def transform_others(self, xp, others, parameters, size):
        return {**others, "labels": parameters["number"]}


def images(*shape, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 246, shape).astype(dtype)


def numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_images_and_their_dtype(make, dtype):
    x = keras.ops.convert_to_tensor(images(4, 8, 6, 3, dtype=dtype))
    layer = make(seed=1)
    assert keras.backend.standardize_dtype(layer(x, training=True).dtype) == "float32"
    rest = layer(x, training=False)
    np.testing.assert_array_equal(numpy(rest), numpy(x).astype("float32"))
    rounded = numpy(make(seed=1, dtype="uint8")(x, training=True))
    assert rounded.dtype == "uint8"
    np.testing.assert_allclose(rounded, np.clip(numpy(make(seed=1)(x, training=True)), 0, 255), atol=0.5001)


@pytest.mark.parametrize("make", KINDS)
def test_one_image_no_image_and_one_pixel(make):
    layer = make(seed=1)
    assert tuple(layer(images(8, 6, 3), training=True).shape) == (8, 6, 3)
    assert tuple(layer(images(0, 8, 6, 3), training=True).shape) == (0, 8, 6, 3)
    assert tuple(layer(images(2, 1, 1, 3), training=True).shape) == (2, 1, 1, 3)


@pytest.mark.parametrize("make", KINDS)
def test_channels_first_is_channels_last_transposed(make):
    x = images(4, 8, 6, 3)
    last = numpy(make(seed=1)(x, training=True))
    first = make(seed=1, data_format="channels_first")(x.transpose(0, 3, 1, 2), training=True)
    np.testing.assert_allclose(numpy(first).transpose(0, 2, 3, 1), last, atol=1e-3)


@pytest.mark.parametrize("make", KINDS)
def test_a_seed_gives_the_same_sequence_of_results(make):
    x = images(6, 8, 6, 3)
    one, other = make(seed=5), make(seed=5)
    pairs = [(numpy(one(x, training=True)), numpy(other(x, training=True))) for _ in range(2)]
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(pairs[0][0], pairs[1][0])
    assert not np.array_equal(numpy(make(seed=6)(x, training=True)), pairs[0][0])


def test_integers_are_rounded_and_clipped_to_what_they_hold():
    x = np.array([0.6, 200.3, -4e9, 4e9, 3.0], "float32").reshape(1, 1, 5, 1)
    most = 2**31 - 128  # the greatest float32 that an int32 holds
    for dtype, expected in (("int16", [1, 200, -(2**15), 2**15 - 1, 3]), ("int32", [1, 200, -(2**31), most, 3])):
        got = numpy(AddNumber(dtype=dtype)(x, training=False))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got.ravel(), expected)
    wide = np.array([70_001, -5], "int32").reshape(1, 1, 2, 1)
    assert numpy(AddNumber(dtype="int16")(wide, training=False)).ravel().tolist() == [2**15 - 1, -5]


def test_layers_of_two_classes_with_one_seed_draw_different_numbers():
    class Other(AddNumber):
        pass

    x = np.zeros((64, 2, 2, 1), "float32")
    one, other = (numpy(cls(seed=3)(x, training=True))[:, 0, 0, 0] for cls in (AddNumber, Other))
    assert 0.0 < np.mean(one == other) < 0.4  # a tenth of equal ones is chance


@pytest.mark.parametrize("make", KINDS)
def test_config_pickle_and_copy(make):
    layer = make(seed=2)
    x = images(4, 8, 6, 3)
    for each in (type(layer).from_config(layer.get_config()), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(numpy(each(x, training=True)), numpy(make(seed=2)(x, training=True)))


def test_what_belongs_to_the_images_gets_the_same_numbers():
    data = {"images": np.zeros((5, 4, 4, 1), "float32"), "labels": np.arange(5)}
    result = AddNumber(seed=1)(data, training=True)
    np.testing.assert_array_equal(numpy(result["images"])[:, 0, 0, 0], numpy(result["labels"]))
    assert numpy(result["labels"]).max() > 0
    one = AddNumber(seed=1)({"images": data["images"][0], "labels": np.int32(3)}, training=True)
    assert tuple(one["labels"].shape) == ()
    assert float(one["labels"]) == numpy(one["images"])[0, 0, 0]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((4, 4)), r"AddNumber: images must have shape \(height, width, channels\).*shape \(4, 4\)"),
        ({"labels": np.zeros(3)}, "must have the key 'images'. Received: the keys labels"),
        ({"images": np.zeros((1, 2, 2, 3)), "boxes": np.zeros(3)}, "the keys are images, labels.*Received: 'boxes'"),
    ],
)
def test_what_is_no_image_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        AddNumber()(data, training=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 2**31}, "`seed` must be an int in"),
        ({"seed": -1}, "`seed` must be an int >= 0"),
        ({"data_format": "channels"}, "`data_format` must be one of"),
        ({"value_range": (1, 0)}, "`value_range` must be a pair"),
        ({"value_range": (-1, 1), "dtype": "uint8"}, "`dtype` must be a float.*dtype='uint8', value_range="),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        AddNumber(**arguments)


# --- in tf.data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [*KINDS, pytest.param(lambda **kw: CutMix(**kw), id="cut_mix")])
def test_in_tf_data_by_batch_by_image_and_with_ragged_sizes(make):
    tf = pytest.importorskip("tensorflow")
    x, y = images(6, 8, 6, 3), np.eye(6, dtype="float32")
    layer = make(seed=1)
    batches = list(tf.data.Dataset.from_tensor_slices({"images": x, "labels": y}).batch(4).map(layer))
    assert [tuple(batch["images"].shape) for batch in batches] == [(4, 8, 6, 3), (2, 8, 6, 3)]
    assert not np.array_equal(batches[0]["images"].numpy(), x[:4])
    each = list(tf.data.Dataset.from_tensor_slices(x).map(layer))
    assert tuple(each[0].shape) == (8, 6, 3)

    def sizes():
        for i in range(3):
            yield images(5 + i, 7, 3)

    ragged = tf.data.Dataset.from_generator(sizes, output_signature=tf.TensorSpec((None, None, 3), "uint8"))
    assert [tuple(image.shape) for image in ragged.map(layer)] == [(5, 7, 3), (6, 7, 3), (7, 7, 3)]


def test_in_tf_data_the_numbers_change_and_a_seed_repeats_them():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(np.zeros((40, 2, 2, 1), "float32"))
    runs = [[float(image[0, 0, 0]) for image in data.map(AddNumber(seed=7))] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 5


def test_tensors_of_unknown_rank_are_refused_in_tf_data():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(np.zeros((2, 4, 4, 1), "float32"))
    unknown = data.map(lambda image: tf.py_function(lambda value: value, [image], tf.float32))
    with pytest.raises(ValueError, match="unknown rank; call its"):
        unknown.map(AddNumber())


def test_many_sizes_and_batches_are_not_all_compiled(backend, monkeypatch):
    if backend != "tensorflow":
        pytest.skip("JAX compiles each operation for each size anyhow, Torch none")
    compiled = []

    class Spy(AddNumber):
        def transform(self, xp, images, parameters):
            compiled.append(_compiled.is_compiling())
            return super().transform(xp, images, parameters)

    layer = Spy(seed=1)
    monkeypatch.setattr(_compiled, "MOST_SIZES", 3)
    for shape in [(1, 2, 2, 1), (2, 2, 2, 1), (3, 2, 2, 1), (4, 2, 2, 1), (1, 3, 2, 1)]:
        assert layer(np.zeros(shape, "float32"), training=True).shape == shape
    assert compiled.count(False) == 2


# --- in several copies at a time -------------------------------------------------------------------------------------


def test_each_replica_draws_numbers_of_its_own(mirrored_strategy):
    import tensorflow as tf

    x = np.zeros((32, 2, 2, 1), "float32")
    with mirrored_strategy.scope():
        layer = AddNumber(seed=1)
    run = tf.function(lambda: mirrored_strategy.run(lambda: layer(x, training=True)))
    one, other = (each.numpy()[:, 0, 0, 0] for each in mirrored_strategy.experimental_local_results(run()))
    np.testing.assert_array_equal(one, numpy(AddNumber(seed=1)(x, training=True))[:, 0, 0, 0])
    assert np.mean(one == other) < 0.4  # a tenth of equal ones is chance


def test_a_batch_over_several_devices_draws_what_it_draws_on_one(data_parallel):
    x = np.zeros((32, 2, 2, 1), "float32")
    expected = numpy(AddNumber(seed=1)(x, training=True))
    with data_parallel.scope():
        x = keras.distribution.distribute_tensor(x, data_parallel.get_data_layout(x.shape))
        found = AddNumber(seed=1)(x, training=True)
    assert len(x.sharding.device_set) == 4
    np.testing.assert_array_equal(numpy(found), expected)


class Drawn:
    """A data set of numbers that a layer drew where it was asked, for a loader with processes of its own."""

    def __init__(self, layer):
        self.layer = layer

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.layer(np.full((1, 1, 1), 128, "float32"), training=True).reshape(())


def test_each_process_of_a_loader_draws_numbers_of_its_own_in_each_epoch(backend):
    if backend != "torch":
        pytest.skip("the loader is Torch's")
    import torch

    def epochs():
        torch.manual_seed(0)
        loader = torch.utils.data.DataLoader(Drawn(RandomBrightness(0.4, seed=1)), num_workers=2, batch_size=1)
        return [[float(each) for each in loader] for _ in range(2)]

    one, other = epochs()
    assert len(set(one + other)) == 16
    assert epochs() == [one, other]


# --- in a model ------------------------------------------------------------------------------------------------------


def small_model(layer, dtype="float32"):
    return keras.Sequential(
        [
            keras.Input((8, 6, 3), dtype=dtype),
            layer,
            keras.layers.Rescaling(1 / 255.0),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1),
        ]
    )


@pytest.mark.parametrize("make", KINDS)
def test_trains_under_jit_and_survives_a_file(make, tmp_path, backend):
    x = images(8, 8, 6, 3, dtype="float32")
    model = small_model(make(seed=1))
    model.compile("sgd", "mse", jit_compile=backend != "torch")
    model.fit(x, np.zeros((8, 1)), batch_size=4, verbose=0)
    before = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), before, rtol=1e-5)


def test_mixed_precision_and_uint8_inputs(backend):
    keras.config.set_dtype_policy("mixed_float16")
    layer = RandomBrightness(0.2, seed=1)
    assert keras.backend.standardize_dtype(layer(images(2, 8, 6, 3), training=True).dtype) == "float16"
    model = small_model(RandomFlip(dtype="uint8"), dtype="uint8")
    assert model.layers[0].output.dtype == "uint8"
    model.compile("sgd", "mse", jit_compile=backend != "torch")
    model.fit(images(4, 8, 6, 3), np.zeros((4, 1)), verbose=0)


def test_a_layer_used_twice_in_a_model_draws_twice():
    layer = AddNumber(seed=1)
    inputs = keras.Input((2, 2, 1))
    model = keras.Model(inputs, [layer(inputs), layer(inputs)])
    one, two = (numpy(each)[:, 0, 0, 0] for each in model(np.zeros((32, 2, 2, 1), "float32"), training=True))
    assert 0 < np.sum(one != two)


def test_a_dict_goes_through_a_functional_model():
    inputs = {"images": keras.Input((8, 6, 3), name="images"), "labels": keras.Input((), dtype="int32", name="labels")}
    outputs = MixUp(num_classes=3, seed=1)(inputs)
    assert outputs["labels"].shape == (None, 3)
    data = {"images": images(4, 8, 6, 3), "labels": np.array([0, 1, 2, 1])}
    result = keras.Model(inputs, outputs)(data, training=True)
    np.testing.assert_allclose(numpy(result["labels"]).sum(axis=1), 1.0, rtol=1e-5)


def gradient(function, x):
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return tape.gradient(y, x).numpy()
    if backend == "jax":
        import jax

        return np.asarray(jax.grad(function)(x))
    import torch

    x = torch.tensor(x, requires_grad=True)
    function(x).backward()
    return x.grad.numpy()


@pytest.mark.parametrize("make", KINDS)
def test_the_gradient_reaches_the_images(make):
    layer = make(seed=1)
    if keras.backend.backend() == "jax":  # the seed must not change while JAX traces
        layer.build((3, 6, 6, 3))
        state = [each.value for each in layer.non_trainable_variables]
        call = lambda x: layer.stateless_call([], state, x, training=True)[0]  # noqa: E731
    else:
        call = lambda x: layer(x, training=True)  # noqa: E731
    found = gradient(lambda x: keras.ops.sum(call(x)), images(3, 6, 6, 3, dtype="float32"))
    assert found.shape == (3, 6, 6, 3)
    assert np.isfinite(found).all()
    assert np.abs(found).sum() > 0


def test_numbers_of_members_do_not_depend_on_each_other():
    key = keras.ops.convert_to_tensor(np.array([1, 2], "int32"))
    used = Draws(OPS, key, 1000)
    used.uniform()
    fresh = [numpy(Draws(OPS, key, 1000).child(i).uniform()) for i in range(3)]
    np.testing.assert_array_equal(numpy(used.child(1).uniform()), fresh[1])
    assert np.abs(np.corrcoef(fresh) - np.eye(3)).max() < 0.1


# --- at rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda **kw: Augmentation([RandomFlip(), MixUp(num_classes=3)], **kw), MixUp])
def test_at_rest_the_axes_stay_where_they_are(make, monkeypatch):
    layer = make(data_format="channels_first")
    monkeypatch.setattr(layer, "_channels_last", lambda *_: pytest.fail("two transpositions for nothing"))
    data = {"images": images(4, 3, 8, 6, dtype="float32"), "labels": np.array([0, 1, 2, 1])}
    got = layer(data, training=False)
    np.testing.assert_array_equal(numpy(got["images"]), data["images"])
    if isinstance(layer, Augmentation):
        np.testing.assert_array_equal(numpy(got["labels"]), np.eye(3)[data["labels"]])


# --- masks, channels first -------------------------------------------------------------------------------------------


def as_first(x):
    return x.transpose(0, 3, 1, 2)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("kind", ["images", "tf.data, compiled", "symbols"])
@pytest.mark.parametrize("name", ["RandomCrop", "CutMix", "Augmentation"])
def test_masks_are_channels_first_where_the_images_are(name, kind):
    def make(data_format):
        if name == "Augmentation":
            return Augmentation([RandomCrop(5, 4), RandomBrightness(0.2)], seed=1, data_format=data_format)
        layer = {"RandomCrop": lambda **kw: RandomCrop(5, 4, **kw), "CutMix": CutMix}[name]
        return layer(seed=1, data_format=data_format)

    x = images(4, 8, 6, 3, dtype="float32")
    masks = np.stack([x[..., 0] > 120, x[..., 1] > 120], axis=-1).astype("int32")
    last, first = make("channels_last"), make("channels_first")
    expected = last({"images": x, "segmentation_masks": masks}, training=True)
    data = {"images": as_first(x), "segmentation_masks": as_first(masks)}
    if kind == "images":
        got = first(data, training=True)
        still = make("channels_first")(data, training=False)["segmentation_masks"]
        rest = make("channels_last")({"images": x, "segmentation_masks": masks}, training=False)["segmentation_masks"]
        np.testing.assert_array_equal(numpy(still), as_first(numpy(rest)))
    elif kind == "tf.data, compiled":
        tf = pytest.importorskip("tensorflow")
        shapes = {"images": (3, None, None), "segmentation_masks": (2, None, None)}
        signature = {key: tf.TensorSpec(shape, data[key].dtype) for key, shape in shapes.items()}
        rows = [{key: value[i] for key, value in data.items()} for i in range(4)]
        found = tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)
        got = next(iter(found.batch(4).map(first)))
        got = {key: value.numpy() for key, value in got.items()}
    else:
        symbols = {key: keras.Input(value.shape[1:], dtype=value.dtype.name) for key, value in data.items()}
        got = first(symbols)
        assert got["segmentation_masks"].shape[1:] == as_first(numpy(expected["segmentation_masks"])).shape[1:]
        return
    for key in ("images", "segmentation_masks"):
        one = got[key] if isinstance(got[key], np.ndarray) else numpy(got[key])
        np.testing.assert_allclose(one, as_first(numpy(expected[key])), atol=1e-2)
