import doctest
import importlib.util
import pickle
import sys

import numpy as np
import pytest

from tf_tricks.beam import FeatureStatistics, feature_statistics
from tf_tricks.layers.scaling.statistics import Statistics

pytestmark = pytest.mark.any_backend

ALL = ("moments", "covariance", "quantiles")
ROWS = 6000
X = 1e4 + np.random.default_rng(0).gamma(2.0, 3.0, (ROWS, 3))
X[::7, 1] = np.nan


@pytest.fixture
def beam():
    return pytest.importorskip("apache_beam", reason="pip install 'tf-tricks[beam]'")


def check_close(found, expected):
    """Equal up to rounding; the quantiles up to the error of their ranks."""
    for name in ("count", "missing", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(found.moments, name), getattr(expected.moments, name))
    np.testing.assert_allclose(found.moments.mean, expected.moments.mean, rtol=1e-14)
    np.testing.assert_allclose(found.moments.variance, expected.moments.variance, rtol=1e-10)
    assert found.covariance.count == expected.covariance.count
    np.testing.assert_allclose(found.covariance.covariance, expected.covariance.covariance, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found.quantiles.count, expected.quantiles.count)
    for feature in range(3):
        valid = np.sort(X[~np.isnan(X[:, feature]), feature])
        ranks = np.searchsorted(valid, found.quantiles.quantile([0.1, 0.5, 0.9])[:, feature]) / len(valid)
        np.testing.assert_allclose(ranks, [0.1, 0.5, 0.9], atol=0.005)


ELEMENTS = {
    "rows": lambda: list(X),
    "lists": lambda: [X[:5900], *[[None if np.isnan(value) else value for value in row] for row in X[5900:].tolist()]],
    "batches": lambda: np.array_split(X, 40),
    "mixed": lambda: [*X[:100], X[100:5000], *X[5000:5999], X[5999:]],
    "masked": lambda: [np.ma.masked_invalid(X[:5900]), *np.ma.masked_invalid(X[5900:])],
}


class Counted(FeatureStatistics if feature_statistics.CombineFn is not object else object):
    """Tells how many accumulators met."""

    met = []

    def merge_accumulators(self, accumulators):
        accumulators = list(accumulators)
        self.met.append(len(accumulators))
        return super().merge_accumulators(accumulators)


def run(beam, elements, transform, check):
    from apache_beam.testing.util import assert_that

    options = beam.options.pipeline_options.PipelineOptions(
        ["--direct_num_workers=4"], direct_running_mode="multi_threading"
    )
    with beam.Pipeline("DirectRunner", options) as pipeline:
        assert_that(pipeline | beam.Create(elements) | beam.Reshuffle() | transform, check)


@pytest.mark.parametrize("kind", ELEMENTS)
def test_several_bundles_give_what_one_process_gives(beam, kind):
    Counted.met = []

    def check(found):
        check_close(*found, Statistics(ALL).update(X))

    run(beam, ELEMENTS[kind](), beam.CombineGlobally(Counted(ALL)), check)
    assert max(Counted.met) > 1  # several bundles indeed


def test_per_key(beam):
    def check(found):
        assert {key: stats.moments.count.tolist() for key, stats in found} == {"even": [300] * 3, "odd": [300] * 3}
        for key, stats in found:
            half = X0[(0 if key == "even" else 1) :: 2]
            np.testing.assert_allclose(stats.moments.mean, half.mean(axis=0), rtol=1e-13)

    X0 = np.nan_to_num(X[:600])
    pairs = [("odd" if i % 2 else "even", row) for i, row in enumerate(X0)]
    run(beam, pairs, beam.CombinePerKey(FeatureStatistics()), check)


def test_one_number_is_a_row_of_one_feature(beam):
    def check(found):
        np.testing.assert_allclose(found[0].moments.mean, [2.5])

    run(beam, [1.0, 2.0, 3.0, 4.0], beam.CombineGlobally(FeatureStatistics()), check)


def test_an_empty_collection_gives_statistics_of_nothing(beam):
    def check(found):
        assert found[0].features is None

    run(beam, [], beam.CombineGlobally(FeatureStatistics()), check)


def test_a_bad_row_stops_the_pipeline(beam):
    with pytest.raises(Exception, match="must be finite.*inf at row 1 of the batch, feature 2"):
        run(beam, [np.array([[1.0, 2.0, 3.0], [4.0, 5.0, np.inf]])], beam.CombineGlobally(FeatureStatistics()), print)


@pytest.mark.parametrize("seed", range(5))
def test_any_cut_into_bundles(beam, seed):
    """Beam may add, merge, compact and send away in any order."""
    rng = np.random.default_rng(seed)
    combine = pickle.loads(pickle.dumps(FeatureStatistics(ALL)))
    elements = ELEMENTS["mixed"]()
    elements = [elements[i] for i in rng.permutation(len(elements))]
    accumulators = []
    for cut in np.split(np.arange(len(elements)), np.sort(rng.integers(0, len(elements), 6))):
        accumulator = combine.create_accumulator()
        for index in cut:
            accumulator = combine.add_input(accumulator, elements[index])
        accumulators.append(
            pickle.loads(pickle.dumps(combine.compact(accumulator) if rng.random() < 0.5 else accumulator))
        )
    halves = [combine.merge_accumulators(accumulators[:3]), combine.merge_accumulators(accumulators[3:])]
    check_close(combine.extract_output(combine.merge_accumulators(halves)), Statistics(ALL).update(X))


def test_an_accumulator_may_be_used_again():
    """Panes: the output is extracted, and the accumulator goes on; merging may read the same one twice."""
    combine = FeatureStatistics(ALL) if feature_statistics.CombineFn is not object else pytest.skip("needs Beam")
    accumulator = combine.create_accumulator()
    for row in X[:10]:
        accumulator = combine.add_input(accumulator, row)
    panes = [combine.extract_output(accumulator), combine.extract_output(accumulator)]
    accumulator = combine.add_input(accumulator, X[10])
    panes.append(combine.extract_output(accumulator))
    accumulator = combine.add_input(accumulator, X[11:20])
    rows = [int((each.moments.count + each.moments.missing)[0]) for each in panes]
    assert rows == [10, 10, 11]
    merged = combine.merge_accumulators([accumulator, accumulator])
    assert combine.extract_output(merged).moments.count[0] == 40
    assert combine.extract_output(accumulator).moments.count[0] == 20


def test_docstring_example(beam):
    """It is marked as skipped, because `tests/test_docstrings.py` runs without Beam, too."""
    source = FeatureStatistics.__doc__.replace("  # doctest: +SKIP", "")
    test = doctest.DocTestParser().get_doctest(source, {"FeatureStatistics": FeatureStatistics}, "example", None, 0)
    output = []
    runner = doctest.DocTestRunner()
    runner.run(test, out=output.append)
    assert (runner.tries, runner.failures) == (2, 0), "".join(output)


def test_without_beam_the_module_is_there_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ImportError, match=r"FeatureStatistics needs apache-beam: pip install 'tf-tricks\[beam\]'"):
        FeatureStatistics()
    spec = importlib.util.spec_from_file_location("without_beam", feature_statistics.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ImportError, match=r"pip install 'tf-tricks\[beam\]'"):
        module.FeatureStatistics(ALL)


def test_bad_kinds(beam):
    with pytest.raises(ValueError, match="`kinds` must be a sequence out of"):
        FeatureStatistics("moments")
    with pytest.raises(ValueError, match="`kinds` must be one of"):
        FeatureStatistics(["median"])
