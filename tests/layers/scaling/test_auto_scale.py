import keras
import numpy as np
import pytest
from sklearn import datasets

from tf_tricks.layers.scaling.auto_scale import AutoScale
from tf_tricks.layers.scaling.statistics import Quantiles, Statistics

ROWS = 5000
RNG = np.random.default_rng(0)
# What each feature is, and what it asks for.
FEATURES = {
    "constant": (np.full(ROWS, 3.0), "zero"),
    "rare binary": (RNG.random(ROWS) < 0.01, "as is"),
    "-1 or 1": (np.sign(RNG.normal(size=ROWS)), "as is"),
    "uniform in [0, 1]": (RNG.random(ROWS), "as is"),
    "tiny": (RNG.random(ROWS) * 1e-6, "standardize"),
    "0 or 255": ((RNG.random(ROWS) < 0.5) * 255, "standardize"),
    "pixels": (RNG.integers(0, 256, ROWS), "standardize"),
    "normal": (RNG.normal(50, 10, ROWS), "standardize"),
    "exponential": (RNG.exponential(size=ROWS), "standardize"),
    "up to 140000000": (RNG.random(ROWS) * 1.4e8, "standardize"),
    "far from zero": (1e8 + RNG.normal(size=ROWS), "standardize"),
    "many orders": (RNG.lognormal(0, 3, ROWS), "log"),
    "many orders, both signs": (RNG.lognormal(0, 3, ROWS) * np.sign(RNG.normal(size=ROWS)), "log"),
    "long tail": (RNG.lognormal(0, 1.2, ROWS), "log"),
    "negative long tail": (-RNG.lognormal(0, 1.2, ROWS), "log"),
    "mostly zero, long tail": (np.where(RNG.random(ROWS) < 0.9, 0, RNG.lognormal(0, 1.5, ROWS)), "log"),
    "cauchy": (RNG.standard_cauchy(ROWS), "tanh"),
    "one outlier": (np.r_[1e6, RNG.normal(50, 10, ROWS - 1)], "tanh"),
}
X = np.stack([values for values, _ in FEATURES.values()], axis=1).astype("float64")
METHODS = [method for _, method in FEATURES.values()]


def numpy_of(x):
    return keras.ops.convert_to_numpy(x)


def adapted(x=X):
    layer = AutoScale()
    layer.adapt(x, verbose=0)
    return layer


def test_the_choice_for_each_feature():
    layer = AutoScale()
    choices = layer.adapt(X, verbose=0)
    assert dict(zip(FEATURES, (each.method for each in choices), strict=True)) == {
        name: method for name, (_, method) in FEATURES.items()
    }
    assert [each.feature for each in choices] == [str(i) for i in range(len(FEATURES))]
    np.testing.assert_allclose([each.mean for each in choices], X.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose([each.stddev for each in choices], X.std(axis=0), rtol=1e-6, atol=1e-12)
    assert [(each.minimum, each.maximum) for each in choices] == list(zip(X.min(axis=0), X.max(axis=0), strict=True))
    assert all(each.reason for each in choices)


def test_the_output_of_each_choice():
    y = numpy_of(adapted()(X))
    for x, out, (name, (_, method)) in zip(X.T, y.T, FEATURES.items(), strict=True):
        if method == "zero":
            expected = 0 * x
        elif method == "as is":
            expected = x
        elif method == "standardize":
            expected = (x - x.mean()) / x.std()
        elif method == "tanh":
            median = np.median(x)
            bound = np.abs(out[np.argsort(np.abs(x - median))])  # nine tenths of it within +-0.9
            assert bound[: int(0.895 * ROWS)].max() <= 0.9 <= bound[int(0.905 * ROWS) :].min()
            expected = np.tanh(np.arctanh(0.9) * (x - median) / np.quantile(np.abs(x - median), 0.9))
            np.testing.assert_allclose(out, expected, atol=0.01, err_msg=name)  # the quantile is that of a sketch
            continue
        else:
            assert (np.diff(out[np.argsort(x)]) >= 0).all()
            assert abs(out.mean()) < 0.01 and abs(out.std() - 1) < 0.02
            slope, offset = np.polyfit(np.arcsinh(x / np.median(np.abs(x[x != 0]))), out, 1)
            expected = offset + slope * np.arcsinh(x / np.median(np.abs(x[x != 0])))
            np.testing.assert_allclose(out, expected, atol=0.02, err_msg=name)
            continue
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=3e-6, err_msg=name)
    assert np.abs(y).max() < 15 and np.isfinite(y).all()


def test_inverse():
    layer = adapted()
    x = np.delete(X, 0, axis=0)  # the outlier is where tanh is 1
    again = numpy_of(layer.inverse(layer(x)))
    for column, back, name, method in zip(x.T, again.T, FEATURES, METHODS, strict=True):
        some = np.abs(column - np.median(column)) < 3 * np.quantile(np.abs(column - np.median(column)), 0.9) + 1e-30
        some |= method != "tanh"
        np.testing.assert_allclose(back[some], column[some], rtol=1e-4, atol=1e-5 * np.std(column), err_msg=name)


def test_values_that_were_not_seen_stay_finite():
    for value in (1e30, -1e30, 0.0):
        y = numpy_of(adapted()(np.full_like(X[:2], value)))
        assert np.isfinite(y[:, [0, *range(11, 18)]]).all() and (y[:, 0] == 0).all()


def test_the_table_is_printed_unless_it_shall_not(capsys):
    layer = AutoScale()
    choices = layer.adapt(X)
    lines = capsys.readouterr().out.splitlines()
    assert lines == str(choices).splitlines() and len(lines) == 1 + len(FEATURES)
    assert lines[0].split() == ["feature", "method", "reason", "mean", "stddev", "minimum", "maximum", "missing"]
    assert lines[1].split() == ["0", "zero", "constant", "3", "0", "3", "3", "0"]
    assert "orders of magnitude" in lines[12] and "heavy tail: " in lines[17]
    layer.adapt(X, verbose=0)
    assert capsys.readouterr().out == ""
    assert layer.choices == choices


def test_missing_values_change_no_choice():
    x = X.copy()
    x[RNG.random(X.shape) < 0.2] = np.nan
    layer = AutoScale()
    choices = layer.adapt(x, verbose=0)
    changed = [i for i in range(17) if choices[i].method != METHODS[i]]  # the outlier may be missing
    assert changed == []
    np.testing.assert_array_equal([each.missing for each in choices], np.isnan(x).sum(axis=0))
    np.testing.assert_array_equal(np.isnan(numpy_of(layer(x))[:, 1:]), np.isnan(x)[:, 1:])


@pytest.mark.parametrize("rows", [10_000, 100_000, 1_000_000])
def test_the_choice_does_not_depend_on_the_number_of_rows(rows):
    rng = np.random.default_rng(1)
    draws = {
        "exponential": (rng.exponential(size=rows), "standardize"),
        "laplace": (rng.laplace(size=rows), "standardize"),
        "lognormal": (rng.lognormal(0, 1.2, rows), "log"),
        "student": (rng.standard_t(2, rows), "tanh"),
        "outlier": (np.r_[rng.normal(size=rows - 1), 1e8], "tanh"),
    }
    choices = AutoScale().adapt(np.stack([values for values, _ in draws.values()], axis=1), verbose=0)
    assert dict(zip(draws, (each.method for each in choices), strict=True)) == {
        name: method for name, (_, method) in draws.items()
    }


@pytest.mark.parametrize("share", [0.001, 0.0003])
def test_rare_values_come_out_bounded(share):
    """Beside many zeros even those of one size are dozens of standard deviations away."""
    rng = np.random.default_rng(0)
    x = np.stack([rng.normal(50, 1, 20_000), 1e6 * rng.lognormal(0, 1, 20_000)], axis=1)
    x *= rng.random(x.shape) < share
    layer = AutoScale()
    choices = layer.adapt(x, verbose=0)
    assert [each.method for each in choices] == ["tanh", "tanh"]
    assert all(each.reason.startswith("rare: up to ") for each in choices)
    y = numpy_of(layer(x))
    assert (y[x == 0] == 0).all() and 0.5 < y.max() <= 1


def test_a_feature_that_is_constant_but_for_its_last_bits():
    x = np.full((100, 1), 0.1)
    x[::2] = np.nextafter(0.1, 1)
    layer = AutoScale()
    assert layer.adapt(x, verbose=0)[0].method == "zero"
    assert numpy_of(layer(np.array([[0.2]])))[0, 0] == 0


@pytest.mark.parametrize(
    ("load", "others"),  # all other features are standardized
    [
        ("breast_cancer", {13: "log"}),  # the error of the area
        ("wine", {7: "as is"}),
        ("diabetes", {}),
        (
            "digits",
            {0: "zero", 32: "zero", 39: "zero", 24: "as is", 31: "as is", 56: "as is", 16: "tanh", 48: "tanh"},
        ),
    ],
)
def test_real_data(load, others):
    x = getattr(datasets, f"load_{load}")().data
    layer = AutoScale()
    methods = [each.method for each in layer.adapt(x, verbose=0)]
    assert methods == [others.get(i, "standardize") for i in range(x.shape[1])]
    assert np.abs(numpy_of(layer(x))).max() < 30


def test_the_quantiles_are_read_once(monkeypatch):
    reads, quantile = [], Quantiles.quantile
    monkeypatch.setattr(Quantiles, "quantile", lambda self, q: reads.append(self) or quantile(self, q))
    for data in (X[:, :2], {"a": X[:, :1], "b": X[:, 1:2]}):
        layer = AutoScale()
        choices = layer.adapt(data, verbose=0)
        assert layer.choices == choices
        assert len(reads) == (len(data) if isinstance(data, dict) else 1)
        reads.clear()


def test_dict_of_features(capsys):
    data = {"size": X[:, 11:12], "flags": X[:, 1:3]}
    layer = AutoScale()
    choices = layer.adapt(data)
    assert [(each.feature, each.method) for each in choices] == [
        ("flags[0]", "as is"), ("flags[1]", "as is"), ("size[0]", "log"),
    ]  # fmt: skip
    assert capsys.readouterr().out == f"{choices}\n"
    y = layer(data)
    np.testing.assert_allclose(numpy_of(y["flags"]), data["flags"])


def test_reset_false_goes_on_and_from_statistics_is_the_same():
    halves = AutoScale()
    halves.adapt(X[: ROWS // 2], verbose=0)
    choices = halves.adapt(X[ROWS // 2 :], reset=False, verbose=0)
    assert [each.method for each in choices] == METHODS
    layer = AutoScale.from_statistics(Statistics(AutoScale.kinds).update(X))
    assert layer.choices == adapted().choices
    np.testing.assert_array_equal(numpy_of(layer(X)), numpy_of(adapted()(X)))


@pytest.mark.parametrize("jit", [True, False])
def test_in_a_model_and_its_file(tmp_path, backend, jit):
    if backend == "torch" and jit:
        pytest.skip("Torch's compiler takes half a minute")
    x = X.astype("float32")
    layer = adapted(x)
    model = keras.Sequential([keras.Input((x.shape[1],)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=jit)
    model.fit(x[:64], np.zeros((64, 1)), verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))
    assert again.layers[0].choices is None  # a file holds the constants
    assert AutoScale.from_config(layer.get_config()).get_config() == layer.get_config()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    expected = numpy_of(adapted()(X))
    keras.config.set_dtype_policy(policy)
    y = adapted()(X)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    np.testing.assert_allclose(numpy_of(keras.ops.cast(y, "float32")), expected, rtol=1e-2, atol=1e-2)


def test_inside_tf_data():
    tf = pytest.importorskip("tensorflow")
    layer = adapted()
    batches = tf.data.Dataset.from_tensor_slices(X[:100]).batch(32).map(layer)
    y = np.concatenate([np.array(each) for each in batches])
    np.testing.assert_allclose(y, numpy_of(layer(X[:100])), rtol=1e-5, atol=1e-6)


def test_bad_arguments():
    with pytest.raises(TypeError, match="`axis` must be"):
        AutoScale(axis="last")
    with pytest.raises(ValueError, match="`verbose` must be one of"):
        AutoScale().adapt(X, verbose=7)
    with pytest.raises(ValueError, match="has no statistics yet"):
        AutoScale()(X)
