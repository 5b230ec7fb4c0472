"""Have a pass over the pixels compiled, also where the model or the pipeline around it is not.

Uncompiled, each primitive operation of TensorFlow or JAX writes a buffer of the size of the batch; XLA makes one loop
of a pass. Torch runs its operations as they are: its compiler needs a C++ compiler on the user's machine.
"""

import functools
import threading

from tf_tricks._backend import BACKEND, jax
from tf_tricks.layers._in_tensorflow import tensorflow
from tf_tricks.layers.augmentation._namespaces import OPS

MOST_SIZES = 16  # eager TensorFlow with batches of more shapes than these: compiling takes longer than it gains
_here = threading.local()


class Compiled:
    """A function `(xp, images, parameters)` of tensors, compiled for each namespace, and again for each shape.

    The gradient goes to the images, not to the parameters.

    Args:
        function: callable `(xp, images, parameters)` without side effects, which returns a tensor; `parameters` is a
            nest of tensors.
        has_gradient: bool. False: the images do not go into the result, which may then be any nest of tensors.
    """

    def __init__(self, function, has_gradient=True):
        self._function = function
        self._has_gradient = has_gradient
        self._compiled = None  # made at the first use; not in a copy or a pickle of the layer
        self._in_tensorflow = None
        self._sizes = set()

    def __call__(self, xp, images, parameters):
        if xp is not OPS or BACKEND == "tensorflow":
            size = tuple(images.shape)
            if None not in size[1:] and len(self._sizes) < MOST_SIZES:
                self._sizes.add(size)
            if size not in self._sizes:  # XLA would compile anew for each shape, of another batch too
                return self._function(xp, images, parameters)
            if self._in_tensorflow is None:
                self._in_tensorflow = self._tensorflow(xp)
            return self._in_tensorflow(images, parameters)
        if BACKEND == "jax":
            if self._compiled is None:
                self._compiled = jax.jit(_while_compiling(functools.partial(self._function, OPS)))
            return self._compiled(images, parameters)
        return self._function(xp, images, parameters)

    def _tensorflow(self, xp):
        tf, function = tensorflow(), _while_compiling(functools.partial(self._function, xp))
        plain = _xla(function)
        if not self._has_gradient:
            return lambda images, parameters: plain(tf.stop_gradient(images), parameters)
        run = _differentiable(lambda values, parameters: [function(*values, parameters)])
        return lambda images, parameters: (
            run([images], parameters)[0] if images.dtype.is_floating else plain(images, parameters)
        )

    def __deepcopy__(self, memo):
        return Compiled(self._function, self._has_gradient)

    def __reduce__(self):
        return Compiled, (self._function, self._has_gradient)


def is_compiling():
    """Is a function being compiled now, on behalf of a `Compiled`?"""
    return getattr(_here, "is_compiling", False)


def _while_compiling(function):
    def traced(*args):
        before, _here.is_compiling = is_compiling(), True
        try:
            return function(*args)
        finally:
            _here.is_compiling = before

    return traced


def _xla(function):
    """A `tf.function` that XLA compiles."""
    # No autograph: there is nothing in a pass that it would have to convert. `partial`, because TensorFlow counts
    # tracings by the code of a Python function, and would warn of those of all layers together.
    return tensorflow().function(functools.partial(function), jit_compile=True, autograph=False, reduce_retracing=True)


def _differentiable(function):
    """A function `(values, parameters)` of lists of tensors, one of tensors, compiled; its gradient goes to the values.

    What a loop or a branch keeps for its gradient cannot leave code compiled by XLA. So the gradient is a function of
    its own, which computes the result once more; it has a gradient in the same way.
    """
    tf, compiled = tensorflow(), _xla(function)

    @functools.cache
    def backward(count):
        def gradient(given, parameters):
            values, upstream = given[:count], given[count:]
            with tf.GradientTape() as tape:
                tape.watch(values)
                result = function(values, parameters)
            return tape.gradient(result, values, upstream, unconnected_gradients="zero")

        return _differentiable(gradient)

    def run(values, parameters):
        # A tape must not see them go in: it would have all kept that the gradient needs.
        results = compiled([tf.stop_gradient(each) for each in values], parameters)
        if not all(each.dtype.is_floating for each in results):
            return results

        @tf.custom_gradient
        def on_tape(*values):
            def gradient(*upstream):
                return backward(len(values))([*values, *upstream], parameters)

            return results, gradient

        return on_tape(*values)

    return run


def apart(xp, compute, number):
    """`compute()`, kept out of the loops of what comes after it; `number` is an int32 scalar that changes.

    Where the model is compiled as a whole, XLA on a CPU would fuse a resampling into the arithmetic that follows, and
    compute its taps anew for each use: six times the time. It fuses nothing across a branch. The condition holds for
    every number, which no compiler knows: no square ends in the bits 10 or 11.
    """
    if xp is OPS and BACKEND == "torch":
        return compute()
    always = xp.equal(xp.bitwise_and(number * number, 2), 0)
    return xp.cond(always, compute, lambda: xp.zeros_like(compute()))  # of which nothing but the shape is computed
