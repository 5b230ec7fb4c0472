"""Beside scikit-learn's PCA on real data, and the definition of whitening."""

import keras
import numpy as np
import pytest
from sklearn import datasets, decomposition

from tf_tricks.layers import Whiten

to_numpy = keras.ops.convert_to_numpy


def images(shape=(40, 6, 4, 3), seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x + 2 * x.mean(axis=tuple(range(1, len(shape))), keepdims=True) + 5).astype("float32")


def same_up_to_sign(got, expected, atol):
    np.testing.assert_allclose(got * np.sign((got * expected).sum(axis=0)), expected, atol=atol)


@pytest.mark.parametrize(("load", "components"), [("breast_cancer", 30), ("diabetes", 10), ("wine", 5), ("digits", 40)])
def test_real_data_beside_scikit_learn(load, components):
    x = getattr(datasets, f"load_{load}")().data
    layer = Whiten(num_components=components)
    layer.adapt(x)
    pca = decomposition.PCA(components, whiten=True, svd_solver="full").fit(x)
    expected = pca.transform(x) * np.sqrt(len(x) / (len(x) - 1))  # scikit-learn divides by n - 1
    got = to_numpy(layer(x))
    same_up_to_sign(got, expected, atol=1e-5 if load != "breast_cancer" else 2e-4)
    back = pca.inverse_transform(pca.transform(x))
    np.testing.assert_allclose(to_numpy(layer.inverse(got)), back, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", ["pca", "zca"])
def test_the_outputs_are_white(kind):
    x = datasets.load_wine().data
    layer = Whiten(kind)
    layer.adapt(x)
    np.testing.assert_allclose(np.cov(to_numpy(layer(x)).T, bias=True), np.eye(13), atol=1e-4)
    assert layer.compute_output_shape((None, 13)) == (None, 13)


def test_zca_is_the_symmetric_square_root():
    x = datasets.load_diabetes().data
    layer = Whiten("zca", epsilon=0.001)
    layer.adapt(x)
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True) + 0.001 * np.eye(10))
    expected = (x - x.mean(axis=0)) @ (vectors / np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(to_numpy(layer(x)), expected, atol=1e-5)
    np.testing.assert_allclose(to_numpy(layer.inverse(layer(x))), x, atol=1e-5)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_patches_by_hand(data_format):
    x = images()
    tiles = x.reshape(40, 3, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5).reshape(240, 12)  # rows and columns, then pixels
    if data_format == "channels_first":
        x = x.transpose(0, 3, 1, 2)
        tiles = tiles.reshape(240, 2, 2, 3).transpose(0, 3, 1, 2).reshape(240, 12)
    pca = decomposition.PCA(7, whiten=True, svd_solver="full").fit(tiles)
    expected = pca.transform(tiles) * np.sqrt(240 / 239)
    layer = Whiten(patch_size=2, num_components=7, data_format=data_format)
    layer.adapt(x)
    y = layer(x)
    assert tuple(y.shape) == layer.compute_output_shape(x.shape) == (40, 3, 2, 7)
    same_up_to_sign(to_numpy(y).reshape(240, 7), expected, atol=1e-4)
    nearest = pca.inverse_transform(pca.transform(tiles))
    zca = Whiten("zca", patch_size=2, data_format=data_format)
    zca.adapt(x)
    assert tuple(zca(x).shape) == x.shape
    np.testing.assert_allclose(to_numpy(zca.inverse(zca(x))), x, atol=1e-4)
    back = to_numpy(layer.inverse(y))
    assert back.shape == x.shape
    residue = np.sort(((back - x) ** 2).ravel()).sum()
    np.testing.assert_allclose(residue, ((nearest - tiles) ** 2).sum(), rtol=1e-3)


def test_patches_in_models_and_in_tf_data(tmp_path):
    tf = pytest.importorskip("tensorflow")
    x = images()
    layer = Whiten(patch_size=2, num_components=5)
    layer.adapt(x)
    model = keras.Sequential([keras.Input((None, None, 3)), layer, keras.layers.Dense(1)])
    assert model.output_shape == (None, None, None, 1)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        keras.saving.load_model(tmp_path / "model.keras").predict(x, verbose=0), model.predict(x, verbose=0)
    )
    mapped = tf.data.Dataset.from_tensor_slices(x).batch(16).map(layer)
    np.testing.assert_allclose(np.concatenate(list(mapped.as_numpy_iterator())), to_numpy(layer(x)), atol=1e-4)


def test_other_axes():
    x = images((200, 3, 4))
    layer = Whiten(axis=(1, 2), num_components=6)
    layer.adapt(x)
    flat = Whiten(num_components=6)
    flat.adapt(x.reshape(200, 12))
    assert tuple(layer(x).shape) == layer.compute_output_shape((200, 3, 4)) == (200, 6)
    np.testing.assert_allclose(to_numpy(layer(x)), to_numpy(flat(x.reshape(200, 12))), atol=1e-5)
    np.testing.assert_allclose(
        to_numpy(layer.inverse(layer(x))).reshape(200, 12), to_numpy(flat.inverse(flat(x.reshape(200, 12)))), atol=1e-5
    )


def test_directions_without_variance_come_out_as_zero():
    x = np.random.default_rng(0).normal(size=(100, 2)) @ np.ones((2, 4))  # rank 1
    layer = Whiten()
    layer.adapt(x)
    y = to_numpy(layer(x))
    np.testing.assert_allclose(y[:, 0].std(), 1, atol=1e-4)
    np.testing.assert_array_equal(y[:, 1:], 0)
    np.testing.assert_allclose(to_numpy(layer.inverse(y)), x, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "svd"}, ValueError, "`kind` must be one of 'pca', 'zca'. Received: kind='svd'"),
        ({"epsilon": -1.0}, ValueError, r"`epsilon` must lie in \[0, inf\). Received: epsilon=-1.0"),
        ({"num_components": 0}, ValueError, "`num_components` must be an int >= 1"),
        ({"kind": "zca", "num_components": 3}, ValueError, "`num_components` must be None for kind='zca'"),
        ({"patch_size": 0}, ValueError, "`patch_size` must be an int >= 1"),
        ({"patch_size": 2, "axis": 1}, ValueError, "`axis` must be left at -1 where `patch_size` is given"),
        ({"data_format": "nhwc"}, ValueError, "`data_format` must be one of None, 'channels_last', 'channels_first'"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Whiten(**arguments)


def test_what_only_the_data_shows():
    with pytest.raises(ValueError, match="`num_components` must be at most the number of features, 4. Received"):
        Whiten(num_components=5).adapt(np.zeros((9, 4)))
    with pytest.raises(ValueError, match="`patch_size` must divide height and width of images"):
        Whiten(patch_size=4).adapt(images())
    with pytest.raises(ValueError, match="does not know the shape of its inputs yet"):
        Whiten().inverse(np.zeros((9, 4)))
