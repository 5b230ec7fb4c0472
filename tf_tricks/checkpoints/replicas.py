"""What the replicas of `tf.distribute` do not share: running sums of metrics, and statistics of batch normalisation.

Each replica adds its own part of the batch to its own copy of such a variable. One value for all of them would give
sums in another order, and so other bits.
"""

import numpy as np


def take(model):
    """Dict of paths to arrays (replicas, *shape) with what each replica holds; None where there is one replica."""
    found = {path: np.stack([part.numpy() for part in parts]) for path, parts in _copies(model)}
    return found or None


def put_back(model, saved):
    """Give each replica its own values; with another number of replicas than before, leave them as they are."""
    for path, parts in _copies(model) if saved else ():
        if path in saved and len(parts) == len(saved[path]):
            for part, value in zip(parts, saved[path], strict=True):
                part.assign(value)


def _copies(model):
    """Pairs of a path and the copies of the variable, one for each replica."""
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow's alone
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return
    variables = [*model.non_trainable_variables, *model.metrics_variables]
    for number, variable in enumerate(variables):
        parts = strategy.experimental_local_results(variable.value)
        if len(parts) == strategy.num_replicas_in_sync:  # not those of one worker of several
            yield f"{number}/{variable.name}", parts
