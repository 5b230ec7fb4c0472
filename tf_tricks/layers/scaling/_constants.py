"""The numbers that a scaling layer applies: float64 values, kept in float32 weights without losing a digit."""

import concurrent.futures
from typing import NamedTuple

import keras
import numpy as np

from tf_tricks._checks import check_numbers

LOW_BITS = (1 << 12) - 1  # of an integer that float32 has no room for


class Split(NamedTuple):
    """A float64 number as the sum of two float32 numbers, so that it can be taken off a float32 number exactly.

    A single float32 knows a mean of 1e8 to 8. Where float64 is at hand, `high` is all of it and `low` is 0.
    """

    high: object
    low: object

    def subtracted_from(self, x):
        if isinstance(x, Split):  # numbers that float32 does not know either: the large parts go first
            return (x.high - self.high) + (x.low - self.low)
        return (x - self.high) - self.low

    def added_to(self, x):
        return (x + self.low) + self.high


def split_integers(x):
    """A tensor of integers as a `Split` of float32, exact up to 36 bits."""
    low = keras.ops.bitwise_and(x, keras.ops.convert_to_tensor(LOW_BITS, x.dtype))
    return Split(keras.ops.cast(x - low, "float32"), keras.ops.cast(low, "float32"))


def split(value):
    """A float64 array as three float32 ones, along a new first axis, that add up to it exactly.

    Sizes from about 1e-31 to 3.4e38: of smaller ones the low parts underflow, and below 1e-45 nothing is left.
    """
    rest, parts = np.asarray(value, "float64"), []
    for _ in range(3):
        parts.append(rest.astype("float32"))
        rest = rest - parts[-1]
    return np.stack(parts)


def check_float32(name, value):
    """Raise ValueError if a constant is beyond the range of float32, in which `split` would make an infinite value."""
    largest = np.finfo("float32").max
    if (np.abs(value) > largest).any():  # False for NaN
        raise ValueError(
            f"`{name}` must be at most {largest:.2g} in size, the range of the weights: give the data another unit. "
            f"Received: {name}={np.ravel(value)[np.nanargmax(np.abs(value))]:g}"
        )


def reciprocal(xp, x):
    """1 / x, and 0 where x is 0: what is divided by the width of a constant feature comes out as 0."""
    some = x > 0
    return xp.where(some, 1 / xp.where(some, x, xp.cast(1, x.dtype)), xp.cast(0, x.dtype))


def check_constant(name, value, axis, minimum=-np.inf, above=-np.inf):
    """Return a number, or a list of numbers for the features, as a float64 array of values >= minimum and > above."""
    array = check_numbers(name, value, "a number or an array of numbers")
    if not (np.isfinite(array) & (array >= minimum) & (array > above)).all():
        limits = [f"{sign} {limit:g}" for sign, limit in ((">=", minimum), (">", above)) if limit > -np.inf]
        raise ValueError(f"`{name}` must be {' and '.join(['finite', *limits])}. Received: {name}={value!r}")
    if array.ndim > (0 if axis is None else 1 if isinstance(axis, int) else len(axis)):
        raise ValueError(
            f"`{name}` must have at most one axis for each entry of axis={axis!r}. Received: {name}={value!r}"
        )
    return array


def value_outside_of_tracing(variable):
    """The value of a variable as NumPy, also while a step is traced: a thread of its own is in nobody's trace."""
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return np.array(thread.submit(keras.ops.convert_to_numpy, variable).result())
