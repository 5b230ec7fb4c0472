"""RandomShotNoise: the statistics of what it adds."""

import keras
import numpy as np

from tf_tricks.layers import augmentation as layers


def numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def test_shot_noise_has_a_variance_proportional_to_the_signal():
    levels = np.array([0, 16, 64, 144], "float32")
    x = np.broadcast_to(levels[:, None], (1, 64, 4, 32)).copy()
    got = numpy(layers.RandomShotNoise((0.1, 0.1), seed=2)(x, training=True)) - x
    variance = got.var((0, 1, 3))
    np.testing.assert_allclose(variance, 0.1**2 * 255 * levels, rtol=0.12)
    assert variance[0] == 0
    np.testing.assert_allclose(got.mean((0, 1, 3)), 0, atol=4 * np.sqrt(variance.max() / 2048))
