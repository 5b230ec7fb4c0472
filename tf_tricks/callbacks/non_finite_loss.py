"""Why is the loss non-finite although the predictions are finite?"""

import math

import keras
import numpy as np

from tf_tricks.callbacks import non_finite_causes as causes
from tf_tricks.callbacks.non_finite_case import broken_function, finding, largest_weight, layer_calls
from tf_tricks.callbacks.non_finite_causes import Cause
from tf_tricks.callbacks.non_finite_data import explain_labels, named_arrays
from tf_tricks.fit_hooks.replay import loss_of_predictions


def find_in_loss(case):
    run = case.run
    frame = next(call for call in run.calls if call.kind == "loss")
    for layer, value in run.layer_losses:
        if not math.isfinite(value):
            own = next(call for call in run.calls if call.layer is layer)
            place = f"in the loss that `{layer.name}` adds"
            cause = broken_function(case, own.index, place) or broken_function(case, frame.index, place)
            if cause is None and own.parent is not None:  # an activity regularizer runs just outside its layer
                cause = broken_function(case, own.parent, place)
            text = f"the loss that `{layer.name}` adds (regularizer or add_loss) is {value}"
            cause = cause or Cause(text, ["Look at the regularizers and `add_loss` calls of this layer."])
            return finding("loss", cause, layer=own, case=case)
    cause = (
        explain_labels(case.model, case.y, run.predictions)
        or _what_if(case, weights_only=True)
        or broken_function(case, frame.index, "in the loss")
        or _loss_overflow(case)
        or _what_if(case)
        or Cause(
            f"the loss is {run.loss} although all predictions are finite (magnitudes up to "
            f"{causes.number(_largest_prediction(case))})",
            ["Look for a division, log, root or power in the loss whose argument leaves its domain."],
        )
    )
    return finding("loss", cause, case=case)


def _largest_prediction(case):
    arrays = [p for p in keras.tree.flatten(case.run.predictions) if isinstance(p, np.ndarray)]
    return max((float(np.max(np.abs(p), initial=0)) for p in arrays), default=0.0)


def _loss_overflow(case):
    last = [call for call in layer_calls(case.run.calls) if not call.children][-1]
    dtype = last.outputs[0].dtype if last.outputs else "float32"
    reach = _largest_prediction(case)
    if reach < (250 if dtype == "float16" else 1e9):  # the square of a smaller number is far inside the range
        return None
    subject = f"activations of `{last.name}`"
    weight, rate = largest_weight(last.layer), case.learning_rate
    return causes.explain_overflow(subject, dtype, reach, weight, case.largest_x, case.x_name, rate, case.trajectory)


def _what_if(case, weights_only=False):
    """Change one suspicious feature of the loss's arguments; if the loss is then finite, that feature is the cause."""
    run, predictions = case.run, case.run.predictions

    def finite_with(change=lambda p: p, sample_weight=case.sample_weight):
        changed = keras.tree.map_structure(change, predictions)
        return math.isfinite(loss_of_predictions(case.model, case.x, case.y, changed, sample_weight))

    if weights_only:
        if case.sample_weight is None or any(np.any(a) for _, a in named_arrays("sample_weight", case.sample_weight)):
            return None
        ones = keras.tree.map_structure(lambda w: None if w is None else keras.ops.ones_like(w), case.sample_weight)
        if not finite_with(sample_weight=ones):
            return None
        return Cause("0 / 0 in the loss: all sample weights of the batch are 0", [causes.DIVIDE])
    flat = [p for p in keras.tree.flatten(predictions) if isinstance(p, np.ndarray) and p.dtype.kind == "f"]
    for what, why, selected, value in (
        ("exactly 0", "log of 0 or division by 0 in the loss", lambda p: p == 0, 1e-6),
        ("exactly 1", "log of 0 or division by 0 in the loss", lambda p: p == 1, 1 - 1e-6),
        ("negative", "log or root of a negative number in the loss", lambda p: p < 0, 1e-6),
    ):
        if not any(selected(p).any() for p in flat):
            continue
        if finite_with(lambda p, s=selected, v=value: np.where(s(p), np.asarray(v, p.dtype), p)):
            hit = next(p for p in flat if selected(p).any())
            rows = causes.true_rows(selected(hit)) if hit.ndim and hit.shape[0] == case.batch_size else None
            text = f"{why}: predictions are {what}" + (f" at {causes.rows_text(rows, len(hit))}" if rows else "")
            return Cause(f"{text}; with these moved by 1e-6 the loss is finite", [causes.CLIP, causes.LOGITS], rows)
    frame = next(call for call in run.calls if call.kind == "loss")
    empty = [c for c in run.calls if c.parent == frame.index and c.breaks]
    return Cause(f"`{empty[0].name}` in the loss is not finite", [causes.DIVIDE]) if empty else None
