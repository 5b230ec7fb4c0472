"""Rules that say from a learning curve whether the rate was too high or too low, and since when."""

import numpy as np

from tf_tricks.debug._curve import FEWEST, noise, tail_median
from tf_tricks.debug._result import Finding


def learning_rate_too_high(curve):
    """The training loss jumps about, jumps up, or fell at once when the rate fell."""
    n = len(curve.loss)
    if n < FEWEST + 1:
        return None
    total = float(curve.loss[0] - curve.smooth.min())
    return _jump(curve, total) or _oscillation(curve, total) or _helpful_drop(curve)


def _jump(curve, total):
    for i in range(2, len(curve.loss)):
        before = float(np.median(curve.loss[max(0, i - 5) : i]))
        jump = float(curve.loss[i]) - before
        if jump > max(0.5 * curve.level(before), 8 * curve.noise, 0.2 * total):
            return Finding(
                "learning_rate_too_high",
                f"The training loss jumps from {before:.4g} to {curve.loss[i]:.4g} at epoch "
                f"{curve.epoch(i)}{_at(curve, i)}"
                ": the rate is too high there. Lower it, or clip the gradients.",
                evidence={"epoch": curve.epoch(i), "before": before, "after": float(curve.loss[i])},
            )
    return None


def _oscillation(curve, total):
    width = max(FEWEST + 1, len(curve.loss) // 4)
    for start in range(0, len(curve.loss) - width + 1):
        part = curve.loss[start : start + width]
        sigma, level = noise(part), curve.level(float(np.median(part)))
        rising = float(np.mean(np.diff(part) > 0))
        if sigma > max(0.1 * level, 0.03 * total) and rising >= 0.25:
            return Finding(
                "learning_rate_too_high",
                f"From epoch {curve.epoch(start)} on{_at(curve, start)} the training loss oscillates by {sigma:.2g}, "
                f"{100 * sigma / level:.0f} % of its level, and rises in {100 * rising:.0f} % of the epochs: the rate "
                "is too high. Lower it about threefold, or let it decay.",
                evidence={"epoch": curve.epoch(start), "noise": sigma, "level": level, "rising": rising},
            )
    return None


def _helpful_drop(curve):
    if curve.rate is None:
        return None
    for i in range(4, len(curve.rate) - 2):
        if not 0 < curve.rate[i] <= 0.5 * curve.rate[i - 1]:
            continue
        before, earlier = float(np.median(curve.loss[i - 3 : i])), float(np.median(curve.loss[max(0, i - 6) : i - 2]))
        after = float(np.median(curve.loss[i : i + 3]))
        stood = earlier - before < 0.03 * curve.level(before)
        if stood and before - after > max(0.1 * curve.level(before), 3 * curve.noise):
            return Finding(
                "learning_rate_too_high",
                f"Before epoch {curve.epoch(i)} the rate was too high to go lower: the loss stood at {before:.4g}, "
                f"and fell to {after:.4g} when the rate dropped from {curve.rate[i - 1]:.2g} to {curve.rate[i]:.2g}. "
                "An earlier drop saves time; another one may help.",
                is_fault=False,
                evidence={"epoch": curve.epoch(i), "before": before, "after": after},
            )
    return None


def learning_rate_too_low(curve):
    """The training loss falls slowly along a straight line, or was frozen by a rate that decays too fast."""
    n, smooth = len(curve.loss), curve.smooth
    if n < FEWEST + 3:
        return None
    frozen = _frozen(curve)
    if frozen:
        return frozen
    start, end = float(smooth[0]), float(smooth[-1])
    fall = start - end
    bend = float(np.max(np.abs(smooth - np.linspace(start, end, n))))
    if fall < max(8 * curve.noise, 0.005 * curve.level(start)) or fall > 0.6 * curve.level(start) or bend > 0.12 * fall:
        return None
    return Finding(
        "learning_rate_too_low",
        f"From epoch {curve.epoch(0)} to the end{_at(curve, 0)} the training loss falls along a straight line, from "
        f"{start:.4g} to {end:.4g} (bend: {100 * bend / fall:.0f} % of the fall): the rate is too low. Try ten times "
        "as much, or `find_learning_rate`.",
        evidence={"epoch": curve.epoch(0), "start": start, "end": end, "bend": bend},
    )


def _frozen(curve):
    if curve.rate is None or not curve.rate.max() > 0:
        return None
    n, top = len(curve.rate), int(np.argmax(curve.rate))
    low = np.flatnonzero(curve.rate[top:] < 0.1 * curve.rate[top])
    if not len(low):
        return None
    at = top + int(low[0])
    rest = n - at
    if at - top < 3 or rest < max(FEWEST, n // 3):
        return None
    width = max(2, (at - top) // 2)
    per_epoch = float(curve.smooth[at - width] - curve.smooth[at]) / width
    then, end = float(curve.smooth[at]), tail_median(curve.loss)
    expected = min(per_epoch * rest, 0.5 * curve.level(then))
    if per_epoch * rest < 0.5 * curve.level(then) or then - end > 0.3 * expected or expected < 5 * curve.noise:
        return None
    return Finding(
        "learning_rate_too_low",
        f"The rate decays too fast: the training loss was still falling by {per_epoch:.2g} an epoch when the rate "
        f"came to {curve.rate[at]:.2g} at epoch {curve.epoch(at)}, a tenth of its {curve.rate[top]:.2g}; in the "
        f"{rest} epochs since it only went from {then:.4g} to {end:.4g}. Keep the rate up, and drop it for the last "
        "epochs (`FinalLearningRateDrop`).",
        evidence={"epoch": curve.epoch(at), "then": then, "end": end, "per_epoch": per_epoch},
    )


def _at(curve, i):
    return "" if curve.rate is None else f" (rate {curve.rate[i]:.2g})"
