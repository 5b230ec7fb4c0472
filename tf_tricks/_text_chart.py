"""A curve in characters, for terminals without matplotlib."""

import math

_HEIGHT, _WIDTH = 10, 72


def text_chart(title, values):
    """Lines of text: `values` from left to right, at most 72 columns, the scale at the left; gaps where not finite.

    Example:
        >>> print(text_chart("loss", [3.0, 2.0, 1.0]).splitlines()[0])
        loss
    """
    values = [float(value) for value in values]
    step = max(1, math.ceil(len(values) / _WIDTH))
    columns = [values[start] for start in range(0, len(values), step)]
    finite = [value for value in columns if math.isfinite(value)]
    if not finite:
        return f"{title}\n(no finite value)"
    low, high = min(finite), max(finite)
    span = high - low or 1.0
    rows = [[" "] * len(columns) for _ in range(_HEIGHT)]
    for column, value in enumerate(columns):
        if math.isfinite(value):
            rows[round((high - value) / span * (_HEIGHT - 1))][column] = "*"
    labels = [f"{high:.3g}", *[""] * (_HEIGHT - 2), f"{low:.3g}"]
    width = max(map(len, labels))
    lines = [f"{label:>{width}} |{''.join(row)}".rstrip() for label, row in zip(labels, rows, strict=True)]
    return "\n".join([title, *lines])
