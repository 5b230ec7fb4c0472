"""What every augmentation layer keeps: shapes, ranges and dtypes, wherever a Keras layer works, and its own file."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops

import tf_tricks.layers
from tests.contract.augmentation_rows import AUGMENTATIONS, COMMON, IMAGES, LABELS, SIDE, as_array, given, images_of

NAMES = sorted(AUGMENTATIONS)


@pytest.mark.parametrize("name", NAMES)
def test_images_keep_their_range_and_every_image_is_drawn_for(name):
    layer = AUGMENTATIONS[name].make(seed=1)
    mine = keras.tree.map_structure(lambda array: ops.convert_to_tensor(np.array(array)), given(name))
    results = [images_of(layer(mine, training=True)) for _ in range(3)]
    np.testing.assert_array_equal(as_array(images_of(mine)), IMAGES)  # Torch could write into what it was given
    side = AUGMENTATIONS[name].size
    for got in results:
        assert tuple(got.shape) == (len(IMAGES), side, side, 3)
        assert keras.backend.standardize_dtype(got.dtype) == "float32"
        assert 0.0 <= as_array(got).min() and as_array(got).max() <= 255.0 + 1e-3
        if keras.backend.backend() == "torch":
            got.add_(1.0)  # a result is no one else's, and each value has a place of its own
            np.testing.assert_array_equal(as_array(images_of(mine)), IMAGES)
            got.sub_(1.0)
    changed = [np.abs(as_array(got) - as_array(results[0])).max() for got in results[1:]]
    assert max(changed) > 0, "three calls drew the same"


@pytest.mark.parametrize("name", NAMES)
def test_at_rest_a_layer_hands_its_images_on(name):
    layer = AUGMENTATIONS[name].make()
    got = as_array(images_of(layer(given(name), training=False)))
    if AUGMENTATIONS[name].size == SIDE:
        np.testing.assert_array_equal(got, IMAGES)
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), AUGMENTATIONS[name].make()])
    side = AUGMENTATIONS[name].size
    assert model.output_shape == (None, side, side, 3)


@pytest.mark.parametrize("name", NAMES)
def test_bytes_come_out_as_bytes(name):
    layer = AUGMENTATIONS[name].make(dtype="uint8", seed=1)
    data = (
        {"images": IMAGES.astype("uint8"), "labels": LABELS} if AUGMENTATIONS[name].labels else IMAGES.astype("uint8")
    )
    got = images_of(layer(data, training=True))
    assert keras.backend.standardize_dtype(got.dtype) == "uint8"
    symbolic = layer(keras.Input(IMAGES.shape[1:], dtype="uint8"))
    assert keras.backend.standardize_dtype(symbolic.dtype) == "uint8"


@pytest.mark.parametrize("name", NAMES)
def test_config_round_trip(name):
    cls = getattr(tf_tricks.layers, name)
    assert keras.saving.get_registered_name(cls) == f"tf_tricks>{name}"
    config = AUGMENTATIONS[name].make(seed=3).get_config()
    assert set(own_parameters(cls)) <= set(config)
    assert cls.from_config(config).get_config() == config
    serialized = keras.saving.serialize_keras_object(AUGMENTATIONS[name].make(seed=3))
    assert keras.saving.deserialize_keras_object(serialized).get_config().keys() == config.keys()


def own_parameters(cls):
    return [p for p, kind in inspect.signature(cls).parameters.items() if kind.kind is not kind.VAR_KEYWORD]


def refusals():
    for name, row in sorted(AUGMENTATIONS.items()):
        parameters = own_parameters(getattr(tf_tricks.layers, name))
        own = {bad[0] for bad in row.bad} | set(row.any_value)
        common = [
            (argument, *each) for argument in parameters if argument not in own for each in COMMON.get(argument, [])
        ]
        for bad in [*row.bad, *common]:
            yield pytest.param(name, *bad, id=f"{name}-{bad[0]}-{bad[1]}")


@pytest.mark.parametrize(("name", "argument", "value", "error", "accepted"), list(refusals()))
def test_a_bad_argument_is_named_with_what_is_accepted_and_what_came(name, argument, value, error, accepted):
    with pytest.raises(error or (TypeError, ValueError)) as caught:
        AUGMENTATIONS[name].make(**{argument: value})
    said, _, received = str(caught.value).partition(" Received: ")
    assert said.startswith(f"`{argument}` must ")
    assert accepted in said
    assert f"{argument}={value!r}" in received


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_refuses_something(name):
    refused = {bad[0] for bad in AUGMENTATIONS[name].bad} | set(COMMON) | set(AUGMENTATIONS[name].any_value)
    assert set(own_parameters(getattr(tf_tricks.layers, name))) <= refused


@pytest.mark.parametrize("name", NAMES)
def test_no_image_is_no_error(name):
    empty = IMAGES[:0]
    data = {"images": empty, "labels": LABELS[:0]} if AUGMENTATIONS[name].labels else empty
    assert images_of(AUGMENTATIONS[name].make()(data, training=True)).shape[0] == 0


def test_a_model_with_layers_of_every_kind_trains_under_the_compiler_and_comes_back(tmp_path, backend):
    keras.utils.set_random_seed(0)
    members = [
        AUGMENTATIONS[name].make()
        for name in ("RandomFlip", "RandomRotation", "RandomZoom", "RandomColorJitter", "RandomGaussianNoise")
    ]
    body = [tf_tricks.layers.Augmentation([*members, AUGMENTATIONS["RandomErasing"].make()], seed=1)]
    body += [keras.layers.Rescaling(1 / 255), keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), *body, keras.layers.Dense(3)])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=backend != "torch")
    history = model.fit(IMAGES, LABELS, epochs=2, batch_size=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    wanted = model.predict(IMAGES, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(IMAGES, verbose=0), wanted)
    assert ops.shape(again.layers[0](IMAGES, training=True)) == IMAGES.shape
