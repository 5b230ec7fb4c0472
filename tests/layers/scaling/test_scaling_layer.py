"""What every scaling layer does, whatever its formula: data, axes, dtypes, files, dicts, and where it runs."""

import copy
import json
import pickle
import re

import keras
import numpy as np
import pytest

from tf_tricks.layers import (
    AutoScale,
    MinMaxScale,
    QuantileScale,
    RobustScale,
    SignedLogScale,
    Standardize,
    TanhScale,
    Whiten,
)
from tf_tricks.layers.scaling._constants import split
from tf_tricks.layers.scaling.statistics import Statistics

MAKE = {
    "Standardize": Standardize,
    "TanhScale": lambda **kwargs: TanhScale(center=True, **kwargs),
    "MinMaxScale": lambda **kwargs: MinMaxScale(range=(-1, 2), **kwargs),
    "RobustScale": RobustScale,
    "SignedLogScale": SignedLogScale,
    "SignedLogScale-log1p": lambda **kwargs: SignedLogScale("log1p", **kwargs),
    "QuantileScale": lambda **kwargs: QuantileScale(num_quantiles=100, **kwargs),
    "QuantileScale-normal": lambda **kwargs: QuantileScale("normal", num_quantiles=100, **kwargs),
    "Whiten": Whiten,
    "Whiten-zca": lambda **kwargs: Whiten("zca", **kwargs),
}
NAMES = list(MAKE)
every_layer = pytest.mark.parametrize("name", NAMES)
one_of_each_kind = pytest.mark.parametrize("name", ["Standardize", "QuantileScale", "Whiten"])
to_numpy = keras.ops.convert_to_numpy


def table(rows=200, features=4, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, features)) @ rng.normal(size=(features, features))
    return (mixed * [1.0, 10.0, 0.1, 100.0][:features] + [0.0, 5.0, -3.0, 1000.0][:features]).astype(dtype)


def adapted(name, data=None, **kwargs):
    layer = MAKE[name](**kwargs)
    layer.adapt(table() if data is None else data)
    return layer


def reference(name, x, data=None):
    """What a layer in float64 arithmetic gives, which the tests of each layer compare with other libraries."""
    return to_numpy(adapted(name, data, dtype="float64" if keras.backend.backend() != "jax" else "float32")(x))


def all_in_one(adapt=True, **compile_arguments):
    """A model with every layer side by side, and something to train behind them: one compilation for all."""
    layers = {name: MAKE[name](name=name) for name in NAMES}
    if adapt:
        for layer in layers.values():
            layer.adapt(table())
    inputs = keras.Input((4,))
    outputs = {name: layer(inputs) for name, layer in layers.items()}
    hidden = keras.layers.Concatenate()(list(outputs.values()))
    outputs["head"] = keras.layers.Dense(1, kernel_initializer="zeros", name="head")(hidden)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(1e-3), {name: "mse" for name in outputs}, **compile_arguments)
    return model


def model_of(layer, shape=(4,), **compile_arguments):
    model = keras.Sequential([keras.Input(shape), layer, keras.layers.Dense(2), keras.layers.Dense(1)])
    model.compile("sgd", "mse", **compile_arguments)
    return model


# --- inverse, axes, dtypes --------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inverse_gives_the_inputs_back(name, dtype):
    x = table(dtype=dtype)
    layer = adapted(name, x)
    y = layer(x)
    assert y.shape == x.shape and keras.backend.standardize_dtype(y.dtype) == "float32"
    size = np.abs(x).max(axis=0)
    # Where tanh or the tail of the normal distribution is flat, float32 has few digits for the way back.
    atol = {"TanhScale": 3e-4, "QuantileScale-normal": 1e-3}.get(name, 2e-5)
    np.testing.assert_array_less(np.abs(to_numpy(layer.inverse(y)) - x) / size, atol)


@pytest.mark.parametrize("name", ["Standardize", "TanhScale", "QuantileScale", "Whiten-zca"])
@pytest.mark.parametrize(("axis", "shape"), [(-1, (3, 5, 6, 4)), (1, (3, 4, 5, 6)), ((1, 3), (3, 2, 5, 2))])
def test_axis_of_images_and_sequences(name, axis, shape):
    x = np.random.default_rng(1).gamma(2.0, size=shape) * 100
    kept = sorted(each % len(shape) for each in (axis if isinstance(axis, tuple) else (axis,)))
    order = [each for each in range(len(shape)) if each not in kept] + kept
    flat = x.transpose(order).reshape(-1, int(np.prod([shape[each] for each in kept])))
    expected = reference(name, flat, flat).reshape([shape[each] for each in order]).transpose(np.argsort(order))
    layer = adapted(name, x, axis=axis)
    np.testing.assert_allclose(to_numpy(layer(x)), expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(to_numpy(layer.inverse(layer(x))), x, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", [name for name in NAMES if "Whiten" not in name])
def test_one_statistic_for_all_values_and_scalars_in_a_batch(name):
    x = table()
    expected = reference(name, x.reshape(-1, 1), x.reshape(-1, 1)).reshape(x.shape)
    np.testing.assert_allclose(to_numpy(adapted(name, x, axis=None)(x)), expected, rtol=2e-5, atol=2e-5)
    scalars = adapted(name, x.reshape(-1))
    np.testing.assert_allclose(to_numpy(scalars(x.reshape(-1))), expected.reshape(-1), rtol=2e-5, atol=2e-5)


@every_layer
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_large_inputs_are_scaled_before_they_are_cast_down(name, policy):
    x = np.random.default_rng(0).uniform(0, 1.4e8, (300, 2))
    layer = adapted(name, x, dtype=policy)
    half = "bfloat16" if "bfloat16" in policy else "float16"
    expected = reference(name, x, x)
    for inputs in (x, x.astype("float32"), x.astype("int64")):
        y = layer(inputs)
        assert keras.backend.standardize_dtype(y.dtype) == half
        np.testing.assert_allclose(to_numpy(keras.ops.cast(y, "float32")), expected, rtol=1e-2, atol=2e-3)
    assert all(keras.backend.standardize_dtype(weight.dtype) == "float32" for weight in layer.weights)


@one_of_each_kind
@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "bool", "float16", "bfloat16"])
def test_every_dtype_of_inputs(name, dtype):
    x = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 200, (300, 3))
    inputs = keras.ops.cast(x, dtype) if dtype == "bfloat16" else x.astype(dtype)
    layer = adapted(name, inputs)
    y = layer(inputs)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    np.testing.assert_allclose(to_numpy(y), reference(name, x, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["Standardize", "RobustScale", "MinMaxScale", "Whiten-zca", "TanhScale"])
@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_no_digit_of_64_bit_arrays_is_lost_on_the_way(name, dtype):
    """Time stamps: 1.7e9 seconds, a day apart; in float32 they would be known to 128 seconds."""
    x = (1.7e9 + np.random.default_rng(0).uniform(0, 86400, (500, 2))).astype(dtype)
    near = (x - 1.7e9).astype("float64")
    # The same distribution near 0, where float32 is enough.
    np.testing.assert_allclose(
        to_numpy(adapted(name, x)(x)), reference(name, near, near), atol=2e-4 if "C" in name else 2e-5
    )


@pytest.mark.parametrize("dtype", ["int32", "uint32"])
def test_no_digit_of_32_bit_integers_is_lost_in_a_model(dtype):
    near = np.arange(10.0)[:, None] * [1, 3]
    x = (near + [100_000_000, 2_000_000_000] * (1 if dtype == "uint32" else np.array([1, -1]))).astype(dtype)
    inputs = keras.Input((2,), dtype=dtype)
    layers = {name: adapted(name, x) for name in ("Standardize", "MinMaxScale", "RobustScale", "TanhScale")}
    layers["AutoScale"] = AutoScale()
    layers["AutoScale"].adapt(x, verbose=0)
    got = keras.Model(inputs, {name: layer(inputs) for name, layer in layers.items()}).predict(x, verbose=0)
    for name, y in got.items():
        expected = reference(name.replace("AutoScale", "Standardize"), near, near)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_mean_that_float32_does_not_know_is_subtracted_exactly():
    """Float32 inputs near 2**24 are whole numbers; their mean is not, and a rounded one would shift all outputs."""
    x = (2.0**24 - 64 + np.arange(64)).astype("float32")[:, None]
    expected = (x.astype("float64") - x.mean(dtype="float64")) / x.std(dtype="float64")
    jit = keras.backend.backend() != "torch"
    adapted_one = adapted("Standardize", x)
    given = Standardize(mean=[x.mean(dtype="float64")], variance=[x.var(dtype="float64")])
    for layer in (adapted_one, given):
        model = keras.Sequential([keras.Input((1,)), layer])
        model.compile(jit_compile=jit)
        for y in (to_numpy(layer(x)), model.predict(x, verbose=0)):
            np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_arguments_of_a_call_reach_arrays_of_64_bits_as_they_reach_others():
    layer = adapted("Standardize")
    for x in (table(), table(dtype="float64")):  # JAX hands the second one to the layer in another way
        layer(x, training=True)
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            layer(x, trainig=True)


def test_split_is_exact():
    x = np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-10, 10).repeat(50)
    assert (split(x).astype("float64").sum(axis=0) == x).all()


# --- inputs of another shape ------------------------------------------------------------------------------------------


@every_layer
@pytest.mark.parametrize("shape", [(8, 1), (8, 5), (1,), (8,), ()])
def test_inputs_of_another_number_of_features_are_refused(name, shape):
    layer = adapted(name)
    for method in (layer, layer.inverse):
        if name == "Whiten" and method != layer:
            continue  # components
        with pytest.raises(ValueError, match=r"has the constants of inputs of shape \(None, 4\).*Received: inputs of"):
            method(np.zeros(shape, "float32"))


@every_layer
def test_a_layer_of_one_feature_takes_no_more(name):
    one, scalars = adapted(name, table()[:, :1]), adapted(name, table()[:, 0])
    for layer, shape in ((one, (None, 1)), (scalars, (None,))):
        for inputs in (np.zeros((8, 4), "float32"), np.zeros((8, 3, 2))):
            with pytest.raises(ValueError, match=re.escape(f"has the constants of inputs of shape {shape}")):
                layer(inputs)
    x = table()[:, :1]
    np.testing.assert_array_equal(
        to_numpy(scalars(x)).ravel(), to_numpy(one(x)).ravel()
    )  # Keras makes this of `keras.Input(())`


@every_layer
def test_rows_that_were_taken_for_batches_of_scalars(name):
    for rows in (list(table()), (row for row in table())):
        layer = adapted(name, rows)
        with pytest.raises(ValueError, match=r"inputs of shape \(None,\).*Received: inputs of shape \(200, 4\)"):
            layer(table())


def test_more_or_fewer_axes_in_front_are_fine():
    x = table()
    layer = adapted("Standardize", x)
    expected = to_numpy(layer(x))
    np.testing.assert_array_equal(to_numpy(layer(x[0])), expected[0])
    np.testing.assert_array_equal(to_numpy(layer(x.reshape(10, 20, 4))), expected.reshape(10, 20, 4))
    everything = adapted("Standardize", x.ravel(), axis=None)
    assert tuple(everything(x).shape) == x.shape


# --- the range of the weights -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Whiten-zca"])
def test_constants_beyond_float32_are_refused(name):
    layer = MAKE[name]()
    data = np.random.default_rng(0).normal(size=(50, 2)) * 1e39
    with pytest.raises(ValueError, match=r"must be at most 3.4e\+38 in size.*Received: .*e\+[34]"):
        layer.adapt(data)
    assert not layer.built
    layer.adapt(data * 1e-2)
    assert np.isfinite(to_numpy(layer(data * 1e-2))).all()


def test_given_constants_beyond_float32_are_refused():
    for layer in (TanhScale(C=1e39), SignedLogScale(scale=[1.0, 1e39]), Standardize(mean=-1e39, variance=1.0)):
        with pytest.raises(ValueError, match=r"must be at most 3.4e\+38 in size.*Received: (scale|mean)=-?1e\+39"):
            layer(np.zeros((3, 2)))
    assert np.isfinite(to_numpy(Standardize(mean=0.0, variance=1e60)(np.ones((3, 2))))).all()  # its root is in range


# --- missing, infinite and constant values ----------------------------------------------------------------------------


@every_layer
def test_missing_values_are_left_out_and_stay_missing(name):
    x = table()
    holes = x.copy()
    holes[::7] = np.nan
    layer = adapted(name, holes)
    whole = np.delete(x, np.arange(0, len(x), 7), axis=0)
    np.testing.assert_allclose(to_numpy(layer(whole)), reference(name, whole, whole), rtol=1e-4, atol=1e-4)
    y = to_numpy(layer(holes))
    assert np.isnan(y[::7]).all() and np.isnan(y).sum() == y[::7].size


@every_layer
def test_infinite_values_are_refused_and_leave_the_layer_as_it_was(name):
    layer = adapted(name)
    before = to_numpy(layer(table()))
    bad = table()
    bad[50, 2] = np.inf
    for reset in (True, False):
        with pytest.raises(ValueError, match="2"):
            layer.adapt(iter([table(seed=3), bad]), reset=reset)
    np.testing.assert_array_equal(to_numpy(layer(table())), before)
    fresh = MAKE[name]()
    with pytest.raises(ValueError, match="2"):
        fresh.adapt(bad)
    assert not fresh.built


@every_layer
def test_a_feature_without_any_value_is_refused(name):
    x = table()
    x[:, 1] = np.nan
    with pytest.raises(ValueError, match="`data` must have a value for every feature"):
        MAKE[name]().adapt(x)


@every_layer
@pytest.mark.parametrize("value", [0.0, 0.1, -1e8])
def test_a_constant_feature_stays_finite_on_other_values(name, value):
    x = table()
    x[:, 1] = value
    layer = adapted(name, x)
    other = np.array([[0.0, 7.0, -3.0, 1000.0], [0.0, 1e8, -3.0, 1000.0]], "float32")
    outputs = to_numpy(layer(x)), to_numpy(layer(other))
    assert all(np.isfinite(y).all() for y in outputs)
    middle = {"MinMaxScale": -1.0, "QuantileScale": 0.5}.get(name, 0.0)
    if "Whiten" not in name and "Log" not in name:  # the other features move the outputs of the former
        for y in outputs:
            np.testing.assert_array_equal(y[:, 1], np.float32(middle))
        np.testing.assert_allclose(to_numpy(layer.inverse(layer(other)))[:, 1], value, rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in NAMES if "Log" not in name])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [0.1, -1e8, 3e-20])
def test_a_feature_that_is_constant_but_for_its_last_bits(name, dtype, value):
    x = np.full((300, 2), value, dtype)
    x[::3, 0] = np.nextafter(x[::3, 0], np.dtype(dtype).type(0))
    x[1::3, 0] = np.nextafter(x[1::3, 0], np.dtype(dtype).type(np.inf))
    x[:, 1] += np.arange(300) * np.abs(x[:, 1]) * 1e-2
    layer = adapted(name, x)
    y = to_numpy(layer(np.array([[2 * value, value], [0.0, value]], dtype)))
    column, other = (1, 0) if name == "Whiten" else (0, 1)  # the component without variance is the last
    assert (y[:, column] == {"MinMaxScale": -1, "QuantileScale": 0.5}.get(name, 0)).all()
    assert to_numpy(layer(x))[:, other].std() > 0.25
    halves = type(layer).from_statistics(
        Statistics(layer.kinds).update(x[:9]).merge(layer.statistics), **{**layer.get_config(), "name": "halves"}
    )
    assert len(set(to_numpy(halves(x))[:, column])) == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_feature_of_half_precision_that_is_constant_but_for_its_last_bit(dtype):
    x = keras.ops.convert_to_tensor(
        np.where(np.arange(20) % 2, 0.125, 0.125 * (1 + 2.0 ** -(10 if dtype == "float16" else 7)))[:, None], dtype
    )
    assert len(set(to_numpy(keras.ops.cast(x, "float32"))[:, 0])) == 2
    assert (to_numpy(adapted("Standardize", x)(x)) == 0).all()


# --- files, weights, configs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", [".keras", ".weights.h5"])
def test_a_saved_model_scales_as_before(extension, tmp_path):
    x = table()
    model = all_in_one()
    expected = model.predict(x, verbose=0)
    if extension == ".keras":
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
    else:
        model.save_weights(tmp_path / "model.weights.h5")
        again = all_in_one(adapt=False)
        again.load_weights(tmp_path / "model.weights.h5")
    got = again.predict(x, verbose=0)
    for name in NAMES:
        np.testing.assert_array_equal(got[name], expected[name])
    scaler = next(layer for layer in again.layers if isinstance(layer, TanhScale))
    np.testing.assert_allclose(to_numpy(scaler.inverse(got["TanhScale"])), x, rtol=1e-3, atol=1e-2)
    with pytest.raises(ValueError, match="`reset=False` has nothing to go on from"):
        scaler.adapt(x, reset=False)


@every_layer
def test_config_and_weights_round_trip(name):
    layer = MAKE[name](name="scaler", axis=(-1,))
    layer.adapt(table())
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))
    assert config["registered_name"] == f"tf_tricks>{name.partition('-')[0]}"
    again = keras.saving.deserialize_keras_object(config)
    # Keras makes a tuple of JSON's list only where it wrote it itself.
    assert json.dumps(again.get_config(), default=str) == json.dumps(layer.get_config(), default=str)
    assert len(again.weights) == len(layer.weights) > 0 and not again.trainable_weights
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(to_numpy(again(table())), to_numpy(layer(table())))


@every_layer
def test_from_statistics(name):
    x = table()
    layer = adapted(name)
    statistics = (
        Statistics(("moments", "covariance", "quantiles"))
        .update(x[:90])
        .merge(Statistics(("moments", "covariance", "quantiles")).update(x[90:]))
    )
    make = type(layer).from_statistics
    arguments = {key: value for key, value in layer.get_config().items() if key != "name"}
    other = make(statistics, **arguments)
    np.testing.assert_allclose(to_numpy(other(x)), to_numpy(layer(x)), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="features"):
        make(statistics, **arguments)(x[:, :3])
    with pytest.raises(ValueError, match="`statistics` must hold"):
        make(Statistics(("covariance" if "covariance" not in layer.kinds else "moments",)).update(x), **arguments)
    with pytest.raises(ValueError, match="`statistics` must have seen data"):
        make(Statistics(layer.kinds), **arguments)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("built", [True, False])
def test_a_copy_keeps_constants_and_statistics(duplicate, built):
    x = table()
    for data in (x, {"a": x[:, :2], "b": x[:, 3]}):
        layer = Standardize.from_statistics(adapted("Standardize", data).statistics)
        if built:
            layer(data)
        again = duplicate(layer)
        assert again.built == built
        got, expected = again(data), layer(data)
        again.adapt(data, reset=False)
        for name in data if isinstance(data, dict) else [...]:
            np.testing.assert_array_equal(to_numpy(got[name]), to_numpy(expected[name]))
        moments = again.statistics["b"].moments if isinstance(data, dict) else again.statistics.moments
        assert (moments.count == 2 * len(x)).all()
    assert duplicate(Standardize()).statistics is None


@pytest.mark.parametrize("wrong", [None, 3, {}, {"a": 3}])
def test_from_statistics_of_something_else(wrong):
    with pytest.raises(TypeError, match="`statistics` must be Statistics, or a dict of them. Received: statistics="):
        Standardize.from_statistics(wrong)


# --- a layer without statistics ---------------------------------------------------------------------------------------


@every_layer
def test_a_layer_without_statistics_raises(name):
    with pytest.raises(ValueError, match="has no statistics yet: call `adapt"):
        MAKE[name]()(table())
    layer = MAKE[name]()
    layer.build((None, 4))
    with pytest.raises(ValueError, match="has no statistics yet"):
        layer.inverse(table())


@pytest.mark.parametrize("jit", [True, False])
def test_fit_with_a_layer_without_statistics_raises_and_works_afterwards(jit, backend):
    if jit and backend == "torch":
        pytest.skip("the Torch backend compiles nothing here")
    model = model_of(Standardize(), jit_compile=jit)
    x = table()
    with pytest.raises(ValueError, match="Standardize '.*' has no statistics yet"):
        model.fit(x, x[:, :1], verbose=0)
    model.layers[0].adapt(x)
    assert np.isfinite(model.fit(x, x[:, :1] / 1000, verbose=0).history["loss"][0])


def test_weights_of_a_layer_without_statistics_are_noticed(tmp_path):
    x = table()
    for data in (x, {"a": x, "b": x[:, 0]}):
        layer, empty = adapted("Standardize", data), Standardize()
        empty.build({name: value.shape for name, value in data.items()} if isinstance(data, dict) else x.shape)
        layer(data)
        layer.set_weights(empty.get_weights())
        with pytest.raises(ValueError, match="has no statistics yet"):
            layer(data)
        layer.set_weights(adapted("Standardize", data).get_weights())
        layer(data)
    model_of(Standardize()).save_weights(tmp_path / "empty.weights.h5")
    model = model_of(adapted("Standardize"))
    model.predict(x, verbose=0)
    model.load_weights(tmp_path / "empty.weights.h5")
    with pytest.raises(ValueError, match="has no statistics yet"):
        model.layers[0](x)


# --- in models --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_every_layer_in_a_compiled_model(policy, backend):
    x = table()
    keras.config.set_dtype_policy(policy)
    jit = backend != "torch"
    model = all_in_one(jit_compile=jit)
    y = {name: np.zeros((len(x), 4), "float32") for name in NAMES}
    loss = model.fit(x, {**y, "head": x[:, :1] * 0.1}, epochs=2, batch_size=100, verbose=0).history["head_loss"]
    assert np.isfinite(loss).all() and loss[1] < loss[0]
    got = model.predict(x, verbose=0)
    for name in NAMES:
        expected = reference(name, x)
        np.testing.assert_allclose(got[name].astype("float32"), expected, atol=5e-3 if policy != "float32" else 5e-5)


def test_a_second_adapt_reaches_a_compiled_model():
    layer, x = adapted("Standardize"), table()
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile()
    model.predict(x, verbose=0)
    layer.adapt(x * 3 + 1)
    np.testing.assert_allclose(model.predict(x * 3 + 1, verbose=0), reference("Standardize", x), atol=1e-5)


def test_masks_pass():
    x = np.arange(12.0).reshape(2, 3, 2)
    x[0, 2] = 0
    layer = adapted("Standardize", x)
    last = keras.layers.GlobalAveragePooling1D()  # of the steps that are not masked
    masked = keras.Sequential([keras.layers.Masking(), layer, last])(x)
    np.testing.assert_allclose(to_numpy(masked)[0], to_numpy(layer(x))[0, :2].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("scope", ["mirrored_strategy", "data_parallel"])
def test_several_devices(scope, request):
    x = table()
    expected = reference("Standardize", x)
    with request.getfixturevalue(scope).scope():
        model = keras.Sequential([keras.Input((4,)), Standardize()])
        model.compile("sgd", "mse", jit_compile=scope == "data_parallel")
        model.layers[0].adapt(x)
        np.testing.assert_allclose(model.predict(x, batch_size=40, verbose=0), expected, atol=1e-5)


# --- in tf.data, whatever the backend ---------------------------------------------------------------------------------


@every_layer
def test_inside_tf_data(name):
    tf = pytest.importorskip("tensorflow")
    x = table()
    layer = adapted(name)
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(64)
    mapped = dataset.map(layer)
    assert mapped.element_spec.dtype == tf.float32 and mapped.element_spec.shape.rank == 2
    y = np.concatenate(list(mapped.as_numpy_iterator()))
    np.testing.assert_allclose(y, to_numpy(layer(x)), rtol=1e-5, atol=1e-5)
    rows = np.stack(list(dataset.unbatch().map(layer).as_numpy_iterator()))  # single rows, too
    np.testing.assert_allclose(rows, y, rtol=1e-5, atol=1e-5)
    back = np.concatenate(list(mapped.map(layer.inverse).as_numpy_iterator()))
    np.testing.assert_allclose(back, to_numpy(layer.inverse(layer(x))), rtol=1e-4, atol=1e-4)


@one_of_each_kind
def test_inside_tf_data_before_the_layer_was_built(name):
    tf = pytest.importorskip("tensorflow")
    x = table(dtype="float64")
    layer = adapted(name)
    statistics = Statistics(layer.kinds).update(x)
    arguments = {key: value for key, value in layer.get_config().items() if key != "name"}
    unbuilt = type(layer).from_statistics(statistics, **arguments)
    y = np.concatenate(list(tf.data.Dataset.from_tensor_slices(x).batch(64).map(unbuilt).as_numpy_iterator()))
    np.testing.assert_allclose(y, to_numpy(layer(x)), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(
        to_numpy(unbuilt(x)), to_numpy(type(layer).from_statistics(statistics, **arguments)(x))
    )


# --- a dict of features -----------------------------------------------------------------------------------------------


@one_of_each_kind
def test_a_dict_of_features(name, tmp_path):
    x = table()
    data = {"b": x[:, :2], "a": x[:, 3]}
    if "Whiten" in name:
        data["a"] = x[:, 2:]
    layer = adapted(name, data)
    expected = {key: reference(name, value, value) for key, value in data.items()}
    inputs = {key: keras.Input(value.shape[1:], name=key) for key, value in data.items()}
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    tensors = {key: keras.ops.convert_to_tensor(value) for key, value in data.items()}
    results = [layer(data), layer(tensors), model.predict(data, verbose=0), again.predict(data, verbose=0)]
    for result in results:
        assert set(result) == set(data)
        for key in data:
            np.testing.assert_allclose(to_numpy(result[key]), expected[key], rtol=1e-4, atol=1e-4)
    for key, value in layer.inverse(layer(data)).items():
        np.testing.assert_allclose(to_numpy(value), data[key], rtol=1e-2, atol=1e-2)
    made = type(layer).from_statistics(layer.statistics, **{**layer.get_config(), "name": "made"})
    for key, value in made(data).items():
        np.testing.assert_allclose(to_numpy(value), expected[key], rtol=1e-4, atol=1e-4)


def test_a_dict_of_features_in_tf_data():
    tf = pytest.importorskip("tensorflow")
    x = table()
    data = {"a": x[:, 0], "b": x[:, 1:]}
    dataset = tf.data.Dataset.from_tensor_slices((data, x[:, 0])).batch(30)
    layer = Standardize()
    layer.adapt(dataset)
    mapped = list(dataset.map(lambda features, y: layer(features)).as_numpy_iterator())
    for key, value in data.items():
        y = np.concatenate([each[key] for each in mapped])
        np.testing.assert_allclose(y, reference("Standardize", value, value), rtol=1e-4, atol=1e-5)


def test_a_name_with_a_slash():
    x = table()
    layer = adapted("Standardize", {"size/width": x})
    np.testing.assert_array_equal(to_numpy(layer({"size/width": x})["size/width"]), to_numpy(adapted("Standardize")(x)))


def test_errors_of_dicts():
    x = table()
    layer = adapted("Standardize", {"a": x[:, 0], "b": x[:, 1]})
    with pytest.raises(ValueError, match="`data` must hold a dict of features"):
        layer.adapt(x)
    with pytest.raises(ValueError, match="`data` must hold an array"):
        adapted("Standardize").adapt({"a": x})
    with pytest.raises(ValueError, match="`data` must hold the features a, b. Received: data with 'c'"):
        layer.adapt({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2]})
    with pytest.raises(ValueError, match="`data` must hold the features a, b. Received: data without"):
        layer.adapt({"a": x[:, 0]})
    with pytest.raises(ValueError, match="the features must be 'a', 'b'. Received: 'a'"):
        layer({"a": x[:, 0]})
    bad = x[:, 1].copy()
    bad[3] = np.inf
    with pytest.raises(ValueError, match="In feature 'b'"):
        layer.adapt({"a": x[:, 0], "b": bad})


# --- adapt ------------------------------------------------------------------------------------------------------------


@every_layer
def test_adapt_starts_anew_or_goes_on(name):
    one, two = table(seed=1), table(seed=2) * 3
    layer = adapted(name, one)
    layer.adapt(two)
    np.testing.assert_allclose(to_numpy(layer(two)), reference(name, two, two), rtol=1e-4, atol=1e-4)
    layer.adapt(one, reset=False)
    both = np.concatenate([two, one])
    np.testing.assert_allclose(to_numpy(layer(both)), reference(name, both, both), rtol=1e-4, atol=1e-4)
    made = type(layer).from_statistics(adapted(name, one).statistics, **{**layer.get_config(), "name": "made"})
    made.adapt(two, reset=False)
    np.testing.assert_allclose(to_numpy(made(both)), reference(name, both, both), rtol=1e-4, atol=1e-4)


def test_adapt_forgets_statistics_of_other_features():
    layer = Standardize.from_statistics(adapted("Standardize", table()[:, :3]).statistics)
    layer.adapt(table())
    np.testing.assert_array_equal(to_numpy(layer(table())), to_numpy(adapted("Standardize")(table())))


def test_rows_that_all_lack_a_value():
    x = table()
    x[::2, 0], x[1::2, 1] = np.nan, np.nan
    adapted("Standardize", x)
    with pytest.raises(ValueError, match="`data` must have a row without missing values. Received: data without one"):
        Whiten().adapt(x)


def test_errors_of_adapt():
    x = table()
    layer = Standardize()
    layer.build((10, 5))
    with pytest.raises(ValueError, match="an incompatible shape.*Received: data with a batch of shape"):
        layer.adapt(x)
    with pytest.raises(ValueError, match="an incompatible shape"):
        Standardize().adapt(iter([x, x[:, :3]]))
    for empty in ([], iter([]), np.zeros((0, 4))):
        with pytest.raises(ValueError, match="`data` must hold at least one batch"):
            Standardize().adapt(empty)
    for wrong in (None, 3):
        with pytest.raises(TypeError, match="`data` must be a NumPy array.*Received: data="):
            Standardize().adapt(wrong)
    with pytest.raises(ValueError, match="`axis` must lie in"):
        Standardize(axis=3).adapt(x)
    with pytest.raises(ValueError, match="`axis` must lie in"):
        Standardize(axis=-4).build((2, 3, 4))
    with pytest.raises(ValueError, match="`axis` must name axes of known size"):
        Standardize(axis=1).build((None, None))
    with pytest.raises(ValueError, match="`steps` must be an int >= 1. Received: steps=0"):
        layer.adapt(x, steps=0)
    with pytest.raises(TypeError, match="`reset` must be True or False"):
        layer.adapt(x, reset=None)
    with pytest.raises(ValueError, match="`verbose` must be one of 'auto', 0, 1"):
        layer.adapt(x, verbose=2)


@pytest.mark.parametrize("axis", ["last", 1.0, True, (0, "b")])
def test_bad_axis(axis):
    with pytest.raises(TypeError, match="`axis` must be an int, a tuple of int, none twice, or None. Received: axis="):
        Standardize(axis=axis)


def test_axis_twice():
    with pytest.raises(ValueError, match="`axis` must be an int, a tuple of int, none twice, or None"):
        Standardize(axis=(1, 1))
