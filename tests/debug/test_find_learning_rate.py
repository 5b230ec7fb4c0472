"""The rules against NumPy and curves worked out by hand; verdicts on rates that are far off, and on one that is not."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tf_tricks._backend import BACKEND
from tf_tricks.debug import LearningRates, _rates, find_learning_rate
from tf_tricks.debug._budget import Budget
from tf_tricks.debug._data import Samples
from tf_tricks.debug._rate_search import RateSearch
from tf_tricks.fit_hooks.learning_rate import optimizer_rate

layers, ops = keras.layers, keras.ops
JIT = "auto" if BACKEND == "jax" else False  # without it the steps of JAX take long, with it the first of TensorFlow
RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 5)).astype("float32")
Y = (X @ RNG.normal(size=(5, 1)) + 0.1 * RNG.normal(size=(96, 1))).astype("float32")


def compiled(optimizer, loss="mse"):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(8, "tanh"), layers.Dense(1)])
    model.compile(optimizer, loss, jit_compile=JIT)
    return model


def find(model, x=X, y=Y, **kwargs):
    return find_learning_rate(model, x, y, **{"seconds": None, "steps": 900, "verbose": 0, **kwargs})


class Quadratic:
    """In place of a loan: gradient descent on w**2 / 2, which converges for rates below 2, fastest at 1."""

    model = None

    def __init__(self, rate=0.1, noise=0.0):
        self.learning_rate, self.noise = rate, noise
        self.reset()

    def reset(self):
        self.w, self.rng = 1.0, np.random.default_rng(0)

    def step(self, x, y=None, sample_weight=None):
        loss = self.w**2 / 2 + self.noise * self.rng.normal()
        self.w -= self.learning_rate * self.w
        return loss if abs(self.w) < 1e12 else math.inf


def search(loan, **kwargs):
    found = RateSearch(loan, Samples(X, Y), 32, Budget(**kwargs), 0, loan.learning_rate).fields(1e-7, 10.0)
    return LearningRates(**found)


# --- the arithmetic -----------------------------------------------------------------------------------------------
def test_smoothed_is_the_weighted_mean_of_all_before():
    losses = RNG.normal(size=12)
    weights = [0.9 ** np.arange(i, -1, -1) for i in range(12)]
    expected = [np.sum(w * losses[: i + 1]) / np.sum(w) for i, w in enumerate(weights)]
    np.testing.assert_allclose(_rates.smoothed(losses), expected)
    weights = [0.1 * 0.9 ** np.arange(i, -1, -1) for i in range(12)]
    expected = [0.9 ** (i + 1) * 5 + np.sum(w * losses[: i + 1]) for i, w in enumerate(weights)]
    np.testing.assert_allclose(_rates.smoothed(losses, start=5.0), expected)


def test_slopes_are_those_of_a_fitted_line():
    rates, losses = np.geomspace(1e-4, 1, 20), RNG.normal(size=20)
    expected = np.polyfit(np.log(rates[5:12]), losses[5:12], 1)[0]
    assert _rates.slopes(rates, losses)[8] == pytest.approx(expected)


def test_the_steepest_rate_of_a_logistic_fall_is_its_middle():
    rates = np.geomspace(1e-6, 1, 61)
    losses = 1 / (1 + np.exp(3 * (np.log10(rates) + 3)))
    assert _rates.steepest_rate(rates, losses) == pytest.approx(1e-3, rel=0.3)
    assert _rates.steepest_rate(rates, -losses) is None


def test_the_best_rate_is_the_middle_of_an_even_basin():
    rates = 10.0 ** np.arange(-5, 1)
    losses = [3.0, 1.0, 1.0, 1.0, 4.0, np.nan]
    assert _rates.best_rate(rates, losses, 0.1) == pytest.approx(1e-3)
    assert _rates.best_rate(rates, [9, 9, 9, 1.0, 1.0, 9], 0.1) == pytest.approx(10**-1.5)
    assert _rates.best_rate(rates, [1.0, 9, 9, 9, 0.99, 9], 0.1) == pytest.approx(0.1)  # behind a hill
    assert _rates.best_rate(rates, [np.nan] * 6, 0.1) is None


def test_the_largest_safe_rate_ends_at_the_first_gap():
    rates = np.array([1.0, 2, 4, 8, 16])
    assert _rates.largest_safe_rate(rates, [2.0, 1.0, 3.0, 9.0, 1.0], start=5.0) == 4
    assert _rates.largest_safe_rate(rates, [2.0, 1.0, np.nan, 9.0, 1.0], start=5.0) == 2


def test_the_common_curve_is_the_median_up_to_the_shortest():
    assert _rates.common_curve([[1.0, 2, 3], [3.0, 2], [2.0, 9, 9]]).tolist() == [2, 2]


# --- the search ---------------------------------------------------------------------------------------------------
def test_gradient_descent_on_a_parabola():
    result = search(Quadratic())
    # After 400 steps every rate from about 0.02 to 1.98 has arrived; in each round at least 1/length is needed.
    assert 0.02 < result.suggestion < 1.98 and result.suggestion <= result.safe_maximum < 2.0
    assert (result.verdict, result.findings) == ("fine", [])


class Bowl:
    """In place of a loan: a training comes at once to the loss that `losses(rate, order)` says; it begins at 1."""

    model, learning_rate = None, 1e-3

    def __init__(self, losses):
        self.losses = losses

    def reset(self):
        self.order = None

    def step(self, x, y=None, sample_weight=None):
        self.order = float(x[0, 0]) if self.order is None else self.order  # the first sample tells it
        return self.losses(self.learning_rate, self.order)


def parabola(rate, order=None):
    """Lowest at 0.02."""
    return min(1.0, 0.1 + 0.05 * math.log2(rate / 0.02) ** 2)


def plateau(rate, order=None):
    return 0.1 if 1e-3 < rate < 0.1 else 1.0


def lucky(losses, there):
    """`losses`, but a tenth less at the rate next to `there` a factor of 2 apart, in the first order only."""
    first, chosen = float(next(Samples(X, Y).batches(32, 0)).x[0, 0]), []

    def changed(rate, order):
        here = abs(math.log2(rate / there)) < 0.25
        chosen.extend([rate] if here and order != first else [])
        return 0.09 if here and order == first else losses(rate)

    return changed, chosen


def test_around_the_best_rate_others_are_tried_in_another_order_too():
    result = search(Bowl(parabola))
    nearest = int(np.argmin(np.abs(np.log(result.tried) - math.log(0.02))))
    apart = np.diff(np.log2(result.tried))
    assert apart[nearest - 1 : nearest + 1] == pytest.approx(0.5)
    assert result.suggestion == pytest.approx(0.02, rel=0.05)
    losses, again = lucky(parabola, 0.04)
    result = search(Bowl(losses))
    assert len(again) > 400 and result.suggestion < 0.03  # the second order takes back what luck had promised


def test_on_a_plateau_luck_does_not_draw_the_suggestion_from_the_middle():
    losses, again = lucky(plateau, 0.04)
    assert 0.005 < search(Bowl(losses)).suggestion < 0.02
    assert len(again) < 400  # in range tests, which have other orders: no training


@pytest.mark.parametrize("missing", [10, 1500, 2200, 4000])
def test_a_budget_that_ends_around_the_best_rate_leaves_the_rounds_before(missing):
    budget = Budget()
    loan = Bowl(parabola)
    RateSearch(loan, Samples(X, Y), 32, budget, 0, 1e-3).fields(1e-7, 10.0)
    result = search(Bowl(parabola), steps=budget.taken - missing)
    assert result.suggestion == pytest.approx(0.02, rel=0.3)
    assert np.isfinite(result.reached).all()


def test_a_first_batch_that_is_hard_is_no_fall_of_the_loss():
    class HardAtFirst(Quadratic):
        def reset(self):
            super().reset()
            self.more = 1.0

        def step(self, x, y=None, sample_weight=None):
            more, self.more = self.more, 0.0
            return super().step(x) + more

    result = search(HardAtFirst(), steps=900)
    assert 0.02 < result.suggestion < 1.98 and result.steepest > 0.02


@pytest.mark.parametrize(("rate", "verdict", "name"), [(1e-5, "too low", "too_low"), (2.5, "too high", "too_high")])
def test_a_rate_that_is_far_off(rate, verdict, name):
    result = search(Quadratic(rate))
    assert (result.verdict, [each.name for each in result.findings]) == (verdict, [name])
    assert f"{result.suggestion:.2g}" in result.findings[0].text and not result.passed


def test_a_loss_that_does_not_depend_on_the_rate():
    class Stuck(Quadratic):
        def step(self, x, y=None, sample_weight=None):
            return 1 + 0.1 * self.rng.normal()

    result = search(Stuck())
    assert (result.suggestion, [each.name for each in result.findings]) == (None, ["does_not_learn"])
    with pytest.raises(ValueError, match="`apply` needs a suggestion"):
        result.apply()
    assert "no suggestion" in str(result)


def test_a_loss_that_is_never_finite():
    class Broken(Quadratic):
        def step(self, x, y=None, sample_weight=None):
            return math.nan

    result = search(Broken())
    assert result.named("not_finite") and result.suggestion is None


def test_a_short_budget_says_so():
    result = search(Quadratic(), steps=200)
    assert result.named("short_budget") and result.passed and result.suggestion == result.steepest


def test_a_range_test_alone_in_which_nothing_falls_is_no_fault():
    class Level(Quadratic):
        def step(self, x, y=None, sample_weight=None):
            return 1.0

    result = search(Level(), steps=200)
    assert [each.name for each in result.findings] == ["short_budget"] and result.passed and result.suggestion is None


# --- real models --------------------------------------------------------------------------------------------------
def test_a_rate_that_is_too_low_is_found_and_replaced_and_nothing_else():
    model = compiled(keras.optimizers.Adam(1e-6))
    before = [ops.convert_to_numpy(v).copy() for v in model.variables]
    result = find(model)
    assert result.verdict == "too low" and 1e-3 < result.suggestion < 0.5
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, ops.convert_to_numpy(b))
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-6)
    result.apply()
    assert float(model.optimizer.learning_rate) == pytest.approx(result.suggestion)
    text = str(result).splitlines()
    assert len(text) <= 40 and max(map(len, text)) <= 110


def test_a_schedule_is_scaled_to_the_suggestion_and_the_same_seed_gives_the_same():
    decay = keras.optimizers.schedules.ExponentialDecay(0.02, 10, 0.5)
    model = compiled(keras.optimizers.Adam(decay))
    result, again = find(model, steps=700), find(model, steps=700)
    assert result.suggestion == again.suggestion and result.present == pytest.approx(0.02)
    assert (result.verdict, result.findings) == ("fine", [])
    result.apply()
    assert float(model.optimizer.learning_rate) == pytest.approx(result.suggestion)


def test_a_warm_up_is_judged_and_scaled_by_its_peak():
    def warm_up(peak):
        return keras.optimizers.schedules.CosineDecay(peak * 1e-4, 10000, warmup_target=peak, warmup_steps=100)

    model = compiled(keras.optimizers.Adam(warm_up(0.02)))
    result = find(model)
    assert (result.verdict, result.findings) == ("fine", []) and result.present == pytest.approx(0.02, rel=1e-3)
    result.apply()
    schedule = optimizer_rate(model.optimizer)
    assert float(schedule(100)) == pytest.approx(result.suggestion, rel=1e-3)
    assert find(compiled(keras.optimizers.Adam(warm_up(1e-6)))).named("too_low")


def test_a_schedule_that_was_applied_is_used_by_the_next_fit():
    model = compiled(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(1e-9, 10000, 0.99)))
    model.fit(X, Y, verbose=0)
    result = find(model, steps=150)
    before = ops.convert_to_numpy(model.weights[0]).copy()
    dataclasses.replace(result, suggestion=0.05).apply()
    model.fit(X, Y, verbose=0)
    assert np.abs(ops.convert_to_numpy(model.weights[0]) - before).max() > 1e-3


def test_a_model_that_has_learned_already_has_no_fault():
    model = compiled(keras.optimizers.Adam(0.03))
    y = Y + 0.3 * RNG.normal(size=Y.shape).astype("float32")
    model.fit(X, y, epochs=100, batch_size=96, verbose=0)
    result = find(model, y=y, steps=450)
    assert result.passed and all("FAULT" not in line for line in str(result).splitlines())
    unlearned = compiled(keras.optimizers.Adam(0.03))
    unlearned.layers[-1].trainable = unlearned.layers[0].trainable = False
    unlearned.add(layers.Rescaling(0.0))
    unlearned.add(layers.Dense(1, use_bias=False))
    unlearned.compile("sgd", "mse", jit_compile=JIT)
    unlearned.fit(X, y, verbose=0)
    finding = find(unlearned, y=y, steps=700).named("does_not_learn")
    assert finding.is_fault and "or it has already learned this" in finding.text


def test_a_model_that_takes_batches_of_one_size():
    model = keras.Sequential([keras.Input(batch_shape=(24, 5)), layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=JIT)
    assert find(model, steps=300).passed and find(model, X[:20], Y[:20], steps=300).passed
    with pytest.raises(ValueError, match="`batch_size` must be 24, .* Received: batch_size=32"):
        find(model, batch_size=32)


@pytest.mark.any_backend
def test_the_suggestion_hardly_depends_on_the_seed():
    x, y = load_digits(return_X_y=True)
    found = []
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((64,)), layers.Dense(24, "relu"), layers.Dense(10)])
        model.compile(keras.optimizers.Adam(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        found.append(find(model, (x / 16).astype("float32"), y, steps=900, seed=seed).suggestion)
    assert max(found) < 3 * min(found) and 1e-3 < min(found) < 0.1, found


def test_a_generator_and_a_plot():
    matplotlib = pytest.importorskip("matplotlib")
    batches = ((X[i : i + 24], Y[i : i + 24]) for i in range(0, 96, 24))
    result = find(compiled("sgd"), batches, None, steps=300)
    assert isinstance(result.plot(), matplotlib.figure.Figure) and len(result.series()[1]) == len(result.rates)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lowest": 0}, "`lowest` must lie in"),
        ({"lowest": 1.0, "highest": 0.1}, "`highest` must lie in"),
        ({"batch_size": 0}, "`batch_size` must be an int >= 1"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        find(compiled("sgd"), **kwargs)


def test_a_model_that_is_not_compiled_is_refused():
    with pytest.raises(ValueError, match="`model` must be compiled"):
        find(keras.Sequential([keras.Input((5,)), layers.Dense(1)]))
