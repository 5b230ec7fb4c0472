"""RandomRGBShift: what it adds."""

import keras
import numpy as np

from tf_tricks.layers import augmentation as layers


def numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def test_rgb_shift_moves_each_channel_of_each_image_by_its_own_number():
    x = np.full((4, 3, 3, 3), 100.0, "float32")
    got = numpy(layers.RandomRGBShift(0.2, seed=1)(x, training=True))
    assert np.ptp(got, axis=(1, 2)).max() < 1e-3
    assert len(np.unique(np.round(got[:, 0, 0], 3))) == 12 and np.abs(got - x).max() <= 0.2 * 255
