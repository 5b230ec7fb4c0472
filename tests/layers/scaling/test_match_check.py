import warnings

import keras
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from tf_tricks.layers.scaling.match_check import MatchCheck
from tf_tricks.layers.scaling.statistics import Statistics

X = load_breast_cancer().data.astype("float32")
TRAINING, TEST = X[::2], X[1::2]
SCALED = TEST.copy()
SCALED[:, [3, 7]] /= 1000
MESSAGE = r"2 of 30 features do not look like the training data(.|\n)*feature 3: mean(.|\n)*feature 7: mean"


def adapted(**arguments):
    layer = MatchCheck(**arguments)
    layer.adapt(TRAINING, verbose=0)
    return layer


def compiled(layer, **arguments):
    model = keras.Sequential([keras.Input((30,)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse", **arguments)
    return model


def evaluate(model, x, batch_size=64):
    model.evaluate(x, np.zeros((len(x), 1)), batch_size=batch_size, verbose=0)


WAYS = {
    "default": {},
    "xla": {"jit_compile": True},
    "no xla": {"jit_compile": False},
    "eager": {"run_eagerly": True},
    "several steps": {"steps_per_execution": 3},
}


@pytest.fixture(params=WAYS)
def way(request, backend):
    if backend == "torch" and request.param in ("xla", "several steps"):
        pytest.skip("not in Torch's eager step")
    return WAYS[request.param]


# --- in a model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_one_warning_names_the_features_that_moved(way, method):
    layer = adapted()
    model = compiled(layer, **way)

    def run(x):
        evaluate(model, x) if method == "evaluate" else model.predict(x, batch_size=64, verbose=0)
        if method == "predict" or not layer.check():  # `check` finds what a compiled `predict` cannot say
            layer.check()

    run(TEST)  # warnings are errors
    assert layer.check() == ()
    with pytest.warns(UserWarning, match=MESSAGE) as seen:
        run(SCALED)
        run(SCALED)
    (message,) = [str(each.message) for each in seen if "MatchCheck" in str(each.message)]  # one, and no second
    found = layer.check()
    assert [moved.feature for moved in found] == [3, 7]
    for moved in found:
        first = SCALED[:64, moved.feature]
        np.testing.assert_allclose(moved[1:4], [first.mean(), first.min(), first.max()], rtol=1e-3)
        column = TRAINING[:, moved.feature].astype("float64")
        np.testing.assert_allclose(moved[4:], [column.mean(), column.min(), column.max()], rtol=1e-5, atol=1e-9)
        assert str(moved) in message
    run(SCALED)  # said once


def test_evaluate_says_it_by_itself():
    model = compiled(adapted())
    with pytest.warns(UserWarning, match=MESSAGE):
        evaluate(model, SCALED)


def test_validation_in_fit_says_it():
    model = compiled(adapted())
    y = np.zeros((len(TRAINING), 1))
    with pytest.warns(UserWarning, match=MESSAGE):
        model.fit(TRAINING, y, validation_data=(SCALED, y[: len(SCALED)]), epochs=2, verbose=0)


def test_training_is_not_looked_at():
    model = compiled(adapted())
    model.fit(SCALED, np.zeros((len(SCALED), 1)), verbose=0)
    assert model.layers[0].check() == ()


def test_nothing_shows_in_logs_metrics_and_results():
    model, bare = compiled(adapted()), keras.Sequential([keras.Input((30,)), keras.layers.Dense(1)])
    bare.compile("sgd", "mse")
    bare.set_weights(
        [each.numpy() if hasattr(each, "numpy") else np.array(each) for each in model.layers[-1].get_weights()]
    )
    y = np.ones((len(TEST), 1))
    assert model.evaluate(TEST, y, verbose=0) == pytest.approx(bare.evaluate(TEST, y, verbose=0), rel=1e-6)
    assert model.metrics_names == bare.metrics_names
    np.testing.assert_array_equal(model.predict(TEST, verbose=0), bare.predict(TEST, verbose=0))
    assert model.fit(TEST, y, verbose=0).history.keys() == bare.fit(TEST, y, verbose=0).history.keys()


def test_mirrored_strategy(mirrored_strategy):
    with mirrored_strategy.scope():
        model = compiled(adapted())
    evaluate(model, TEST[:256], batch_size=128)
    with pytest.warns(UserWarning, match=MESSAGE):
        evaluate(model, SCALED[:256], batch_size=128)


def test_data_parallel(data_parallel):
    with data_parallel.scope():
        model = compiled(adapted())
        evaluate(model, TEST[:256], batch_size=128)
        with pytest.warns(UserWarning, match=MESSAGE):
            evaluate(model, SCALED[:256], batch_size=128)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    layer = MatchCheck()
    layer.adapt(TRAINING * 1e6, verbose=0)
    model = compiled(layer)
    evaluate(model, TEST * 1e6)
    with pytest.warns(UserWarning, match="30 of 30 features"):
        evaluate(model, TEST)


# --- what is noticed, and what is not -----------------------------------------------------------------------------


def moved_features(training, batch, **arguments):
    layer = MatchCheck(**arguments)
    layer.adapt(training, verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = layer(batch)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(y), batch)
    return [moved.feature for moved in layer.check()]


@pytest.mark.parametrize(
    "change",
    [lambda x: x / 255, lambda x: x * 255, lambda x: x + 4, lambda x: -100 * x, lambda x: x * 0 + 0.3, lambda x: x - 9],
)
def test_another_scale_or_offset_of_standardized_inputs(change):
    rng = np.random.default_rng(0)
    training, batch = rng.normal(size=(5000, 3)).astype("float32"), rng.normal(size=(64, 3)).astype("float32")
    assert moved_features(training, batch) == []
    batch[:, 1] = change(batch[:, 1])
    assert moved_features(training, batch) == [1]


def test_images_of_0_to_255_in_place_of_0_to_1():
    images = load_digits().images[..., None] / 16
    assert moved_features(images[:1000], images[1000:1064]) == []
    assert moved_features(images[:1000], 255 * images[1000:1064]) == [0]
    assert moved_features(images[:1000] * 255, images[1000:1064]) == [0]
    pixels = images.reshape(len(images), 64)
    assert len(moved_features(255 * pixels[:1000], pixels[1000:1064])) > 40


@pytest.mark.parametrize("batch_size", [32, 64, 256])
def test_no_false_alarm_on_ordinary_batches(batch_size):
    rng = np.random.default_rng(0)
    n = 64 * 256
    streams = [
        rng.normal(size=n), rng.lognormal(0, 1, n), rng.random(n) < 0.01, rng.integers(0, 10, n), rng.poisson(0.1, n),
        rng.standard_t(3, n), np.where(rng.random(n) < 0.9, 0, rng.normal(5, 1, n)), np.full(n, 7.1),
    ]  # fmt: skip
    x = np.stack(streams, axis=1).astype("float32")
    layer = MatchCheck()
    layer.adapt(x[: n // 2], verbose=0)
    for start in range(n // 2, n, batch_size)[:40]:
        layer(x[start : start + batch_size])  # warnings are errors
    assert layer.check() == ()


def test_no_false_alarm_on_batches_of_one_class():
    x, y = load_digits(return_X_y=True)
    layer = MatchCheck()
    layer.adapt(x[::2], verbose=0)
    for digit in range(10):
        layer(x[1::2][y[1::2] == digit][:64])
    assert layer.check() == ()


def test_few_values_are_not_judged():
    layer = adapted()
    layer(SCALED[:31])
    assert layer.check() == ()
    images = MatchCheck()  # here one row has 64 values of its one feature
    images.adapt(load_digits().images[..., None], verbose=0)
    with pytest.warns(UserWarning, match="1 of 1 features"):
        images(load_digits().images[:1, ..., None] * 255)


def test_nan_and_infinite_values():
    rng = np.random.default_rng(0)
    training, batch = rng.normal(size=(1000, 3)).astype("float32"), rng.normal(size=(64, 3)).astype("float32")
    training[::3, 0] = np.nan
    batch[:40, 0], batch[:20, 1] = np.nan, np.nan  # 24 and 44 values are left
    batch[3, 2] = np.inf
    assert moved_features(training, batch) == [2]


# --- kinds of input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize("axis", [-1, 1, None, (1, 2)])
def test_inputs_come_out_unchanged(dtype, axis):
    x = np.random.default_rng(0).integers(0, 100, (40, 2, 3)).astype(dtype)
    layer = MatchCheck(axis=axis)
    layer.adapt(x, verbose=0)
    y = layer(x)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(y), x)
    if keras.backend.backend() != "jax":
        assert keras.backend.standardize_dtype(y.dtype) == dtype
    symbolic = layer(keras.Input((2, 3), dtype=dtype))
    assert symbolic.shape == (None, 2, 3) and symbolic.dtype == dtype


def test_dict_of_features():
    layer = MatchCheck()
    layer.adapt({"a": TRAINING[:, :1], "b": TRAINING[:, 1:3]}, verbose=0)
    layer({"a": TEST[:, :1], "b": TEST[:, 1:3]})
    with pytest.warns(UserWarning, match="MatchCheck 'b': 2 of 2 features"):
        layer({"a": TEST[:, :1], "b": TEST[:, 1:3] / 1000})
    assert {name: len(found) for name, found in layer.check().items()} == {"a": 0, "b": 2}
    inputs = {"a": keras.Input((1,), name="a"), "b": keras.Input((2,), name="b")}
    model = keras.Model(inputs, keras.layers.Concatenate()(list(layer(inputs).values())))
    model.predict({"a": TEST[:, :1], "b": TEST[:, 1:3]}, verbose=0)


def test_inside_tf_data():
    tf = pytest.importorskip("tensorflow")
    layer = adapted()
    batches = tf.data.Dataset.from_tensor_slices(TEST).batch(32).map(layer)
    np.testing.assert_array_equal(np.concatenate([np.array(each) for each in batches]), TEST)


# --- state --------------------------------------------------------------------------------------------------------


def test_many_features_are_cut_short():
    layer = adapted()
    with pytest.warns(UserWarning, match="30 of 30 features(.|\n)*feature 9(.|\n)*and 20 more$"):
        layer(TEST * 1e4)


def test_a_second_adapt_looks_again():
    layer = adapted()
    with pytest.warns(UserWarning):
        layer(SCALED)
    layer.adapt(SCALED, verbose=0)
    layer(SCALED)
    assert layer.check() == ()
    with pytest.warns(UserWarning):
        layer(TEST)


def test_from_statistics_and_a_layer_that_knows_nothing():
    stats = Statistics(("moments", "quantiles")).update(TRAINING)
    with pytest.warns(UserWarning, match=MESSAGE):
        MatchCheck.from_statistics(stats)(SCALED)
    with pytest.raises(ValueError, match="MatchCheck .* has no statistics yet: call `adapt"):
        MatchCheck()(TEST)


def test_model_file_round_trip(tmp_path):
    model = compiled(adapted())
    with pytest.warns(UserWarning):
        evaluate(model, SCALED)
        model.layers[0].check()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    evaluate(again, TEST)  # what was found is no property of the model
    assert again.layers[0].check() == ()
    with pytest.warns(UserWarning, match=MESSAGE):
        evaluate(again, SCALED)


def test_bad_axis():
    with pytest.raises(TypeError, match="`axis` must be"):
        MatchCheck(axis="last")


def test_a_step_of_xla_cannot_call_the_host(backend):
    """Why the layer keeps its finding in a weight; when this fails, TensorFlow can do it as JAX does."""
    if backend != "tensorflow":
        pytest.skip("about TensorFlow")
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def step(x):
        return tf.py_function(lambda value: value, [x], tf.float32)

    with pytest.raises(Exception, match="EagerPyFunc"):
        step(tf.ones(3))
