"""RandomGridMask against grids worked out pixel by pixel."""

import keras
import numpy as np

from tf_tricks.layers.augmentation import RandomGridMask, _masks
from tf_tricks.layers.augmentation._namespaces import OPS


def numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def test_the_squares_of_the_grid_are_where_the_paper_has_them():
    x = np.zeros((1, 12, 18, 1), "float32")
    unit, (begin_x, begin_y) = 5.0, (0.23, 0.83)
    begins = [keras.ops.convert_to_tensor([each], "float32") for each in (begin_x, begin_y)]
    got = keras.ops.convert_to_numpy(
        _masks.grid(OPS, keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor([unit]), 0.4, begins)
    )
    for row in range(12):
        for column in range(18):
            inside = [(v / unit + begin) % 1 < 0.4 for v, begin in ((column, begin_x), (row, begin_y))]
            assert got[0, row, column, 0] == all(inside)


def test_the_grid_drops_the_share_of_the_paper_also_when_turned():
    x = np.full((16, 32, 32, 1), 255.0, "float32")
    for rotation in (0.0, 0.5):
        got = numpy(RandomGridMask(unit=(0.2, 0.5), ratio=0.6, rotation_factor=rotation, seed=1)(x, training=True))
        assert abs((got > 0).mean() - 0.6 * (2 - 0.6)) < 0.04
        assert len({image.tobytes() for image in got}) == 16


def test_grid_mask_extremes_and_probability():
    x = np.full((64, 8, 8, 1), 255.0, "float32")
    assert (numpy(RandomGridMask(ratio=1.0)(x, training=True)) == 255).all()
    assert (numpy(RandomGridMask(ratio=0.0)(x, training=True)) == 0).all()
    changed = (numpy(RandomGridMask(ratio=0.0, probability=0.5, seed=1)(x, training=True)) == 0).all(axis=(1, 2, 3))
    assert 16 < changed.sum() < 48
