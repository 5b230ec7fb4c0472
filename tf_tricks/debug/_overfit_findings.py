"""Why a model cannot fit a few samples: the evidence, and the sentence for it."""

import math

import keras
import numpy as np

from tf_tricks import _layer_calls
from tf_tricks.callbacks.non_finite_diagnosis import diagnose
from tf_tricks.debug._layer_signals import layer_signals, limits
from tf_tricks.debug._result import Finding
from tf_tricks.fit_hooks.functional import LossFunction, UnknownLossError
from tf_tricks.fit_hooks.replay import loss_of_predictions
from tf_tricks.fit_hooks.replay_state import sublayers, untouched

DEAD, SATURATED = 0.999, 0.9  # share of a layer's outputs


def wrong_scale(found, predictions, layers):
    """A loss that takes logits for probabilities (seen at the first outputs), or the other way around (seen at layers).

    Args:
        found: list of `Target`s, or None. predictions: the outputs. layers: list, what `output_layers` gives.
    """
    findings = []
    for target, output, layer in zip(found or [], keras.tree.flatten(predictions), layers, strict=False):
        if not target.classifies:
            continue
        inside = bool(np.all((output >= 0) & (output <= 1)))
        if target.kind != "binary" and output.shape[-1] == 1:
            text = "The output has one unit, and its loss one class: the only class is always right. Give it a unit "
            text += "for each class, or a sigmoid and binary_crossentropy."
            findings.append(Finding("one_class", text, evidence={"units": 1}))
        elif not target.from_logits and not inside:
            text = (
                f"The loss takes the outputs for probabilities, and they lie between {output.min():.3g} and "
                f"{output.max():.3g}. Give the last layer a softmax or sigmoid, or the loss `from_logits=True`."
            )
            findings.append(Finding("logits_as_probabilities", text, evidence={"outputs": _ends(output)}))
        elif target.from_logits and _gives_probabilities(layer):  # logits between 0 and 1 are no fault
            text = (
                "The loss has `from_logits=True`, and the outputs are probabilities already "
                f"({output.min():.3g} to {output.max():.3g}): they are squashed twice. Take the softmax or sigmoid off "
                "the last layer, or `from_logits` off the loss."
            )
            findings.append(Finding("probabilities_as_logits", text, evidence={"outputs": _ends(output)}))
    return findings


def _gives_probabilities(layer):
    activations = keras.activations
    known = (activations.sigmoid, activations.softmax, activations.hard_sigmoid)
    return isinstance(layer, keras.layers.Softmax) or getattr(layer, "activation", None) in known


def out_of_range(model, data, found, predictions, layers):
    """Targets that the activation of the output cannot reach, and the loss that remains.

    Args:
        found, predictions, layers: as for `wrong_scale`.
    """
    findings, best = [], []
    for target, output, layer in zip(found or [], keras.tree.flatten(predictions), layers, strict=False):
        low, high = output_range(layer)
        wanted = target.y if target.kind == "regression" else target.probabilities()
        slack = 1e-3 * max(1e-12, target.spread() if target.kind == "regression" else 1.0)
        below = low is not None and wanted.min() < low - slack
        above = high is not None and wanted.max() > high + slack
        if target.from_logits or not (below or above):
            best.append(output)
            continue
        best.append(np.clip(wanted, low, high).astype("float32"))
        reach = f"[{'-inf' if low is None else f'{low:g}'}, {'inf' if high is None else f'{high:g}'}]"
        text = (
            f"The targets of `{layer.name}` lie between {wanted.min():.3g} and {wanted.max():.3g}, and its activation "
            f"reaches {reach} only"
        )
        findings.append((text, {"range": (low, high), "targets": _ends(wanted)}))
    if not findings:
        return []
    best_outputs = keras.tree.pack_sequence_as(predictions, best)
    loss = loss_of_predictions(model, data.x, data.y, best_outputs, data.sample_weight)
    rest = f": the loss cannot fall below {loss:.3g}" if math.isfinite(loss) and len(findings) == len(best) else ""
    advice = ". Scale the targets into that range, or take a linear output."
    return [Finding("out_of_range", text + rest + advice, evidence={**seen, "loss": loss}) for text, seen in findings]


def output_layers(model, x):
    """The innermost layer that gives each of the flat outputs, or None."""
    calls = []

    def answer(layer, call):
        outputs = call()
        calls.append((layer, outputs))
        return outputs

    x = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    with untouched(model), keras.StatelessScope(collect_losses=True), _layer_calls.without_gradients():
        with _layer_calls.answered_by(answer):
            outputs = _layer_calls.inference_or_training(model, x, True)
    return [
        next((layer for layer, given in calls if any(t is leaf for t in keras.tree.flatten(given))), None)
        for leaf in keras.tree.flatten(outputs)
    ]


def output_range(layer):
    """(low, high) of what a layer can give, None for no limit."""
    activation = getattr(layer, "activation", None)
    if activation is keras.activations.softmax or isinstance(layer, keras.layers.Softmax):
        return 0.0, 1.0
    if isinstance(layer, keras.layers.ReLU):
        return None if layer.negative_slope else 0.0, layer.max_value
    low, high = limits(activation)
    if low is None and high is None:
        return None, None
    # Not all are monotonic: silu approaches 0 at -inf, and has its lowest value at -1.28.
    points = np.linspace(-20.0, 20.0, 4001, dtype="float32")[None]
    values = keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(points)))
    lowest, highest = float(values.min()), float(values.max())
    return None if low is None else min(low, lowest) + 0.0, None if high is None else max(high, highest)


def without_gradient(model, data, before):
    """Layers all of whose weights have no gradient and did not move: (layer, is disconnected) in the model's order.

    Args:
        before: list of arrays, the trainable variables before training; the model has been trained meanwhile.
    """
    after = [keras.ops.convert_to_numpy(v.value) for v in model.trainable_variables]
    unmoved = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    if not any(unmoved):
        return []
    loss = LossFunction(model, training=True, compiled=False)
    try:
        at_first = loss.gradient(*data, weights=before)[1]
    except UnknownLossError:
        return []
    owners, groups = {}, {}
    for layer in sorted(sublayers(model), key=lambda each: len(each.variables)):
        for variable in layer.trainable_variables:
            owners.setdefault(id(variable), layer)
    for variable, still, gradient in zip(model.trainable_variables, unmoved, at_first, strict=True):
        silent = still and (gradient is None or not np.any(gradient))
        groups.setdefault(owners[id(variable)].name, []).append((silent, gradient is None, owners[id(variable)]))
    return [(g[0][2], all(none for _, none, _ in g)) for g in groups.values() if all(silent for silent, _, _ in g)]


def no_gradient(model, data, layers):
    """The finding for `without_gradient`'s layers: dead ReLUs, saturation, or a gradient that is cut off."""
    if not layers:
        return []
    names = [layer.name for layer, _ in layers]
    shown = ", ".join(f"`{name}`" for name in names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    findings = dead_or_saturated(model, data, among_all=True)
    if findings:
        for finding in findings:
            finding.evidence["layers"] = names
        return findings[:1]
    what = "The loss does not depend on" if all(cut for _, cut in layers) else "No gradient reaches"
    text = (
        f"{what} the weights of {shown}: they stay as they are. Look after `{names[-1]}` for a stop_gradient, an "
        "output that is not used, or an operation without a gradient (argmax, round, a cast to integers, NumPy)."
    )
    return [Finding("no_gradient", text, evidence={"layers": names})]


def dead_or_saturated(model, data, among_all=False):
    """Findings "dead_relus" and "saturated" for the model's present weights."""
    x = keras.tree.map_structure(keras.ops.convert_to_tensor, data.x)
    rows, layers = layer_signals(model, x, None)
    findings = []
    seen = [(row, layer) for row, layer in zip(rows, layers, strict=True) if not _passes_zeros_on(layer)]
    dead = next((row for row, _ in seen if row.zeros >= DEAD), None)
    if dead is not None:
        text = (
            f"Dead ReLUs: all outputs of `{dead.layer}` are 0 for these samples, so no gradient passes. Look at its "
            "bias and weights (a rate that was too high kills them for good), or take leaky_relu or another start."
        )
        findings.append(Finding("dead_relus", text, evidence={"layer": dead.layer, "zeros": dead.zeros}))
    limit = 1 - 1e-6 if among_all else SATURATED
    full = next((row for row, _ in seen if (row.saturated or 0) >= limit), None)
    if full is not None:
        largest = max(float(np.max(np.abs(a))) for a in keras.tree.flatten(data.x) if a.dtype.kind in "iuf")
        text = (
            f"Saturated: {100 * full.saturated:.0f} % of the outputs of `{full.layer}` lie at the limits of its "
            f"activation, where its gradient vanishes. The inputs go up to {largest:.3g}: scale them, or start with "
            "smaller weights."
        )
        evidence = {"layer": full.layer, "saturated": full.saturated, "largest_input": largest}
        findings.append(Finding("saturated", text, evidence=evidence))
    return findings


def _passes_zeros_on(layer):
    # Padding and inputs may be zero without anything being dead.
    activation = getattr(layer, "activation", None)
    if isinstance(layer, (keras.layers.ReLU, keras.layers.Activation)):
        return False
    return activation is None or activation is keras.activations.linear


def nan_report(loan, data, replay, losses):
    """The `NonFiniteReport` of a run the last of whose `losses` was not finite; `replay(steps)` trains anew so far."""
    model, step = loan.model, len(losses) - 1
    first = max(0, step - 4)
    replay(first)
    loss = LossFunction(model, training=True, compiled=False)
    trajectory = {"step": [], "loss": [], "grad_norm": []}
    for number in range(first, step + 1):
        try:
            value, gradients = loss.gradient(*data)
        except UnknownLossError:
            value, gradients = losses[number], None
        squares = [float(np.sum(np.square(g, dtype="float64"))) for g in gradients or [] if g is not None]
        norm = math.nan if gradients is None else math.sqrt(sum(squares))
        for key, each in zip(trajectory, (number, value, norm), strict=True):
            trajectory[key].append(each)
        if not (math.isfinite(value) and (gradients is None or math.isfinite(norm))):
            break
        if number < step:
            loan.step(*data)
    case = keras.tree.map_structure(lambda a: a if a is None else keras.ops.convert_to_tensor(a), tuple(data))
    number, rate = trajectory["step"][-1], loan.learning_rate
    return diagnose(model, case, step=number, epoch=0, batch=number, learning_rate=rate, trajectory=trajectory)


def _ends(array):
    return float(array.min()), float(array.max())
