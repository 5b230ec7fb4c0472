"""Resampling against SciPy, which loops over pixels in C, in every fill mode and interpolation."""

import keras
import numpy as np
import pytest
import scipy.ndimage

from tf_tricks.layers.augmentation._compiled import Compiled
from tf_tricks.layers.augmentation._namespaces import OPS
from tf_tricks.layers.augmentation._resample import FILL_MODES, resample

SCIPY_MODES = {"constant": "grid-constant", "wrap": "grid-wrap"}
ATOL = 0.02 if keras.backend.backend() == "torch" else 0.005  # of 255; Torch's own kernel takes relative coordinates


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def resampled(images, matrix, size, **options):
    """Compiled, as in a layer; JAX takes many times as long without."""
    one_pass = Compiled(lambda xp, images, matrix: resample(xp, images, matrix, size, **options))
    on_jax = keras.backend.backend() == "jax"
    tensors = keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(matrix)
    return one_pass(OPS, *tensors) if on_jax else resample(OPS, *tensors, size, **options)


def random_matrices(rng, batch, size):
    """Affine matrices that look outside on all sides, also far."""
    linear = np.eye(2) + rng.normal(scale=0.6, size=(batch, 2, 2))
    offset = rng.uniform(-2, 2, (batch, 2, 1)) * np.reshape(size[::-1], (2, 1)) / 2
    rest = np.tile(np.array([[[0.0, 0.0, 1.0]]]), (batch, 1, 1))
    return np.concatenate([np.concatenate([linear, offset], axis=2), rest], axis=1).astype("float32")


def by_scipy(images, matrices, size, interpolation, fill_mode, fill_value):
    """`scipy.ndimage.affine_transform` in float64, image by image and channel by channel; it has (row, column)."""
    out = np.empty((len(images), *size, images.shape[3]))
    for i, matrix in enumerate(matrices.astype("float64")):
        linear, offset = matrix[1::-1, 1::-1], matrix[1::-1, 2]
        for c in range(images.shape[3]):
            out[i, ..., c] = scipy.ndimage.affine_transform(
                images[i, ..., c].astype("float64"),
                linear,
                offset,
                tuple(size),
                order=1 if interpolation == "bilinear" else 0,
                mode=SCIPY_MODES.get(fill_mode, fill_mode),
                cval=fill_value,
            )
    return out


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("fill_mode", FILL_MODES)
@pytest.mark.parametrize("shape, size", [((5, 12, 17, 3), (12, 17)), ((2, 9, 6, 1), (5, 14)), ((2, 1, 7, 4), (3, 4))])
def test_it_agrees_with_scipy(shape, size, fill_mode, interpolation):
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 255, shape).astype("float32")
    matrices = random_matrices(rng, shape[0], shape[1:3])
    options = {"interpolation": interpolation, "fill_mode": fill_mode, "fill_value": 50.0}
    got = numpy(resampled(images, matrices, size, **options))
    expected = by_scipy(images, matrices, size, interpolation, fill_mode, 50.0)
    off = np.abs(got - expected) > ATOL
    if fill_mode == "constant" and interpolation == "nearest":
        # SciPy calls a point half a pixel beyond the centre of the last one outside or not as its rounding has it.
        assert off.mean() < 0.01
    else:
        assert got.dtype == np.float32 and off.sum() == 0, (np.abs(got - expected).max(), off.mean())


@pytest.mark.parametrize("fill_mode", FILL_MODES)
def test_integers_stay_integers_for_the_nearest_pixel_and_are_not_cut_off_for_bilinear(fill_mode):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 8, 8, 3)).astype("uint8")
    matrices = random_matrices(rng, 3, (8, 8))
    options = {"fill_mode": fill_mode, "fill_value": 9.0}
    nearest = resampled(images, matrices, (8, 8), interpolation="nearest", **options)
    assert keras.backend.standardize_dtype(nearest.dtype) == "uint8"
    bilinear = numpy(resampled(images, matrices, (8, 8), interpolation="bilinear", **options))
    expected = by_scipy(images, matrices, (8, 8), "bilinear", fill_mode, 9.0)
    np.testing.assert_allclose(bilinear, expected, atol=ATOL)


@pytest.mark.parametrize("fill_mode", FILL_MODES)
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("shape", [(2, 1, 1, 3), (2, 7, 5, 2), (0, 4, 4, 3)])
def test_the_identity_and_whole_shifts_move_pixels_unchanged(shape, interpolation, fill_mode):
    images = np.random.default_rng(2).uniform(0, 255, shape).astype("float32")
    identity = np.tile(np.eye(3, dtype="float32"), (shape[0], 1, 1))
    shifted = identity.copy()
    shifted[:, :2, 2] = -1.0, 1.0  # shows the pixel to the left and below
    options = {"interpolation": interpolation, "fill_mode": fill_mode, "fill_value": 3.0}
    tolerance = ATOL if keras.backend.backend() == "torch" and interpolation == "bilinear" else 0.0
    for matrix, offset in ((identity, (0, 0)), (shifted, (-1, 1))):
        got = numpy(resampled(images, matrix, shape[1:3], **options))
        assert got.shape == shape
        x, y = np.arange(shape[2]) + offset[0], np.arange(shape[1]) + offset[1]
        rows, columns = (_index(v, n, fill_mode) for v, n in ((y, shape[1]), (x, shape[2])))
        expected = images[:, rows][:, :, columns]
        if fill_mode == "constant":
            expected[:, y >= shape[1]] = 3.0
            expected[:, :, x < 0] = 3.0
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def _index(v, length, fill_mode):
    """One pixel beyond the end, as the fill mode's picture says."""
    return v % length if fill_mode == "wrap" else np.clip(v, 0, length - 1)


@pytest.mark.parametrize("fill_mode", FILL_MODES)
def test_a_matrix_that_says_nothing_does_no_harm(fill_mode):
    images = np.ones((3, 4, 4, 3), "float32")
    matrix = np.zeros((3, 3, 3), "float32")
    matrix[1, 2, 2], matrix[2] = 1.0, [[1e9, 0, 1e9], [0, -1e9, 0], [0, 0, 1]]
    for interpolation in ("bilinear", "nearest"):
        options = {"interpolation": interpolation, "fill_mode": fill_mode, "fill_value": 1.0, "projective": True}
        got = numpy(resampled(images, matrix, (4, 4), **options))
        np.testing.assert_allclose(got, 1.0, atol=1e-5)


@pytest.mark.parametrize("projective", [False, True])
@pytest.mark.parametrize("fill_mode", FILL_MODES)
def test_it_agrees_with_opencv(fill_mode, projective):
    cv2 = pytest.importorskip("cv2")
    if keras.backend.backend() == "torch" and fill_mode != "wrap" and projective:
        pytest.skip("Torch's kernel takes relative coordinates: far outside they are too coarse")
    rng = np.random.default_rng(4)
    images = rng.uniform(0, 255, (20, 24, 30, 3)).astype("float32")
    matrices = random_matrices(rng, 20, (24, 30))
    if projective:
        matrices[:, 2, :2] = rng.uniform(-0.004, 0.004, (20, 2))
    borders = {"constant": cv2.BORDER_CONSTANT, "nearest": cv2.BORDER_REPLICATE}
    border = borders.get(fill_mode, cv2.BORDER_WRAP if fill_mode == "wrap" else cv2.BORDER_REFLECT)
    options = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderMode": border, "borderValue": (50.0,) * 3}
    expected = [
        cv2.warpPerspective(image, matrix, (30, 24), **options)
        if projective
        else cv2.warpAffine(image, matrix[:2], (30, 24), **options)
        for image, matrix in zip(images, matrices.astype("float64"), strict=True)
    ]
    options = {"interpolation": "bilinear", "fill_mode": fill_mode, "fill_value": 50.0, "projective": projective}
    got = numpy(resampled(images, matrices, (24, 30), **options))
    if int(cv2.__version__.split(".")[0]) >= 5:
        np.testing.assert_allclose(got, np.stack(expected), atol=4 * ATOL)
    else:  # which rounds coordinates to 1/32 of a pixel
        np.testing.assert_allclose(got, np.stack(expected), atol=255 / 16)
