"""What every initializer keeps: seeds, dtypes and shapes as Keras's own initializers have them, and files."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops

import tf_tricks.initializers
from tests.contract import refusals
from tests.contract.initializer_rows import INITIALIZERS
from tests.contract.layer_rows import as_array

NAMES = sorted(INITIALIZERS)
DRAWING = [name for name in NAMES if "seed" in inspect.signature(getattr(tf_tricks.initializers, name)).parameters]


def values(initializer, row, dtype=None):
    return as_array(ops.cast(initializer(row.shape, dtype=dtype), "float32"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_shape_and_dtype_are_those_asked_for(name, dtype):
    row = INITIALIZERS[name]
    got = row.make()(row.shape, dtype=dtype)
    assert (tuple(got.shape), keras.backend.standardize_dtype(got.dtype)) == (row.shape, dtype)
    assert np.isfinite(as_array(ops.cast(got, "float32"))).all()


@pytest.mark.parametrize("name", NAMES)
def test_config_and_file_round_trip(name, tmp_path):
    cls = getattr(tf_tricks.initializers, name)
    assert keras.saving.get_registered_name(cls) == f"tf_tricks>{name}"
    for arguments in [{}, *INITIALIZERS[name].variants]:
        row, original = INITIALIZERS[name], INITIALIZERS[name].make(**arguments)
        config = original.get_config()
        assert set(config) == set(inspect.signature(cls).parameters)
        serialized = keras.saving.serialize_keras_object(original)
        again = keras.saving.deserialize_keras_object(serialized)
        assert type(again) is cls and again.get_config() == config
        if not arguments:
            np.testing.assert_array_equal(values(again, row), values(original, row))


@pytest.mark.parametrize("name", DRAWING)
def test_seeds_are_those_of_keras_s_own_initializers(name):
    row = INITIALIZERS[name]
    same = [values(row.make(seed=3), row) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert not np.array_equal(same[0], values(row.make(seed=4), row))
    once = row.make(seed=3)  # as Keras's: one object with an int for a seed gives the same at each call
    np.testing.assert_array_equal(values(once, row), values(once, row))
    drawn = [values(row.make(seed=None), row) for _ in range(2)]
    assert not np.array_equal(*drawn)
    keras.utils.set_random_seed(5)
    first = values(row.make(seed=None), row)
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(values(row.make(seed=None), row), first)
    generator = keras.random.SeedGenerator(3)
    assert not np.array_equal(*(values(row.make(seed=generator), row) for _ in range(2)))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_with_it_trains_and_comes_back_from_a_file(name, tmp_path):
    model = INITIALIZERS[name].model(INITIALIZERS[name].make())
    model.compile("sgd", "mse", jit_compile=keras.backend.backend() == "jax")
    x = np.random.default_rng(0).normal(size=(8, *model.input_shape[1:])).astype("float32")
    history = model.fit(x, model.predict(x, verbose=0) * 0, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize(("name", "argument", "value", "error", "accepted", "others"), refusals.cases(INITIALIZERS))
def test_a_bad_argument_is_named_with_what_is_accepted_and_what_came(name, argument, value, error, accepted, others):
    refusals.check(getattr(tf_tricks.initializers, name), argument, value, error, accepted, others)


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_refuses_something(name):
    own = set(inspect.signature(getattr(tf_tricks.initializers, name)).parameters)
    assert {bad[0] for bad in INITIALIZERS[name].bad} | set(INITIALIZERS[name].any_value) == own
