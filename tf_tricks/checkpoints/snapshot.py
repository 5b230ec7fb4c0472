"""A copy of a run's state in host memory, to go back to later in the same process or in another one."""

import keras
import numpy as np


class Snapshot:
    """Host copies of a model's weights and of its optimizer's variables, restored bit for bit.

    Random state (`keras.random.SeedGenerator`) and the state of metrics are left out: going back to good weights shall
    neither repeat the same dropout masks nor disturb the numbers of the epoch that is being measured.

    Args:
        weights: list of `(path, array)`, one for each of `model.weights`.
        optimizer: list of `(path, array)`, one for each of `model.optimizer.variables`, or None.
    Raises:
        ValueError: `take` with `optimizer=True` of a model that is not compiled; `restore` into a model whose
            variables differ in number, shape or dtype. Nothing is changed then.
    Reference:
        `model.get_weights()` and `model.set_weights()`, which leave the optimizer out.
    Example:
        >>> before = Snapshot.take(model)
        >>> _ = model.fit(x, y, verbose=0)
        >>> before.restore(model)
        >>> all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before.arrays("weights")))
        True
    """

    def __init__(self, weights, optimizer=None):
        self._groups = {"weights": list(weights)}
        if optimizer is not None:
            self._groups["optimizer"] = list(optimizer)

    @classmethod
    def take(cls, model, optimizer=True):
        """Copy the present state of `model` to host memory; with `optimizer=False` its weights alone."""
        groups = _variables(model, optimizer)
        if optimizer and model.built and not model.optimizer.built:  # before the first `fit`
            model.optimizer.build(model.trainable_variables)
            groups = _variables(model, optimizer)
        return cls(**{name: _copies(variables) for name, variables in groups.items()})

    def restore(self, model, *, optimizer=True, learning_rate=True):
        """Assign the copies to the variables of `model`, by position.

        Args:
            model: the model of the snapshot, or another one of the same architecture and optimizer.
            optimizer: bool, also restore the optimizer's variables, if the snapshot holds them.
            learning_rate: bool, count the variable of a constant learning rate among the optimizer's variables.
        Raises:
            ValueError: a variable does not match; the message names the first one. Nothing is changed then.
        """
        pairs = []
        for name, variables in _variables(model, optimizer and "optimizer" in self._groups).items():
            _check_same(name, variables, self._groups[name])
            pairs += zip(variables, self._groups[name], strict=True)
        kept = None if learning_rate or not optimizer else model.optimizer.learning_rate
        for variable, (_, array) in pairs:
            if variable is not kept:
                variable.assign(array)

    def arrays(self, group):
        """The arrays of `group` ("weights" or "optimizer") in the order of the variables; None if it was not taken."""
        return [array for _, array in self._groups[group]] if group in self._groups else None

    def get_state(self):
        """A dict of plain lists, strings and NumPy arrays, for a checkpoint."""
        return {
            name: {"paths": [path for path, _ in group], "values": [array for _, array in group]}
            for name, group in self._groups.items()
        }

    @classmethod
    def from_state(cls, state):
        """The snapshot that `get_state` describes."""
        groups = {}
        for name, group in state.items():
            arrays = [np.asarray(array) for array in group["values"]]
            groups[name] = list(zip(group["paths"], arrays, strict=True))
        return cls(**groups)


def _variables(model, optimizer):
    if hasattr(model, "jax_state_sync"):
        # On JAX the state lives outside the variables while `fit` runs.
        model.jax_state_sync()
    groups = {"weights": model.weights}
    if optimizer:
        if getattr(model, "optimizer", None) is None:
            raise ValueError("Snapshot: the model has no optimizer. Call `model.compile(...)` or pass optimizer=False.")
        groups["optimizer"] = model.optimizer.variables
    return groups


def _copies(variables):
    # The explicit copy matters: on the CPU an array may be a view of memory that the next step overwrites.
    return [(variable.path, np.array(keras.ops.convert_to_numpy(variable), copy=True)) for variable in variables]


def _check_same(group, variables, saved):
    for variable, (path, array) in zip(variables, saved, strict=False):
        ours, theirs = (tuple(variable.shape), _dtype(variable)), (array.shape, _dtype(array))
        if ours != theirs:
            raise ValueError(
                f"Snapshot: variable `{variable.path}` has shape {ours[0]} and dtype {ours[1]}, but the snapshot holds "
                f"`{path}` with shape {theirs[0]} and dtype {theirs[1]} in its place. Restore it into the model that "
                "it was taken of, or one built and compiled in the same way."
            )
    if len(variables) != len(saved):
        paths = [variable.path for variable in variables], [path for path, _ in saved]
        more, where = (paths[0], "model") if len(paths[0]) > len(paths[1]) else (paths[1], "snapshot")
        raise ValueError(
            f"Snapshot: the model has {len(paths[0])} variables in `{group}`, the snapshot {len(paths[1])}; the first "
            f"that only the {where} has is `{more[min(map(len, paths))]}`. Restore it into a model built and compiled "
            "in the same way."
        )


def _dtype(value):
    return keras.backend.standardize_dtype(value.dtype)
