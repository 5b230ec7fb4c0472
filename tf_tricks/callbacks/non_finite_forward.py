"""Which layer call turned finite numbers into NaN or Inf, and why?"""

import numpy as np

from tf_tricks.callbacks import non_finite_causes as causes
from tf_tricks.callbacks.non_finite_case import broken_function, finding, largest, largest_weight, layer_calls
from tf_tricks.callbacks.non_finite_causes import Cause


def first_break(calls):
    """The first call of a layer that turns finite into non-finite; one whose Inf the next layer absorbs comes last."""
    layers = layer_calls(calls)
    candidates = [call for call in layers if call.breaks]

    def absorbed(call):
        for later in layers[layers.index(call) + 1 :]:
            if not later.children and not all(v.finite for v in later.inputs):
                return bool(later.outputs) and all(v.finite for v in later.outputs)
        return False

    return next((call for call in candidates if not absorbed(call)), candidates[0] if candidates else None)


def find_in_forward(case, call):
    place = f"in `{call.name}`"
    output = next(v for v in call.outputs if not v.finite)
    cause = (
        causes.explain_epsilon(call.layer, call.inputs[0] if call.inputs else None, place)
        or broken_function(case, call.index, place)
        or (_overflow(case, call, output) if _overflows(call, output) else None)
        or (causes.explain_positions(call.inputs[0].array, output.array, place) if len(call.inputs) == 1 else None)
        or Cause(
            f"`{call.name}` turns finite inputs (magnitudes up to {causes.number(largest(call.inputs))}) into "
            f"{causes.kind_text(output.array)}",
            ["Look for a division, log, root or power in this layer whose argument leaves its domain."],
        )
    )
    return finding("forward", cause, layer=call, samples=causes.bad_rows(output.array, case.batch_size), case=case)


def _overflows(call, output):
    reach = max(largest(call.inputs), largest(call.outputs), largest_weight(call.layer))
    return reach > (100 if output.dtype == "float16" else 1e9)


def _overflow(case, call, output):
    reach = max(largest(call.outputs), largest(call.inputs))
    if np.isinf(output.array).any() and output.dtype != "float16":
        reach = max(reach, float(np.finfo("float32").max))
    return causes.explain_overflow(
        f"activations of `{call.name}`",
        output.dtype,
        reach,
        largest_weight(call.layer),
        case.largest_x,
        case.x_name,
        case.learning_rate,
        case.trajectory,
    )
