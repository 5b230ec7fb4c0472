"""Losses of samples against the loss of each alone; planted outliers and wrong labels beside clean twins."""

import sys

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

from tf_tricks.debug import loss_outliers
from tf_tricks.debug._data import Samples
from tf_tricks.debug._label_noise import crossentropies, label_noise
from tf_tricks.debug._sample_losses import contributions, sample_losses, unregularised
from tf_tricks.debug.loss_outliers import shares
from tf_tricks.fit_hooks.functional import LossFunction

layers = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 4)).astype("float32")
Y = (X.sum(axis=1, keepdims=True) + 0.3 * RNG.normal(size=(120, 1))).astype("float32")


def regression(loss="mse", model=keras.Sequential, **kwargs):
    made = model([keras.Input((4,)), layers.Dense(1, kernel_regularizer="l2", **kwargs)])
    made.compile(keras.optimizers.Adam(0.05), loss)
    return made


def outputs():
    return [layers.Dense(1, name="a"), layers.Dense(2, name="b")]


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_the_losses_are_those_of_each_sample_alone(reduction):
    model = regression(keras.losses.MeanSquaredError(reduction=reduction))
    errors = (model.predict(X, verbose=0) - Y)[:, 0]
    result = loss_outliers(model, X, Y, cross_fit=False, verbose=0, seconds=None)
    np.testing.assert_allclose(result.losses, errors**2, rtol=1e-3, atol=1e-5)
    assert result.held_out is None and result.ranking[0] == np.argmax(errors**2)
    worst = np.argsort(-(errors**2))[:2]
    gradients = 2 * errors[:, None] * np.concatenate([X, np.ones((120, 1), "float32")], axis=1)
    part, rest = gradients[worst].sum(axis=0), np.delete(gradients, worst, axis=0).sum(axis=0)
    expected = np.linalg.norm(part) / (np.linalg.norm(part) + np.linalg.norm(rest))
    assert result.gradient_share == pytest.approx(expected, rel=1e-3)
    assert result.projection == pytest.approx(part @ (part + rest) / np.sum((part + rest) ** 2), rel=1e-3)
    assert result.loss_share == pytest.approx((errors[worst] ** 2).sum() / (errors**2).sum(), rel=1e-3)


def test_what_the_budget_leaves_of_the_rest_stands_for_all_of_it(monkeypatch):
    x = np.random.default_rng(1).normal(size=(3000, 4)).astype("float32")
    y = x.sum(axis=1, keepdims=True) + 1.0
    y[:30] += 50.0
    model = regression()
    shares = {}
    module = sys.modules["tf_tricks.debug.loss_outliers"]
    for share in (1.0, 0.0):  # all of the budget, and none: the worst 30 and one part of 30
        monkeypatch.setattr(module, "_MEASURING", share)
        result = loss_outliers(model, x, y, cross_fit=False, verbose=0, seconds=None, steps=10**6)
        shares[share] = result.gradient_share
    assert shares[0.0] != shares[1.0] and shares[0.0] == pytest.approx(shares[1.0], rel=0.5)


@pytest.mark.parametrize("count", [1, 120])
def test_losses_that_are_nan_are_said_to_be(count):
    y = Y.copy()
    y[:count] = np.nan
    result = loss_outliers(regression(), X, y, verbose=0, seconds=None, steps=10)
    assert not result.passed and [each.name for each in result.findings] == ["not_finite"]
    assert result.held_out is None and np.isinf(result.losses[:count]).all() and "NaN" in str(result)
    assert np.isfinite(result.losses[count:]).all() and result.ranking[0] < count and "nan" not in str(result)
    result.plot()


def test_several_outputs_with_weights_of_losses_and_of_samples():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {layer.name: layer(inputs) for layer in outputs()})
    model.compile("sgd", {"a": "mse", "b": "mae"}, loss_weights={"a": 2.0, "b": 0.5})
    y, weights = {"a": Y, "b": RNG.normal(size=(120, 2)).astype("float32")}, np.linspace(0, 2, 120).astype("float32")
    found = model.predict(X, verbose=0)
    expected = 2 * (found["a"] - y["a"])[:, 0] ** 2 + 0.5 * np.abs(found["b"] - y["b"]).mean(axis=1)
    result = loss_outliers(model, X, y, weights, cross_fit=False, verbose=0, seconds=None)
    np.testing.assert_allclose(result.losses, weights * expected, rtol=1e-3, atol=1e-5)


def test_a_compute_loss_that_ignores_weights_is_asked_one_by_one_within_the_budget():
    class Own(keras.Sequential):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return keras.ops.mean(keras.ops.abs(y - y_pred))

    model = regression(model=Own)
    model.build((None, 4))
    data = Samples(X[:20], Y[:20])
    with unregularised(model):
        losses = sample_losses(LossFunction(model, training=False), data)
        few = sample_losses(LossFunction(model, training=False), data, within=lambda: False)
    errors = np.abs(model.predict(X[:20], verbose=0) - Y[:20])[:, 0]
    np.testing.assert_allclose(losses, errors, rtol=1e-3, atol=1e-6)
    assert np.isfinite(few[0]) and np.isnan(few[1:]).all()


def test_few_outliers_that_steer_are_found_listed_and_told_from_clean_data():
    model, y = regression(), Y.copy()
    y[[17, 90]] += np.float32([[40.0], [-60.0]])
    model.fit(X, Y, epochs=30, verbose=0)
    before = model.get_weights()
    arguments = {"seconds": None, "steps": 150, "verbose": 0}
    found, clean = loss_outliers(model, X, y, **arguments), loss_outliers(model, X, Y, **arguments)
    assert not found.passed and "Huber" in found.named("few_steer").text, str(found)
    assert found.named("few_steer").evidence["loss_share"] > 0.9
    assert list(found.ranking[:2]) == list(found.suspects) == [90, 17]
    assert clean.passed and not clean.findings and not len(clean.suspects), str(clean)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    lines = str(found).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 110
    found.plot()


def classifier():
    blocks = [layers.Dense(96, "relu"), layers.Dense(10, "softmax")]
    model = keras.Sequential([keras.Input((64,)), *blocks])
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    return model


def test_wrong_labels_of_digits_are_found_though_the_model_knows_them_by_heart():
    x, y = load_digits(return_X_y=True)
    x, labels = (x / 16).astype("float32"), y.copy()
    rng = np.random.default_rng(0)
    flipped = rng.choice(len(x), len(x) // 50, replace=False)
    labels[flipped] = (labels[flipped] + rng.integers(1, 10, len(flipped))) % 10
    model = classifier()
    rows = np.concatenate([np.arange(len(x)), np.repeat(flipped, 10)])  # learned by heart soon
    model.fit(x[rows], labels[rows], epochs=30, batch_size=64, verbose=0)
    known = np.argmax(model.predict(x, verbose=0), axis=1) == labels
    assert known[flipped].mean() > 0.7
    arguments = {"seconds": None, "steps": 700, "verbose": 0}
    result = loss_outliers(model, x, labels, **arguments)
    top = result.ranking[: int(0.04 * len(x))]
    assert np.isin(flipped, top).mean() >= 0.8
    assert result.named("wrong_labels") is not None and np.isin(result.suspects, flipped).mean() > 0.7
    assert np.isin(flipped, result.suspects).mean() > 0.7
    clean = loss_outliers(model, x, y, **arguments)
    assert clean.named("wrong_labels") is None and clean.passed, str(clean)


def test_contributions_and_shares_are_exact():
    losses = np.array([1.0, 5.0, 3.0])
    np.testing.assert_allclose(contributions(losses.mean(), losses / 3), losses / 3)
    np.testing.assert_allclose(contributions(losses.mean(), (losses - losses.mean()) / 3), losses / 3)
    assert shares([None], [np.ones(2)]) == (0.0, 0.0)


def test_a_part_of_the_data_keeps_its_numbers_and_wrong_arguments_are_refused():
    model = regression()
    result = loss_outliers(model, X, Y, limit=40, cross_fit=False, verbose=0)
    errors = (model.predict(X, verbose=0) - Y)[:, 0] ** 2
    assert len(result.losses) == 40 and result.ranking[0] == result.numbers[np.argmax(errors[result.numbers])]
    with pytest.raises(TypeError, match="`cross_fit` must be True or False"):
        loss_outliers(model, X, Y, cross_fit="yes")
    with pytest.raises(ValueError, match="`limit` must be an int >= 2"):
        loss_outliers(model, X, Y, limit=1)
    with pytest.raises(ValueError, match="`model` must be compiled"):
        loss_outliers(keras.Sequential([layers.Dense(1)]), X, Y)


def test_a_model_that_knows_nothing_accuses_no_label():
    x = RNG.normal(size=(200, 64)).astype("float32")
    result = loss_outliers(classifier(), x, RNG.integers(0, 10, 200), seconds=None, steps=150, verbose=0)
    assert np.median(result.held_out) > 1 and result.passed and not len(result.suspects), str(result)


@pytest.mark.parametrize("overconfidence", [0.7, 2])
def test_a_rate_of_wrong_labels_is_told_from_overconfidence(overconfidence):
    rng, rates, rights = np.random.default_rng(0), [], []
    for _ in range(20):
        logits = 6 * rng.normal(size=3000)
        flipped = rng.random(3000) < 0.03
        for mixed in (False, True):
            are_one = rng.random(3000) < 1 / (1 + np.exp(-logits))
            labels = np.where(are_one ^ (mixed & flipped), 1, -1)
            noise = label_noise(np.logaddexp(0, -labels * overconfidence * logits))
            assert noise.wrong.any() == mixed
            rates += [noise.rate] if mixed else []
            rights += flipped[noise.wrong].tolist()
    assert np.mean(rights) > 0.85 and 0.02 < np.median(rates) < 0.045


def test_correct_labels_of_classes_that_overlap_are_not_called_wrong():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 600)
    x = rng.normal(size=(600, 20)).astype("float32")
    x[:, 0] += 1.6 * (2 * y - 1)
    model = keras.Sequential([keras.Input((20,)), layers.Dense(128, "relu"), layers.Dense(1, "sigmoid")])
    model.compile(keras.optimizers.Adam(2e-2), "binary_crossentropy")
    result = loss_outliers(model, x, y, seconds=None, steps=120, verbose=0)
    assert result.held_out.max() > 6.2 and result.passed, str(result)


def test_crossentropies_are_those_of_one_label_each_or_not_known():
    data, losses = Samples(X, np.arange(120) % 2, np.linspace(0, 2, 120)), np.linspace(0, 2, 120) * 0.7
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, "sigmoid")])
    for loss in ("binary_crossentropy", keras.losses.BinaryCrossentropy()):
        model.compile("sgd", loss)
        model.train_on_batch(X, data.y)
        np.testing.assert_allclose(crossentropies(model, data, losses), np.append(0, np.full(119, 0.7)))
    model.compile("sgd", keras.losses.BinaryCrossentropy(label_smoothing=0.1))
    assert crossentropies(model, data, losses) is None
    model.compile("sgd", "binary_focal_crossentropy")
    model.train_on_batch(X, data.y)
    assert crossentropies(model, data, losses) is None
    hot = Samples(X, np.eye(3)[np.arange(120) % 3])
    model.compile("sgd", keras.losses.CategoricalCrossentropy())
    assert crossentropies(model, hot, losses) is losses
    assert crossentropies(model, Samples(X, 0.5 * hot.y), losses) is None
