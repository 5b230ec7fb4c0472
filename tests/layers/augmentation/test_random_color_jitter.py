"""RandomColorJitter against Keras and the formulas."""

import keras
import numpy as np

from tf_tricks.layers import augmentation as layers


def images(high=255, dtype="float32"):
    return np.random.default_rng(0).uniform(0, high, (4, 6, 5, 3)).astype(dtype)


def numpy(x):
    return keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))


def same(name, x, arguments, atol):
    got, theirs = (getattr(each, name)(**arguments)(x, training=True) for each in (layers, keras.layers))
    np.testing.assert_allclose(numpy(got), numpy(theirs), rtol=1e-5, atol=atol)


def test_jitter_is_that_of_keras_step_by_step():
    x = images()
    for arguments in (
        {"brightness_factor": (0.4, 0.4)},
        {"saturation_factor": (0.3, 0.3)},
        {"brightness_factor": (-0.2, -0.2), "saturation_factor": (0.4, 0.4), "hue_factor": (1.0, 1.0)},
        {"contrast_factor": (0.0, 0.0), "hue_factor": (1.0, 1.0)},
    ):
        same("RandomColorJitter", x, arguments, 1e-3)


def test_jitter_takes_the_contrast_about_the_mean_after_the_brightness():
    x = images()
    layer = layers.RandomColorJitter(brightness_factor=(0.3, 0.3), contrast_factor=(1.0, 0.0), seed=2)
    got = numpy(layer(x, training=True))
    bright = np.clip(x + 0.3 * 255, 0, 255)
    mean = bright.mean((1, 2), keepdims=True)
    factor = ((got - mean) * (bright - mean)).sum((1, 2, 3)) / ((bright - mean) ** 2).sum((1, 2, 3))
    assert ((0 <= factor) & (factor <= 1)).all() and np.ptp(factor) > 0.05
    np.testing.assert_allclose(got, mean + factor[:, None, None, None] * (bright - mean), atol=1e-3)


def test_the_matrix_mode_is_close_to_the_exact_one_without_hue_and_clips_once():
    x = images() * 0.5 + 64
    arguments = {"brightness_factor": 0.1, "contrast_factor": 0.2, "seed": 4}
    exact, matrix = (
        numpy(layers.RandomColorJitter(**arguments, mode=mode)(x, training=True)) for mode in ("exact", "matrix")
    )
    np.testing.assert_allclose(matrix, exact, atol=1e-3)  # nothing is clipped here: the same
    strong = {"brightness_factor": 1.0, "contrast_factor": 1.0, "saturation_factor": 1.0, "hue_factor": 1.0, "seed": 1}
    got = numpy(layers.RandomColorJitter(**strong, mode="matrix")(images(), training=True))
    assert got.min() >= 0 and got.max() <= 255


def test_jitter_without_factors_changes_nothing():
    for mode in ("exact", "matrix"):
        got = layers.RandomColorJitter(mode=mode)(images(), training=True)
        np.testing.assert_array_equal(numpy(got), images())
