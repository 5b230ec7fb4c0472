"""The picture of `GradientNormLogger.plot`."""

import numpy as np

from tf_tricks._optional import import_optional


def draw(history, path=None):
    """Draw norms over steps, update ratios and a heat map of layers by steps; returns the figure."""
    plt = import_optional("matplotlib.pyplot", "plot")
    names = [key.removeprefix("grad_norm/") for key in history if key.startswith("grad_norm/")]
    parts = [name for name in names if name != "global"]
    ratios = "update_ratio/global" in history
    panels = 1 + ratios + bool(parts)
    height = 2.6 * (1 + ratios) + (0.8 + 0.25 * len(parts) if parts else 0)
    ratio = [2.6] * (1 + ratios) + ([0.8 + 0.25 * len(parts)] if parts else [])
    figure, axes = plt.subplots(
        panels, 1, figsize=(9, height), height_ratios=ratio, squeeze=False, layout="constrained"
    )
    axes = list(axes[:, 0])
    _norms(axes[0], history)
    if ratios:
        _ratios(axes[1], history, parts)
    if parts:
        _heat_map(figure, axes[-1], history, parts)
    axes[-1].set_xlabel("step")
    if path is not None:
        figure.savefig(path, dpi=120)
    plt.close(figure)  # the caller keeps the figure; pyplot must not
    return figure


def _norms(axis, history):
    steps, before, after = history["step"], history["grad_norm/global"], history["clipped_grad_norm/global"]
    axis.plot(steps, before, linewidth=1, label="before clipping" if not np.allclose(before, after) else "global")
    if not np.allclose(before, after, equal_nan=True):
        axis.plot(steps, after, linewidth=1, label="after clipping")
    _log_scale(axis, before)
    axis.set_ylabel("gradient norm")
    axis.legend(loc="upper right", fontsize="small")


def _ratios(axis, history, parts):
    for name in ["global"] if len(parts) > 8 or not parts else parts:
        axis.plot(history["step"], history[f"update_ratio/{name}"], linewidth=1, label=name)
    axis.axhline(1e-3, color="black", linestyle=":", linewidth=1)
    _log_scale(axis, history["update_ratio/global"])
    axis.set_ylabel("update / weight")
    axis.legend(loc="upper right", fontsize="x-small", ncols=2)


def _heat_map(figure, axis, history, parts):
    norms = np.stack([history[f"grad_norm/{name}"] for name in parts])
    with np.errstate(divide="ignore", invalid="ignore"):
        image = np.log10(norms)
    image[~np.isfinite(image)] = np.nan
    steps = history["step"]
    extent = (steps[0] - 0.5, steps[-1] + 0.5, len(parts) - 0.5, -0.5)
    drawn = axis.imshow(image, aspect="auto", interpolation="nearest", extent=extent, cmap="viridis")
    axis.set_yticks(range(len(parts)), parts, fontsize="x-small")
    figure.colorbar(drawn, ax=axis, label="log10 gradient norm")


def _log_scale(axis, values):
    if np.any(values[np.isfinite(values)] > 0):
        axis.set_yscale("log")
