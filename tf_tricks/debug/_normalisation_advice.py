"""What two models say that differ in their normalisation only."""

import dataclasses
import math

from tf_tricks.debug._first_steps import diverges, is_finite
from tf_tricks.debug._result import Finding
from tf_tricks.debug.signal_propagation import gradient_drift, signal_drift

_WORDS = {"explodes": "exploding", "vanishes": "vanishing"}
_ADVICE = "Initialise with the right variance (`HeNormal` for ReLU, `LSUV` for any), then see if it is still needed."
_TRAINED = "The weights are trained, so this is no word on their initialisation: look at a new model for that."


def advice(result, trained=False):
    """List of `Finding`s of a `WithoutBatchNorm`, whose own are not looked at; of a trained model they are remarks."""
    found = _advice(result)
    if not trained:
        return found
    # Trained weights may rely on their normalisation: that says nothing of how they were initialised.
    return [
        dataclasses.replace(each, text=each.text.replace(_ADVICE, _TRAINED), is_fault=each.name == "unhealthy")
        for each in found
    ]


def _advice(result):
    own = [signal_drift(result.original.rows), gradient_drift(result.original.rows)]
    broken = next((i for i, step in enumerate(result.original_steps) if not is_finite(step)), None)
    found = []
    if any(own) or broken is not None:
        step = "" if broken is None else f"; the loss is {result.original_steps[broken].loss} at step {broken}"
        verdict = result.original.verdict.split(". Norm")[0]
        text = f"The model is unhealthy even with batch normalisation: {verdict}{step}."
        found.append(Finding("unhealthy", text, evidence={"verdict": result.original.verdict, "step": broken}))
    signal, gradient = signal_drift(result.bare.rows), gradient_drift(result.bare.rows)
    after = _first_steps(result)
    if signal and not own[0]:
        found.append(_hidden(result, "activations", *signal, "stddev", after))
    elif gradient and not own[1]:
        found.append(_hidden(result, "gradients", *gradient, "gradient_stddev", after))
    elif result.non_finite_step is not None and broken is None:
        text = f"Batch normalisation is hiding a model that breaks without it:{after}. {_ADVICE}"
        found.append(Finding("batch_norm_hides", text, evidence=_step_evidence(result)))
    elif diverges(result.bare_steps) and not diverges(result.original_steps) and broken is None:
        text = (
            "Without batch normalisation the signal is in order, but the first steps diverge at this rate: the loss "
            f"went from {result.bare_steps[0].loss:.3g} to {result.bare_steps[-1].loss:.3g} (with it: to "
            f"{result.original_steps[-1].loss:.3g}). The rate is one that only a normalised network stands."
        )
        found.append(Finding("needs_batch_norm", text, False, _step_evidence(result)))
    return found


def _hidden(result, what, kind, layer, attribute, after):
    bare = {row.layer: getattr(row, attribute) for row in result.bare.rows}
    before = {row.layer: getattr(row, attribute) for row in result.original.rows}
    kernels = [row.layer for row in result.bare.rows if row.has_kernel and row.layer in before]
    sizes = [name for name in kernels if bare[name] is not None]
    end = (sizes[-1:] if what == "activations" else sizes[:1]) or [layer]
    last = end[0]
    evidence = {"layer": layer, "kind": kind, "with": before.get(layer), "without": bare[layer]}
    evidence |= {"end": last, "end_with": before[last], "end_without": bare[last], **_step_evidence(result)}
    size = "stddev" if what == "activations" else "stddev of the gradient"
    text = (
        f"Batch normalisation is hiding {_WORDS[kind]} {what} from `{layer}` on: {size} {before[layer]:.3g} with it, "
        f"{bare[layer]:.3g} without, at `{last}` {before[last]:.3g} and {bare[last]:.3g}{';' * bool(after)}{after}. "
        f"{_ADVICE}"
    )
    return Finding("batch_norm_hides", text, evidence=evidence)


def _first_steps(result):
    at = result.non_finite_step
    if at is None:
        if diverges(result.bare_steps):
            return f" without it the loss goes from {result.bare_steps[0].loss:.3g} to {result.bare_steps[-1].loss:.3g}"
        return ""
    step = result.bare_steps[at]
    what = f"loss is {step.loss}" if not math.isfinite(step.loss) else "gradient is not finite"
    layer = f", first in `{result.report.layer}`" if result.report is not None and result.report.layer else ""
    return f" without it the {what} at step {at}{layer}"


def _step_evidence(result):
    layer = None if result.report is None else result.report.layer
    return {"non_finite_step": result.non_finite_step, "non_finite_layer": layer}
