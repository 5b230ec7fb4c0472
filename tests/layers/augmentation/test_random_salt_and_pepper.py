"""RandomSaltAndPepper: which pixels it hits."""

import keras
import numpy as np

from tf_tricks.layers import augmentation as layers


def numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def test_salt_and_pepper_hits_whole_pixels_in_the_shares_asked_for():
    x = np.full((2, 32, 32, 3), 100.0, "float32")
    got = numpy(layers.RandomSaltAndPepper((0.2, 0.2), salt=0.25, seed=3)(x, training=True))
    assert (got == got[..., :1]).all() and set(np.unique(got)) == {0, 100, 255}
    for image in got[..., 0]:
        assert abs((image != 100).mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 1024)
        assert abs((image == 255).mean() - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 1024)
    assert (got[0] != got[1]).any()
