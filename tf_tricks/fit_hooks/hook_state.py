"""What the hook of a running `fit` remembers between two steps, for a run that is resumed."""

import numpy as np

from tf_tricks.fit_hooks import hook as hooks
from tf_tricks.fit_hooks.drivers import to_device

_PLAIN = ("step", "epoch", "batch_index", "steps_per_epoch", "_scale", "_recent")


def live_hook(model):
    """The hook of the `fit` that runs, or None."""
    hook = hooks._hooks.get(id(model))
    return hook if hook is not None and hook.is_live(model) else None


def flush(model):
    """Have the host read all records, and the model hold the state after the last step."""
    if (hook := live_hook(model)) is not None:
        hook.flush()


def take(model):
    """A dict of plain values, or None where nobody uses a hook."""
    hook = live_hook(model)
    return None if hook is None else {name.lstrip("_"): getattr(hook, name) for name in _PLAIN}


def put_back(model, state):
    """Set what `take` returned, in the `fit` that runs."""
    hook = live_hook(model)
    if hook is None or state is None:
        return
    for name in _PLAIN:
        setattr(hook, name, state[name.lstrip("_")])
    guard = next(iter(hook._wishes("guard")), None)
    if guard is not None:
        hook._guard_state = to_device(np.array([guard.bad_in_a_row, 0], "int32"), "int32")
