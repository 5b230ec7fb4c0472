"""Have a pass over the pixels compiled, also where the model or the pipeline around it is not.

Uncompiled, each primitive operation of TensorFlow or JAX writes a buffer of the size of the batch; XLA makes one loop
of a pass. Torch runs its operations as they are: its compiler needs a C++ compiler on the user's machine.
"""

import functools

from tf_tricks._backend import BACKEND, jax
from tf_tricks.layers._in_tensorflow import tensorflow
from tf_tricks.layers.augmentation._namespaces import OPS

MOST_SIZES = 16  # eager TensorFlow with images of more sizes than these: compiling takes longer than it gains


class Compiled:
    """A function `(xp, images, parameters)` of tensors, compiled for each namespace, and again for each shape.

    Args:
        function: callable `(xp, images, parameters)` without side effects; `parameters` is a nest of tensors.
    """

    def __init__(self, function):
        self._function = function
        self._compiled = None  # made at the first use; not in a copy or a pickle of the layer
        self._in_tensorflow = None
        self._sizes = set()

    def __call__(self, xp, images, parameters):
        if xp is not OPS or BACKEND == "tensorflow":
            size = tuple(images.shape[1:])
            if None not in size and len(self._sizes) < MOST_SIZES:
                self._sizes.add(size)
            if size not in self._sizes:  # XLA would compile anew for each size
                return self._function(xp, images, parameters)
            return self._tensorflow(xp)(images, parameters)
        if BACKEND == "jax":
            if self._compiled is None:
                self._compiled = jax.jit(functools.partial(self._function, OPS))
            return self._compiled(images, parameters)
        return self._function(xp, images, parameters)

    def _tensorflow(self, xp):
        if self._in_tensorflow is None:
            # No autograph: there is nothing in a pass that it would have to convert. `partial`, because TensorFlow
            # counts tracings by the code of a Python function, and would warn of those of all layers together.
            self._in_tensorflow = tensorflow().function(
                functools.partial(self._function, xp),
                jit_compile=True,
                autograph=False,
                reduce_retracing=True,
            )
        return self._in_tensorflow

    def __deepcopy__(self, memo):
        return Compiled(self._function)

    def __reduce__(self):
        return Compiled, (self._function,)


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
