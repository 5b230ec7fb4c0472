"""The picture of `SignalPropagation.plot`."""

import numpy as np

from tf_tricks._optional import import_optional


def draw(result, path=None):
    """Draw stddev, gradient stddev and shares of zeros over the layers; returns the figure."""
    plt = import_optional("matplotlib.pyplot", "plot")
    runs = {"as it is": result}
    if result.without_batch_norm is not None:
        runs["normalisation bypassed"] = result.without_batch_norm
    positions = {row.layer: i for i, row in enumerate(result.rows)}
    gradients = any(row.gradient_stddev is not None for row in result.rows)
    panels = ["stddev", *(["gradient_stddev"] if gradients else []), "zeros"]
    figure, axes = plt.subplots(len(panels), 1, figsize=(9, 2.4 * len(panels) + 0.8), sharex=True, layout="constrained")
    plt.close(figure)  # the caller keeps the figure; pyplot must not
    for axis, panel in zip(axes, panels, strict=True):
        for name, run in runs.items():
            _line(axis, positions, run.rows, panel, name)
        axis.set_ylabel({"stddev": "stddev of output", "gradient_stddev": "stddev of gradient"}.get(panel, "share"))
        if panel != "zeros" and _drawn(axis):
            axis.set_yscale("log", nonpositive="mask")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="x-small", frameon=False)
    every = -(-len(positions) // 40)
    names = list(positions)[::every]
    axes[-1].set_xticks(range(0, len(positions), every), names, rotation=90, fontsize="x-small")
    figure.suptitle(result.verdict, fontsize="small", wrap=True)
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _drawn(axis):
    return any(np.any(np.asarray(line.get_ydata()) > 0) for line in axis.lines)


def _line(axis, positions, rows, panel, name):
    style = {"marker": ".", "linewidth": 1}
    quantities = ("zeros", "saturated") if panel == "zeros" else (panel,)
    for quantity in quantities:
        values = [getattr(row, quantity) for row in rows]
        points = [(positions[row.layer], v) for row, v in zip(rows, values, strict=True) if v is not None]
        points = [(i, v) for i, v in points if np.isfinite(v)]
        if points:
            label = f"{quantity}, {name}" if panel == "zeros" else name
            axis.plot(*zip(*points, strict=True), label=label, **style)
