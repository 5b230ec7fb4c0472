"""Checks of constructor arguments: return the value, or say what is accepted and what came."""

import math
import numbers
import os

import numpy as np


def check_one_of(name, value, choices):
    """Return `value` if it is one of `choices`, else raise ValueError."""
    # `True == 1`, so the types are compared too: `every=True` must not pass for 1.
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        accepted = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {accepted}. Received: {name}={value!r}")
    return value


def check_bool(name, value):
    """Return `value` if it is a bool, else raise TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r}")
    return value


def check_integer(name, value, minimum):
    """Return `value` as an int if it is a whole number >= `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an int >= {minimum}. Received: {name}={value!r}")
    if value < minimum:
        raise ValueError(f"`{name}` must be an int >= {minimum}. Received: {name}={value!r}")
    return int(value)


def check_number(name, value, *, above=-math.inf, below=math.inf, closed=""):
    """Return `value` as a float if it lies in the interval; `closed` holds "[" and/or "]" where an end is included."""
    left, right = "[" if "[" in closed else "(", "]" if "]" in closed else ")"
    interval = f"{left}{above:g}, {below:g}{right}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number in {interval}. Received: {name}={value!r}")
    high_enough = value >= above if left == "[" else value > above
    low_enough = value <= below if right == "]" else value < below
    if not (high_enough and low_enough):  # a NaN fails both
        raise ValueError(f"`{name}` must lie in {interval}. Received: {name}={value!r}")
    return float(value)


def check_numbers(name, value, accepted):
    """Return a number, or a sequence of them that is not empty, as a float64 array; `accepted` is the words for it."""
    try:
        array = np.asarray(value, "float64")
        # NumPy makes numbers of "3" and of True.
        is_number = array.size > 0 and np.asarray(value).dtype.kind not in "bSU"
    except (TypeError, ValueError):
        is_number = False
    if not is_number:
        raise TypeError(f"`{name}` must be {accepted}. Received: {name}={value!r}")
    return array


def check_path(name, value):
    """Return `value` as a str if it is one or a path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"`{name}` must be a str or a path. Received: {name}={value!r}")
    return os.fspath(value)


def check_instance(name, value, cls, accepted):
    """Return `value` if it is an instance of `cls`, which `accepted` is the words for."""
    if not isinstance(value, cls):
        raise TypeError(f"`{name}` must be {accepted}. Received: {name}={value!r}")
    return value


def check_axis(name, value):
    """Return `value` as None, an int or a tuple of int, none twice, else raise TypeError or ValueError."""
    axes = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    accepted = f"`{name}` must be an int, a tuple of int, none twice, or None. Received: {name}={value!r}"
    if any(isinstance(axis, bool) or not isinstance(axis, numbers.Integral) for axis in axes):
        raise TypeError(accepted)
    if len(set(axes)) < len(axes):
        raise ValueError(accepted)
    return None if value is None else tuple(map(int, axes)) if isinstance(value, list | tuple) else int(value)


def check_range(name, value, above=-math.inf, below=math.inf):
    """Return `value` as a tuple of two floats in (above, below), the first below the second."""
    accepted = f"`{name}` must be a pair (low, high) of numbers in ({above:g}, {below:g}), low < high"
    received = f"Received: {name}={value!r}"
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise TypeError(f"{accepted}. {received}")
    if any(isinstance(each, bool) or not isinstance(each, numbers.Real) for each in value):
        raise TypeError(f"{accepted}. {received}")
    if not above < value[0] < value[1] < below:
        raise ValueError(f"{accepted}. {received}")
    return float(value[0]), float(value[1])


def check_optional(check, name, value, *args, **kwargs):
    """Return None if `value` is None, else `check(name, value, ...)`."""
    return None if value is None else check(name, value, *args, **kwargs)


def check_keep_best(keep_best):
    """Return `keep_best` as None or a tuple `(monitor, mode)`, else raise TypeError or ValueError."""
    if keep_best is None:
        return None
    if not isinstance(keep_best, (tuple, list)) or len(keep_best) != 2 or not isinstance(keep_best[0], str):
        raise TypeError(
            '`keep_best` must be None or (monitor, mode), such as ("val_loss", "min"). '
            f"Received: keep_best={keep_best!r}"
        )
    if keep_best[1] not in ("min", "max"):
        raise ValueError(
            f"`keep_best` must be (monitor, mode) with a mode of 'min', 'max'. Received: keep_best={keep_best!r}"
        )
    return tuple(keep_best)
