"""Is a derivative right? Central differences along a line, with the noise of the function taken into account.

Plain functions of a callable `along(t)`, the value of a function at the distance t along a line. No Keras in here.
"""

import math
import typing

import numpy as np

FACTORS = (1.0, 1 / 8, 8.0, 64.0, 1 / 64)  # of the step, tried until one agrees


class Comparison(typing.NamedTuple):
    """An analytic derivative beside a central difference.

    Attributes:
        verdict: "right"; "wrong"; "kink": the slopes to both sides differ; "unclear": lost in rounding.
        analytic, numeric: float, the two derivatives.
        error: float, their difference relative to the larger one.
        step: float, the h of (f(h) - f(-h)) / 2h.
    """

    verdict: str
    analytic: float
    numeric: float
    error: float
    step: float


def compare(along, origin, analytic, step, noise, tolerance, floor=0.0):
    """Compare `analytic` with central differences of several steps; the first that agrees is enough.

    Args:
        along: callable, float t -> float.
        origin: float, `along(0)`.
        analytic: float, the derivative that is to be checked.
        step: float > 0, the h to begin with.
        noise: float >= 0, rounding error of a value of `along`.
        tolerance: float, relative error that still counts as agreement.
        floor: float, errors are relative to this at least.
    """
    tried = []
    for factor in FACTORS:
        h = step * factor
        right, left = along(h), along(-h)
        if not (math.isfinite(right) and math.isfinite(left)):
            continue
        numeric, doubt = (right - left) / (2 * h), noise / h
        size = max(abs(analytic), abs(numeric), floor)
        error = abs(analytic - numeric)
        found = Comparison("right", analytic, numeric, error / size if size else 0.0, h)
        if doubt <= tolerance * size and error <= tolerance * size:
            return found
        # A step that cannot resolve the tolerance tells something only if the difference is far above its doubt.
        is_clear = doubt <= tolerance * size or error > 10 * doubt
        tried.append((is_clear, found, abs((right - origin) - (origin - left)) / h, size))
    clear = [each for each in tried if each[0]]
    if not clear or len(clear) < len(tried) and _is_noise(tried):
        found = min((each[1] for each in tried), key=lambda c: c.error, default=None)
        return (found or Comparison("", analytic, math.nan, math.nan, step))._replace(verdict="unclear")
    clear.sort(key=lambda each: each[1].step)
    _, found, jump, size = clear[0]
    # The jump of a smooth function's slope shrinks with the step, that of a kink stays.
    has_jump = jump > 2 * tolerance * size and jump > 0.3 * clear[-1][2]
    changes = abs(found.numeric - clear[-1][1].numeric) > 2 * tolerance * size and len(clear) > 1
    return found._replace(verdict="kink" if has_jump or changes else "wrong")


def _is_noise(tried):
    """Do the steps that resolve nothing leave it open, and those that do contradict each other?"""
    numerics = [found.numeric for is_clear, found, _, _ in tried if is_clear]
    return max(numerics) * min(numerics) < 0


def measured_noise(along, step, points=11):
    """float, the scatter of the values of `along` about a parabola over a short stretch."""
    t = (np.arange(points) * 0.618034) % 1.0  # even points could keep step with the steps of the rounding
    values = np.array([along(each * step) for each in t])
    if not np.all(np.isfinite(values)):
        return math.nan
    powers = np.stack([np.ones_like(t), t, t**2], axis=1)
    middle = values - values[0]
    residual = middle - powers @ np.linalg.lstsq(powers, middle, rcond=None)[0]
    scatter = float(np.sqrt(np.sum(residual**2) / (points - 3)))
    return max(scatter, 4 * float(np.finfo("float64").eps) * abs(float(values[0])), 1e-300)


def flatness(along, origin, step, noise):
    """Why is a derivative zero? A word for how the function behaves along a line on which its gradient is zero.

    Args:
        along, origin, noise: as in `compare`.
        step: float, a distance that changes a weight by its own size.
    Returns:
        "unused": nothing changes; "blocked": it changes smoothly, though the gradient says it does not; "steps": it
        changes in jumps and is level between them; "level": it is level here and changes smoothly further away.
    """
    relative = max(noise / max(abs(origin), 1e-300), 1e-16)
    h = step * relative ** (1 / 3)
    right, left = along(h) - origin, along(-h) - origin
    if max(abs(right), abs(left)) > 100 * noise and abs(right + left) < 0.1 * abs(right - left):
        return "blocked"
    for t in (0.1, -0.1, 0.3, -0.3, 1.0, -1.0, 3.0, -3.0, 10.0, -10.0):
        value = along(t * step)
        if abs(value - origin) > 100 * noise:
            near = along(t * step * (1 + 30 * math.sqrt(relative)))
            return "level" if abs(near - value) > 3 * noise else "steps"
    return "unused"
