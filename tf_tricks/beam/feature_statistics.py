"""Feature statistics as a Beam `CombineFn`: Beam decides which rows meet where, the statistics merge."""

import copy

import numpy as np

from tf_tricks._optional import import_optional
from tf_tricks.layers.scaling.statistics import Statistics

try:
    from apache_beam import CombineFn
except ModuleNotFoundError:  # `FeatureStatistics(...)` says what to install
    CombineFn = object

ROWS = 1024  # single rows that are collected before the statistics look at them, which then costs less for each


class FeatureStatistics(CombineFn):
    """Compute `Statistics` over a `PCollection`, for `beam.CombineGlobally`, `CombinePerKey` and `CombineValues`.

    The result is a `Statistics` object, which `from_statistics` of a scaling layer takes. Moments and covariance do not
    depend on how Beam cuts the data, apart from the last bits; quantiles do, within their error. Batches of rows are
    much quicker than single rows.

    Args:
        kinds: sequence out of "moments", "covariance" and "quantiles", what a layer needs: its attribute `kinds`.
    Shape:
        Elements are rows, arrays or sequences of shape (features,), or batches of rows, (n, features), of any real
        dtype; None, NaN and masked values are missing. A number is a row of one feature.
    Raises:
        ImportError: Apache Beam is not installed.
        ValueError: `kinds` is empty or holds another name; in the pipeline: as `Statistics.update`.
    Reference:
        Chan, Golub and LeVeque (1983), The American Statistician 37(3), section 2 (pairwise merging).
    Example:
        >>> import apache_beam as beam  # doctest: +SKIP
        >>> with beam.Pipeline() as pipeline:  # doctest: +SKIP
        ...     rows = pipeline | beam.Create([[1.0, 2.0], [3.0, 6.0]])
        ...     stats = rows | beam.CombineGlobally(FeatureStatistics())
        ...     _ = stats | beam.Map(lambda stats: print(stats.moments.mean.tolist()))
        [2.0, 4.0]
    """

    def __init__(self, kinds=("moments",)):
        import_optional("apache_beam", "beam", "FeatureStatistics")
        super().__init__()
        self.kinds = Statistics(kinds).kinds

    def create_accumulator(self):
        return Statistics(self.kinds), []  # and the single rows that wait

    def add_input(self, accumulator, element):
        statistics, rows = accumulator
        if np.ndim(element) > 1:
            statistics.update(element)
        else:
            rows.append(np.ma.atleast_1d(element) if np.ma.isMaskedArray(element) else np.atleast_1d(element))
            if len(rows) == ROWS:
                return self.compact(accumulator)
        return statistics, rows

    def compact(self, accumulator):
        statistics, rows = accumulator
        if rows:
            statistics.update(np.ma.stack(rows) if any(map(np.ma.isMaskedArray, rows)) else np.stack(rows))
            rows.clear()  # Beam may use the accumulator again
        return accumulator

    def merge_accumulators(self, accumulators):
        merged = Statistics(self.kinds)
        for accumulator in accumulators:
            merged.merge(self.compact(accumulator)[0])
        return merged, []

    def extract_output(self, accumulator):
        return copy.deepcopy(self.compact(accumulator)[0])  # which may go on after a pane was emitted
