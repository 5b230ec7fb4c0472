"""RandomGaussianNoise: the statistics of what it adds."""

import keras
import numpy as np
import pytest

from tf_tricks.layers import augmentation as layers
from tf_tricks.layers.augmentation import _kernels, _random
from tf_tricks.layers.augmentation._namespaces import OPS


def numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


@pytest.fixture(scope="module")
def noise():
    """Standard noise for 4 images of 32x32x3."""
    x = np.full((4, 32, 32, 3), 0.5, "float32")
    return (numpy(layers.RandomGaussianNoise((0.1, 0.1), value_range=(0, 1), seed=5)(x, training=True)) - 0.5) / 0.1


def test_gaussian_noise_is_standard_normal_within_three_sigma(noise):
    stats = pytest.importorskip("scipy.stats")
    for image in noise:
        assert abs(image.mean()) < 4 / np.sqrt(image.size)
        assert abs(image.std() - 1) < 4 / np.sqrt(2 * image.size)
        inside = image[np.abs(image) < 3]
        # 3072 numbers: the test sees distances of the distribution functions from about 0.03 on.
        assert stats.kstest(inside, stats.truncnorm(-3, 3).cdf).pvalue > 0.001
    assert 0.2 < -stats.kurtosis(noise.ravel()) < 0.4  # a sum of four uniform numbers has -0.3


def hashed(salt, shape):
    """The bits of `shape` for one salt, with NumPy."""
    x = np.arange(np.prod(shape), dtype="uint32").reshape(shape) * np.uint32(0x7FEB352D) ^ np.array(salt).view("uint32")
    x = (x ^ x >> 16) * np.uint32(0x7FEB352D)
    x = (x ^ x >> 15) * np.uint32(0x846CA68B)
    return x ^ x >> 16


@pytest.mark.parametrize("in_planes", [False, True])
def test_noise_is_the_sum_of_the_four_bytes_of_a_hash(in_planes):
    salts = np.array([3, -7], "int32")
    pixels = keras.ops.zeros((2, 9, 8, 3))
    pixels = _kernels.planes(OPS, pixels) if in_planes else pixels
    bits = np.stack([hashed(salt, (9, 8, 3)) for salt in salts])
    salt = keras.ops.convert_to_tensor(salts)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(_random.field(OPS, salt, pixels)).view("uint32"), bits)
    expected = (bits.view("uint8").reshape(*bits.shape, 4).sum(axis=-1, dtype="int32") - 510) / np.sqrt(65535 / 3)
    found = _random.normal_field(OPS, salt, pixels, 2.0)
    np.testing.assert_allclose(numpy(found), 2 * expected, rtol=1e-6)
    if keras.backend.backend() == "torch":
        assert _kernels.has_planes(OPS, found) == in_planes
        window = (slice(2, 5), slice(0, 7))
        part = _random.normal_field(OPS, salt[:1], pixels[:1], 2.0, window)
        np.testing.assert_allclose(numpy(part), 2 * expected[:1, 2:5, :7], rtol=1e-6)
    one = keras.ops.convert_to_numpy(_random.field(OPS, salt, pixels, channels=1))
    np.testing.assert_array_equal(one.view("uint32")[0], hashed(salts[0], (9, 8, 1)))


def test_gaussian_noise_of_neighbours_channels_and_images_is_not_correlated(noise):
    def correlation(a, b):
        return np.corrcoef(a.ravel(), b.ravel())[0, 1]

    bound = 4 / np.sqrt(noise[:, 1:].size)
    assert abs(correlation(noise[:, 1:], noise[:, :-1])) < bound
    assert abs(correlation(noise[:, :, 1:], noise[:, :, :-1])) < bound
    assert abs(correlation(noise[..., 1:], noise[..., :-1])) < 1.3 * bound
    between = np.corrcoef(noise.reshape(4, -1)) - np.eye(4)
    assert np.abs(between).max() < 4 / np.sqrt(noise[0].size)


def test_each_image_has_its_own_deviation_and_each_call_its_own_noise():
    x = np.full((6, 32, 32, 3), 127.5, "float32")
    layer = layers.RandomGaussianNoise((0.01, 0.15), seed=1)
    first, second = (numpy(layer(x, training=True)) for _ in range(2))
    deviations = first.std((1, 2, 3)) / 255
    assert ((0.0095 < deviations) & (deviations < 0.155)).all() and np.ptp(deviations) > 0.03
    assert abs(np.corrcoef(first[0].ravel(), second[0].ravel())[0, 1]) < 0.08


def test_noise_on_bytes_is_clipped():
    x = np.array([0, 255], "uint8").reshape(1, 1, 2, 1).repeat(32, axis=1)
    got = numpy(layers.RandomGaussianNoise((0.2, 0.2), dtype="uint8")(x, training=True))
    assert got[0, :, 0].max() < 250 and got[0, :, 1].min() > 5  # nothing wrapped to the other end
    assert (got[0, :, 0] == 0).mean() > 0.2
