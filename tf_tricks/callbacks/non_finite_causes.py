"""From recorded numbers to a sentence: why did finite inputs become NaN or Inf here?

Plain functions over NumPy arrays and `Call` records. Each returns None if the evidence is missing: a cause that is only
plausible is not reported.
"""

import dataclasses
import math

import numpy as np

HUGE = 1e15  # a square of such a number is within a few products of float32's 3.4e38


@dataclasses.dataclass
class Cause:
    sentence: str
    suggestions: list
    samples: list | None = None


# --- text ---------------------------------------------------------------------------------------------------------
def join(words):
    """ "3", "3 and 17", "3, 5 and 17"."""
    words = [str(word) for word in words]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def rows_text(rows, total):
    """ "row 3", "rows 3 and 17", "all 32 rows", "9 of 32 rows"."""
    if len(rows) == total and total > 2:
        return f"all {total} rows"
    if len(rows) > 6:
        return f"{len(rows)} of {total} rows (the first are {join(rows[:3])})"
    return f"row{'s' if len(rows) > 1 else ''} {join(rows)}"


def kind_text(array):
    """ "NaN", "Inf" or "NaN and Inf"."""
    found = [name for name, hit in (("NaN", np.isnan(array)), ("Inf", np.isinf(array))) if hit.any()]
    return join(found)


def number(x):
    return f"{x:.2g}".replace("e+", "e") if abs(x) >= 1e4 or 0 < abs(x) < 1e-3 else f"{x:.4g}"


def bad_rows(array, batch_size):
    """Rows with a non-finite entry, as ints; None if dimension 0 is not the batch."""
    if array is None or array.ndim == 0 or array.shape[0] != batch_size:
        return None
    return true_rows(~np.isfinite(array))


def true_rows(mask):
    return [int(i) for i in np.flatnonzero(mask.reshape(mask.shape[0], -1).any(axis=1))]


# --- elementary functions -----------------------------------------------------------------------------------------
CLIP = "Keep the argument away from 0, e.g. `keras.ops.log(keras.ops.maximum(p, keras.backend.epsilon()))`."
LOGITS = "For probabilities prefer a loss on logits (`from_logits=True`), which needs no log of 0."
SQRT = "Add a small constant under the root, e.g. `keras.ops.sqrt(x + 1e-12)`; its slope at 0 is then finite."
DIVIDE = "Use `keras.ops.divide_no_nan`, or add a small constant to the denominator."
WHERE = "Make the argument harmless before the function, not only its result: `where(ok, f(where(ok, x, 1)), 0)`."


def explain_function(call, place):
    """Why the elementary function `call` gave a non-finite result from finite arguments."""
    name, inputs = call.name, call.inputs
    first = inputs[0] if inputs else None
    if name in ("log", "log1p") and first is not None:
        edge = -1.0 if name == "log1p" else 0.0
        what = "log of 0" if edge == 0.0 else "log1p of -1"
        if first.array is not None and (first.array < edge).any():
            what = "log of a negative number" if edge == 0.0 else "log1p of a number below -1"
        return Cause(f"{what} {place}", [CLIP, LOGITS])
    if name in ("sqrt", "rsqrt") and first is not None and first.negatives:
        return Cause(f"square root of a negative number {place}", ["Use `keras.ops.sqrt(keras.ops.maximum(x, 0))`."])
    if name in ("rsqrt", "reciprocal") and first is not None and first.zeros:
        return Cause(f"division by 0 {place}", [DIVIDE])
    if name in ("divide", "reversed_divide") and len(inputs) > 1:
        above, below = (inputs[1], inputs[0]) if name == "reversed_divide" else inputs[:2]
        if below.zeros:
            return Cause(_division_text(above, below, place), [DIVIDE])
    if name in ("arccos", "arcsin") and first is not None and first.largest > 1:
        return Cause(
            f"{name} of a number outside -1..1 ({number(first.largest)}) {place}", ["Clip the argument to -1..1."]
        )
    if name == "power" and len(inputs) > 1:
        return _explain_power(inputs, place)
    if name == "mean" and first is not None and 0 in first.shape:
        return Cause(f"mean of an empty tensor {place}: 0 / 0", ["Leave out batches in which nothing is selected."])
    if name in ("exp", "expm1") and first is not None:
        return Cause(
            f"exp of {number(first.largest)} overflows {first.dtype} {place}",
            [
                "Use a function that subtracts the maximum first: `keras.ops.softmax`, `logsumexp`, `softplus`.",
                "Lower the learning rate if the argument grows during training.",
            ],
        )
    return None


def _division_text(above, below, place):
    if above.array is not None and below.array is not None:
        try:
            numerator, denominator = np.broadcast_arrays(above.array, below.array)
        except ValueError:
            return f"division by 0 {place}"
        if (numerator[denominator == 0] == 0).any():
            return f"division 0 / 0 {place}"
    return f"division by 0 {place}"


def _explain_power(inputs, place):
    base, exponent = inputs[:2]
    if exponent.array is None:
        return None
    if base.zeros and (exponent.array < 0).any():
        return Cause(f"0 to a negative power: division by 0 {place}", [DIVIDE])
    if base.negatives and (exponent.array != np.round(exponent.array)).any():
        return Cause(f"fractional power of a negative number {place}", ["Take the power of a number >= 0."])
    return None


def explain_slope(call, place, argument_at):
    """Why the gradient of the elementary function `call` is non-finite although the arriving gradient is finite."""
    name, inputs = call.name, call.inputs
    value = inputs[argument_at]
    hidden = not all(v.finite for v in call.outputs)
    if name in ("sqrt", "rsqrt") and value.zeros:
        return Cause(f"square root has an infinite slope at 0 {place}", [SQRT] + ([WHERE] if hidden else []))
    if name == "norm":
        sentence = f"square root has an infinite slope at 0 {place}: the norm of a zero vector has no gradient"
        return Cause(sentence, [SQRT])
    if name == "std":
        sentence = f"square root has an infinite slope at 0 {place}: the standard deviation of equal numbers is 0"
        return Cause(sentence, [SQRT])
    if name in ("log", "log1p", "divide", "reversed_divide", "reciprocal"):
        what = "log" if name.startswith("log") else "division"
        if hidden:
            return Cause(f"{what} of 0 {place} is hidden in the value but not in the gradient: 0 * Inf", [WHERE])
        return Cause(
            f"{what} by a number next to 0 {place}: the slope overflows"
            if what == "division"
            else f"log has an infinite slope next to 0 {place}",
            [CLIP if what == "log" else DIVIDE],
        )
    if name == "power" and value.zeros:
        return Cause(f"a power below 1 has an infinite slope at 0 {place}", [SQRT])
    if name in ("arccos", "arcsin"):
        return Cause(f"{name} has an infinite slope at -1 and 1 {place}", ["Clip the argument to -0.9999..0.9999."])
    return None


# --- layers as black boxes ----------------------------------------------------------------------------------------
def explain_epsilon(layer, value, place):
    """A normalisation layer with `epsilon=0` and an input without variance."""
    epsilon = getattr(layer, "epsilon", None)
    if "Normalization" not in type(layer).__name__ or epsilon != 0 or value is None or value.array is None:
        return None
    axes = getattr(layer, "axis", -1)
    axes = [a % value.array.ndim for a in (axes if isinstance(axes, (list, tuple)) else [axes])]
    if "Batch" in type(layer).__name__:
        axes = [a for a in range(value.array.ndim) if a not in axes]
    if not (np.var(value.array.astype("float64"), axis=tuple(axes)) == 0).any():
        return None
    return Cause(
        f"division by 0 {place}: `epsilon` is 0 and the input has no variance",
        [f"Leave `epsilon` of {type(layer).__name__} at its default (1e-3), or give it a value > 0."],
    )


def explain_positions(before, after, place):
    """An element-wise layer whose result is non-finite exactly where its argument is 0 or negative."""
    if before is None or after is None or before.shape != after.shape or before.ndim == 0:
        return None
    bad = ~np.isfinite(after)
    zero, negative = before == 0, before < 0
    if (bad == zero).all():
        if np.isneginf(after[bad]).all():
            return Cause(f"log of 0 {place}: the output is -Inf exactly where the input is 0", [CLIP])
        what = "division 0 / 0" if np.isnan(after[bad]).all() else "division by 0"
        return Cause(f"{what} {place}: the output is {kind_text(after)} exactly where the input is 0", [DIVIDE])
    if np.isnan(after[negative]).all() and negative.any() and (bad <= (zero | negative)).all():
        sentence = f"log or root of a negative number {place}: the output is NaN exactly where the input is negative"
        return Cause(sentence, ["Keep the argument >= 0, e.g. with `keras.ops.maximum` or a softplus before it."])
    return None


# --- overflow -----------------------------------------------------------------------------------------------------
def growth(trajectory):
    """ "the loss grew from 2.3 to 4e30 over the last 9 steps" if it, or the gradient norm, did; else None."""
    for key, word, factor in (("loss", "loss", 10.0), ("grad_norm", "gradient norm", 100.0)):
        history = [abs(v) for v in trajectory.get(key, [])]
        finite = [v for v in history if math.isfinite(v)]
        if len(finite) < 2 or finite[-1] < max(finite[:-1]):
            continue
        start = finite.index(min(finite))
        if finite[-1] > factor * max(finite[start], 1e-12):
            steps = len(history) - 1 - history.index(finite[start])
            return f"the {word} grew from {number(finite[start])} to {number(finite[-1])} over the last {steps} steps"
    return None


def explain_overflow(subject, dtype, reach, largest_weight, largest_x, x_name, learning_rate, trajectory):
    """Too large a number: from the data, from training that diverged, or from a dtype with a small range."""
    grew = growth(trajectory)
    limit = {"float16": "6.55e4", "float64": "1.8e308"}.get(dtype, "3.4e38")
    rate = number(learning_rate) if learning_rate is not None else "used"
    too_high = f"the learning rate {rate} is too high"
    lower = [
        "Lower the learning rate, e.g. by a factor of 10, or warm it up over the first steps.",
        "Bound the gradients: `optimizer=keras.optimizers.Adam(..., global_clipnorm=1.0)`.",
    ]
    if largest_x > (1e4 if dtype == "float16" else HUGE):
        return Cause(
            f"{x_name} holds magnitudes up to {number(largest_x)}: {subject} overflow {dtype} (limit {limit})",
            ["Scale the inputs to zero mean and unit variance before the model, e.g. with a Normalization layer."],
        )
    if dtype == "float16":
        return Cause(
            f"{subject} overflow float16, whose largest number is 65504" + (f"; {grew}" if grew else ""),
            [
                'Use `keras.mixed_precision.set_dtype_policy("mixed_bfloat16")`, which has the range of float32.',
                'Or scale down what the layer computes, or give this layer `dtype="float32"`.',
                *(lower if grew else []),
            ],
        )
    if grew:
        return Cause(f"{subject} reach {number(reach)} while {grew}: {too_high}", lower)
    if largest_weight > 1e6:
        return Cause(
            f"{subject} reach {number(reach)} because weights have grown to {number(largest_weight)}: {too_high}", lower
        )
    if reach > HUGE:
        return Cause(f"{subject} reach {number(reach)} and overflow {dtype} (limit {limit})", lower)
    return None
