"""The picture of `GradientNormLogger.plot`."""

import numpy as np

from tf_tricks._optional import import_optional

_LINES = 8  # up to so many layers the update ratios are drawn one by one
_NAMES = 40  # so many rows of the heat map have a readable name


def draw(history, path=None):
    """Draw norms over steps, update ratios and a heat map of layers by steps; returns the figure."""
    plt = import_optional("matplotlib.pyplot", "plot")
    names = [key.removeprefix("grad_norm/") for key in history if key.startswith("grad_norm/")]
    parts = [name for name in names if name != "global"]
    ratios = "update_ratio/global" in history
    heights = [2.6] * (1 + ratios) + ([min(9.0, 0.8 + 0.25 * len(parts))] if parts else [])
    figure, axes = plt.subplots(
        len(heights), 1, figsize=(9, sum(heights) + 0.4), height_ratios=heights, squeeze=False, layout="constrained"
    )
    plt.close(figure)  # the caller keeps the figure; pyplot must not
    axes = list(axes[:, 0])
    _norms(axes[0], history)
    if ratios:
        _ratios(axes[1], history, parts)
    if parts:
        _heat_map(figure, axes[-1], history, parts)
    edges = _edges(history["step"])
    for axis in axes:
        axis.set_xlim(edges)
    axes[-1].set_xlabel("step")
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure


def _edges(steps):
    half = np.median(np.diff(steps)) / 2 if len(steps) > 1 else 0.5
    return steps[0] - half, steps[-1] + half


def _line(axis, steps, values, **style):
    # Steps that only accumulate have no value: join the others over them.
    there = np.isfinite(values)
    axis.plot(steps[there], values[there], linewidth=1, **style)


def _norms(axis, history):
    steps, before, after = history["step"], history["grad_norm/global"], history["clipped_grad_norm/global"]
    changed = not np.allclose(before, after, equal_nan=True)
    _line(axis, steps, before, label="global, before clipping" if changed else "global")
    if changed:
        _line(axis, steps, after, label="global, after clipping")
    for i, step in enumerate(steps[~np.isfinite(before)]):
        axis.axvline(step, color="crimson", linewidth=1, label=None if i else "not finite")
    _log_scale(axis, before)
    axis.set_ylabel("gradient norm")
    _legend(axis)


def _ratios(axis, history, parts):
    for name in parts if 0 < len(parts) <= _LINES else ["global"]:
        _line(axis, history["step"], history[f"update_ratio/{name}"], label=name)
    axis.axhline(1e-3, color="black", linestyle=":", linewidth=1, label="1e-3: the rule")
    _log_scale(axis, history["update_ratio/global"])
    axis.set_ylabel("update / weight")
    _legend(axis)


def _heat_map(figure, axis, history, parts):
    norms = np.stack([history[f"grad_norm/{name}"] for name in parts])
    with np.errstate(divide="ignore", invalid="ignore"):
        image = np.ma.masked_invalid(np.log10(norms))
    extent = (*_edges(history["step"]), len(parts) - 0.5, -0.5)
    drawn = axis.imshow(image, aspect="auto", interpolation="nearest", extent=extent, cmap="viridis")
    axis.set_facecolor("lightgray")  # what is masked: 0 or not finite
    every = -(-len(parts) // _NAMES)
    axis.set_yticks(range(0, len(parts), every), parts[::every], fontsize="x-small")
    figure.colorbar(drawn, ax=axis, label="log10 gradient norm", pad=0.01)


def _legend(axis):
    place = {"loc": "lower right", "bbox_to_anchor": (1, 0.98), "frameon": False}  # above the axes, on no line
    axis.legend(**place, ncols=5, fontsize="x-small", columnspacing=1.2, handlelength=1.2)


def _log_scale(axis, values):
    if np.any(values[np.isfinite(values)] > 0):
        axis.set_yscale("log", nonpositive="mask")
