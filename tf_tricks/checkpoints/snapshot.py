"""A copy of a run's state in host memory, to go back to later in the same process or in another one."""

import numpy as np

from tf_tricks.checkpoints import model_state


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
        self._groups = {"weights": model_state.unique(weights)}
        if optimizer is not None:
            self._groups["optimizer"] = model_state.unique(optimizer)

    @classmethod
    def take(cls, model, optimizer=True):
        """Copy the present state of `model` to host memory; with `optimizer=False` its weights alone."""
        tree = model_state.take(model, optimizer=optimizer)
        return cls(tree["weights"].items(), tree["optimizer"]["variables"].items() if optimizer else None)

    def restore(self, model, *, optimizer=True, learning_rate=True):
        """Assign the copies to the variables of `model`, by position.

        Args:
            model: the model of the snapshot, or another one of the same architecture and optimizer.
            optimizer: bool, also restore the optimizer's variables, if the snapshot holds them.
            learning_rate: bool, count the variable of a constant learning rate among the optimizer's variables.
        Raises:
            ValueError: a variable does not match; the message names the first one. Nothing is changed then.
        """
        tree = {"weights": self._groups["weights"], "optimizer": None}
        if "optimizer" in self._groups:
            tree["optimizer"] = {"variables": self._groups["optimizer"]}
        model_state.assign(model, tree, optimizer=optimizer, learning_rate=learning_rate, source="snapshot")

    def arrays(self, group):
        """The arrays of `group` ("weights" or "optimizer") in the order of the variables; None if it was not taken."""
        return list(self._groups[group].values()) if group in self._groups else None

    def get_state(self):
        """A dict of plain lists, strings and NumPy arrays, for a checkpoint."""
        return {name: {"paths": list(group), "values": list(group.values())} for name, group in self._groups.items()}

    @classmethod
    def from_state(cls, state):
        """The snapshot that `get_state` describes."""
        groups = {}
        for name, group in state.items():
            arrays = [np.asarray(array) for array in group["values"]]
            groups[name] = list(zip(group["paths"], arrays, strict=True))
        return cls(**groups)
