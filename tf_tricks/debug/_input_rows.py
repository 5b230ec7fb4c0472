"""A set of data as the checks take it: all of it, a few rows at a time, or a sample that statistics are made of."""

import numpy as np

from tf_tricks.debug._label_dependence import FEWEST

CHUNK = 2**22  # numbers that are looked at in one go
BYTES = 2**28  # of samples that are copied
MOST_TARGETS = 2**24  # numbers; more targets than these are looked at by the sample


class Rows:
    """All samples, and some of them.

    Args:
        everything: the `Samples`.
        most: int, how many of them make up `sample`.
        seed: int, of the choice.
    Attributes:
        everything: the `Samples` as they came.
        finite: indices of those without NaN and infinities.
        sample: `Samples`, `most` of the finite ones, fewer if they are large; in their order.
        are_all: bool, does the sample hold all of the finite ones?
    """

    def __init__(self, everything, most, seed):
        self.everything = everything
        self.finite = _finite(everything)
        arrays = [*arrays_of(everything.x), *arrays_of(everything.y)]
        bytes_each = max(1, sum(array.nbytes for array in arrays) // everything.size)
        most = min(most, max(FEWEST, BYTES // bytes_each))
        self.are_all = len(self.finite) <= most
        chosen = self.finite
        if not self.are_all:
            chosen = chosen[np.sort(np.random.default_rng(seed).choice(len(chosen), most, replace=False))]
        self.sample = everything if len(chosen) == everything.size else everything.take(chosen)

    def targets(self):
        """All finite targets; those of the sample if there are very many numbers."""
        total = sum(array.size for array in arrays_of(self.everything.y))
        if self.are_all or self.everything.y is None or total > MOST_TARGETS:
            return self.sample.y
        return type(self.everything)(self.everything.y).take(self.finite).x


def named(name, structure):
    """(name, array) of each array of numbers: `x`, `x['image']`, `x[1]`; dicts in the order of their sorted keys."""
    return [(label, array) for label, array in all_named(name, structure) if array.dtype.kind in "fiub"]


def all_named(name, structure):
    """As `named`, with the arrays that hold no numbers."""
    if isinstance(structure, dict):
        return [pair for key in sorted(structure) for pair in all_named(f"{name}[{key!r}]", structure[key])]
    if isinstance(structure, (list, tuple)):
        return [pair for i, part in enumerate(structure) for pair in all_named(f"{name}[{i}]", part)]
    return [] if structure is None else [(name, structure)]


def arrays_of(structure):
    return [array for _, array in named("", structure)]


def chunks(array):
    """(number of the first row, some rows) of an array, until there are no more."""
    step = max(1, CHUNK // max(1, array[:1].size))
    return ((start, array[start : start + step]) for start in range(0, len(array), step))


def _finite(data):
    good = np.ones(data.size, bool)
    for array in [*arrays_of(data.x), *arrays_of(data.y)]:
        if array.dtype.kind == "f":
            for start, part in chunks(array):
                good[start : start + len(part)] &= np.isfinite(part).reshape(len(part), -1).all(axis=1)
    return np.flatnonzero(good)
