"""Hold an update back, keep and restore values: the few things that each backend does in a way of its own.

Under XLA (and so on JAX) the update is computed as always and a branch after it picks the new or the old state: the
good steps are then rounded exactly as without us. TensorFlow's graphs branch around the update. Torch branches on the
CPU and selects on a GPU, where reading a flag would stop the pipeline.
"""

import keras
from keras import ops

from tf_tricks._backend import BACKEND, jax, tf, torch


def _replicas():
    """Number of replicas that run this step side by side under `tf.distribute`."""
    if BACKEND != "tensorflow" or tf.distribute.in_cross_replica_context():
        return 1
    return tf.distribute.get_replica_context().num_replicas_in_sync


def one_replica():
    """Does this step run alone, not beside other replicas of `tf.distribute`?"""
    return _replicas() == 1


def sum_over_replicas(tensors):
    """The sums of each tensor over the replicas of `tf.distribute`; elsewhere the tensors as they are."""
    tensors = list(tensors)
    if _replicas() == 1 or not tensors:
        return tensors
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def read(variables):
    """The present values of variables, as values that a later `assign` does not change."""
    if BACKEND == "torch":
        return [value.clone() for value in values(variables)]
    return values(variables)


def values(variables):
    """The present values of variables (or of tensors), as tensors; on Torch a later `assign` changes them."""
    if BACKEND == "torch":
        return [variable.value.detach() for variable in variables]
    if BACKEND == "tensorflow":  # `identity` reads now; `convert_to_tensor` would hand out the variable itself
        return [tf.identity(v.value if isinstance(v, keras.Variable) else v) for v in variables]
    return [ops.convert_to_tensor(variable) for variable in variables]


def copies(variables, kept):
    """As `read`. On Torch's CPU, where fresh memory costs several times the copy, the list `kept` holds the memory."""
    if BACKEND != "torch" or any(variable.value.device.type != "cpu" for variable in variables):
        return read(variables)
    present = values(variables)
    if not kept:
        kept.extend(torch.empty_like(value, dtype=torch.float32) for value in present)
    for copy, value in zip(kept, present, strict=True):
        copy.copy_(value)
    return kept


def differences(after, before):
    """`after - before` in float32, tensor by tensor; the sign is not kept."""
    if BACKEND == "torch":
        before = [value.float() for value in before]  # our own copies, so the result may take their place
        torch._foreach_sub_(before, [value.float() for value in after])
        return before
    return [ops.cast(a, "float32") - ops.cast(b, "float32") for a, b in zip(after, before, strict=True)]


def select(condition, new, old, done=None):
    """JAX: `new` where the condition holds or the nest `done` is True, else `old`, for nests of tensors."""
    new, structure = jax.tree.flatten(new)
    old = jax.tree.leaves(old)
    done = jax.tree.leaves(done) if done is not None else [False] * len(new)
    rest = [i for i, each in enumerate(done) if not each]
    chosen = jax.lax.cond(condition, lambda: [new[i] for i in rest], lambda: [old[i] for i in rest])
    for i, tensor in zip(rest, chosen, strict=True):
        new[i] = tensor
    return jax.tree.unflatten(structure, new)


def restore_unless(condition, variables, kept):
    """Give variables their old values back, unless the condition holds."""
    if BACKEND == "torch" and condition.device.type == "cpu":
        if not bool(condition):
            _assign(variables, kept)
    elif BACKEND == "tensorflow" and _replicas() == 1:
        tf.cond(condition, lambda: None, lambda: _assign(variables, kept))
    else:
        # Inside a replica an assignment may need all replicas, which no branch allows.
        _assign(variables, [ops.where(condition, v, value) for v, value in zip(variables, kept, strict=True)])


def _assign(variables, new):
    for variable, value in zip(variables, new, strict=True):
        variable.assign(value)


def run_if(condition, apply, grads, variables, optimizer):
    """Call `apply(grads, variables)`, the optimizer's own method, only if the condition holds."""
    if BACKEND == "tensorflow":
        _tensorflow_run_if(condition, apply, grads, variables)
    elif condition.device.type == "cpu":
        if bool(condition):
            apply(grads, variables)
    else:
        _torch_run_and_undo(condition, apply, grads, variables, optimizer)


def _torch_run_and_undo(condition, apply, grads, variables, optimizer):
    state = [*variables, *optimizer.variables]
    kept = read(state)
    apply(grads, variables)
    with torch.no_grad():
        for variable, value in zip(state, kept, strict=True):
            variable.value.copy_(torch.where(condition, variable.value, value))


def _tensorflow_run_if(condition, apply, grads, variables):
    if _replicas() == 1:
        tf.cond(condition, lambda: apply(grads, variables), lambda: None)
        return

    # With several replicas `apply` merges them, and a branch inside a replica must not: branch outside instead.
    def in_cross_replica(strategy, condition, grads):
        # The condition was computed from values summed over all replicas, so any replica's copy will do.
        first = strategy.experimental_local_results(condition)[0]

        def run():
            strategy.extended.call_for_each_replica(apply, args=(grads, variables))

        tf.cond(first, run, lambda: None)

    tf.distribute.get_replica_context().merge_call(in_cross_replica, args=(condition, grads))
