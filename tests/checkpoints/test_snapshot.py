import json

import keras
import numpy as np
import pytest

from tf_tricks.checkpoints import Snapshot

X = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")


def make_model(units=4, dtype="float32", optimizer="adam"):
    keras.config.set_dtype_policy(dtype)  # the fixture gives the old one back
    layers = [
        keras.Input((3,)),
        keras.layers.Dense(units),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5, seed=1),
        keras.layers.Dense(1),
    ]
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse")
    return model


def fit(model, epochs=1, callbacks=()):
    return model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, shuffle=False, callbacks=list(callbacks))


def bits(variables):
    return [np.array(keras.ops.convert_to_numpy(variable)).tobytes() for variable in variables]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "mixed_float16"])
def test_restore_is_bit_exact(dtype):
    model = make_model(dtype=dtype)
    fit(model)
    weights, optimizer = bits(model.weights), bits(model.optimizer.variables)
    snapshot = Snapshot.take(model)
    fit(model, 2)
    assert bits(model.weights) != weights and bits(model.optimizer.variables) != optimizer
    snapshot.restore(model)
    assert bits(model.weights) == weights
    assert bits(model.optimizer.variables) == optimizer


def test_a_restored_run_goes_on_as_the_first_time():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    fit(model, 2)
    snapshot = Snapshot.take(model)
    first = fit(model, 3).history["loss"]
    snapshot.restore(model)
    assert fit(model, 3).history["loss"] == first


@pytest.mark.parametrize("optimizer", [True, False])
def test_take_and_restore_inside_fit(optimizer):
    model = make_model()
    kept = {}

    class Rewind(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                kept["snapshot"] = Snapshot.take(self.model, optimizer=optimizer)
            if epoch == 3:
                kept["snapshot"].restore(self.model)
                kept["bits"] = bits(self.model.weights)
                kept["iterations"] = int(self.model.optimizer.iterations)

    fit(model, 4, [Rewind()])
    expected = [array.tobytes() for array in kept["snapshot"].arrays("weights")]
    assert kept["bits"] == expected == bits(model.weights)
    assert kept["iterations"] == (4 if optimizer else 8)


def test_take_inside_an_epoch():
    model, taken = make_model(), []

    class Take(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            # Given the bare model: the snapshot itself has to ask JAX for the present state.
            taken.append(Snapshot.take(model).arrays("weights")[0])

    fit(model, 1, [Take()])
    assert len(taken) == 2 and not np.array_equal(taken[0], taken[1])
    np.testing.assert_array_equal(taken[1], model.get_weights()[0])


def test_random_state_and_metrics_are_left_alone():
    model = make_model()
    fit(model)
    snapshot = Snapshot.take(model)
    fit(model)
    left_alone = [*model.metrics_variables, *(v for v in model.variables if "seed" in v.path)]
    assert len(left_alone) > 2
    before = bits(left_alone)
    snapshot.restore(model)
    assert bits(left_alone) == before
    assert not any("seed" in path for path in snapshot.get_state()["weights"]["paths"])


def test_optimizer_and_learning_rate_can_be_left_alone():
    model = make_model()
    fit(model)
    snapshot = Snapshot.take(model)
    fit(model)
    model.optimizer.learning_rate = 0.25
    optimizer = bits(model.optimizer.variables)
    snapshot.restore(model, optimizer=False)
    assert bits(model.optimizer.variables) == optimizer
    snapshot.restore(model, learning_rate=False)
    assert float(model.optimizer.learning_rate) == 0.25 and int(model.optimizer.iterations) == 2
    snapshot.restore(model)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.001)


def test_learning_rate_inside_a_loss_scale_optimizer_can_be_left_alone():
    model = make_model(optimizer=keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5)))
    fit(model)
    snapshot = Snapshot.take(model)
    model.optimizer.learning_rate = 0.25
    snapshot.restore(model, learning_rate=False)
    assert float(model.optimizer.learning_rate) == 0.25


def test_schedules_have_no_learning_rate_to_leave_alone():
    model = make_model(optimizer=keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)))
    fit(model)
    snapshot = Snapshot.take(model)
    fit(model)
    snapshot.restore(model, learning_rate=False)
    assert int(model.optimizer.iterations) == 2


def test_state_survives_a_file(tmp_path):
    model = make_model()
    fit(model)
    state = Snapshot.take(model).get_state()
    paths = json.loads(json.dumps({name: group["paths"] for name, group in state.items()}))
    for name, group in state.items():
        np.savez(tmp_path / name, *group["values"])
    loaded = {}
    for name in state:
        with np.load(tmp_path / f"{name}.npz") as file:
            loaded[name] = {"paths": paths[name], "values": [file[key] for key in file.files]}
    other = make_model()
    fit(other)
    Snapshot.from_state(loaded).restore(other)
    assert bits(other.weights) == bits(model.weights)
    assert bits(other.optimizer.variables) == bits(model.optimizer.variables)


def test_arrays_are_copies():
    model = make_model()
    fit(model)
    snapshot = Snapshot.take(model, optimizer=False)
    assert snapshot.arrays("optimizer") is None
    before = [array.copy() for array in snapshot.arrays("weights")]
    fit(model)
    for variable in model.weights:
        variable.assign(variable * 0 + 7)
    for array, copy in zip(snapshot.arrays("weights"), before, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_mismatch_names_the_first_variable_and_changes_nothing():
    model, wider = make_model(units=4), make_model(units=5)
    fit(model), fit(wider)
    snapshot, before = Snapshot.take(model), bits(wider.weights)
    with pytest.raises(ValueError, match=r"dense\w*/kernel` has shape \(3, 5\).*dense\w*/kernel` with shape \(3, 4\)"):
        snapshot.restore(wider)
    assert bits(wider.weights) == before
    with pytest.raises(ValueError, match="dtype bfloat16.*dtype float32"):
        snapshot.restore(make_model(dtype="bfloat16"), optimizer=False)
    with pytest.raises(ValueError, match=r"only the snapshot has is `adam\w*/.+`"):
        snapshot.restore(make_model(optimizer="sgd"))
    with pytest.raises(ValueError, match="10 variables in `weights`, the snapshot 8.*only the model has"):
        deeper = keras.Sequential([*make_model().layers, keras.layers.Dense(1)])
        deeper.build((None, 3))
        snapshot.restore(deeper, optimizer=False)


def test_a_model_without_an_optimizer():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match=r"no optimizer.*compile"):
        Snapshot.take(model)
    before = bits(model.weights)
    snapshot = Snapshot.take(model, optimizer=False)
    model.set_weights([array + 1 for array in model.get_weights()])
    snapshot.restore(model)
    assert bits(model.weights) == before


@pytest.mark.parametrize("scope", ["mirrored_strategy", "data_parallel"])
def test_several_devices(scope, request):
    strategy = request.getfixturevalue(scope)
    with strategy.scope():
        model = make_model()
        fit(model)
        weights, optimizer = bits(model.weights), bits(model.optimizer.variables)
        snapshot = Snapshot.take(model)
        losses = fit(model, 2).history["loss"]
        snapshot.restore(model)
        assert bits(model.weights) == weights and bits(model.optimizer.variables) == optimizer
        fit(model, 1)
        assert bits(model.weights) != weights and np.isfinite(losses).all()
