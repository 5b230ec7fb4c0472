"""The noise scale of a regression is known in closed form; the advice on planted sizes beside one that fits."""

import keras
import numpy as np
import pytest

from tf_tricks.debug import batch_size_advice
from tf_tricks.debug.batch_size_advice import _Sketch, bootstrap_interval, noise_scale

D = 10
X = np.random.default_rng(0).normal(size=(2048, D)).astype("float32")
WEIGHTS = np.random.default_rng(1).normal(size=(D, 1))


def regression(noise, *before, size=2048):
    y = (X @ WEIGHTS + noise * np.random.default_rng(2).normal(size=(len(X), 1))).astype("float32")[:size]
    model = keras.Sequential([keras.Input((D,)), *before, keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    return model, X[:size], y


@pytest.mark.parametrize("noise", [0.5, 8.0])
def test_the_noise_scale_of_a_linear_regression_is_that_of_the_formula(noise):
    model, x, y = regression(noise)
    distance = float(np.sum((model.get_weights()[0] - WEIGHTS) ** 2))
    # The gradient of one sample is 2 (x.d - e) x: its mean 2 d, the trace of its covariance 4 ((D + 1) |d|^2 + s^2 D).
    expected = D + 1 + noise**2 * D / distance
    result = batch_size_advice(model, x, y, seconds=None, verbose=0)
    assert result.interval[0] <= expected <= result.interval[1], (expected, result.interval)
    assert result.noise_scale == pytest.approx(expected, rel=0.2)
    assert result.gradient_square == pytest.approx(4 * distance, rel=0.2)
    assert (result.small, result.gradients) == (32, 64)
    assert result.passed and [finding.name for finding in result.findings] == ["fits"]
    result.plot()


def test_sizes_that_waste_and_that_are_noisy_are_told_from_one_that_fits():
    model, x, y = regression(1.0, size=512)
    found = {size: batch_size_advice(model, x, y, batch_size=size, seconds=None, verbose=0) for size in (1, 16, 2000)}
    assert [found[size].findings[0].name for size in found] == ["too_noisy", "fits", "wastes_compute"]
    assert all(result.passed and len(str(result).splitlines()) < 10 for result in found.values())
    assert found[1].noise_scale == found[16].noise_scale  # deterministic


def test_a_gradient_below_its_noise_and_one_of_zero():
    model, x, y = regression(5.0, size=128)
    model.set_weights([np.linalg.lstsq(x, y, rcond=None)[0]])
    result = batch_size_advice(model, x, y, seconds=None, verbose=0)
    assert result.findings[0].name == "noise_only" and np.isinf(result.noise_scale) and result.passed
    still = batch_size_advice(model, np.zeros_like(x), np.zeros_like(y), seconds=None, verbose=0)
    assert [finding.name for finding in still.findings] == ["no_gradient"] and not still.passed


def test_dropout_draws_anew_for_each_batch():
    model, x, y = regression(0.0, keras.layers.Dropout(0.5), size=64)
    same = np.repeat(x[:1], 64, axis=0)
    result = batch_size_advice(model, same, np.repeat(y[:1], 64, axis=0), seconds=None, verbose=0)
    assert result.variance > 0.1 * result.gradient_square


def test_the_estimates_are_unbiased_and_the_interval_covers():
    rng, inside, squares = np.random.default_rng(0), 0, []
    mean = np.full(20, 0.5)
    expected = 20 * 4.0 / float(mean @ mean)  # samples with a standard deviation of 2
    for seed in range(60):
        gradients = mean + 2.0 / np.sqrt(8) * rng.normal(size=(40, 20))
        products = gradients @ gradients.T
        squares.append(noise_scale(products, 8)[1])
        low, high = bootstrap_interval(products, 8, seed, draws=200)
        inside += low <= expected <= high
    assert np.mean(squares) == pytest.approx(mean @ mean, rel=0.05)
    assert inside >= 45


def test_a_sketch_keeps_inner_products():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 700_000)).astype("float32") + np.float32([[1.0], [0.5]])
    sketch = _Sketch(700_000, seed=0)
    assert len(sketch(a)) < 300_000
    assert sketch(a) @ sketch(b) == pytest.approx(a @ b, abs=0.01 * float(np.linalg.norm(a) * np.linalg.norm(b)))
    assert sketch(a) @ sketch(a) == pytest.approx(a @ a, rel=0.01)
    column = np.zeros((1024, 1024), "float32")  # what one unit of a layer has: 1024 apart
    column[:, 3] = rng.normal(size=1024)
    column = column.ravel()
    sketch = _Sketch(column.size, seed=0)
    assert sketch(column) @ sketch(column) == pytest.approx(column @ column, rel=0.01)


def test_a_model_that_takes_batches_of_one_size_is_measured_with_that():
    x, y = X[:64], X[:64, :1]
    model = keras.Sequential([keras.Input(batch_shape=(8, D)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    result = batch_size_advice(model, x, y, seconds=None, verbose=0)
    assert (result.small, result.gradients) == (8, 8)
    with pytest.raises(ValueError, match="`x` must have at least 32 samples, 4 batches of the size"):
        batch_size_advice(model, x[:31], y[:31], verbose=0)


def test_wrong_arguments():
    model, x, y = regression(1.0, size=16)
    with pytest.raises(ValueError, match="`batch_size` must be an int >= 1. Received: batch_size=0"):
        batch_size_advice(model, x, y, batch_size=0)
    with pytest.raises(ValueError, match="`x` must have at least 4 samples"):
        batch_size_advice(model, x[:3], y[:3])
    with pytest.raises(ValueError, match="`steps` must be an int >= 4"):
        batch_size_advice(model, x, y, steps=2)
