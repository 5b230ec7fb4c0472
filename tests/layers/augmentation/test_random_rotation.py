"""RandomRotation, and the layers whose fixed factors make Keras's layer and ours do the same, pixel by pixel."""

import keras
import numpy as np
import pytest
import scipy.stats

from tf_tricks.layers import augmentation
from tf_tricks.layers.augmentation import RandomRotation
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._random import Draws

pytestmark = pytest.mark.usefixtures("uncompiled")
BACKEND = keras.backend.backend()
FIXED = [
    ("RandomRotation", {"factor": (0.07, 0.07)}),
    ("RandomRotation", {"factor": (-0.31, -0.31)}),
    ("RandomTranslation", {"height_factor": (0.13, 0.13), "width_factor": (-0.21, -0.21)}),
    ("RandomZoom", {"height_factor": (0.3, 0.3), "width_factor": (-0.2, -0.2)}),
]


def numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("fill_mode", ["constant", "nearest", "reflect", "wrap"])
@pytest.mark.parametrize("name, factors", FIXED)
def test_with_fixed_factors_it_gives_the_image_that_keras_gives(name, factors, fill_mode, interpolation):
    if fill_mode == "wrap" and BACKEND == "tensorflow":
        pytest.skip("TensorFlow's kernel takes the width less one as the period; JAX, Torch and SciPy the width")
    images = np.random.default_rng(0).uniform(0, 255, (2, 20, 28, 3)).astype("float32")
    options = {**factors, "fill_mode": fill_mode, "interpolation": interpolation, "fill_value": 7.0}
    theirs = numpy(getattr(keras.layers, name)(**options)(images, training=True))
    ours = numpy(getattr(augmentation, name)(**options)(images, training=True))
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_a_quarter_turn_is_that_of_numpy():
    images = np.random.default_rng(0).uniform(0, 255, (2, 9, 9, 3)).astype("float32")
    got = numpy(RandomRotation((0.25, 0.25), fill_mode="constant")(images, training=True))
    np.testing.assert_allclose(got, np.rot90(images, axes=(1, 2)), atol=0.01)


def test_angles_are_drawn_evenly():
    layer = RandomRotation((-0.1, 0.3))
    drawn = layer.draw(OPS, Draws(OPS, keras.ops.array(np.array([1, 2], "int32")), 10_000), (8, 8))
    matrix = numpy(drawn["matrix"])
    turns = np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0]) / (2 * np.pi)
    assert scipy.stats.kstest(turns, "uniform", (-0.1, 0.4)).pvalue > 0.01


def test_the_default_arguments_are_those_of_keras():
    ours, theirs = (layer(0.2).get_config() for layer in (RandomRotation, keras.layers.RandomRotation))
    for key in ("fill_mode", "fill_value", "interpolation", "factor", "data_format"):
        assert tuple(np.ravel(ours[key])) == tuple(np.ravel(theirs[key])), key
