"""The loss as a function: against central differences, Keras's own evaluation, and without traces."""

import keras
import numpy as np
import pytest

from tf_tricks.fit_hooks.functional import LossFunction, UnknownLossError

layers = keras.layers
X = np.random.default_rng(0).normal(size=(12, 5)).astype("float32")
Y = np.random.default_rng(1).normal(size=(12, 2)).astype("float32")


class Penalised(layers.Layer):
    def call(self, inputs):
        self.add_loss(0.1 * keras.ops.mean(inputs**2))
        return inputs


def model(dropout=0.4):
    keras.utils.set_random_seed(0)
    stack = [
        layers.Dense(7, activation="tanh", kernel_regularizer=keras.regularizers.L2(0.1)),
        layers.BatchNormalization(),
        layers.Dropout(dropout),
        Penalised(),
        layers.Dense(2),
    ]
    result = keras.Sequential([keras.Input((5,)), *stack])
    result.compile("adam", "mse", jit_compile=False)
    return result


def values(variables):
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


@pytest.mark.parametrize("compiled", [True, False])
def test_gradients_are_those_of_central_differences_dropout_included(compiled):
    function = LossFunction(model(), training=True, compiled=compiled)
    weights = values(function.variables)
    loss, gradients = function.gradient(X, Y)
    assert loss == pytest.approx(function.value(X, Y), rel=1e-6)
    rng = np.random.default_rng(2)
    directions = [rng.normal(size=weight.shape).astype("float32") for weight in weights]
    step = np.float32(1e-2)
    above, below = (
        function.value(X, Y, weights=[w + sign * step * d for w, d in zip(weights, directions, strict=True)])
        for sign in (1, -1)
    )
    expected = sum(float(np.sum(g * d)) for g, d in zip(gradients, directions, strict=True))
    assert (above - below) / (2 * step) == pytest.approx(expected, rel=2e-2)


def test_the_value_is_keras_s_own_loss_with_weights_of_samples():
    weights = np.linspace(0.1, 2, 12).astype("float32")
    each = model()
    expected = each.evaluate(X, Y, sample_weight=weights, verbose=0, batch_size=12)
    assert LossFunction(each, training=False).value(X, Y, weights) == pytest.approx(expected, 1e-5)
    assert LossFunction(each, training=False).value(X, Y) != pytest.approx(expected, 1e-3)
    np.testing.assert_allclose(LossFunction(each, False).predictions(X), each.predict(X, verbose=0), rtol=1e-5)


def test_what_layers_add_is_known():
    each = model(dropout=0.0)
    kernel = keras.ops.convert_to_numpy(each.layers[0].kernel)
    hidden = keras.Sequential(each.layers[:-2])(X, training=True)
    expected = 0.1 * np.sum(kernel**2) + 0.1 * np.mean(keras.ops.convert_to_numpy(hidden) ** 2)
    assert LossFunction(each, training=True).added_loss(X) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["value", "gradient", "shares"])
def test_a_loss_that_is_nowhere_to_be_found_is_one_clear_sentence(method):
    each = keras.Sequential([keras.Input((5,)), layers.Dense(2)])
    each.compile("sgd")
    with pytest.raises(UnknownLossError, match="^`model` must be compiled with a loss, have .* Received: a Sequential"):
        getattr(LossFunction(each), method)(X)
    each.add(Penalised())
    each.compile("sgd")
    assert np.isfinite(LossFunction(each).value(X))


def test_nothing_is_assigned_and_new_statistics_are_seen():
    each = model(dropout=0.0)
    function = LossFunction(each, training=False)
    before = values(each.variables)
    first = function.value(X, Y)
    LossFunction(each, training=True).gradient(X, Y)
    for a, b in zip(before, values(each.variables), strict=True):
        np.testing.assert_array_equal(a, b)
    each.layers[1].moving_mean.assign(np.full(7, 3.0))  # no constant of the compiled function
    assert function.value(X, Y) != first


def test_a_variable_without_influence_has_no_gradient_or_zeros():
    inputs = keras.Input((5,))
    cut = layers.Lambda(lambda t: keras.ops.stop_gradient(t))(layers.Dense(3)(inputs))
    each = keras.Model(inputs, layers.Dense(2)(cut))
    each.compile("sgd", "mse", jit_compile=False)
    _, gradients = LossFunction(each).gradient(X, Y)
    assert all(g is None or not np.any(g) for g in gradients[:2])
    assert all(np.any(g) for g in gradients[2:])
