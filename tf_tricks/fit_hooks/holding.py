"""Under XLA: hold a bad update back inside the optimizer's own assignments.

To compute an update and to choose afterwards costs a copy of all weights and moments, since the old state must outlive
the new one. `where(good, new, old)` at each assignment is fused into the update, which reads `old` anyway: what is left
of the cost is the one read of the gradients that tells whether they are finite. Steps that are applied keep their bits.
"""

import contextlib

import keras
from keras import ops

from tf_tricks._backend import BACKEND, jax, tf

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "Model.compute_loss_and_updates": "what Keras's step on JAX differentiates; set on the instance while it is traced",
}

# Optimizers whose last word on each of their variables goes through `Optimizer.assign`, `assign_add` or `assign_sub`,
# the public methods for that. Others are undone after the fact, as are Adagrad, Lion and RMSprop, whose last bits would
# change: with a choice in between XLA contracts other products and sums. A test goes through the list.
UPDATE_RULES = tuple(
    getattr(keras.optimizers, name) for name in ("Adadelta", "Adam", "Adamax", "AdamW", "Nadam", "SGD")
)


def can_hold(optimizer, update_rule, variables):
    """Does every assignment to weights and moments pass through the optimizer's `assign` methods?

    `update_rule` is the optimizer's own class. Moving averages of the weights, accumulated gradients, constraints and
    loss scales assign past them.
    """
    if update_rule not in UPDATE_RULES or optimizer.use_ema or optimizer.gradient_accumulation_steps:
        return False
    # A `train_step` of one's own may hand in TensorFlow's variables, which have neither.
    return not any(getattr(v, name, None) for v in variables for name in ("constraint", "overwrite_with_gradient"))


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


@contextlib.contextmanager
def loss_in_gradients(model, view, frozen=()):
    """JAX: while the step is traced, have the gradients tell whether the loss was finite; it cannot leave their trace.

    The gradient of the loss alone does not tell: a NaN ends at the first `where` whose other branch was taken. So the
    smallest variable's gradient gets a term of its own, NaN or -0.0, which changes no bit. Only in Keras's own step,
    which takes the gradient of what `compute_loss_and_updates` returns. The gradients at the positions `frozen` are
    dropped, so they tell nothing.
    """
    if getattr(model.compute_loss_and_updates, "__func__", None) is not keras.Model.compute_loss_and_updates:
        yield
        return
    original = model.compute_loss_and_updates

    def compute_loss_and_updates(trainable_variables, *args, **kwargs):
        loss, others = original(trainable_variables, *args, **kwargs)
        seen = [v for i, v in enumerate(trainable_variables) if i not in frozen]
        floats = [v for v in seen if jax.numpy.issubdtype(v.dtype, jax.numpy.floating)]
        if not floats:
            return loss, others
        view.loss_in_gradients = True
        return _spoil_gradient(loss, min(floats, key=lambda v: v.size)), others

    object.__setattr__(model, "compute_loss_and_updates", compute_loss_and_updates)
    try:
        yield
    finally:
        object.__delattr__(model, "compute_loss_and_updates")


if jax is not None:

    @jax.custom_jvp
    def _spoil_gradient(loss, variable):
        """The loss as it is; the gradient of the variable becomes NaN where the loss is not finite."""
        return loss

    @_spoil_gradient.defjvp
    def _(primals, tangents):
        (loss, _), (tangent, of_variable) = primals, tangents
        factor = jax.numpy.where(jax.numpy.isfinite(loss), -0.0, jax.numpy.nan).astype(tangent.dtype)
        return loss, tangent + jax.numpy.sum(of_variable).astype(tangent.dtype) * factor
