"""The gain of an activation: what a kernel has to multiply by, so that the activation does not shrink the signal.

The signal is the pre-activation z. If it has the second moment 1, then W f(z) has it again where the entries of W have
the variance gain^2 / fan_in and gain^2 E[f(z)^2] = 1, z ~ N(0, 1). Every activation has such a gain (E[f(z)^2] = 1 by a
gain inside f has no solution for tanh, whose values lie below 1).
"""

import contextlib
import functools
import inspect
import math

import keras
import numpy as np

from tf_tricks._backend import jax, tf

_CLOSED_FORM = {
    keras.activations.linear: 1.0,
    keras.activations.relu: 0.5,
    keras.activations.leaky_relu: (1 + 0.2**2) / 2,  # the slope that Keras has where none is given
    keras.activations.selu: 1.0,  # what its two constants were chosen for
}
_REACH = 12.0  # standard deviations; beyond are 4e-33 of a normal distribution
_TOLERANCE = 1e-7  # of the second moment; the gain has half of its relative error
_POINTS, _LEVELS, _PANELS = np.polynomial.legendre.leggauss(12), 40, 2048


def activation_gain(activation, mirrored=False):
    """1 / sqrt(E[f(z)^2]) for z ~ N(0, 1), to a relative 1e-6.

    Args:
        activation: callable on tensors, elementwise.
        mirrored: bool; True: sqrt(2 / E[(f(z) - f(-z))^2]), where the inputs of the kernel come in pairs f(z), f(-z)
            and the kernel has opposite signs for the two.
    Raises:
        ValueError: the activation is not elementwise, or its second moment is 0 or not finite.
    """
    # A layer may be unhashable, its weights change its gain, and a cache would keep it alive.
    moment = _cached_moment if inspect.isfunction(activation) and not activation.__closure__ else _moment
    return 1 / math.sqrt(moment(activation, mirrored))


def _moment(activation, mirrored):
    if mirrored:
        moment = normal_mean(lambda z: (_values(activation, z) - _values(activation, -z)) ** 2) / 2
    elif inspect.isfunction(activation) and activation in _CLOSED_FORM:
        return _CLOSED_FORM[activation]
    else:
        moment = normal_mean(lambda z: _values(activation, z) ** 2)
    if not 0 < moment < math.inf:
        raise ValueError(
            f"`activation` must have a finite second moment above 0 on normal inputs, and it is {moment:g}. "
            f"Received: activation={activation!r}"
        )
    return moment


_cached_moment = functools.lru_cache(maxsize=64)(_moment)


def normal_mean(function):
    """E[function(z)] for z ~ N(0, 1); `function` maps a float64 array to one of its shape.

    Gauss-Legendre on panels, halved where the two halves disagree with the whole: kinks and jumps cost digits of a
    rule for the whole line (Gauss-Hermite has three after 100 points for relu), here they cost a few more panels.
    """
    edges = np.linspace(-_REACH, _REACH, 49)
    left, right = edges[:-1], edges[1:]
    whole = _panel_integrals(function, left, right)
    size = np.abs(whole).sum()  # what an error is compared with
    if not math.isfinite(size) or max(abs(whole[0]), abs(whole[-1])) > _TOLERANCE * size:
        return math.inf  # the tails of the distribution do not tame this function
    total = 0.0
    for _ in range(_LEVELS):
        middle = (left + right) / 2
        left, right = np.concatenate([left, middle]), np.concatenate([middle, right])
        halves = _panel_integrals(function, left, right)
        both = sum(np.split(halves, 2))
        rough = np.abs(both - whole) > _TOLERANCE / (2 * _REACH) * size * 2 * (right - left)[: len(whole)]
        total += both[~rough].sum()
        rough = np.tile(rough, 2)
        left, right, whole = left[rough], right[rough], halves[rough]
        if not 0 < len(whole) < _PANELS:  # where single precision is too coarse for the tolerance, halving never ends
            break
    return float(total + whole.sum())


def _panel_integrals(function, left, right):
    nodes, weights = _POINTS
    half = (right - left)[:, None] / 2
    z = (left + right)[:, None] / 2 + half * nodes
    density = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite moment is reported by its caller
        return (half * weights * density * function(z)).sum(axis=1)


def _values(activation, z):
    """The activation of a float64 array, as one, on the running backend."""
    with _outside_of_any_trace():
        # JAX computes in single precision unless told otherwise, and warns where asked for more.
        dtype = "float32" if jax else "float64"
        tensor = keras.ops.convert_to_tensor(z, dtype=dtype)
        values = np.asarray(keras.ops.convert_to_numpy(activation(tensor)), "float64")
        alone = keras.ops.convert_to_numpy(activation(tensor[:1, :2]))
    if values.shape != z.shape or not np.allclose(values[:1, :2], alone, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise ValueError(f"`activation` must act on each entry by itself. Received: activation={activation!r}")
    return values


@contextlib.contextmanager
def _outside_of_any_trace():
    """Compute now, on the CPU: a layer may make its initializer while its own `build` is traced."""
    with contextlib.ExitStack() as stack:
        if tf:
            stack.enter_context(tf.init_scope())
        if jax:
            stack.enter_context(jax.ensure_compile_time_eval())
        stack.enter_context(keras.device("cpu"))
        yield
