"""Are the gradients that the model trains with those of its loss?"""

import contextlib
import dataclasses
import typing

import keras
import numpy as np

from tf_tricks._checks import check_instance, check_integer, check_number, check_optional
from tf_tricks._text_table import text_table
from tf_tricks.debug import _gradient_findings
from tf_tricks.debug._budget import Budget
from tf_tricks.debug._data import check_targets, one_batch, samples
from tf_tricks.debug._gradient_lines import Point, directions, jittered, scale_of, tensors_of
from tf_tricks.debug._result import Finding, Result
from tf_tricks.fit_hooks.borrowing import borrowed
from tf_tricks.fit_hooks.functional import LossFunction
from tf_tricks.fit_hooks.precision import as_dtype, computing_in

# What is wrong in a weak branch is small beside the whole gradient; in doubles smooth models stay below 1e-6.
_TOLERANCE = {"float64": 1e-5, "float32": 5e-3}
_NOISE = 1e-11  # of the loss: more than that is no double precision, whatever the type says
_CHECKS = 11  # of each variable
_ENOUGH = 3  # that are wrong
_SHARE = 0.7  # of the budget for the variables, the rest for the layers
_SHOWN = 20  # rows of the table in the text


class VariableGradient(typing.NamedTuple):
    """The check of one trainable variable.

    Attributes:
        variable: str, its path.
        verdict: str, "right", "wrong", "kink", "unclear" (lost in rounding), "zero" (at the present weights),
            "disconnected", "blocked", "steps", "level" or "unchecked".
        error: float or None, the largest error relative to the derivative.
        analytic, numeric: float or None, the two derivatives where the error is largest.
        checks: int, number of directions and entries that were tried.
    """

    variable: str
    verdict: str
    error: float | None = None
    analytic: float | None = None
    numeric: float | None = None
    checks: int = 0


@dataclasses.dataclass
class GradientCheck(Result):
    """What `check_gradients` found; `print` shows the advice and the variables with the largest errors.

    Attributes:
        findings: list of `Finding`s: "wrong_gradient", "not_differentiable", "blocked", "disconnected", "not_finite"
            (faults), "kinks", "no_gradient_here", "unchecked" (remarks).
        rows: list of `VariableGradient`s, one for each trainable variable.
        precision: str, "float64" or "float32": what the gradients were checked in.
        tolerance: float, the relative error that is allowed.
    Example:
        >>> result = check_gradients(model, x, y, verbose=0)
        >>> result.passed, len(result.rows)
        (True, 4)
    """

    findings: list
    rows: list
    precision: str
    tolerance: float

    def heading(self):
        wrong = sum(row.verdict == "wrong" for row in self.rows)
        checked = sum(row.checks > 0 for row in self.rows)
        if not checked:
            outcome = "the gradients could not be checked"
        elif wrong:
            outcome = f"{wrong} of {checked} gradients are wrong"
        elif self.passed:
            outcome = f"the gradients of {checked} variables are right"
        else:
            outcome = f"the gradients of {checked} variables are no wrong numbers, but some are missing"
        return f"Gradient check in {self.precision}, tolerance {self.tolerance:g}: {outcome}."

    def __str__(self):
        ranked = sorted(self.rows, key=lambda row: (row.verdict == "right", -(row.error or 0.0)))
        shown = _SHOWN - min(12, 2 * len(self.findings))
        cells = [[_short(row.variable), row.verdict, *row[2:]] for row in ranked[:shown]]
        table = text_table(["variable", "gradient is", "error", "analytic", "numeric", "checks"], cells)
        more = [f"... and {len(ranked) - shown} more variables"] if len(ranked) > shown else []
        return "\n".join([super().__str__(), table, *more])

    def draw(self, axes):
        errors = [np.nan if row.error is None else max(row.error, 1e-16) for row in self.rows]
        colors = ["tab:red" if row.verdict == "wrong" else "tab:blue" for row in self.rows]
        axes.scatter(range(len(errors)), errors, c=colors)
        axes.axhline(self.tolerance, color="gray", linewidth=1)
        axes.set_yscale("log", nonpositive="mask")
        axes.set_xlabel("trainable variable, in the order of the model")
        axes.set_ylabel("relative error of the gradient")

    def series(self):
        errors = [np.nan if row.error is None else np.log10(max(row.error, 1e-16)) for row in self.rows]
        return "log10 of the relative error of the gradient of each variable", errors


def check_gradients(
    model, x, y=None, sample_weight=None, batch_size=16, tolerance=None, *, seconds=10.0, steps=None, seed=0, verbose=1
):
    """Compare the gradient of the loss with central differences, variable by variable, and name the layer at fault.

    The loss is that of `compute_loss` in training mode, with regularisation, on a small batch; random layers draw the
    same numbers throughout. Each trainable variable is tried along random directions, along one in which the gradient
    is large, and for single entries; the step fits the scale of the variable and the rounding error of the loss, which
    is measured. It computes in float64; where an operation of the model has no such kernel, or casts to less, in
    float32 with larger steps and tolerance, which finds errors of 1 % in a large gradient only. Where a difference
    has different slopes to both sides it is a kink, such as a ReLU at 0, and counts as an error only if it is wrong
    beside the kink, too. When a variable is wrong, each layer is checked alone, for its inputs and for its weights: a
    layer with a wrong gradient for its inputs spoils all variables before it and none after. Estimators that are wrong
    on purpose (straight-through) are reported. Weights, optimizer, metrics and random states stay as they are.

    Args:
        model: a compiled keras.Model of any kind; frozen variables are not checked.
        x: arrays in the structure that the model takes; or, with `y=None`, a tf.data.Dataset, PyDataset, DataLoader or
            generator of batches.
        y, sample_weight: arrays as `fit` takes them, or None.
        batch_size: int >= 1, samples of the batch; a model that takes batches of one size only gets that.
        tolerance: None (1e-5 in float64, 5e-3 in float32) or float in (0, 1), the relative error that is allowed.
        seconds: float > 0 or None for no limit; the compilation of the model counts, but is not interrupted.
        steps: None or int >= 1, how many directions and entries are tried at most, over all variables.
        seed: int >= 0, of the samples, directions and entries.
        verbose: 0: silent; 1: a progress bar.
    Returns:
        A `GradientCheck`.
    Raises:
        TypeError, ValueError: an argument is out of range; the model is not compiled or has nothing to train; the loss
            cannot be computed.
    Reference:
        Gill, Murray and Wright (1981), Practical Optimization, sections 4.6 and 8.6 (the step); Bengio (2012),
        Practical Recommendations for Gradient-Based Training, arXiv:1206.5533, section 4.1 (the check).
    Example:
        >>> print(check_gradients(model, x, y, verbose=0).heading())
        Gradient check in float64, tolerance 1e-05: the gradients of 4 variables are right.
    """
    check_compiled(model)
    batch_size = check_integer("batch_size", batch_size, 1)
    tolerance = check_optional(check_number, "tolerance", tolerance, above=0, below=1)
    seed = check_integer("seed", seed, 0)
    budget = Budget(seconds, steps, verbose, "Comparing gradients with differences")
    found = one_batch(model, samples(x, y, sample_weight, limit=batch_size, seed=seed))
    check_targets(model, found)
    try:
        with borrowed(model, *found):
            if not model.trainable_variables:
                raise ValueError("`model` must have trainable weights. Received: none")
            for dtype in ("float64", "float32"):
                with contextlib.ExitStack() as stack:
                    stack.enter_context(computing_in(dtype, model))
                    check = _Check(model, as_dtype(dtype, tuple(found)), dtype, tolerance or _TOLERANCE[dtype], seed)
                    if dtype == "float32" or check.is_precise():
                        return check.run(budget)
    finally:
        budget.close()


class _Check:
    """One check, in one precision."""

    def __init__(self, model, batch, dtype, tolerance, seed):
        self.model, self.batch, self.dtype, self.tolerance = model, batch, dtype, tolerance
        self.generator = np.random.default_rng(seed)
        self.function = LossFunction(model)
        self.variables = self.function.variables
        self.weights = [keras.ops.convert_to_numpy(v.value).astype(dtype) for v in self.variables]
        self.point = self._error = None
        try:
            self.point = self._at(self.weights)
        except Exception as error:  # no kernel for doubles, or the user's mistake: the second try will tell
            self._error = error

    def is_precise(self):
        """Did all work in this precision, and has the loss as many digits?"""
        if self._error is not None:
            return False
        return not np.isfinite(self.point.origin) or self.point.noise <= _NOISE * max(abs(self.point.origin), 1e-300)

    def run(self, budget):
        """The `GradientCheck`."""
        if self._error is not None:
            raise self._error
        if not np.isfinite(self.point.origin):
            text = f"The loss is {self.point.origin}: nothing to compare. `NaNGuard` and `signal_propagation` say why."
            rows = [VariableGradient(v.path, "unchecked") for v in self.variables]
            return GradientCheck([Finding("not_finite", text)], rows, self.dtype, self.tolerance)
        results = self._compare(budget)
        rows = [self._row(position, results[position]) for position in range(len(self.variables))]
        findings = _gradient_findings.findings(self, rows, budget)
        return GradientCheck(findings, rows, self.dtype, self.tolerance)

    def beside(self):
        """The `Point` a little away from the weights, where units do not sit on a kink."""
        if not hasattr(self, "_beside"):
            self._beside = self._at(jittered(self.weights, self.generator))
        return self._beside

    def _at(self, weights):
        _, gradients = self.function.gradient(*self.batch, weights=weights)
        tensors = [keras.ops.convert_to_tensor(each) for each in weights]

        def value(arrays):  # what did not change is on the device already
            pairs = zip(arrays, weights, tensors, strict=True)
            return self.function.value(*data, weights=[t if a is w else a for a, w, t in pairs])

        data = tensors_of(self.batch)
        return Point(value, weights, gradients, self.tolerance, self.generator)

    def _compare(self, budget):
        """For each variable the list of its `Comparison`s, as far as the budget goes; all have a turn in each round."""
        results = [[] for _ in self.variables]
        turns = [
            None if self.point.is_flat(i) else directions(self.point.gradients[i], scale_of(w), self.generator)
            for i, w in enumerate(self.weights)
        ]
        begin = budget.share()  # what compiling took; the first round has a share of its own
        for count in range(_CHECKS):
            for i, turn in enumerate(turns):
                over = budget.share() > _SHARE if budget.limit is None else budget.over()
                if turn is None or sum(each.verdict == "wrong" for each in results[i]) >= _ENOUGH:
                    continue
                if over and (count or budget.share() > begin + 1 or budget.limit is not None):
                    continue
                for _ in budget.steps(1):
                    pass
                results[i].append(self._compared(i, next(turn)))
        return results

    def _compared(self, position, direction):
        found = self.point.compared(position, direction)
        if found.verdict == "kink" or (self.dtype == "float32" and found.verdict == "wrong"):
            # The user's weights sit on a kink: what counts is whether the gradient is right beside it.
            there = self.beside().compared(position, direction)
            found = there if there.verdict == "wrong" else found._replace(verdict="kink")
        return found

    def _row(self, position, compared):
        path = self.variables[position].path
        if self.point.is_flat(position):
            return VariableGradient(path, self._why_flat(position), checks=1)
        if not compared:
            return VariableGradient(path, "unchecked")
        order = ("wrong", "kink", "right", "unclear")
        worst = min(compared, key=lambda c: (order.index(c.verdict), -c.error))
        return VariableGradient(path, worst.verdict, worst.error, worst.analytic, worst.numeric, len(compared))

    def _why_flat(self, position):
        direction = scale_of(self.weights[position]) * self.generator.standard_normal(self.weights[position].shape)
        if not self.beside().is_flat(position):
            return "kink" if self.point.has_slope(position, direction) else "zero"
        word = self.beside().flatness(position, direction)
        return {"unused": "disconnected"}.get(word, word)


def check_compiled(model):
    """Raise TypeError or ValueError unless `model` is a compiled keras.Model."""
    check_instance("model", model, keras.Model, "a keras.Model")
    if not model.compiled:
        raise ValueError("`model` must be compiled. Received: a model without optimizer and loss")


def _short(path):
    return path if len(path) <= 48 else "..." + path[-45:]
