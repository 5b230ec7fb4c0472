import contextlib
import warnings

import keras
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits

from tf_tricks._backend import torch
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
        if method == "evaluate":
            return evaluate(model, x)
        model.predict(x, batch_size=64, verbose=0)

    run(TEST)  # warnings are errors
    assert layer.check() == ()
    with pytest.warns(UserWarning, match=MESSAGE) as seen:
        run(SCALED)
        run(SCALED)
    (message,) = [str(each.message) for each in seen if "MatchCheck" in str(each.message)]  # one, and no second
    found = layer.check()
    assert [moved.feature for moved in found] == [3, 7]
    for moved in found:
        seen = SCALED[:, moved.feature]
        np.testing.assert_allclose(moved[1:4], [seen.mean(), seen.min(), seen.max()], rtol=1e-5)
        column = TRAINING[:, moved.feature].astype("float64")
        np.testing.assert_allclose(moved[4:], [column.mean(), column.min(), column.max()], rtol=1e-5, atol=1e-9)
        assert str(moved) in message
    run(SCALED)  # said once


def test_the_first_predict_of_a_loaded_model_says_it(way, tmp_path):
    """Nothing of it has run before, so there was no earlier occasion to get ready for the end."""
    compiled(adapted(), **way).save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match=MESSAGE):
        model.predict(SCALED, batch_size=64, verbose=0)


def test_predict_says_it_after_runs_that_were_all_right():
    """No step is traced any more, and the one for the shorter batch at the end is not made anew either."""
    model = compiled(adapted())
    for _ in range(3):
        model.predict(TEST, batch_size=64, verbose=0)
        evaluate(model, TEST)
    with pytest.warns(UserWarning, match=MESSAGE):
        model.predict(SCALED, batch_size=64, verbose=0)


def test_predict_of_a_model_that_was_not_compiled_and_of_one_inside_another():
    inner = keras.Sequential([keras.Input((30,)), adapted(), keras.layers.Dense(1)])
    with pytest.warns(UserWarning, match=MESSAGE):
        inner.predict(SCALED, verbose=0)
    outer = keras.Sequential([keras.Input((30,)), compiled(adapted()), keras.layers.Dense(1)])
    outer.predict(TEST, verbose=0)
    with pytest.warns(UserWarning, match=MESSAGE):
        outer.predict(SCALED, verbose=0)


class Wrapped(keras.layers.Layer):
    """A layer of the user's own around a check."""

    def __init__(self, check):
        super().__init__()
        self.check = check

    def call(self, inputs, training=None):
        return self.check(inputs, training=training)


def test_a_whole_run_is_judged_where_each_batch_alone_would_not_match(way):
    """Sorted rows: batch by batch all of them are far from the training data."""
    training, data = np.random.default_rng(0).normal(size=(2, 4000, 30)).astype("float32")
    layer = MatchCheck()
    layer.adapt(training, verbose=0)
    model = compiled(Wrapped(layer), **way)
    for run in (evaluate, lambda model, x: model.predict(x, batch_size=64, verbose=0)):
        run(model, np.sort(data, axis=0))  # warnings are errors
        assert layer.check() == ()
    with pytest.warns(UserWarning, match="30 of 30 features"):
        evaluate(model, data + 3)


def test_after_a_second_adapt_a_model_that_was_traced_in_between_says_it():
    layer = adapted()
    model = compiled(layer)
    layer(SCALED)
    with pytest.warns(UserWarning, match=MESSAGE):
        layer.check()
    model.predict(TEST, verbose=0)
    layer.adapt(TRAINING, verbose=0)
    with pytest.warns(UserWarning, match=MESSAGE):
        model.predict(SCALED, verbose=0)


def test_batches_in_one_buffer():
    """Whoever makes them may use the memory again, as some loaders do."""
    layer, buffer = adapted(), np.empty((32, 30), "float32")
    for start in range(0, 256, 32):
        buffer[:] = SCALED[start : start + 32]
        layer(torch.from_numpy(buffer) if torch else buffer)
    buffer[:] = TEST[:32]
    with pytest.warns(UserWarning, match=MESSAGE):
        found = layer.check()
    np.testing.assert_allclose([each.mean for each in found], SCALED[:256, [3, 7]].mean(axis=0), rtol=1e-5)


def test_the_steps_of_the_model_are_those_of_keras():
    model = compiled(adapted())
    model.predict(TEST, verbose=0)
    step = getattr(model.predict_function, "step", model.predict_function)
    model.compile("sgd", "mse")
    model.predict(TEST, verbose=0)
    assert getattr(model.predict_function, "step", model.predict_function) is not step


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_a_callback_list_of_the_user_s_is_afterwards_as_it_was(method):
    ends = []
    one, two = adapted(), adapted()  # two that wait for the end
    model = keras.Sequential([keras.Input((30,)), one, two, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    note = keras.callbacks.LambdaCallback(on_test_end=ends.append, on_predict_end=ends.append)
    callbacks = keras.callbacks.CallbackList([note], model=model)
    arguments = (TEST, np.zeros((len(TEST), 1))) if method == "evaluate" else (TEST,)
    before = list(callbacks.callbacks)
    for x in (TEST, SCALED):
        with pytest.warns(UserWarning, match=MESSAGE) if x is SCALED else contextlib.nullcontext():
            getattr(model, method)(x, *arguments[1:], batch_size=64, verbose=0, callbacks=callbacks)
        assert callbacks.callbacks == before
    assert len(ends) == 2
    assert len(one.check()) == len(two.check()) == 2


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


def test_training_is_not_looked_at_in_calls_of_arrays_with_64_bits():
    """Which JAX hands to the layer in another way."""
    for wrap in (lambda x: x, lambda x: {"a": x}):
        layer = MatchCheck()
        layer.adapt(wrap(TRAINING), verbose=0)
        layer(wrap(SCALED.astype("float64")), training=True)
        assert layer.check() == wrap(())


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
    model.layers[0].adapt(TRAINING, verbose=0)
    with pytest.warns(UserWarning, match=MESSAGE):
        model.predict(SCALED[:256], batch_size=128, verbose=0)


def test_data_parallel(data_parallel):
    with data_parallel.scope():
        model = compiled(adapted())
        evaluate(model, TEST[:256], batch_size=128)
        with pytest.warns(UserWarning, match=MESSAGE):
            evaluate(model, SCALED[:256], batch_size=128)
        model.layers[0].adapt(TRAINING, verbose=0)
        with pytest.warns(UserWarning, match=MESSAGE):
            model.predict(SCALED[:256], batch_size=128, verbose=0)


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


def moved_features(training, data, batch_size=1024, **arguments):
    """The features that a whole evaluation of `data` reports."""
    layer = MatchCheck(**arguments)
    layer.adapt(training, verbose=0)
    for start in range(0, len(data), batch_size):
        y = layer(data[start : start + batch_size])
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(y), data[start : start + batch_size])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [moved.feature for moved in layer.check()]


CHANGES = {
    "pixels / 255": lambda x: x / 255,
    "pixels * 255": lambda x: x * 255,
    "1/10": lambda x: x / 10,
    "1/3": lambda x: x / 3,
    "3": lambda x: x * 3,
    "10": lambda x: x * 10,
    "pounds for kilograms": lambda x: x * 2.2046,
    "3 stddev": lambda x: x + 3,
    "-3 stddev": lambda x: x - 3,
    "other sign and unit": lambda x: -100 * x,
    "constant": lambda x: x * 0 + 0.3,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_planted_change_of_standardized_inputs(name):
    rng = np.random.default_rng(0)
    training, data = rng.normal(size=(5000, 3)).astype("float32"), rng.normal(size=(5000, 3)).astype("float32")
    assert moved_features(training, data) == []
    data[:, 1] = CHANGES[name](data[:, 1])
    assert moved_features(training, data) == [1]
    assert moved_features(training, np.sort(data, axis=0)) == [1]


def test_units_of_positive_features():
    rng = np.random.default_rng(0)
    kilograms, celsius = rng.normal(75, 12, (2, 4000)), rng.normal(15, 8, (2, 4000))
    training, data = (np.stack([kilograms[i], celsius[i]], axis=1).astype("float32") for i in range(2))
    assert moved_features(training, data) == []
    assert moved_features(training, data * np.float32([2.2046, 1])) == [0]
    assert moved_features(training, data * np.float32([1, 1.8]) + np.float32([0, 32])) == [1]


def test_images_of_0_to_255_in_place_of_0_to_1():
    images = load_digits().images[..., None].astype("float32") / 16
    assert moved_features(images[:1000], images[1000:]) == []
    assert moved_features(images[:1000], 255 * images[1000:]) == [0]
    assert moved_features(images[:1000] * 255, images[1000:]) == [0]
    rare = np.where(np.random.default_rng(0).random(images.shape) < 0.4, images, 0).astype("float32")  # 80 % zeros
    assert (rare == 0).mean() > 0.79
    assert moved_features(rare[:1000], rare[1000:]) == []
    assert moved_features(rare[:1000] * 255, rare[1000:]) == [0]
    pixels = images.reshape(len(images), 64)
    assert len(moved_features(255 * pixels[:1000], pixels[1000:])) > 40


def slow_series(rng, n):
    """An AR(1) series with a memory of 50 steps."""
    x = np.zeros(n)
    for i in range(1, n):
        x[i] = 0.98 * x[i - 1] + 0.2 * rng.normal()
    return x[:, None]


def with_a_far_class(rng, n):
    is_far = rng.random(n) < 0.05
    return np.sort(rng.normal(size=n) + 6 * is_far)[:, None]


def of_all_kinds(rng, n):
    streams = [
        rng.normal(size=n), rng.lognormal(0, 1, n), rng.random(n) < 0.01, rng.integers(0, 10, n), rng.poisson(0.1, n),
        rng.standard_t(3, n), np.where(rng.random(n) < 0.9, 0, rng.normal(5, 1, n)), np.full(n, 7.1),
        rng.lognormal(0, 4, n), rng.integers(0, 2, n), rng.standard_cauchy(n),
    ]  # fmt: skip
    return np.stack(streams, axis=1)


HEALTHY = {  # how to draw rows; numbers of rows of training and of evaluation
    "sorted": (lambda rng, n: np.sort(rng.normal(size=(n, 3)), axis=0), 5000, 5000),
    "grouped": (lambda rng, n: np.repeat(rng.normal(size=(n // 100, 3)), 100, axis=0), 40_000, 40_000),
    "slow series": (slow_series, 20_000, 20_000),
    "a far class, sorted": (with_a_far_class, 4000, 4000),
    "two scales": (
        lambda rng, n: np.where(rng.random((n, 1)) < 0.9, rng.random((n, 1)), rng.lognormal(7, 1, (n, 1))),
        5000,
        32,
    ),
    "10 rows": (lambda rng, n: rng.normal(size=(n, 10)), 10, 1000),
    "20 rows": (lambda rng, n: rng.normal(size=(n, 10)), 20, 1000),
    "40 rows": (lambda rng, n: rng.normal(size=(n, 10)), 40, 1000),
    "all kinds": (of_all_kinds, 8000, 8000),
    "all kinds, few": (of_all_kinds, 2000, 200),
    "many features, few rows": (lambda rng, n: rng.normal(size=(n, 500)), 1000, 64),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_false_alarm_on_healthy_data(name):
    draw, training, evaluation = HEALTHY[name]
    for seed in range(2):
        rng = np.random.default_rng(seed)
        layer = MatchCheck()
        layer.adapt(draw(rng, training).astype("float32"), verbose=0)
        data = draw(rng, evaluation).astype("float32")
        model = keras.Sequential([keras.Input(data.shape[1:]), layer, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        evaluate(model, data, batch_size=64)  # warnings are errors
        assert layer.check() == ()


def test_no_false_alarm_on_data_sorted_by_class():
    x, y = load_digits(return_X_y=True)
    training, test = x[::2], x[1::2][np.argsort(y[1::2])]
    assert moved_features(training.astype("float32"), test.astype("float32")) == []


def test_a_flat_image_is_one_row():
    images = np.random.default_rng(0).integers(0, 256, (100, 16, 16, 3)).astype("uint8")
    for grey in (0, 100, 255):
        assert moved_features(images, np.full((1, 16, 16, 3), grey, "uint8")) == []
    assert moved_features(images[:31], np.full((100, 16, 16, 3), 0, "uint8")) == []
    assert moved_features(images, np.full((100, 16, 16, 3), 0, "uint8")) == [0, 1, 2]


def test_fewer_than_32_rows_are_not_judged_and_do_not_count_in_the_next_evaluation():
    layer = adapted()
    model = compiled(layer)
    evaluate(model, SCALED[:31])
    evaluate(model, SCALED[:31])
    assert layer.check() == ()
    with pytest.warns(UserWarning, match=MESSAGE):
        evaluate(model, SCALED[:128])


def test_each_evaluation_is_judged_alone():
    layer = adapted()
    model = compiled(layer)
    for _ in range(5):
        evaluate(model, TEST)
    with pytest.warns(UserWarning, match=MESSAGE):
        evaluate(model, SCALED)


def test_inputs_that_were_rounded_on_the_way():
    x = np.full((200, 1), 0.1, "float32")
    for dtype in ("float16", "float32", "float64"):
        assert moved_features(x, x.astype(dtype)) == []
    assert moved_features(x, np.full((200, 1), 0.1003, "float32")) == [0]


def test_nan_and_infinite_values():
    rng = np.random.default_rng(0)
    training, data = rng.normal(size=(1000, 4)).astype("float32"), rng.normal(size=(64, 4)).astype("float32")
    training[::3, 0] = np.nan
    data[:40, 0], data[:20, 1] = np.nan, np.nan  # 24 and 44 values are left
    data[:, :2] += 5
    data[3, 2] = np.inf
    assert moved_features(training, data, batch_size=16) == [1, 2]


def test_training_reads_nothing_back(monkeypatch):
    """On a GPU each read would wait for the device, and Torch asks for the metrics in each step."""
    layer = adapted()
    model = compiled(layer)
    reads, convert = [], keras.ops.convert_to_numpy
    y = np.zeros((len(TRAINING), 1))
    model.fit(TRAINING, y, batch_size=32, verbose=0)
    monkeypatch.setattr(keras.ops, "convert_to_numpy", lambda x: reads.append(x is layer._seen) or convert(x))
    model.fit(TRAINING, y, batch_size=8, epochs=2, verbose=0)
    assert sum(reads) <= (0 if keras.backend.backend() == "torch" else 12)  # of 72 steps


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


def test_inverse_hands_through_as_well():
    layer, parts = adapted(), MatchCheck()
    parts.adapt({"a": TRAINING[:, 0], "b": TRAINING[:, 1]}, verbose=0)
    for y in (TEST, layer(TEST), TEST[0], TEST.astype("float64")):
        assert layer.inverse(y) is y
    y = parts({"a": TEST[:, 0], "b": TEST[:, 1]})
    assert parts.inverse(y) is y
    with pytest.raises(ValueError, match="the features must be 'a', 'b'. Received: 'a'"):
        parts.inverse({"a": TEST[:, 0]})


def test_dict_of_features():
    layer = MatchCheck()
    layer.adapt({"a": TRAINING[:, :1], "b": TRAINING[:, 1:3]}, verbose=0)
    layer({"a": TEST[:, :1], "b": TEST[:, 1:3]})
    assert layer.check() == {"a": (), "b": ()}
    layer({"a": TEST[:, :1], "b": TEST[:, 1:3] / 1000})
    with pytest.warns(UserWarning, match="MatchCheck 'b': 2 of 2 features"):
        found = layer.check()
    assert {name: len(each) for name, each in found.items()} == {"a": 0, "b": 2}
    inputs = {"a": keras.Input((1,), name="a"), "b": keras.Input((2,), name="b")}
    model = keras.Model(inputs, keras.layers.Concatenate()(list(layer(inputs).values())))
    model.predict({"a": TEST[:, :1], "b": TEST[:, 1:3]}, verbose=0)


def test_inside_tf_data():
    tf = pytest.importorskip("tensorflow")
    layer = adapted()
    rows = tf.data.Dataset.from_tensor_slices(SCALED)
    for batches in (
        rows.batch(32).map(layer),
        rows.batch(32).map(lambda x: layer(x), num_parallel_calls=2),
        rows.batch(32).interleave(lambda x: tf.data.Dataset.from_tensors(layer(x)), cycle_length=1),
        tf.data.Dataset.from_tensors(0).flat_map(lambda _: rows.batch(32).map(tf.function(layer))),
    ):
        np.testing.assert_array_equal(np.concatenate([np.array(each) for each in batches]), SCALED)
    assert layer.check() == ()


# --- state --------------------------------------------------------------------------------------------------------


def test_many_features_are_cut_short():
    layer = adapted()
    layer(TEST * 1e4)
    with pytest.warns(UserWarning, match="30 of 30 features(.|\n)*feature 9(.|\n)*and 20 more$"):
        layer.check()


def test_a_second_adapt_looks_again():
    layer = adapted()
    layer(SCALED)
    with pytest.warns(UserWarning):
        layer.check()
    layer.adapt(SCALED, verbose=0)
    layer(SCALED)
    assert layer.check() == ()
    layer(TEST)
    with pytest.warns(UserWarning):
        layer.check()


def test_from_statistics_and_a_layer_that_knows_nothing():
    stats = Statistics(("moments", "quantiles")).update(TRAINING)
    layer = MatchCheck.from_statistics(stats)
    layer(SCALED)
    with pytest.warns(UserWarning, match=MESSAGE):
        layer.check()
    with pytest.raises(ValueError, match="MatchCheck .* has no statistics yet: call `adapt"):
        MatchCheck()(TEST)


def test_model_file_round_trip(tmp_path):
    model = compiled(adapted())
    with pytest.warns(UserWarning):
        evaluate(model, SCALED)
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
    """Why what was seen stays in a weight until the end; when this fails, that may change."""
    if backend != "tensorflow":
        pytest.skip("about TensorFlow")
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def step(x):
        return tf.py_function(lambda value: value, [x], tf.float32)

    with pytest.raises(Exception, match="EagerPyFunc"):
        step(tf.ones(3))
