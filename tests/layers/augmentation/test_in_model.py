"""A network with augmentation as its first layers trains, compiled as a whole where the backend can."""

import keras
import numpy as np
import pytest

from tf_tricks.layers import (
    Augmentation,
    RandAugment,
    RandomBrightness,
    RandomColorJitter,
    RandomErasing,
    RandomFlip,
    RandomGaussianNoise,
    RandomRotation,
    RandomZoom,
)

JITTER = {"brightness_factor": 0.2, "contrast_factor": 0.2, "saturation_factor": (0.3, 0.7), "hue_factor": 0.05}


def six_families():
    return [
        RandomFlip("horizontal"),
        RandomRotation(0.08),
        RandomZoom(0.2),
        RandomColorJitter(**JITTER),
        RandomGaussianNoise(0.05),
        RandomErasing(0.5, scale=(0.02, 0.1)),
    ]


def network(first):
    """One residual block behind the augmentation."""
    inputs = x = keras.Input((12, 12, 3))
    for layer in first:
        x = layer(x)
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(x)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    y = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, padding="same")(x))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(keras.layers.Add()([x, y])))
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def red_or_blue(count=64):
    rng = np.random.default_rng(0)
    labels = (np.arange(count) % 2).astype("int32")
    tint = np.array([[120, 0, 0], [0, 0, 120]])[labels]
    return (rng.uniform(0, 120, (count, 12, 12, 3)) + tint[:, None, None]).astype("float32"), labels


@pytest.mark.parametrize("form", ["one Augmentation", "six layers"])
def test_a_compiled_network_trains_with_six_families_inside(backend, form):
    members = six_families()
    model = network([Augmentation(members, seed=1)] if form == "one Augmentation" else members)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    compiled = backend != "torch"
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"], jit_compile=compiled)
    assert model.jit_compile == compiled
    images, labels = red_or_blue()
    model.fit(images, labels, batch_size=16, epochs=8, verbose=0)
    assert model.evaluate(images, labels, verbose=0, return_dict=True)["accuracy"] > 0.9
    # What is not training sees the images as they are: twice the same.
    first, second = (model.predict(images[:4], verbose=0) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_every_step_of_a_compiled_network_draws_anew(backend):
    images, labels = red_or_blue(16)
    losses = {}
    for name, first in (("bare", []), ("augmented", [Augmentation(six_families(), seed=1)])):
        keras.utils.set_random_seed(0)
        model = network(first)
        # Nothing is learnt, so that only what the augmentation draws can change the loss.
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.0), loss, jit_compile=backend != "torch")
        losses[name] = model.fit(images, labels, batch_size=16, epochs=4, shuffle=False, verbose=0).history["loss"]
    np.testing.assert_allclose(losses["bare"], losses["bare"][0], rtol=1e-5)
    assert len({round(each, 5) for each in losses["augmented"]}) == 4, losses


def test_layers_that_have_trained_are_exported(backend, tmp_path):
    if backend != "tensorflow":
        pytest.skip("a SavedModel is TensorFlow's")
    import tensorflow as tf

    layer = Augmentation([RandomFlip(), RandomBrightness(0.1)], seed=1)
    images, labels = red_or_blue(8)
    model = keras.Sequential([layer, keras.layers.Flatten(), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, labels, verbose=0)
    layer(np.zeros((2, 128, 128, 3), "float32"), training=True)  # image by image
    model.export(tmp_path / "exported", verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "exported"))
    assert loaded.serve(images).shape == (8, 2)  # Keras has augmentation go on in an exported model, also its own

    module = tf.Module()
    module.layer = layer
    module.serve = tf.function(lambda x: layer(x, training=False), input_signature=[tf.TensorSpec((None, 12, 12, 3))])
    tf.saved_model.save(module, str(tmp_path / "saved"))
    loaded = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_array_equal(loaded.serve(images), images)


def described(nest):
    """(shape without the batch, dtype) of each leaf."""
    if isinstance(nest, dict):
        return {key: described(each) for key, each in nest.items()}
    return tuple(nest.shape)[1:], keras.backend.standardize_dtype(nest.dtype)


def declared_and_found(layer, data):
    def inputs_like(name, nest):
        if isinstance(nest, dict):
            return {key: inputs_like(key, each) for key, each in nest.items()}
        return keras.Input(nest.shape[1:], dtype=str(nest.dtype), name=name)

    inputs = inputs_like("", data)
    outputs = layer(inputs)
    return described(outputs), described(keras.Model(inputs, outputs)(data, training=True))


@pytest.mark.parametrize(
    "layer",
    [
        lambda: RandomFlip(bounding_box_format="xyxy"),
        lambda: RandAugment(bounding_box_format="xyxy"),
        lambda: Augmentation([RandomFlip(bounding_box_format="xyxy"), RandomBrightness(0.1)]),
    ],
    ids=["RandomFlip", "RandAugment", "Augmentation"],
)
def test_boxes_and_keypoints_have_the_declared_dtype(layer, uncompiled):
    data = {
        "images": np.zeros((2, 8, 8, 3), "float32"),
        "bounding_boxes": {"boxes": np.ones((2, 1, 4), "int32"), "labels": np.ones((2, 1), "int32")},
        "keypoints": np.ones((2, 2, 2), "int32"),
    }
    declared, found = declared_and_found(layer(), data)
    assert declared["keypoints"] == ((2, 2), "float32")
    assert found == declared


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_masks_and_boxes_have_the_declared_shape_after_members_of_keras(data_format, uncompiled):
    crop = keras.layers.RandomCrop(4, 6, bounding_box_format="xyxy", data_format=data_format)
    layer = Augmentation([crop, RandomBrightness(0.1)], data_format=data_format)
    masks = (8, 8, 1) if data_format == "channels_last" else (1, 8, 8)
    shape = (8, 8, 3) if data_format == "channels_last" else (3, 8, 8)
    data = {
        "images": np.zeros((2, *shape), "float32"),
        "segmentation_masks": np.ones((2, *masks), "int32"),
        "bounding_boxes": {"boxes": np.ones((2, 1, 4), "int32"), "labels": np.ones((2, 1), "int32")},
    }
    declared, found = declared_and_found(layer, data)
    assert found == declared
