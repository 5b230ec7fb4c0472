"""Find out why a batch made the loss or a gradient non-finite, by running it again layer by layer.

The order of the questions: is the data finite, are the weights, where does the forward pass break, does the loss break
on finite predictions, where does the gradient break on its way back? The first "yes" is the origin.
"""

import math

import keras
import numpy as np

from tf_tricks._backend import tf
from tf_tricks.callbacks import non_finite_causes as causes
from tf_tricks.callbacks.non_finite_case import Case, finding, finite
from tf_tricks.callbacks.non_finite_causes import Cause
from tf_tricks.callbacks.non_finite_data import explain_data, explain_labels, named_arrays
from tf_tricks.callbacks.non_finite_forward import find_in_forward, first_break
from tf_tricks.callbacks.non_finite_gradient import find_in_gradient
from tf_tricks.callbacks.non_finite_loss import find_in_loss
from tf_tricks.callbacks.non_finite_report import NonFiniteReport
from tf_tricks.fit_hooks.replay import replay_forward, replay_gradient, to_numpy


def diagnose(model, data, *, step, epoch, batch, learning_rate, trajectory):
    """Replay `data` on `model` and say why the loss or a gradient is not finite. Changes nothing about the model.

    Args:
        model: compiled `keras.Model` with the weights and random state from before the bad step.
        data: what `train_step` receives: `(x,)`, `(x, y)` or `(x, y, sample_weight)`.
        step, epoch, batch: ints for the report.
        learning_rate: float or None, that of the bad step.
        trajectory: dict of equally long lists "step", "loss", "grad_norm", oldest first, the bad step included.
    Returns:
        `NonFiniteReport` of plain Python values.
    """
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(_on_one_device(model, data))
    case = Case(model, x, y, sample_weight, learning_rate, trajectory)
    plain = {key: list(values) for key, values in trajectory.items()}
    where = {"step": int(step), "epoch": int(epoch), "batch": int(batch), "trajectory": plain}
    return NonFiniteReport(**where, **_first_finding(case))


def _first_finding(case):
    for origin, name, structure in (
        ("input", "x", case.x),
        ("target", "y", case.y),
        ("sample_weight", "sample_weight", case.sample_weight),
    ):
        cause = explain_data(name, structure)
        if cause is not None:
            return finding(origin, cause)
    for label, array in named_arrays("x", case.x):
        case.batch_size = case.batch_size or (array.shape[0] if array.ndim else None)
        largest = float(np.max(np.abs(array), initial=0)) if array.dtype.kind == "f" else 0.0
        if largest > case.largest_x:
            case.largest_x, case.x_name = largest, f"`{label}`"
    return _weights(case) or _replayed(case)


def _replayed(case):
    case.run = run = replay_forward(case.model, case.x, case.y, case.sample_weight)
    broken = first_break(run.calls)
    flat = keras.tree.flatten(run.predictions)
    predictions_break = not all(finite(p) for p in flat if isinstance(p, np.ndarray) and p.dtype.kind == "f")
    if run.error is not None:
        return _after_error(case, broken)
    loss_breaks = not math.isfinite(run.loss)
    added_loss_breaks = not all(math.isfinite(value) for _, value in run.layer_losses)
    # -Inf is a legitimate logit (a masked class): finite loss, no fault.
    if broken is not None and loss_breaks and (predictions_break or added_loss_breaks):
        return find_in_forward(case, broken)
    if loss_breaks:
        return find_in_loss(case)
    replay_gradient(case.model, case.x, case.y, case.sample_weight, run)
    if run.error is not None:
        return _after_error(case, None)
    return find_in_gradient(case) or _not_reproduced(
        case, f"gave a loss of {causes.number(run.loss)} and finite gradients"
    )


# --- before the replay --------------------------------------------------------------------------------------------
def _on_one_device(model, data):
    """Under `tf.distribute` a batch comes in parts, one per replica: put them together."""
    if tf is None or getattr(model, "distribute_strategy", None) is None:
        return data

    def joined(value):
        if not isinstance(value, tf.distribute.DistributedValues):
            return value
        return tf.concat(model.distribute_strategy.experimental_local_results(value), axis=0)

    return keras.tree.map_structure(joined, data)


def _weights(case):
    for variable in case.model.weights:
        if "float" not in keras.backend.standardize_dtype(variable.dtype):
            continue
        array = to_numpy(variable.value)
        if finite(array):
            continue
        bad = int(np.count_nonzero(~np.isfinite(array)))
        cause = Cause(
            f"`{variable.path}` contains {causes.kind_text(array)} before the step ({bad} of {array.size} entries)",
            [
                "Look at where the weights come from: a loaded file, an initializer, a callback that writes them.",
                "For a moving statistic: an earlier batch with a non-finite activation has spoiled it.",
            ],
        )
        return finding("weights", cause, layer=_owner(case.model, variable), variable=variable.path)
    return None


def _owner(model, variable):
    """The innermost layer that holds the variable."""
    layer, inside = model, list(model.layers)
    while True:
        holder = next((each for each in inside if any(v is variable for v in each.variables)), None)
        if holder is None:
            return None if layer is model else layer
        layer, inside = holder, list(getattr(holder, "layers", []))


# --- otherwise ----------------------------------------------------------------------------------------------------
def _after_error(case, broken):
    if broken is not None:
        return find_in_forward(case, broken)
    if case.run.predictions is not None:
        cause = explain_labels(case.model, case.y, case.run.predictions)
        if cause is not None:
            return finding("loss", cause, case=case)
    return _not_reproduced(case, f"ended with {case.run.error}")


def _not_reproduced(case, what):
    losses = case.trajectory.get("loss", [])
    origin = "gradient" if losses and math.isfinite(losses[-1]) else "loss"
    cause = Cause(
        f"unknown: replaying the batch eagerly {what}, so the problem did not show again",
        [
            "Look at what differs from an eager run: a custom `train_step`, a non-deterministic operation, "
            "reordered arithmetic under `jit_compile=True`.",
            "Fit once more with `run_eagerly=True` to see whether it is the compiler.",
        ],
    )
    return finding(origin, cause, case=case)
