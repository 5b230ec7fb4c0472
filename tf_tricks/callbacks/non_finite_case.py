"""The evidence about one bad batch, and what the searches in the forward pass, the loss and the gradient share."""

import dataclasses

import keras
import numpy as np

from tf_tricks.callbacks import non_finite_causes as causes
from tf_tricks.fit_hooks.replay import to_numpy


@dataclasses.dataclass
class Case:
    """The evidence, as far as it has been collected."""

    model: keras.Model
    x: object
    y: object
    sample_weight: object
    learning_rate: float | None
    trajectory: dict
    run: object = None  # `Replayed`
    batch_size: int | None = None
    largest_x: float = 0.0
    x_name: str = "`x`"


def layer_calls(calls):
    """The calls of layers and graph operations in the order in which they ended."""
    ended = [c for c in calls if c.kind in ("layer", "operation") and c.finished >= 0]
    return sorted(ended, key=lambda c: c.finished)


def largest(values):
    return max((v.largest for v in values), default=0.0)


def largest_weight(layer):
    weights = [] if layer is None else layer.trainable_weights
    return max((float(np.max(np.abs(to_numpy(w.value)), initial=0)) for w in weights), default=0.0)


def broken_function(case, parent, place):
    for call in case.run.calls:
        if call.kind == "function" and call.parent == parent and call.breaks:
            cause = causes.explain_function(call, place)
            if cause is not None:
                cause.samples = causes.bad_rows(call.outputs[0].array, case.batch_size)
                return cause
    return None


def finding(origin, cause, layer=None, variable=None, samples=None, case=None):
    """The fields of the report; `layer` is a layer or a `Call`."""
    suggestions = list(cause.suggestions)
    grew = causes.growth(case.trajectory) if case is not None else None
    if grew is not None and "learning rate" not in " ".join([cause.sentence, *suggestions]):
        suggestions.append(f"Also, {grew}: consider a lower learning rate.")
    samples = cause.samples if samples is None else samples
    type_name = None if layer is None else getattr(layer, "type_name", type(layer).__name__)
    return {
        "origin": origin,
        "cause": cause.sentence,
        "suggestions": suggestions,
        "layer": None if layer is None else layer.name,
        "layer_type": type_name,
        "variable": variable,
        "samples": samples or None,
    }


def finite(array):
    return bool(np.isfinite(array).all())
