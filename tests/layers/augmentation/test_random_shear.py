"""RandomShear, RandomTranslation, RandomZoom and RandomPerspective: what is drawn."""

import keras
import numpy as np
import pytest
import scipy.stats

from tf_tricks.layers.augmentation import RandomPerspective, RandomShear, RandomTranslation, RandomZoom
from tf_tricks.layers.augmentation._compiled import Compiled
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws

pytestmark = pytest.mark.usefixtures("uncompiled")


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def matrices(layer, size=(40, 50), count=10_000):
    draw = Compiled(lambda xp, key, _: layer.draw(xp, Draws(xp, key, count), size))
    key = keras.ops.array(np.array([7, 2], "int32"))
    return numpy(draw(OPS, key, keras.ops.zeros((1,)))["matrix"]).astype("float64")


def is_uniform(values, low, high):
    return scipy.stats.kstest(values, "uniform", (low, high - low)).pvalue > 0.01


def test_shear_is_that_of_keras_and_each_axis_has_a_sign_of_its_own():
    drawn = matrices(RandomShear((0.1, 0.3), 0.2))
    x, y = drawn[:, 0, 1], drawn[:, 1, 0]
    assert is_uniform(np.abs(x), 0.1, 0.3) and is_uniform(y, -0.2, 0.2)
    signs = np.unique(np.sign(x) + 2 * np.sign(y), return_counts=True)[1]
    assert len(signs) == 4 and signs.min() > 2300  # Keras: one sign for both where it is given pairs
    rest = drawn - np.eye(3)
    rest[:, [0, 1], [1, 0]] = 0
    assert np.abs(rest).max() == 0

    images = np.random.default_rng(0).uniform(0, 255, (8, 10, 12, 1)).astype("float32")
    factors = {"x_factor": (0.3, 0.3), "y_factor": (0.2, 0.2), "fill_mode": "nearest"}
    theirs = numpy(keras.layers.RandomShear(seed=1, **factors)(images, training=True))
    rows = [np.array([[1, a, 0, b, 1, 0, 0, 0]] * 8, "float32") for a in (0.3, -0.3) for b in (0.2, -0.2)]
    possible = [numpy(keras.ops.image.affine_transform(images, row, fill_mode="nearest")) for row in rows]
    ours = numpy(RandomShear(seed=1, **factors)(images, training=True))
    for i in range(8):
        for got in (ours, theirs):
            assert min(np.abs(got[i] - each[i]).max() for each in possible) < 0.02


def test_translations_are_drawn_evenly_for_each_axis():
    drawn = matrices(RandomTranslation((-0.1, 0.3), 0.2))
    assert is_uniform(-drawn[:, 1, 2] / 40, -0.1, 0.3) and is_uniform(-drawn[:, 0, 2] / 50, -0.2, 0.2)
    assert abs(np.corrcoef(drawn[:, 1, 2], drawn[:, 0, 2])[0, 1]) < 0.03


@pytest.mark.parametrize("width_factor", [None, (0.1, 0.2)])
def test_zooms_are_drawn_evenly_about_the_centre(width_factor):
    drawn = matrices(RandomZoom(0.3, width_factor))
    x, y = drawn[:, 0, 0] - 1, drawn[:, 1, 1] - 1
    assert is_uniform(y, -0.3, 0.3)
    assert np.array_equal(x, y) if width_factor is None else is_uniform(x, 0.1, 0.2)
    centre = drawn @ [24.5, 19.5, 1.0]
    np.testing.assert_allclose(centre, [[24.5, 19.5, 1.0]] * len(drawn), atol=1e-4)


def test_perspective_moves_three_corners_evenly_and_changes_as_many_images_as_asked():
    drawn = matrices(RandomPerspective((1.0, 1.0), scale=0.4))
    corners = np.array([[0, 0], [49, 0], [0, 39], [49, 39]], "float64")
    seen = np.concatenate([corners, np.ones((4, 1))], axis=1) @ np.linalg.inv(drawn).transpose(0, 2, 1)
    seen = seen[..., :2] / seen[..., 2:]
    np.testing.assert_allclose(seen[:, 0], 0.0, atol=1e-3)
    stretch = [seen[:, 1, 0] / 49, seen[:, 2, 1] / 39, seen[:, 3, 0] / 49, seen[:, 3, 1] / 39]
    for each in stretch:
        assert is_uniform(each, 0.8, 1.2)
    assert np.abs(np.corrcoef(stretch) - np.eye(4)).max() < 0.04
    np.testing.assert_allclose(seen[:, 1, 1], 0.0, atol=1e-3)
    for factor, share in ((0.0, 0.0), (1.0, 0.5), ((0.2, 0.4), 0.3)):
        changed = np.abs(matrices(RandomPerspective(factor, scale=0.4)) - np.eye(3)).max(axis=(1, 2)) > 0
        assert abs(changed.mean() - share) < 0.02


def test_beyond_the_horizon_of_a_perspective_lies_what_is_filled_in():
    layer = RandomPerspective((1.0, 1.0), scale=1.0, fill_value=-5.0)
    drawn = matrices(layer, (20, 20), 400)
    x, y = np.meshgrid(np.arange(20), np.arange(20))
    depth = drawn[:, 2, 0, None, None] * x + drawn[:, 2, 1, None, None] * y + 1.0
    folded = np.flatnonzero((depth < 0).any(axis=(1, 2)))
    assert len(folded) > 3
    parameters = {"matrix": keras.ops.array(drawn[folded].astype("float32"))}
    images = keras.ops.ones((len(folded), 20, 20, 1))
    got = numpy(Compiled(layer.transform)(OPS, images, parameters))[..., 0]
    assert (got[depth[folded] < 0] == -5.0).all() and np.isfinite(got).all()
