"""The gain against SciPy's adaptive quadrature of the same integral, with the activation written down once more."""

import dataclasses
import gc
import math
import weakref

import keras
import numpy as np
import pytest
from scipy import integrate, special

from tf_tricks.initializers.activation_gain import activation_gain, normal_mean

FORMULAS = {
    "linear": lambda z: z,
    "relu": lambda z: max(z, 0.0),
    "leaky_relu": lambda z: z if z > 0 else 0.2 * z,
    "tanh": math.tanh,
    "sigmoid": special.expit,
    "gelu": lambda z: z * special.ndtr(z),
    "silu": lambda z: z * special.expit(z),
    "mish": lambda z: z * math.tanh(np.logaddexp(0, z)),
    "elu": lambda z: z if z > 0 else math.expm1(z),
    "selu": lambda z: 1.0507009873554805 * (z if z > 0 else 1.6732632423543772 * math.expm1(z)),
    "softplus": lambda z: np.logaddexp(0, z),
    "hard_tanh": lambda z: min(max(z, -1.0), 1.0),
    "relu6": lambda z: min(max(z, 0.0), 6.0),
}


def moment(function):
    def integrand(z):
        return function(z) ** 2 * math.exp(-z * z / 2) / math.sqrt(2 * math.pi)

    return sum(integrate.quad(integrand, a, a + 1, epsabs=1e-13, epsrel=1e-12)[0] for a in range(-10, 10))


@pytest.mark.parametrize("name", FORMULAS)
def test_gain_is_that_of_scipy(name):
    function = FORMULAS[name]
    activation = keras.activations.get(name)
    assert activation_gain(activation) == pytest.approx(1 / math.sqrt(moment(function)), rel=1e-6)
    odd = moment(lambda z: function(z) - function(-z))
    assert activation_gain(activation, mirrored=True) == pytest.approx(math.sqrt(2 / odd), rel=1e-6)


def test_closed_forms():
    assert activation_gain(keras.activations.relu) == pytest.approx(math.sqrt(2), rel=1e-15)
    assert activation_gain(keras.activations.leaky_relu) == pytest.approx(math.sqrt(2 / 1.04), rel=1e-15)
    assert activation_gain(keras.activations.linear) == activation_gain(keras.activations.selu) == 1


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda z: z**4, 3.0),
        (lambda z: (z > 0.3).astype("float64"), 0.5 * math.erfc(0.3 / math.sqrt(2))),  # a jump inside a panel
        (lambda z: np.exp(2 * z), math.exp(2)),
        (
            lambda z: np.abs(z - 0.123),
            math.sqrt(2 / math.pi) * math.exp(-(0.123**2) / 2) + 0.123 * math.erf(0.123 / 2**0.5),
        ),
    ],
    ids=["power", "jump", "exponential", "kink"],
)
def test_normal_mean_is_exact_also_at_jumps_and_kinks(function, expected):
    assert normal_mean(function) == pytest.approx(expected, rel=1e-7)


def test_any_elementwise_callable_has_a_gain():
    assert activation_gain(lambda x: keras.ops.abs(x)) == pytest.approx(1.0, rel=1e-6)
    assert activation_gain(keras.ops.sin) == pytest.approx(math.sqrt(2 / (1 - math.exp(-2))), rel=1e-6)
    assert activation_gain(keras.layers.LeakyReLU(negative_slope=0.5)) == pytest.approx(math.sqrt(2 / 1.25), rel=1e-6)
    assert activation_gain(keras.layers.ReLU()) == pytest.approx(math.sqrt(2), rel=1e-6)


def test_a_callable_that_has_no_hash():
    @dataclasses.dataclass
    class Slope:
        slope: float

        def __call__(self, x):
            return self.slope * x

    slope = Slope(2.0)
    assert activation_gain(slope) == pytest.approx(0.5, rel=1e-6)
    slope.slope = 4.0
    assert activation_gain(slope, mirrored=True) == pytest.approx(math.sqrt(2 / 64), rel=1e-6)


def test_a_layer_is_neither_kept_alive_nor_remembered():
    layer = keras.layers.PReLU(shared_axes=[1])
    layer.build((None, 1))
    assert activation_gain(layer) == pytest.approx(math.sqrt(2), rel=1e-6)
    layer.alpha.assign([1.0])
    assert activation_gain(layer) == pytest.approx(1.0, rel=1e-6)
    alive = weakref.ref(layer)
    del layer
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("activation", [keras.activations.softmax, lambda x: keras.ops.sum(x, axis=-1)])
def test_an_activation_that_mixes_entries_is_refused(activation):
    with pytest.raises(ValueError, match="`activation` must act on each entry by itself. Received: activation="):
        activation_gain(activation)


@pytest.mark.parametrize("activation", [keras.ops.zeros_like, lambda x: x / 0.0, lambda x: keras.ops.exp(x * x)])
def test_an_activation_without_a_second_moment_is_refused(activation):
    with pytest.raises(ValueError, match="`activation` must have a finite second moment above 0"):
        activation_gain(activation)


@pytest.mark.parametrize(("name", "growth"), [("gelu", 1.144), ("silu", 1.173), ("mish", 1.076), ("selu", 0.783)])
def test_how_fast_a_deviation_grows_is_what_the_docstring_says(name, growth):
    """The exponent of q -> gain^2 E[f(sqrt(q) z)^2] at q = 1: above 1, no gain holds the signal for long."""
    function = np.vectorize(FORMULAS[name])
    low, high = (normal_mean(lambda z, q=q: function(np.sqrt(q) * z) ** 2) for q in (0.999, 1.001))
    assert math.log(high / low) / math.log(1.001 / 0.999) == pytest.approx(growth, abs=1e-3)
