"""From wrong and missing gradients to the layer that is at fault: the advice of `check_gradients`."""

import contextlib

import keras
import numpy as np

from tf_tricks import _layer_calls
from tf_tricks.debug._gradient_lines import Point, layer_point, recorded_calls, scale_of, tensors_of
from tf_tricks.debug._result import Finding
from tf_tricks.fit_hooks.functional import value_and_gradients
from tf_tricks.fit_hooks.replay_state import sublayers

_TRIES = 2  # directions of each kind for each input and weight of a layer


def findings(check, rows, budget):
    """List of `Finding`s from the rows of a check; looks at the layers one by one where something is wrong."""
    by_verdict = {}
    for row, variable in zip(rows, check.variables, strict=True):
        by_verdict.setdefault(row.verdict, []).append((row, variable))
    missing = [pair for word in ("steps", "blocked") for pair in by_verdict.get(word, ())]
    layers, order, loss_error = [], [], None
    if missing or "wrong" in by_verdict:
        layers, order = _layers(check, budget)
        loss_error = _loss(check) if "wrong" in by_verdict else None
    found = []
    if "wrong" in by_verdict:
        found += _wrong(by_verdict["wrong"], layers, order, loss_error)
    for word in ("steps", "blocked"):
        if word in by_verdict:
            found.append(_missing(word, by_verdict[word], layers, order))
    for word, make in (("disconnected", _disconnected), ("level", _level), ("kink", _kinks), ("zero", _zero)):
        if word in by_verdict:
            found.append(make([row.variable for row, _ in by_verdict[word]]))
    if "unchecked" in by_verdict:
        names = [row.variable for row, _ in by_verdict["unchecked"]]
        text = f"The budget ended before {_some(names)}: give more `seconds` or a smaller `batch_size`."
        found.append(Finding("unchecked", text, False, {"variables": names}))
    return found


def _layers(check, budget):
    """([(layer, None for its inputs or variable, verdict, factor)] of the faults, layers in the order of calls)."""
    weights = check.beside().arrays
    function = check.function

    def scope(values):
        stack = contextlib.ExitStack()
        stack.enter_context(function.scope(values))
        stack.enter_context(function.same_numbers())
        return stack

    def run():
        with _layer_calls.without_gradients(), scope([keras.ops.convert_to_tensor(w) for w in weights]):
            x, _, _ = tensors_of(check.batch)
            _layer_calls.inference_or_training(check.model, x, True)

    calls = recorded_calls(run)
    faults = []
    for call in calls:
        if budget.over() and budget.limit is None and faults:
            break
        # A container repeats the faults of what is inside of it.
        inside = {id(each) for each in sublayers(call[0])}
        if any(id(layer) in inside for layer, *_ in faults):
            continue
        try:
            made = layer_point(call, check.variables, weights, scope, check.tolerance, check.generator)
        except Exception:  # a layer that cannot be called alone is left out
            continue
        if made is not None:
            faults += [(call[0], *fault) for fault in _faults(*made, check.generator)]
    return faults, [layer for layer, *_ in calls]


def _faults(point, targets, generator):
    for position, target in enumerate(targets):
        array = point.arrays[position]
        if point.is_flat(position):
            word = point.flatness(position, scale_of(array) * generator.standard_normal(array.shape))
            if word in ("steps", "blocked"):
                yield target, word, 0.0
            continue
        drawn = [scale_of(array) * generator.standard_normal(array.shape) for _ in range(_TRIES)]
        # Along a random line the derivative may be near zero by chance, along the gradient it is not.
        drawn += [np.abs(line) * np.sign(point.gradients[position]) for line in drawn]
        compared = [point.compared(position, line) for line in drawn]
        wrong = [each for each in compared if each.verdict == "wrong"]
        if len(wrong) > 1:
            yield target, "wrong", factor(wrong)


def factor(compared):
    """float, by how much the analytic derivatives are too large, at the least squares."""
    analytic, numeric = np.array([each.analytic for each in compared]), np.array([each.numeric for each in compared])
    return float(analytic @ numeric / max(numeric @ numeric, 1e-300))


def _loss(check):
    """None, or the factor by which the gradient of the loss for the predictions is wrong."""
    weights = [keras.ops.convert_to_tensor(w) for w in check.beside().arrays]
    x, y, sample_weight = tensors_of(check.batch)
    try:
        with check.function.scope(weights), check.function.same_numbers(), _layer_calls.without_gradients():
            outputs = _layer_calls.inference_or_training(check.model, x, True)
        leaves = keras.tree.flatten(outputs)

        def scalar(tensors):
            with check.function.scope(weights):
                predictions = keras.tree.pack_sequence_as(outputs, list(tensors))
                return check.model.compute_loss(x, y, predictions, sample_weight)

        def value(arrays):
            with _layer_calls.without_gradients():
                return float(keras.ops.convert_to_numpy(scalar([keras.ops.convert_to_tensor(a) for a in arrays])))

        _, gradients = value_and_gradients(scalar, leaves)
        arrays = [np.array(_layer_calls.to_numpy(leaf)) for leaf in leaves]
        gradients = [None if g is None else _layer_calls.to_numpy(g) for g in gradients]
        point = Point(value, arrays, gradients, check.tolerance, check.generator)
        wrong = [ratio for _, word, ratio in _faults(point, [None] * len(arrays), check.generator) if word == "wrong"]
    except Exception:  # a loss that takes no predictions but those of the model
        return None
    return wrong[0] if wrong else None


def _wrong(pairs, layers, order, loss_factor):
    found, names = [], [row.variable for row, _ in pairs]
    error = max(row.error for row, _ in pairs)
    by_layer = {}
    for layer, target, word, ratio in layers:
        if word == "wrong":
            by_layer.setdefault(id(layer), (layer, []))[1].append((target, ratio))
    if loss_factor is not None:
        text = (
            f"The gradient of the loss with respect to the predictions is wrong: {loss_factor:.4g} times the difference"
            f" quotient. Look at the loss function; {_some(names)} cannot be right before."
        )
        found.append(Finding("wrong_gradient", text, evidence={"layer": None, "factor": loss_factor}))
    for layer, targets in by_layer.values():
        parts = [_of(target) for target, _ in targets]
        ratios = ", ".join(f"{ratio:.4g}" for _, ratio in targets)
        before = ", which spoils the gradients of all variables before it" if any(t is None for t, _ in targets) else ""
        text = (
            f"Layer `{layer.name}` ({type(layer).__name__}) has a wrong gradient for {' and '.join(parts)}: {ratios} "
            f"times the difference quotient{before}. Look at its custom gradient. Wrong are {_some(names)}, by up to "
            f"{100 * error:.3g} %."
        )
        evidence = {
            "layer": layer.name,
            "inputs": any(target is None for target, _ in targets),
            "weights": [target.path for target, _ in targets if target is not None],
            "factor": targets[0][1],
            "variables": names,
        }
        found.append(Finding("wrong_gradient", text, evidence=evidence))
    if not found:
        last = _last_owner([variable for _, variable in pairs], order)
        where = f" The first wrong layer on the way back is `{last}`: look there and just behind it." if last else ""
        text = f"The gradients of {_some(names)} are wrong by up to {100 * error:.3g} %.{where}"
        found.append(Finding("wrong_gradient", text, evidence={"layer": last, "variables": names}))
    return found


def _missing(word, pairs, layers, order):
    names = [row.variable for row, _ in pairs]
    owner = _last_owner([variable for _, variable in pairs], order)
    start = next((i for i, layer in enumerate(order) if layer.name == owner), 0)
    later = {id(layer) for layer in order[start:]}
    alike = [(layer, target) for layer, target, kind, _ in layers if kind == word]
    at = next((layer for layer, target in alike if target is None and id(layer) in later), None)
    at = at or next((layer for layer, target in alike if target is not None), None)
    where = f" in layer `{at.name}` ({type(at).__name__})" if at is not None else f" behind `{owner}`" if owner else ""
    evidence = {"layer": at.name if at is not None else None, "variables": names}
    if word == "steps":
        text = (
            f"No gradient reaches {_some(names)}, although the loss changes with them, in jumps: an operation{where} "
            "is not differentiable (round, argmax, sign, a cast to int). Replace it, or give it a custom gradient."
        )
        return Finding("not_differentiable", text, evidence=evidence)
    text = (
        f"No gradient reaches {_some(names)}, although the loss changes smoothly with them: it is stopped{where} "
        "(stop_gradient, detach, NumPy in the middle). Freeze the variables if that is meant."
    )
    return Finding("blocked", text, evidence=evidence)


def _disconnected(names):
    text = (
        f"The loss does not depend on {_some(names)}: the layer is not connected to an output with a loss, or units "
        "that are dead for every sample cut it off."
    )
    return Finding("disconnected", text, evidence={"variables": names})


def _level(names):
    text = (
        f"The gradient of {_some(names)} is zero here and a little away from here, though not further off: units are "
        "dead or saturated for all samples of the batch. `signal_propagation` shows where."
    )
    return Finding("no_gradient_here", text, False, {"variables": names})


def _kinks(names):
    text = (
        f"The loss has a kink at the present weights of {_some(names)} (a ReLU at 0, a tie in a maximum): the slopes "
        "to both sides differ there, beside it the gradient is right. No error."
    )
    return Finding("kinks", text, False, {"variables": names})


def _zero(names):
    text = f"The gradient of {_some(names)} is zero at the present weights alone, as behind a gain of zero. No error."
    return Finding("no_gradient_here", text, False, {"variables": names})


def _last_owner(variables, order):
    """The name of the layer, last in the order of calls and innermost, that owns one of the variables."""
    wanted = {id(variable) for variable in variables}
    owners = [layer for layer in order if wanted & {id(v) for v in layer.trainable_variables}]
    innermost = [a for a in owners if not any(b is not a and any(b is s for s in sublayers(a)) for b in owners)]
    return innermost[-1].name if innermost else None


def _of(target):
    return "its inputs" if target is None else f"its weight `{target.path.rpartition('/')[2]}`"


def _some(names, most=3):
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more variables"
