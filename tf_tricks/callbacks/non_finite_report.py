"""What `NaNGuard` has found out about a non-finite loss or gradient."""

import dataclasses
import math


@dataclasses.dataclass
class NonFiniteReport:
    """Where a loss or gradient stopped being finite, why, and what to change; `str(report)` is a compiler-like message.

    Args:
        step: int, 0-based optimizer step of this `fit`.
        epoch: int, 0-based epoch.
        batch: int, 0-based batch within the epoch.
        origin: "input", "target", "sample_weight", "weights", "forward", "loss" or "gradient".
        cause: str, one sentence.
        layer: str or None, name of the layer. For "forward" the first one whose output is non-finite although its
            inputs and weights are finite; for "gradient" the one nearest the loss whose input or weight gradient is
            non-finite although the gradient that arrives at its output is finite.
        layer_type: str or None, class name of that layer.
        variable: str or None, path of the variable.
        samples: list of int or None, rows of the batch that are concerned; None if that cannot be said.
        suggestions: list of str, what to change.
        trajectory: dict of equally long lists "step", "loss" and "grad_norm": the last steps, oldest first.
    Example:
        >>> report = NonFiniteReport(step=7, epoch=0, batch=7, origin="input", cause="`x` contains NaN at row 3")
        >>> print(report)
        error: non-finite value in the input
          --> epoch 0, batch 7 (step 7)
        cause: `x` contains NaN at row 3
    """

    step: int
    epoch: int
    batch: int
    origin: str
    cause: str
    layer: str | None = None
    layer_type: str | None = None
    variable: str | None = None
    samples: list | None = None
    suggestions: list = dataclasses.field(default_factory=list)
    trajectory: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        lines = [f"error: non-finite {_HEADLINES[self.origin]}", self._location(), *_table(self.trajectory)]
        lines.append(f"cause: {self.cause}")
        if self.samples is not None and len(self.samples) > 1:
            lines.append(f" rows: {_short(self.samples)} of the batch")
        lines += [f" help: {suggestion}" for suggestion in self.suggestions]
        return "\n".join(lines)

    def _location(self):
        place = f"  --> epoch {self.epoch}, batch {self.batch} (step {self.step})"
        if self.layer is not None:
            place += f", layer '{self.layer}'" + (f" ({self.layer_type})" if self.layer_type else "")
        return place + (f", variable '{self.variable}'" if self.variable is not None else "")


class NonFiniteError(RuntimeError):
    """Raised by `NaNGuard(on_nan="raise")`; `error.report` is the `NonFiniteReport`.

    Args:
        report: the `NonFiniteReport`.
    Example:
        >>> try:
        ...     _ = model.fit(x, y * np.nan, verbose=0, callbacks=[NaNGuard(on_nan="raise")])
        ... except NonFiniteError as error:
        ...     print(error.report.origin)
        target
    """

    def __init__(self, report):
        super().__init__(f"\n{report}")
        self.report = report

    def __reduce__(self):  # so that the error survives the way out of a worker process
        return type(self), (self.report,)


_HEADLINES = {
    "input": "value in the input",
    "target": "value in the target",
    "sample_weight": "value in the sample weights",
    "weights": "value in the model's weights",
    "forward": "value in the forward pass",
    "loss": "loss",
    "gradient": "gradient",
}


def _table(trajectory, rows=5):
    """The last `rows` steps with an arrow at the bad one."""
    steps = trajectory.get("step", [])
    if not steps:
        return []
    columns = zip(steps, trajectory["loss"], trajectory["grad_norm"], strict=True)
    shown = [(str(step), _number(loss), _number(norm)) for step, loss, norm in list(columns)[-rows:]]
    cells = [("step", "loss", "grad_norm"), *shown]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    lines = ["   | " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    return ["   |", *lines[:-1], lines[-1].replace("   |", "  >|", 1), "   |"]


def _number(x):
    if math.isnan(x):
        return "nan"
    return f"{x:.4g}"


def _short(rows, limit=10):
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return ", ".join(str(row) for row in rows[:limit]) + more
