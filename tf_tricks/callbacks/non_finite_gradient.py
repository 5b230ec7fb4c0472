"""Where on the way back from the loss does the gradient stop being finite, and why?"""

import numpy as np

from tf_tricks.callbacks import non_finite_causes as causes
from tf_tricks.callbacks.non_finite_case import finding, finite, largest, largest_weight, layer_calls
from tf_tricks.callbacks.non_finite_causes import Cause


def find_in_gradient(case):
    run = case.run
    bad_variables = {id(v): v for v, g in run.gradients if g is not None and not finite(g)}
    culprit = _gradient_culprit(run.calls, bad_variables)
    frame = next(call for call in run.calls if call.kind == "loss")
    if culprit is None:
        roots = [call for call in run.calls if call.parent is None and call.kind == "layer"]
        if not bad_variables and all(_passes(v) for call in roots for v in call.outputs):
            return None
        cause = _steep_function(case, (frame.index,), "in the loss")
        cause = cause or _gradient_overflow(case, roots[-1] if roots else None, "the gradient of the loss")
        text = "the loss is finite but its gradient with respect to the predictions is not"
        cause = cause or Cause(text, ["Look for a root, division, log or norm at the edge of its domain in the loss."])
        return finding("gradient", cause, case=case)
    culprit = _regularized(run.calls, culprit)
    place = f"in `{culprit.name}`"
    frames = (culprit.index, *((culprit.parent,) if _has_activity_regularizer(culprit) else ()))
    own = [] if culprit.layer is None else culprit.layer.trainable_weights
    variable = next((v for v in own if id(v) in bad_variables), None)
    cause = _steep_function(case, frames, place)
    if cause is None and variable is not None and variable.regularizer is not None:
        cause = _steep_function(case, (frame.index,), f"in the regularizer of `{variable.path}`")
    cause = cause or _gradient_overflow(case, culprit, f"gradients of `{culprit.name}`") or _steep_layer(culprit, place)
    gradient = next((v.gradient for v in culprit.inputs if not _passes(v)), None)
    samples = causes.bad_rows(gradient, case.batch_size)
    path = None if variable is None else variable.path
    return finding("gradient", cause, layer=culprit, samples=samples, variable=path, case=case)


def _passes(value):
    return value.gradient is None or finite(value.gradient)


def _gradient_culprit(calls, bad_variables):
    """The layer call nearest the loss that gets a finite gradient and passes on, or keeps, a non-finite one."""

    def bad_inside(call):
        inside = [calls[i] for i in _descendants(calls, call)]
        return not all(_passes(v) for each in inside for v in each.outputs)

    found, explained = [], set()
    layers = layer_calls(calls)
    for call in layers:
        weights = [] if call.layer is None else call.layer.trainable_weights
        bad_weight = any(id(v) in bad_variables for v in weights)
        # A shared layer's weight gradient is a sum: blame this call only if no other one received a bad gradient.
        shared = [c for c in layers if c.layer is call.layer and call.layer is not None]
        bad_weight = bad_weight and all(_passes(v) for c in shared for v in c.outputs)
        bad = not all(_passes(v) for v in call.inputs) or bad_weight or bad_inside(call)
        if not bad or not all(_passes(v) for v in call.outputs):
            continue
        if not explained & {call.index, *_descendants(calls, call)}:
            found.append(call)
        explained.add(call.index)
    return found[-1] if found else None


def _descendants(calls, call):
    found = []
    for index in call.children:
        found += [index, *_descendants(calls, calls[index])]
    return found


def _has_activity_regularizer(call):
    return getattr(call.layer, "activity_regularizer", None) is not None


def _regularized(calls, culprit):
    """An activity regularizer acts between its layer and the container: name the layer."""
    inside = [calls[i] for i in culprit.children]
    hit = [c for c in inside if _has_activity_regularizer(c) and not all(_passes(v) for v in c.outputs)]
    return hit[-1] if hit else culprit


def _steep_function(case, frames, place):
    """The elementary function that gets a finite gradient and passes on a non-finite one, the nearest to the loss."""
    for call in reversed(case.run.calls):
        if call.kind != "function" or call.parent not in frames or not all(_passes(v) for v in call.outputs):
            continue
        at = next((i for i, value in enumerate(call.inputs) if not _passes(value)), None)
        cause = None if at is None else causes.explain_slope(call, place, at)
        if cause is not None:
            cause.samples = causes.bad_rows(call.inputs[at].gradient, case.batch_size)
            return cause
    return None


def _gradient_overflow(case, call, subject):
    if call is None:
        return None
    arriving = [v.gradient for v in call.outputs if v.gradient is not None]
    reach = max((float(np.max(np.abs(g[np.isfinite(g)]), initial=0)) for g in arriving), default=0.0)
    reach = max(reach, largest(call.inputs), largest(call.outputs), largest_weight(call.layer))
    dtype = call.outputs[0].dtype if call.outputs else "float32"
    if reach < (100 if dtype == "float16" else 1e9):
        return None
    weight, rate = largest_weight(call.layer), case.learning_rate
    return causes.explain_overflow(subject, dtype, reach, weight, case.largest_x, case.x_name, rate, case.trajectory)


def _steep_layer(call, place):
    """Without an elementary function on record: what is special about the inputs whose gradient is non-finite?"""
    for value in call.inputs:
        if value.gradient is None or value.array is None or _passes(value):
            continue
        if (value.array[~np.isfinite(value.gradient)] == 0).all():
            text = f"a function with an infinite slope at 0 {place}: its gradient is non-finite exactly at inputs of 0"
            return Cause(text, [causes.SQRT])
    text = f"`{call.name}` receives a finite gradient and passes on one that is not"
    return Cause(text, ["Look for a root, division, log or norm at the edge of its domain in this layer."])
