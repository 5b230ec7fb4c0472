import json
import pickle

import numpy as np
import pytest

from tf_tricks.layers.scaling.statistics import Covariance, Moments, Quantiles, Statistics

pytestmark = pytest.mark.any_backend

CLASSES = [Moments, Covariance, Quantiles]
ALL = ("moments", "covariance", "quantiles")


def batches(x, size):
    return [x[start : start + size] for start in range(0, len(x), size)]


def stream(cls, x, size):
    stats = cls()
    for batch in batches(x, size):
        assert stats.update(batch) is stats
    return stats


def check_moments(stats, x, rtol=1e-12):
    """Against NumPy's two passes in extended precision."""
    exact = np.asarray(x, np.longdouble).reshape(len(x), -1)
    np.testing.assert_array_equal(stats.count, (~np.isnan(exact)).sum(axis=0))
    np.testing.assert_array_equal(stats.missing, np.isnan(exact).sum(axis=0))
    np.testing.assert_allclose(stats.mean, np.nanmean(exact, axis=0).astype(float), rtol=rtol, atol=1e-13)
    np.testing.assert_allclose(stats.variance, np.nanvar(exact, axis=0).astype(float), rtol=rtol, atol=1e-25)
    np.testing.assert_array_equal(stats.stddev, np.sqrt(stats.variance))
    np.testing.assert_array_equal(stats.minimum, np.nanmin(exact, axis=0))
    np.testing.assert_array_equal(stats.maximum, np.nanmax(exact, axis=0))
    for name in ("count", "missing", "mean", "variance", "stddev", "minimum", "maximum"):
        assert getattr(stats, name).dtype == np.float64 and getattr(stats, name).shape == exact.shape[1:]


# --- moments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "features"), [(1, 1), (7, 3), (1023, 1), (5000, 7), (3000, 100), (40, 2500)])
@pytest.mark.parametrize("size", [1, 64, 10**9])
def test_moments_are_those_of_numpy(rows, features, size):
    if size == 1 and rows > 100:
        rows = 100
    x = np.random.default_rng(0).normal(-3, 5, (rows, features))
    check_moments(stream(Moments, x, size), x)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int8", "int32", "int64", "uint64", "float16", "float32", "float64", "longdouble"]
)
def test_any_real_dtype(dtype):
    x = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (400, 5)).astype(dtype)
    for each in (x, x[::2], np.asfortranarray(x), x.tolist()):
        check_moments(stream(Moments, each, 150), np.asarray(each, np.float64))


def test_bfloat16():
    values = np.array([[1.5], [2.0], [4.0]])
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    check_moments(Moments().update(values.astype(bfloat16)), values)


def test_float16_does_not_overflow():
    x = np.full((4096, 3), 60000.0, np.float16)
    x[::2] *= -1
    check_moments(Moments().update(x), x.astype(np.float64))


@pytest.mark.parametrize("size", [10**6, 4096])
@pytest.mark.parametrize("order", ["as drawn", "sorted", "outlier first"])
def test_a_mean_of_1e8_and_a_stddev_of_1(size, order):
    x = 1e8 + np.random.default_rng(0).normal(size=10**6)
    if order == "sorted":
        x.sort()
    elif order == "outlier first":
        x[0] = 2e8
    stats, exact = stream(Moments, x, size), np.var((x - 1e8).astype(np.longdouble))
    # The mean of a batch, near 1e8, has a resolution of 1.5e-8; in a sorted stream that is an error of one sign.
    np.testing.assert_allclose(stats.variance, [float(exact)], rtol=1e-7 if order == "sorted" else 1e-9)
    np.testing.assert_allclose(stats.mean, [float(1e8 + np.mean(x - 1e8))], rtol=1e-15)


def test_features_of_many_scales():
    scale = 10.0 ** np.arange(-30, 30, 5)
    x = np.random.default_rng(0).normal(size=(5000, len(scale))) * scale + 100 * scale
    check_moments(stream(Moments, x, 700), x)


def test_a_constant_feature_has_a_variance_of_exactly_0():
    for constant in (0.1, 1e8 + 0.3, -7e-30):
        stats = stream(Moments, np.full((3001, 2), constant), 1000)
        assert stats.variance.tolist() == [0.0, 0.0] and stats.mean.tolist() == [constant] * 2


@pytest.mark.parametrize("parts", [2, 7, 100])
def test_parts_merge_into_the_whole(parts):
    x = 1e6 + np.random.default_rng(0).gamma(0.5, size=(20000, 4))
    x[np.random.default_rng(1).random(x.shape) < 0.1] = np.nan
    whole = Moments()
    for part in np.array_split(x, parts):
        assert whole.merge(Moments().update(part)) is whole
    check_moments(whole, x, rtol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constant_but_for_rounding(dtype):
    one = np.dtype(dtype).type(0.1)
    x = np.array([one, np.nextafter(one, 2 * one), np.nextafter(one, 0 * one)])
    assert Moments().update(x).constant.all() and x.var() > 0
    assert not Moments().update(x.astype("float32") + np.float32(1e-5) * np.arange(3)).constant.any()
    assert Moments().update(x[:1]).merge(Moments().update(x[1:])).constant.all()
    big = 10**15 + np.arange(3)
    assert not Moments().update(big).constant.any()  # integers are not rounded
    far = 1e8 + np.random.default_rng(0).normal(size=10)
    assert not Moments().update(far).constant.any()


@pytest.mark.parametrize("cls", [Moments, Statistics])
def test_constant_but_for_the_last_bit_of_half_precision(cls):
    one = np.float16(0.1)
    two = np.array([one, np.nextafter(one, np.float16(1))])
    coarse = (np.array([0.125, 0.126]).astype("float32") * 256).astype(pytest.importorskip("ml_dtypes").bfloat16)
    assert coarse[0] != coarse[1]
    # Few digits, and all of them mean something.
    years, kelvins = np.arange(2015, 2023).astype("float16"), np.array([290, 292, 294]).astype(coarse.dtype)
    for batch, expected in ((two, True), (coarse, True), (years, False), (kelvins, False)):
        found = cls().update(batch)
        assert getattr(found, "moments", found).constant.tolist() == [expected]


# --- missing values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.9])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_missing_values_are_counted_and_left_out(share, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(5, 2, (3000, 3)).astype(dtype)
    x[rng.random(x.shape) < share] = np.nan
    x[:50, 1] = np.nan  # a batch without one value of a feature
    check_moments(stream(Moments, x, 50), x.astype(np.float64))
    covariance = stream(Covariance, x, 50)
    complete = x[~np.isnan(x).any(axis=1)].astype(np.float64)
    assert (covariance.count, covariance.missing) == (len(complete), len(x) - len(complete))
    np.testing.assert_allclose(covariance.covariance, np.cov(complete.T, bias=True), rtol=1e-10, atol=1e-12)
    quantiles = stream(Quantiles, x, 50)
    np.testing.assert_array_equal(quantiles.missing, np.isnan(x).sum(axis=0))
    q = [0, 0.1, 0.5, 1]
    np.testing.assert_allclose(quantiles.quantile(q), np.nanquantile(x.astype(np.float64), q, axis=0), rtol=1e-12)


def test_none_and_masked_values_are_missing():
    expected = [[1.0, np.nan], [3.0, 5.0]]
    objects = np.array([[1, None], [3.0, 5]], dtype=object)
    masked = np.ma.array([[1, 2], [3, 5]], mask=[[0, 1], [0, 0]])
    for batch in (objects, objects.tolist(), masked, masked.astype("float32")):
        check_moments(Moments().update(batch), expected)
    check_moments(Moments().update(np.ma.array([[1, 2], [3, 5]])), [[1, 2], [3, 5]])


def test_nothing_was_there():
    stats = Statistics(ALL).update(np.full((3, 2), np.nan)).update(np.empty((0, 2)))
    assert stats.moments.count.tolist() == [0, 0] and stats.moments.missing.tolist() == [3, 3]
    for values in (stats.moments.mean, stats.moments.variance, stats.moments.minimum, stats.quantiles.quantile(0.5)):
        assert np.isnan(values).all()
    assert (stats.covariance.count, stats.covariance.missing, stats.covariance.covariance) == (0, 3, None)
    again = Statistics.from_dict(json.loads(json.dumps(stats.to_dict())))
    x = np.array([[1.0, 5.0], [3.0, 4.0]])
    for each in (stats, again, Statistics(ALL).merge(stats)):
        np.testing.assert_array_equal(each.update(x).moments.mean, [2.0, 4.5])
        np.testing.assert_array_equal(each.quantiles.quantile(0.5), [[2.0, 4.5]])
        np.testing.assert_array_equal(each.covariance.covariance, np.cov(x.T, bias=True))
    with pytest.raises(ValueError, match="has seen no batch"):
        Quantiles().quantile(0.5)


# --- covariance ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("features", "size"), [(1, 100), (5, 1), (5, 333), (300, 10**9)])
def test_covariance_is_that_of_numpy(features, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, features)) @ rng.normal(size=(features, features)) + 1e6
    stats = Covariance()
    for part in batches(x, 250):
        stats.merge(stream(Covariance, part, size))
    expected = np.cov((x - 1e6).T, bias=True).reshape(features, features)
    np.testing.assert_allclose(stats.covariance, expected, rtol=1e-7, atol=1e-9 * np.abs(expected).max())
    np.testing.assert_allclose(stats.mean, x.mean(axis=0), rtol=1e-14)
    assert stats.count == 500


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        ([[1.0, 2.0], [3.0, np.inf]], ValueError, "must be finite.*Received: inf at row 1 of the batch, feature 1"),
        ([[-np.inf, np.nan]], ValueError, "Received: -inf at row 0 of the batch, feature 0"),
        (np.array([[np.inf, 1], [0, 1]], "float16"), ValueError, "inf at row 0 of the batch, feature 0"),
        (np.array([[1, 1], [0, np.inf]], "float32"), ValueError, "inf at row 1 of the batch, feature 1"),
        ([[1e200, 1.0]], ValueError, r"at most 1e\+140 in size. Received: 1e\+200 at row 0"),
        ([[1.0, 2.0, 3.0]], ValueError, r"as many features as those before it, 2. Received: shape=\(1, 3\)"),
        (np.zeros((2, 2, 2)), ValueError, r"of shape \(n, features\) or \(n,\). Received: shape=\(2, 2, 2\)"),
        (3.0, ValueError, r"of shape \(n, features\)"),
        (np.zeros((2, 0)), ValueError, r"of shape \(n, features\)"),
        ([["1", "2"]], TypeError, "real numbers.*dtype=<U1"),
        (np.array([[1, "2"]], dtype=object), TypeError, "real numbers.*dtype=object"),
        ([[1j, 2]], TypeError, "real numbers.*dtype=complex128"),
        (np.array([["2020-01-01", "2020-01-02"]], "datetime64[D]"), TypeError, "real numbers"),
    ],
)
@pytest.mark.parametrize("seen", [3, 5000])
def test_a_bad_batch_is_refused_and_nothing_changes(batch, error, message, seen):
    rng = np.random.default_rng(0)
    objects = [cls().update(rng.normal(size=(seen, 2))) for cls in CLASSES]
    objects += [Statistics(kinds).update(rng.normal(size=(seen, 2))) for kinds in (ALL, ALL[::-1], ALL[1:])]
    for stats in objects:
        before = json.dumps(stats.to_dict())
        if "1e" in message and isinstance(stats, Quantiles):
            continue  # a quantile needs no square
        with pytest.raises(error, match=message):
            stats.update(batch)
        assert json.dumps(stats.to_dict()) == before


def test_an_infinite_value_deep_inside_a_large_batch():
    x = np.zeros((300_000, 3), "float32")
    x[:, 1] = np.arange(300_000)
    x[7, 0] = np.nan
    x[200_001, 2] = -np.inf
    for cls in CLASSES:
        with pytest.raises(ValueError, match="-inf at row 200001 of the batch, feature 2"):
            cls().update(x)


@pytest.mark.parametrize("cls", CLASSES)
def test_merge_refuses_what_does_not_fit(cls):
    stats = cls().update([[1.0, 2.0]])
    before = stats.to_dict()
    with pytest.raises(ValueError, match="over 2 features. Received: 3 features"):
        stats.merge(cls().update([[1.0, 2.0, 3.0]]))
    with pytest.raises(TypeError, match=f"of class {cls.__name__}. Received: Statistics"):
        stats.merge(Statistics())
    assert stats.to_dict() == before


def test_the_bundle_refuses_other_kinds():
    with pytest.raises(ValueError, match="must have the kinds"):
        Statistics().merge(Statistics(ALL))
    for kinds in ("moments", (), None, 3):
        with pytest.raises(ValueError, match="`kinds` must be a sequence out of moments, covariance, quantiles"):
            Statistics(kinds)
    with pytest.raises(ValueError, match="`kinds` must be one of 'moments', 'covariance', 'quantiles'. Received"):
        Statistics(("moments", "median"))


def test_the_bundle_refuses_what_it_has_not_saved():
    with pytest.raises(TypeError, match=r"what Statistics.to_dict\(\) returned. Received: saved=3"):
        Statistics.from_dict(3)


@pytest.mark.parametrize("cls", CLASSES)
def test_from_dict_refuses_what_is_not_its_own(cls):
    with pytest.raises(ValueError, match=f"what {cls.__name__}.to_dict"):
        cls.from_dict({"mean": [1.0]})


# --- copies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [*CLASSES, lambda: Statistics(ALL)], ids=["moments", "covariance", "quantiles", "all"])
@pytest.mark.parametrize("rows", [0, 1, 10_000])
def test_saved_and_pickled_objects_go_on_as_if_nothing_had_happened(cls, rows):
    rng = np.random.default_rng(0)
    x, more = rng.normal(size=(rows, 3)), rng.normal(size=(9_000, 3))
    stats = cls().update(x) if rows else cls()
    saved = json.dumps(stats.to_dict(), allow_nan=False)
    copies = [type(stats).from_dict(json.loads(saved)), pickle.loads(pickle.dumps(stats))]
    stats.update(more)
    for each in copies:
        assert json.dumps(each.to_dict()) == saved
        assert each.update(more).to_dict() == stats.to_dict()


@pytest.mark.parametrize("cls", [*CLASSES, lambda: Statistics(ALL)], ids=["moments", "covariance", "quantiles", "all"])
def test_a_merged_object_shares_nothing(cls):
    rng = np.random.default_rng(0)
    for rows in (10, 9000):
        one, other = cls(), cls().update(rng.normal(size=(rows, 2)))
        before = json.dumps(other.to_dict())
        one.merge(other).update(rng.normal(size=(9000, 2))).merge(other)
        assert json.dumps(other.to_dict()) == before
        count = other.count if not isinstance(other, Statistics) else other.moments.count
        other.merge(other)  # with itself
        doubled = other.count if not isinstance(other, Statistics) else other.moments.count
        np.testing.assert_array_equal(doubled, 2 * np.asarray(count))
    batch = np.ones((5, 2))
    stats = cls().update(batch)
    before = json.dumps(stats.to_dict())
    batch[:] = 7.0  # a pipeline may use its buffer again
    assert json.dumps(stats.to_dict()) == before


def test_the_bundle_is_its_members():
    x = np.random.default_rng(0).normal(size=(6000, 3))
    bundle = Statistics(ALL[::-1])
    assert bundle.kinds == ALL and bundle.features is None
    bundle.update(x)
    assert bundle.features == 3
    assert bundle.to_dict() == {
        "moments": Moments().update(x).to_dict(),
        "covariance": Covariance().update(x).to_dict(),
        "quantiles": Quantiles().update(x).to_dict(),
    }
    alone = Statistics()
    assert alone.kinds == ("moments",) and alone.covariance is None and alone.quantiles is None
