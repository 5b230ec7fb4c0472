"""Statistics of a stream of batches: they are updated batch by batch, and those of two streams merge into one."""

from collections.abc import Collection

from tf_tricks._checks import check_one_of
from tf_tricks.layers.scaling._table import as_table, check_same_kind, rounding_of
from tf_tricks.layers.scaling.moments import Covariance, Moments
from tf_tricks.layers.scaling.quantile_sketch import Quantiles

__all__ = ["Covariance", "Moments", "Quantiles", "Statistics"]

KINDS = {"moments": Moments, "covariance": Covariance, "quantiles": Quantiles}


class Statistics:
    """Several statistics of the same stream, side by side.

    Args:
        kinds: sequence out of "moments", "covariance" and "quantiles".
    Attributes:
        kinds: tuple of str, the same, in this order.
        moments, covariance, quantiles: `Moments`, `Covariance`, `Quantiles`, or None where it was not asked for.
    Raises:
        ValueError: `kinds` is empty or holds another name.
    Reference:
        Chan, Golub and LeVeque (1983), The American Statistician 37(3); Karnin, Lang and Liberty (2016),
        arXiv:1603.05346.
    Example:
        >>> first, second = (Statistics(("moments", "quantiles")).update(half) for half in (x[:16], x[16:]))
        >>> whole = first.merge(second)
        >>> bool(np.allclose(whole.moments.mean, x.mean(axis=0)))
        True
        >>> bool(np.allclose(whole.quantiles.quantile(0.5), np.median(x, axis=0)))
        True
    """

    def __init__(self, kinds=("moments",)):
        if isinstance(kinds, str) or not isinstance(kinds, Collection) or not kinds:
            raise ValueError(f"`kinds` must be a sequence out of {', '.join(KINDS)}. Received: kinds={kinds!r}")
        asked = [check_one_of("kinds", kind, tuple(KINDS)) for kind in kinds]
        self.kinds = tuple(kind for kind in KINDS if kind in asked)
        self.moments = self.covariance = self.quantiles = None
        for kind in self.kinds:
            setattr(self, kind, KINDS[kind]())

    @property
    def features(self):
        """Number of columns, or None before the first batch."""
        return getattr(self, self.kinds[0]).features

    def update(self, batch):
        """Add the rows of a batch; arguments and errors are those of `Moments.update`."""
        table = as_table(batch, self.features)
        # In the order of `KINDS`: the first is the strictest, so that either all of them take the batch or none does.
        for kind in self.kinds:
            getattr(self, kind).update(table)
        if self.moments is not None:  # which does not see that the table was of half precision
            self.moments.rounding = max(self.moments.rounding, rounding_of(batch, table))
        return self

    def merge(self, other):
        """Add what `other`, `Statistics` of the same kinds, has seen; returns the object itself."""
        check_same_kind(self, other)
        if self.kinds != other.kinds:
            raise ValueError(f"`other` must have the kinds {self.kinds}. Received: kinds={other.kinds}")
        for kind in self.kinds:
            getattr(self, kind).merge(getattr(other, kind))
        return self

    def to_dict(self):
        """All of it as numbers and lists, for JSON."""
        return {kind: getattr(self, kind).to_dict() for kind in self.kinds}

    @classmethod
    def from_dict(cls, saved):
        """Return the object that `to_dict` was called on."""
        if not isinstance(saved, dict):
            raise TypeError(f"`saved` must be what Statistics.to_dict() returned. Received: saved={saved!r}")
        statistics = cls(tuple(saved))
        for kind, member in saved.items():
            setattr(statistics, kind, KINDS[kind].from_dict(member))
        return statistics
