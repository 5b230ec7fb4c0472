"""Run one training batch again, eagerly and without consequences, and see every layer call on the way.

The first pass is a plain forward run that records shapes and finiteness. The second one, run only when it is
needed, adds a tap of -0.0 to each recorded tensor (x + (-0.0) is x, to the bit) and differentiates the loss
with respect to taps and weights. A tap belongs to one call, so shared layers and residual branches are told apart.
"""

import dataclasses
import functools
import inspect
import re
import typing

import keras
import numpy as np

from tf_tricks._backend import BACKEND, jax, tf, torch
from tf_tricks.fit_hooks.replay_calls import PRIVATE_ATTRIBUTES, CallRecorder, to_numpy
from tf_tricks.fit_hooks.replay_state import untouched


@dataclasses.dataclass
class Replayed:
    """What the passes found.

    Attributes:
        calls: list of `Call` in the order in which they began.
        predictions: the outputs of the model as arrays, in the model's structure; None if it raised before.
        loss: float or None, the total loss; None if the forward run raised.
        layer_losses: list of (layer, float), the losses that a layer adds itself, innermost layer first.
        gradients: list of (variable, array or None), the second pass only.
        error: None, or the text of the exception that ended the pass.
    """

    calls: list
    predictions: typing.Any = None
    loss: float | None = None
    layer_losses: list = dataclasses.field(default_factory=list)
    gradients: list = dataclasses.field(default_factory=list)
    error: str | None = None


def replay_forward(model, x, y, sample_weight):
    """The first pass: a `Replayed` whose calls hold shapes, magnitudes and finiteness."""
    recorder = CallRecorder()
    result = Replayed(recorder.calls)
    with untouched(model):
        try:
            weights = [v.value for v in model.trainable_variables]
            if torch:
                with torch.no_grad():
                    _forward(model, (x, y, sample_weight), recorder, weights, result)
            else:
                _forward(model, (x, y, sample_weight), recorder, weights, result)
        except Exception as error:  # a second failure must not hide the first one, which the report is about
            result.error = _one_line(error)
    return result


def replay_gradient(model, x, y, sample_weight, replayed):
    """The second pass: fills in `gradient` of each tapped value of `replayed.calls`, and `replayed.gradients`."""
    variables = list(model.trainable_variables)
    keys, taps = _taps(replayed.calls)
    weights = [v.value for v in variables]

    def loss_of(taps, weights):
        recorder = CallRecorder(replayed.calls, dict(zip(keys, taps, strict=True)))
        loss = _run(model, (x, y, sample_weight), recorder, weights)
        # A dynamic loss scale finds its limit by overflowing, and skips that step by itself: no fault to look for.
        if model.optimizer is None or isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer):
            return loss
        return model.optimizer.scale_loss(loss)

    with untouched(model):
        try:
            tap_gradients, weight_gradients = _differentiate(loss_of, taps, weights)
        except Exception as error:
            replayed.error = _one_line(error)
            return replayed
    for (index, side, position), gradient in zip(keys, tap_gradients, strict=True):
        getattr(replayed.calls[index], side)[position].gradient = gradient
    for call in replayed.calls:  # what a container returns is what the layer inside it returned
        for value in call.outputs:
            if value.alias is not None:
                inner, position = value.alias
                value.gradient = replayed.calls[inner].outputs[position].gradient
    replayed.gradients = list(zip(variables, weight_gradients, strict=True))
    return replayed


def loss_of_predictions(model, x, y, predictions, sample_weight):
    """The loss as a float if the model had given `predictions` (arrays) instead; NaN if it cannot be computed.

    The answer to a "what if": does the loss become finite when the exact zeros are nudged away?
    """
    mapping = [(v, v.value) for v in model.trainable_variables]
    with untouched(model), keras.StatelessScope(state_mapping=mapping, collect_losses=True):
        try:
            y_pred = keras.tree.map_structure(keras.ops.convert_to_tensor, predictions)
            compute = functools.partial(model.compute_loss, **training_argument(model.compute_loss))
            return float(to_numpy(compute(x, y, y_pred, sample_weight)))
        except Exception:
            return float("nan")


def _one_line(error):
    # Keras wraps the message in a report about the call, in bold; one backend adds notes after it.
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
    return f"{type(error).__name__}: {' '.join([line for line in lines if line][:2])}".rstrip(": ")


def _forward(model, data, recorder, weights, result):
    def keep_predictions(y_pred):
        result.predictions = keras.tree.map_structure(to_numpy, y_pred)

    def keep_losses(loss):
        result.loss = float(to_numpy(loss))
        seen = set()
        finished = sorted((c for c in recorder.calls if c.layer is not None), key=lambda c: c.finished)
        for layer in (call.layer for call in finished):
            if id(layer) not in seen:
                seen.add(id(layer))
                result.layer_losses += [(layer, float(np.sum(to_numpy(each)))) for each in layer.losses]

    _run(model, data, recorder, weights, keep_predictions, keep_losses)


def _run(model, data, recorder, weights, with_predictions=None, with_loss=None):
    x, y, sample_weight = data
    mapping = list(zip(model.trainable_variables, weights, strict=True))
    # In this scope no variable is assigned: statistics, seeds and metrics stay as they are.
    with keras.StatelessScope(state_mapping=mapping, collect_losses=True):
        with recorder.installed():
            y_pred = model(x, **training_argument(model.call))
            if with_predictions is not None:
                with recorder.silence():
                    with_predictions(y_pred)
            compute = functools.partial(model.compute_loss, **training_argument(model.compute_loss))
            loss = recorder.run("loss", "loss", "loss", compute, (x, y, y_pred, sample_weight), {})
        if with_loss is not None:
            with_loss(loss)
    return loss


def training_argument(function):
    parameters = inspect.signature(function).parameters
    takes_it = "training" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {"training": True} if takes_it else {}


def _taps(calls):
    """The keys of the values to differentiate with respect to, and a tensor of -0.0 for each."""
    keys, taps = [], []
    for call in calls:
        sides = [("outputs", call.outputs)] if call.children else [("inputs", call.inputs), ("outputs", call.outputs)]
        for side, values in sides if call.kind != "loss" and call.finished >= 0 else []:
            for position, value in enumerate(values):
                if value.tensor and value.is_float and value.alias is None:
                    keys.append((call.index, side, position))
                    taps.append(-keras.ops.zeros(value.shape, value.dtype))
    return keys, taps


def _differentiate(loss_of, taps, weights):
    """Gradients of `loss_of(taps, weights)` as NumPy arrays; None where the loss does not depend on the tensor."""
    if BACKEND == "jax":
        # Not as one program: the recorder would miss calls, and XLA simplifies operations whose gradient is NaN.
        gradients = jax.grad(lambda both: loss_of(*both))((taps, weights))
        return [[to_numpy(g) for g in each] for each in gradients]
    if BACKEND == "tensorflow":
        taps, weights = [tf.identity(t) for t in taps], [tf.identity(w) for w in weights]
        with tf.GradientTape() as tape:
            tape.watch((taps, weights))
            loss = loss_of(taps, weights)
        gradients = tape.gradient(loss, taps + weights)
        gradients = [g if g is None else to_numpy(tf.convert_to_tensor(g)) for g in gradients]
    else:
        taps = [t.detach().requires_grad_() for t in taps]
        weights = [w.detach().requires_grad_() for w in weights]
        gradients = torch.autograd.grad(loss_of(taps, weights), taps + weights, allow_unused=True)
        gradients = [g if g is None else to_numpy(g) for g in gradients]
    return gradients[: len(taps)], gradients[len(taps) :]


__all__ = ["PRIVATE_ATTRIBUTES", "Replayed", "loss_of_predictions", "replay_forward", "replay_gradient", "to_numpy"]
