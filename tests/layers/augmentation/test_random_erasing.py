"""RandomErasing against rectangles worked out pixel by pixel."""

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation import RandomErasing
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws


def numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def draws(count=10_000):
    return Draws(OPS, keras.ops.convert_to_tensor([3, 1], "int32"), count)


def test_the_rectangle_has_the_shares_asked_for_and_lies_inside():
    stats = pytest.importorskip("scipy.stats")
    left, top, right, bottom = map(numpy, RandomErasing((1.0, 1.0), (0.1, 0.5)).draw(OPS, draws(), (20, 40))["box"])
    for begin, end, length in ((left, right, 40), (top, bottom, 20)):
        assert (begin >= 0).all() and (end <= length + 1e-4).all()
        assert stats.kstest(((end - begin) / length) ** 2, "uniform", (0.1, 0.4)).pvalue > 0.001
        assert stats.kstest(begin / (length - end + begin), "uniform").pvalue > 0.001
    assert abs(np.corrcoef(right - left, bottom - top)[0, 1]) < 0.04


def test_the_probability_is_drawn_between_its_bounds_as_in_keras():
    for factor, expected in (((0.3, 0.3), 0.3), (1.0, 0.5), ((0.2, 0.8), 0.5), (0.0, 0.0), ((1.0, 1.0), 1.0)):
        left, _, right, _ = map(numpy, RandomErasing(factor).draw(OPS, draws(), (20, 20))["box"])
        assert abs((right > left).mean() - expected) < 0.02


@pytest.mark.parametrize("fill_value", [9.0, (1.0, 2.0, 3.0), 300, None])
def test_what_is_inside_is_filled_and_the_rest_stays(fill_value):
    x = np.random.default_rng(0).uniform(10, 250, (3, 7, 9, 3)).astype("float32")
    layer = RandomErasing((1.0, 1.0), (0.2, 0.6), fill_value)
    drawn = layer.draw(OPS, draws(3), (7, 9))
    got = numpy(layer.transform(OPS, keras.ops.convert_to_tensor(x), drawn))
    for i, (left, top, right, bottom) in enumerate(zip(*map(numpy, drawn["box"]), strict=True)):
        for row in range(7):
            for column in range(9):
                if left <= column < right and top <= row < bottom:
                    if fill_value is not None:
                        expected = np.minimum(fill_value, 255)
                        np.testing.assert_array_equal(got[i, row, column], np.broadcast_to(expected, 3))
                else:
                    np.testing.assert_array_equal(got[i, row, column], x[i, row, column])
    assert (got != x).any(axis=(1, 2, 3)).all() and got.min() >= 0 and got.max() <= 255


def test_a_rectangle_of_noise_is_half_black_as_with_keras():
    layer = RandomErasing((1.0, 1.0), (1.0, 1.0), value_range=(0, 1))
    got = numpy(layer(np.full((1, 32, 32, 3), 0.5, "float32"), training=True))
    assert abs((got == 0).mean() - 0.5) < 0.05 and abs((got == 1).mean() - 0.159) < 0.04


def test_a_colour_must_fit_the_channels():
    with pytest.raises(ValueError, match="RandomErasing: `fill_value` must have one number for each channel. Received"):
        RandomErasing(fill_value=(1.0, 2.0))(np.zeros((1, 4, 4, 3)), training=True)
