"""Arithmetic of learning rates: what a range test and short trainings at several rates say."""

import math

import numpy as np

WINDOW = 7  # points of the range test through which a line gives the slope


def smoothed(losses, beta=0.9, start=None):
    """Exponential moving average of a list of losses: float64 array of the same length.

    Args:
        start: float, what it begins with, or None: corrected for its begin, which then is as noisy as a single loss.
    Example:
        >>> smoothed([1.0, 1.0, 1.0]).round(6).tolist()
        [1.0, 1.0, 1.0]
    """
    average, found = 0.0 if start is None else start, np.empty(len(losses))
    for i, loss in enumerate(losses):
        average = beta * average + (1 - beta) * loss
        found[i] = average / (1 - beta ** (i + 1) if start is None else 1)
    return found


def common_curve(runs):
    """Median over several range tests, as far as the shortest of them came; runs that broke off at once do not count.

    Args:
        runs: list of lists of finite losses, each at the same rates, from the lowest one on.
    """
    length = min(map(len, runs))
    return np.median([run[:length] for run in runs], axis=0) if length else np.empty(0)


def slopes(rates, losses, window=WINDOW):
    """Slope of `losses` over ln(rate) at each point, from the line through the `window` points around it."""
    x, y = np.log(rates), np.asarray(losses, "float64")
    found = np.zeros(len(y))
    for i in range(len(y)):
        part = slice(max(0, i - window // 2), i + window // 2 + 1)
        centred = x[part] - np.mean(x[part])
        found[i] = np.sum(centred * y[part]) / max(np.sum(centred**2), 1e-12)
    return found


def steepest_rate(rates, losses):
    """The rate at which smoothed losses fall fastest, before their minimum; None where they never fall."""
    last = int(np.argmin(losses))
    if last == 0:
        return None
    before = slopes(rates[: len(losses)], losses)[: last + 1]
    return float(rates[int(np.argmin(before))]) if np.min(before) < 0 else None


def best_rate(rates, losses, tolerance):
    """The centre of the rates that train about as well as the best one: a mean of ln(rate), steadier than the minimum.

    Args:
        rates: array (n,), ascending. losses: array (n,), what a training at each of them reached; NaN where it broke.
        tolerance: float > 0: a loss so much above the lowest one weighs exp(-1).
    Returns:
        float, or None if all losses are NaN.
    """
    losses = np.asarray(losses, "float64")
    if not np.isfinite(losses).any():
        return None
    here = basin(losses, tolerance)  # only: a second rate that is as good, behind a hill, is luck
    weights = np.exp((np.nanmin(losses) - losses[here]) / tolerance)
    return float(math.exp(np.sum(weights * np.log(rates[here])) / np.sum(weights)))


def basin(losses, tolerance):
    """The slice of those beside the lowest loss that are at most two tolerances above it, without a gap.

    Args:
        losses, tolerance: as for `best_rate`; one loss at least is no NaN.
    """
    above = np.where(np.isfinite(losses), losses, np.inf) - np.nanmin(losses)
    left = right = int(np.argmin(above))
    while left > 0 and above[left - 1] <= 2 * tolerance:
        left -= 1
    while right + 1 < len(losses) and above[right + 1] <= 2 * tolerance:
        right += 1
    return slice(left, right + 1)


def largest_safe_rate(rates, losses, start, share=0.5):
    """The largest rate, from the best one upwards without a gap, that makes `share` of the best one's progress.

    Args:
        rates, losses: as for `best_rate`. start: float, the loss before training.
    """
    losses = np.asarray(losses, "float64")
    best = int(np.nanargmin(losses))
    needed = start - share * (start - losses[best])
    safe = best
    while safe + 1 < len(losses) and losses[safe + 1] <= needed:
        safe += 1
    return float(rates[safe])


def progress(loss, best, start):
    """float, the part of the best training's progress that another one makes; -inf where it broke."""
    if not math.isfinite(loss):
        return -math.inf
    return (start - loss) / (start - best) if start > best else 0.0
