"""Mean, variance, range and covariance of a stream: one pass, float64, and two halves merge into the whole."""

import copy

import numpy as np

from tf_tricks.layers.scaling._table import (
    LARGEST,
    as_table,
    check_keys,
    check_same_kind,
    check_values,
    not_finite,
    rounding_of,
    to_array,
    to_list,
)

BLOCK = 1 << 17  # values: a block and its float64 differences stay in the cache of a core
JOIN = (np.add, np.add, np.add, np.fmin, np.fmax)  # how the five results of two blocks become one
WIDTH = 1 << 10  # values: rows are joined to about this length, for which NumPy's loops are quick
ROUNDINGS = 4  # a feature whose range is that many roundings of its values is constant


def pilot_of(table):
    """One value of each column near its other values, 0 where all are missing.

    With differences from any value of the column in place of the values, the variance comes out with a relative error
    of at most about `n` roundings, because that value is at most `sqrt(n)` standard deviations from the mean.
    """
    pilot = table[0].astype(np.float64)
    for column in np.flatnonzero(np.isnan(pilot)):
        valid = table[~np.isnan(table[:, column]), column]
        pilot[column] = valid[0] if valid.size else 0.0
    return pilot


def lanes_of(table):
    """Cut a table of shape (n, features) into blocks whose rows are several of its rows, side by side."""
    rows, features = table.shape
    joined = min(rows, max(1, WIDTH // features))
    step = max(1, BLOCK // (joined * features)) * joined
    whole = rows - rows % joined
    for start in range(0, whole, step):
        yield table[start : min(start + step, whole)].reshape(-1, joined * features)
    if whole < rows:  # filled up with missing values
        rest = np.full((joined, features), np.nan)
        rest[: rows - whole] = table[whole:]
        yield rest.reshape(1, -1)


def summarize(table):
    """Count, mean, sum of squared differences from it, minimum and maximum of each column; NaN is left out."""
    features = table.shape[1]
    if not len(table):
        return np.zeros(features), np.full(features, np.nan), np.zeros(features), *np.full((2, features), np.nan)
    pilot, lanes = pilot_of(table), None
    for block in lanes_of(table):
        if lanes is None:
            pilots = np.tile(pilot, block.shape[1] // features)
            lanes = summarize_block(block, pilots)
        else:
            pairs = zip(JOIN, lanes, summarize_block(block, pilots), strict=True)
            lanes = [join(one, other) for join, one, other in pairs]
    lanes = [join.reduce(each.reshape(-1, features)) for join, each in zip(JOIN, lanes, strict=True)]
    count, total, squares, low, high = (each.astype(np.float64) for each in lanes)
    if not (np.isfinite(squares).all() and np.nanmax(np.abs([low, high]), initial=0.0) <= LARGEST):
        check_values(table)
    shift = divide(total, count)
    return count, pilot + shift, np.maximum(squares - total * np.nan_to_num(shift), 0.0), low, high


def summarize_block(block, pilots):
    """For each column its count, the sum of its differences from `pilots` and of their squares, its extremes."""
    difference = block.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # the caller looks at the sums
        difference -= pilots
        squares = np.einsum("ij,ij->j", difference, difference)
        if np.isfinite(squares).all():
            count = np.full(len(pilots), float(len(block)))
            return count, np.add.reduce(difference), squares, np.minimum.reduce(block), np.maximum.reduce(block)
        missing = np.isnan(block)
        difference[missing] = 0.0
        squares = np.einsum("ij,ij->j", difference, difference)
    count = len(block) - np.add.reduce(missing, dtype=np.float64)
    return count, np.add.reduce(difference), squares, np.fmin.reduce(block), np.fmax.reduce(block)


def divide(values, count):
    """`values / count`, NaN where `count` is 0."""
    return np.divide(values, count, out=np.full(np.shape(values), np.nan), where=count > 0)


class Mergeable:
    """What `Moments` and `Covariance` share: how they are saved."""

    def to_dict(self):
        """All of it as numbers, lists and None, for JSON."""
        return {name: to_list(each) if isinstance(each, np.ndarray) else each for name, each in vars(self).items()}

    @classmethod
    def from_dict(cls, saved):
        """Return an object equal to the one that `to_dict` was called on."""
        loaded = cls()
        check_keys(cls, saved, vars(loaded))
        vars(loaded).update({name: to_array(each) if isinstance(each, list) else each for name, each in saved.items()})
        return loaded


class Moments(Mergeable):
    """Count, mean, variance, minimum and maximum of each feature of a stream; missing values are left out.

    Sums run in float64 over differences from one value of the batch, in blocks that fit the cache; batches and
    parts are merged by Chan's formula. The relative error of the variance of a batch of n rows is at most about n
    roundings of float64, whatever its mean, and usually far less.

    Attributes:
        features: int, number of columns, or None before the first batch, as all that follows.
        count, missing: float64 arrays (features,), how many values were there and how many were not.
        mean, minimum, maximum: float64 arrays (features,), in the unit of the feature; NaN where `count` is 0.
        m2: float64 array (features,), sum of the squared differences from `mean`.
        rounding: float, the machine epsilon of the coarsest dtype that came, of half precision a quarter of it; 0.0
            for integers.
    Reference:
        Chan, Golub and LeVeque (1983), Algorithms for Computing the Sample Variance, The American Statistician
        37(3), sections 2 and 3; Welford (1962), Technometrics 4(3).
    Example:
        >>> stats = Moments().update(np.array([[1.0, 5.0], [3.0, np.nan]]))
        >>> stats.mean.tolist(), stats.count.tolist()
        ([2.0, 5.0], [2.0, 1.0])
        >>> stats.merge(Moments().update([[8.0, 7.0]])).variance.tolist()
        [8.666666666666666, 1.0]
    """

    def __init__(self):
        self.features = self.count = self.missing = self.mean = self.m2 = self.minimum = self.maximum = None
        self.rounding = 0.0

    def update(self, batch):
        """Add the rows of a batch.

        Args:
            batch: array or sequence of real numbers, (n, features) or (n,) for one feature; NaN, None and masked
                values are missing.
        Returns:
            The object itself.
        Raises:
            TypeError: the values are not real numbers.
            ValueError: a value is infinite, or the number of features is another. Nothing has changed then.
        """
        table = as_table(batch, self.features)
        part = Moments()
        part.features = table.shape[1]
        part.count, part.mean, part.m2, part.minimum, part.maximum = summarize(table)
        part.missing = len(table) - part.count
        part.rounding = rounding_of(batch, table)
        return self.merge(part)

    def merge(self, other):
        """Add what `other`, a `Moments` over equally many features, has seen; returns the object itself."""
        check_same_kind(self, other)
        if self.features is None:
            vars(self).update(copy.deepcopy(vars(other)))
        elif other.features is not None:
            count = self.count + other.count
            share = np.nan_to_num(divide(other.count, count))
            difference = np.nan_to_num(other.mean - self.mean)  # where one of them is empty, its mean is NaN
            self.m2 = self.m2 + other.m2 + difference**2 * share * self.count
            self.mean = np.where(self.count > 0, self.mean + difference * share, other.mean)
            self.minimum, self.maximum = np.fmin(self.minimum, other.minimum), np.fmax(self.maximum, other.maximum)
            self.count, self.missing = count, self.missing + other.missing
            self.rounding = max(self.rounding, other.rounding)
        return self

    @property
    def constant(self):
        """bool array (features,), whether all values are equal, but for the last bits that a computation leaves.

        The rule looks at the range, not at the variance, so that it is the same for any number of rows.
        """
        size = np.maximum(np.abs(self.minimum), np.abs(self.maximum))
        return self.maximum - self.minimum <= ROUNDINGS * self.rounding * size

    @property
    def variance(self):
        """float64 array (features,), population variance; NaN where `count` is 0."""
        return divide(self.m2, self.count)

    @property
    def stddev(self):
        """float64 array (features,), square root of `variance`."""
        return np.sqrt(self.variance)


class Covariance(Mergeable):
    """Mean and covariance of the features of a stream; a row with a missing value is left out as a whole.

    Attributes:
        features: int, number of columns, or None before the first batch.
        count, missing: int, how many rows were counted and how many were left out.
        mean: float64 array (features,), or None while `count` is 0.
        m2: float64 array (features, features), sum of the products of the differences from `mean`; None likewise.
    Reference:
        Chan, Golub and LeVeque (1983), The American Statistician 37(3), section 2, with products in place of squares.
    Example:
        >>> Covariance().update([[1.0, 2.0], [3.0, 6.0]]).covariance.tolist()
        [[1.0, 2.0], [2.0, 4.0]]
    """

    def __init__(self):
        self.features = self.mean = self.m2 = None
        self.count = self.missing = 0

    def update(self, batch):
        """Add the rows of a batch; arguments and errors are those of `Moments.update`."""
        table = as_table(batch, self.features)
        part = Covariance()
        part.features = table.shape[1]
        step = max(BLOCK // part.features, part.features)  # fewer rows than columns: the sum of products takes longer
        pilot, total, products = None, 0.0, 0.0
        for start in range(0, len(table), step):
            block = table[start : start + step]
            if not_finite(block):
                check_values(table)
                block = block[~np.isnan(block).any(axis=1)]
            if len(block):
                pilot = block[0].astype(np.float64) if pilot is None else pilot
                with np.errstate(over="ignore", invalid="ignore"):  # looked at below
                    difference = block - pilot
                    part.count += len(block)
                    total = total + difference.sum(axis=0)
                    products = products + difference.T @ difference
        part.missing = len(table) - part.count
        if part.count:
            part.mean = pilot + total / part.count
            if not np.isfinite(products).all() or np.abs(part.mean).max() > LARGEST:
                check_values(table)
            part.m2 = products - np.outer(total, total) / part.count
        return self.merge(part)

    def merge(self, other):
        """Add what `other`, a `Covariance` over equally many features, has seen; returns the object itself."""
        check_same_kind(self, other)
        if self.features is None:
            vars(self).update(copy.deepcopy(vars(other)))
            return self
        count = self.count + other.count
        if not self.count:
            self.mean, self.m2 = copy.deepcopy((other.mean, other.m2))
        elif other.count:
            difference, share = other.mean - self.mean, other.count / count
            self.m2 = self.m2 + other.m2 + np.outer(difference, difference) * (self.count * share)
            self.mean = self.mean + difference * share
        self.count, self.missing = count, self.missing + other.missing
        return self

    @property
    def covariance(self):
        """float64 array (features, features), population covariance; None while `count` is 0."""
        return self.m2 / self.count if self.count else None
