"""What every layer keeps: it works wherever a Keras layer does, on every backend, and comes back from a file."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops

import tf_tricks.layers
from tests.contract import refusals
from tests.contract.layer_rows import LAYERS, X, adapted, as_array
from tests.contract.models import MODES, QUICK

NAMES = sorted(LAYERS)
RAGGED = np.float32([[np.nan, np.inf, -np.inf, 0.0]])


def model_with(layer, **compile_arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input(X.shape[1:]), layer, keras.layers.Dense(1, dtype="float32")])
    model.compile("sgd", "mse", **{**MODES[QUICK], **compile_arguments})
    return model


# --- 1. every way to compile, 2. dtypes, 3. devices ---------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_trains_evaluates_and_predicts_in_silence(name, mode, capsys):
    layer = adapted(name)
    weights = [as_array(weight) for weight in layer.weights]
    alone = as_array(layer(X))
    model = model_with(layer, **MODES[mode])
    history = model.fit(X, X[:, :1], epochs=1, batch_size=8, verbose=0)
    assert np.isfinite([*history.history["loss"], model.evaluate(X, X[:, :1], verbose=0)]).all()
    inner = keras.Model(model.inputs, layer.output)
    np.testing.assert_allclose(inner.predict(X, verbose=0), alone, rtol=1e-4, atol=1e-5)
    if not LAYERS[name].passes_on:  # MatchCheck keeps what it sees in evaluation
        for before, after in zip(weights, layer.weights, strict=True):  # training moves no statistics
            np.testing.assert_array_equal(before, as_array(after))
    assert not layer.trainable_weights
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", [name for name in NAMES if not LAYERS[name].passes_on])
def test_half_precision_rounds_the_result_alone(name, policy):
    full, half = as_array(adapted(name)(X)), adapted(name, dtype=policy)(X)
    assert keras.backend.standardize_dtype(half.dtype) == policy.removeprefix("mixed_")
    half = as_array(ops.cast(half, "float32"))
    step = 2.0**-8 if "bfloat16" in policy else 2.0**-11
    np.testing.assert_allclose(half, full, rtol=2 * step, atol=2 * step)


@pytest.mark.parametrize("name", NAMES)
def test_mirrored_strategy(name, mirrored_strategy):
    with mirrored_strategy.scope():
        model = model_with(adapted(name))
    check_on_devices(model, name)


@pytest.mark.parametrize("name", NAMES)
def test_data_parallel(name, data_parallel):
    with data_parallel.scope():
        check_on_devices(model_with(adapted(name)), name)


def check_on_devices(model, name):
    model.fit(X, X[:, :1], epochs=1, batch_size=8, verbose=0)
    alone = model_with(adapted(name))
    alone.fit(X, X[:, :1], epochs=1, batch_size=8, verbose=0)
    wanted, got = (each.predict(X, batch_size=8, verbose=0) for each in (alone, model))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


# --- 4. configuration and files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_config_round_trip(name):
    cls = getattr(tf_tricks.layers, name)
    assert keras.saving.get_registered_name(cls) == f"tf_tricks>{name}"
    for arguments in [{}, *LAYERS[name].variants]:
        config = LAYERS[name].make(**arguments).get_config()
        own = {p for p, kind in inspect.signature(cls).parameters.items() if kind.kind is not kind.VAR_KEYWORD}
        assert own <= set(config)
        again = cls.from_config(config)
        assert again.get_config() == config
        serialized = keras.saving.serialize_keras_object(again)
        assert keras.saving.deserialize_keras_object(serialized).get_config() == config


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_and_its_weights_come_back(name, tmp_path):
    model = model_with(adapted(name))
    wanted = model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), wanted)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = model_with(LAYERS[name].make())
    fresh.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(fresh.predict(X, verbose=0), wanted)


# --- data pipelines, gradients, odd inputs ------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_in_a_tf_data_pipeline_it_gives_the_same(name):
    tf = pytest.importorskip("tensorflow")
    layer = adapted(name)
    wanted = as_array(layer(X))
    got = np.concatenate([np.array(y) for y in tf.data.Dataset.from_tensor_slices(X).batch(16).map(layer)])
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_numpy_and_tensors_any_batch_size_and_training_flag(name):
    layer = adapted(name)
    wanted = as_array(layer(X))
    for x in (ops.convert_to_tensor(X), X.astype("float64"), X[:1], X[:0]):
        for training in (None, True, False):
            got = as_array(layer(x, training=training) if takes_training(layer) else layer(x))
            np.testing.assert_allclose(got, wanted[: len(x)], rtol=1e-5, atol=1e-6)


def takes_training(layer):
    return "training" in inspect.signature(layer.call).parameters


@pytest.mark.parametrize("name", [name for name in NAMES if not LAYERS[name].passes_on])  # MatchCheck warns of them
def test_non_finite_rows_spoil_no_other_row(name):
    layer = adapted(name)
    row = np.resize(RAGGED, X[:1].shape).astype("float32")
    with np.errstate(all="ignore"):
        got = as_array(layer(np.concatenate([X, row])))
    np.testing.assert_allclose(got[:-1], as_array(layer(X)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_was_not_adapted_says_so(name):
    with pytest.raises((ValueError, RuntimeError), match="adapt"):
        LAYERS[name].make()(X)


@pytest.mark.parametrize("name", NAMES)
def test_adapting_twice_is_adapting_anew(name):
    layer = LAYERS[name].make()
    layer.adapt(X * 3 + 1, verbose=0)
    layer.adapt(X, verbose=0)
    np.testing.assert_array_equal(as_array(layer(X)), as_array(adapted(name)(X)))


# --- 7. bad arguments, 10. docstrings -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "argument", "value", "error", "accepted", "others"), refusals.cases(LAYERS))
def test_a_bad_argument_is_named_with_what_is_accepted_and_what_came(name, argument, value, error, accepted, others):
    refusals.check(getattr(tf_tricks.layers, name), argument, value, error, accepted, others)


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_refuses_something(name):
    parameters = inspect.signature(getattr(tf_tricks.layers, name)).parameters
    own = {p for p, kind in parameters.items() if kind.kind is not kind.VAR_KEYWORD}
    assert {bad[0] for bad in LAYERS[name].bad} | set(LAYERS[name].any_value) == own
