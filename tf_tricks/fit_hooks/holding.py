"""Under XLA: hold a bad update back inside the optimizer's own assignments.

To compute an update and to choose afterwards costs a copy of all weights and moments, since the old state must outlive
the new one. `where(good, new, old)` at each assignment is fused into the update, which reads `old` anyway: what is left
of the cost is the one read of the gradients that tells whether they are finite. Steps that are applied keep their bits.
"""

import keras
from keras import ops

from tf_tricks._backend import BACKEND, jax, tf

# Optimizers whose last word on each of their variables goes through `Optimizer.assign`, `assign_add` or `assign_sub`,
# the public methods for that. Others are undone after the fact, as are Adagrad and Lion, whose last bits would change:
# with a choice in between XLA contracts other products and sums. A test goes through the list.
UPDATE_RULES = tuple(
    getattr(keras.optimizers, name)
    for name in ("Adadelta", "Adam", "Adamax", "AdamW", "Nadam", "RMSprop", "SGD")
)


def can_hold(optimizer, update_rule, variables):
    """Does every assignment to weights and moments pass through the optimizer's `assign` methods?

    `update_rule` is the optimizer's own class. Moving averages of the weights, accumulated gradients, constraints and
    loss scales assign past them.
    """
    if update_rule not in UPDATE_RULES or optimizer.use_ema or optimizer.gradient_accumulation_steps:
        return False
    return not any(v.constraint is not None or v.overwrite_with_gradient for v in variables)


class Holder:
    """The choice between new and old for one update; `held` knows the variables for which it was made."""

    def __init__(self, condition, variables, old):
        self._condition = condition
        self._old = {id(_native(variable)): value for variable, value in zip(variables, old, strict=True)}
        self.held = set()

    def assign(self, assign, variable, new):
        """Call the optimizer's `assign` with what the variable shall get."""
        key = id(_native(variable))
        if key in self._old:
            self.held.add(key)
            new = ops.where(self._condition, ops.cast(new, variable.dtype), self._old[key])
        assign(variable, new)

    def pass_by(self, variable):
        """The optimizer assigns in a way that we do not know: this variable has to be undone afterwards."""
        self.held.discard(id(_native(variable)))

    def holds(self, variable):
        """Does this variable have its old value back if the update was bad?"""
        return id(_native(variable)) in self.held


def holding_class(base, holder):
    """A subclass of an optimizer's class that assigns through `holder()`, or as always where that is None."""

    class Holding(base):
        def assign(self, variable, value):
            self._hold(variable, value, lambda: value, super().assign)

        def assign_add(self, variable, value):
            self._hold(variable, value, lambda: _value(variable) + ops.cast(value, variable.dtype), super().assign_add)

        def assign_sub(self, variable, value):
            self._hold(variable, value, lambda: _value(variable) - ops.cast(value, variable.dtype), super().assign_sub)

        def _hold(self, variable, value, new, as_always):
            present = holder()
            if present is not None and not _is_sparse(value):
                present.assign(super().assign, variable, new())
                return
            if present is not None:
                present.pass_by(variable)
            as_always(variable, value)

    return Holding


def _native(variable):
    # Inside an update TensorFlow's optimizer handles `tf.Variable`s, JAX's the Keras variables.
    return variable.value if BACKEND == "tensorflow" and isinstance(variable, keras.Variable) else variable


def _value(variable):
    return tf.convert_to_tensor(variable) if BACKEND == "tensorflow" else variable.value


def _is_sparse(value):
    return BACKEND == "tensorflow" and isinstance(value, tf.IndexedSlices)


def spoil_gradient(loss):
    """The loss as it is, with NaN as its gradient where it is not finite; else not a bit is changed.

    JAX: the loss itself cannot leave the trace of the gradient, so the gradients have to tell that it was not finite.
    """
    return _spoil_gradient(loss)


if jax is not None:

    @jax.custom_jvp
    def _spoil_gradient(loss):
        return loss

    @_spoil_gradient.defjvp
    def _(primals, tangents):
        (loss,), (tangent,) = primals, tangents
        return loss, tangent * jax.numpy.where(jax.numpy.isfinite(loss), 1, jax.numpy.nan).astype(tangent.dtype)
