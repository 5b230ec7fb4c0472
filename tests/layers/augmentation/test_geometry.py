"""3x3 matrices against NumPy's linear algebra."""

import keras
import numpy as np

from tf_tricks.layers.augmentation import _geometry
from tf_tricks.layers.augmentation._namespaces import OPS


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def test_the_inverse_is_that_of_numpy_and_never_nan():
    matrices = np.random.default_rng(0).normal(size=(50, 3, 3)).astype("float32")
    matrices = matrices[np.abs(np.linalg.det(matrices)) > 0.1]
    got = numpy(_geometry.inverse(OPS, keras.ops.array(matrices)))
    np.testing.assert_allclose(got, np.linalg.inv(matrices), rtol=1e-3, atol=1e-3)
    assert np.isfinite(numpy(_geometry.inverse(OPS, keras.ops.ones((2, 3, 3))))).all()


def test_a_mirror_is_what_has_a_negative_determinant():
    matrices = np.random.default_rng(1).normal(size=(50, 3, 3)).astype("float32")
    got = numpy(_geometry.mirrors(OPS, keras.ops.array(matrices)))
    np.testing.assert_array_equal(got, np.linalg.det(matrices.astype("float64")) < 0)


def test_a_window_maps_edges_to_edges():
    left, top, width, height = (np.array(v, "float32") for v in ([2, 0], [3, 1], [4, 10], [6, 5]))
    tensors = [keras.ops.array(v) for v in (left, top, width, height)]
    matrix = numpy(_geometry.window(OPS, *tensors, (12, 8)))
    for i in range(2):
        for u, v in ((0, 0), (1, 0), (0, 1), (0.3, 0.7)):  # as a share of the output and of the window
            x, y, _ = matrix[i] @ [u * 8 - 0.5, v * 12 - 0.5, 1]
            np.testing.assert_allclose([x, y], [left[i] + u * width[i] - 0.5, top[i] + v * height[i] - 0.5], atol=1e-5)


def test_points_are_mapped_and_divided():
    matrix = np.random.default_rng(2).normal(size=(3, 3, 3)).astype("float32")
    matrix[:, 2] = [0.01, 0.02, 1.0]
    points = np.random.default_rng(3).uniform(0, 9, (3, 5, 2)).astype("float32")
    got = _geometry.transform(OPS, keras.ops.array(matrix), *(keras.ops.array(points[..., k]) for k in range(2)))
    full = np.concatenate([points, np.ones((3, 5, 1))], axis=-1) @ matrix.transpose(0, 2, 1)
    np.testing.assert_allclose(np.stack([numpy(v) for v in got], -1), full[..., :2] / full[..., 2:], rtol=1e-3)
