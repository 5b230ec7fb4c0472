import numpy as np
import pytest

from tf_tricks.layers.scaling.quantile_sketch import STAGE, Coin, Quantiles, compact

pytestmark = pytest.mark.any_backend

ROWS = 10**6
GRID = np.linspace(0, 1, 1001)
ERROR = 0.005


def interleaved_ends(rng):
    up = np.arange(ROWS // 2, dtype=np.float64)
    return np.stack([up, ROWS - 1 - up], axis=1).ravel()


def zeros_and_a_tail(rng):
    return np.where(rng.random(ROWS) < 0.9, 0.0, rng.lognormal(0, 4, ROWS))


STREAMS = {
    "normal": lambda rng: rng.normal(size=ROWS),
    "float32": lambda rng: rng.normal(size=ROWS).astype("float32"),
    "lognormal": lambda rng: rng.lognormal(0, 5, ROWS),
    "cauchy": lambda rng: rng.standard_cauchy(ROWS),
    "pareto": lambda rng: rng.pareto(0.3, ROWS),
    "poisson": lambda rng: rng.poisson(3, ROWS),
    "binary": lambda rng: rng.random(ROWS) < 0.1,
    "zeros and a tail": zeros_and_a_tail,
    "constant": lambda rng: np.full(ROWS, 7.25),
    "sorted": lambda rng: np.sort(rng.normal(size=ROWS)),
    "reversed": lambda rng: np.sort(rng.normal(size=ROWS))[::-1],
    "from both ends": interleaved_ends,
    "sawtooth": lambda rng: np.arange(ROWS) % 4096,  # as long as what is sorted together
}


def rank_error(sketch, x, q=GRID):
    """How far each q is from the ranks that the value of its quantile covers in `x`; NumPy sorts."""
    values, ordered = sketch.quantile(q)[:, 0], np.sort(x.astype(np.float64))
    lowest = np.searchsorted(ordered, values, "left") / len(x)
    highest = np.searchsorted(ordered, values, "right") / len(x)
    return np.maximum(0, np.maximum(lowest - q, q - highest)).max()


@pytest.mark.parametrize("name", STREAMS)
def test_rank_error_of_a_million_values(name):
    x = STREAMS[name](np.random.default_rng(0))
    sketch, merged = Quantiles(), Quantiles()
    for batch in np.array_split(x, 30):
        sketch.update(batch)
    for part in np.array_split(x, 100):
        merged.merge(Quantiles().update(part))
    for each in (sketch, merged):
        assert each.count.tolist() == [ROWS]
        assert rank_error(each, x) <= ERROR
        assert [each.minimum[0], each.maximum[0]] == each.quantile([0, 1])[:, 0].tolist() == [x.min(), x.max()]
        assert sum(len(level) for level in each._levels[0]) < 3000
        weights = sum(len(level) * 2**i for i, level in enumerate(each._levels[0]))
        assert weights + sum(map(len, each._waiting)) == ROWS


def test_merging_in_any_shape():
    x = np.random.default_rng(0).normal(size=300_000)
    sketches = [Quantiles().update(part) for part in np.array_split(x, 64)]
    while len(sketches) > 1:  # a tree, as a cluster merges
        sketches = [one.merge(other) for one, other in zip(sketches[::2], sketches[1::2], strict=True)]
    assert rank_error(sketches[0], x) <= ERROR
    uneven = Quantiles()
    for part in np.split(x, [1, 3, 10, 5000, 5001, 250_000]):
        uneven = Quantiles().update(part).merge(uneven)
    assert rank_error(uneven, x) <= ERROR


@pytest.mark.parametrize("error", [0.05, 0.001])
def test_another_error(error):
    x = np.random.default_rng(0).normal(size=200_000)
    sketch = Quantiles(error).update(x)
    found = rank_error(sketch, x)
    assert found <= error
    if error == 0.05:
        assert found > 0.0005 and sum(map(len, sketch._levels[0])) < 400  # it is smaller, not only less asked


@pytest.mark.parametrize("shape", [(1,), (2,), (569, 30), (STAGE - 1, 3)])
def test_few_rows_are_exact(shape):
    x = np.random.default_rng(0).lognormal(size=shape)
    q = [0, 0.001, 0.1, 0.25, 0.5, 0.9, 1]
    expected = np.quantile(x.reshape(shape[0], -1), q, axis=0)
    half = shape[0] // 2
    for sketch in (Quantiles().update(x), Quantiles().update(x[half:]).merge(Quantiles().update(x[:half]))):
        np.testing.assert_allclose(sketch.quantile(q), expected, rtol=1e-14)
    np.testing.assert_array_equal(Quantiles().update(x).quantile(0.5), expected[4:5])


@pytest.mark.parametrize("rows", [2, 4, 178, 442, 569, 1797, 4000])
def test_as_many_quantiles_as_rows_are_the_rows(rows):
    x = np.random.default_rng(rows).integers(0, 20, rows).astype("float64")
    np.testing.assert_array_equal(Quantiles().update(x).quantile(np.linspace(0, 1, rows))[:, 0], np.sort(x))


def test_each_feature_by_itself():
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(size=50_000), rng.lognormal(0, 3, 50_000), np.full(50_000, 2.0)], axis=1)
    x[rng.random(50_000) < 0.7, 1] = np.nan
    x[:, 2] = np.nan
    x[17, 2] = 2.0
    together = Quantiles()
    for batch in np.array_split(x, 77):
        together.update(batch)
    for feature in range(3):
        valid = x[~np.isnan(x[:, feature]), feature]
        alone = Quantiles()
        assert together.count[feature] == len(valid) and together.missing[feature] == len(x) - len(valid)
        alone.features, alone._levels, alone.count = (
            1,
            [together._levels[feature]],
            together.count[feature : feature + 1],
        )
        alone.minimum, alone.maximum = together.minimum[feature, None], together.maximum[feature, None]
        alone._waiting = [table[:, feature, None] for table in together._waiting]
        assert rank_error(alone, valid) <= ERROR


def test_many_features_wait_in_less_memory():
    sketch = Quantiles()
    for _ in range(3):
        sketch.update(np.random.default_rng(0).normal(size=(500, 5000)).astype("float32"))
    assert sum(map(len, sketch._waiting)) < 839  # 2**22 values // 5000
    assert rank_error_of_column(sketch, 4999) <= ERROR


def rank_error_of_column(sketch, feature):
    x = np.random.default_rng(0).normal(size=(500, 5000)).astype("float32")[:, feature]
    values = sketch.quantile(GRID)[:, feature]
    return np.abs(np.searchsorted(np.sort(np.tile(x, 3)), values) / 1500 - GRID).max() - 3 / 1500


def test_the_same_stream_gives_the_same_bits():
    x = np.random.default_rng(0).normal(size=(100_000, 2))
    first, second = (Quantiles().update(x[:70_000]).merge(Quantiles().update(x[70_000:])) for _ in range(2))
    assert first.to_dict() == second.to_dict()
    batches = Quantiles()
    for start in range(0, len(x), 333):  # nor does it matter how the stream is cut
        batches.update(x[start : start + 333])
    np.testing.assert_array_equal(batches.quantile(GRID), Quantiles().update(x).quantile(GRID))


def test_compaction_keeps_ranks_on_average():
    values, ranks = np.arange(64.0), []
    coin = Coin()
    for _ in range(2000):
        levels = [values]
        compact(levels, 8, coin)
        ranks.append(sum(2**i * (level < 31).sum() for i, level in enumerate(levels)))
        assert sum(2**i * len(level) for i, level in enumerate(levels)) == 64
    assert np.mean(ranks) == pytest.approx(31, abs=0.3)
    assert np.std(ranks) > 0.5  # it is random, and not right by chance


def test_the_coin_is_fair():
    coin = Coin()
    flips = np.array([coin.flip() for _ in range(20_000)])
    assert abs(flips.mean() - 0.5) < 0.015
    assert abs((flips[1:] == flips[:-1]).mean() - 0.5) < 0.015
    # The first outputs of SplitMix64 with the seed 1234567, from the reference implementation by Vigna.
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    coin = Coin(1234567)
    assert [coin.flip() for _ in outputs] == [output >> 63 for output in outputs]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Quantiles(0), ValueError, r"`error` must lie in \(0, 0.5\). Received: error=0"),
        (lambda: Quantiles("small"), TypeError, "`error` must be a number in"),
        (lambda: Quantiles().update([1.0]).quantile(1.5), ValueError, r"`q` must lie in \[0, 1\]. Received: q=\[1.5\]"),
        (lambda: Quantiles().update([1.0]).quantile([0.5, np.nan]), ValueError, "`q` must lie in"),
        (lambda: Quantiles().update([1.0]).quantile("a"), TypeError, "`q` must be a number or a sequence of numbers"),
        (lambda: Quantiles().merge(Quantiles(0.01)), ValueError, "the same error, 0.005. Received: error=0.01"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
