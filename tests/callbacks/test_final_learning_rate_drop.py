"""Plain SGD on a loss whose gradient is 1 everywhere: the change of the weight is the rate that was really used."""

import json
import zipfile

import keras
import numpy as np
import pytest

from tf_tricks.callbacks import EarlyStopping, FinalLearningRateDrop
from tf_tricks.callbacks.final_learning_rate_drop import multiplier

schedules = keras.optimizers.schedules


def slope_model(optimizer, **kwargs):
    """One weight; the absolute distance to a target far below has the slope 1."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    model.compile(optimizer, "mae", **{"jit_compile": False, **kwargs})
    return model


def data(steps):
    return np.ones((steps, 1), "float32"), np.full((steps, 1), -1e6, "float32")


class Weights(keras.callbacks.Callback):
    """The weight before the first step and after each call of the compiled function."""

    def on_train_begin(self, logs=None):
        self.seen = [self.weight()]

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(self.weight())

    def weight(self):
        return float(self.model.get_weights()[0][0, 0])

    @property
    def rates(self):
        return -np.diff(self.seen)


def fit(model, callbacks, epochs=4, steps=5, x=None, **kwargs):
    """Returns the rate of every step and the history."""
    weights = Weights()
    x, y = data(steps) if x is None else (x, None)
    arguments = {"batch_size": None if y is None else 1, "epochs": epochs, "verbose": 0, "shuffle": False, **kwargs}
    history = model.fit(x, y, callbacks=[*callbacks, weights], **arguments)
    return weights.rates, history.history


def rate(model):
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


def by_hand(total, length, factor, shape="step"):
    """Multipliers of all steps of a run."""
    t = np.arange(1, length + 1) / length
    phase = {
        "step": np.full(length, factor),
        "linear": np.interp(t, [0, 1], [1, factor]),
        "cosine": factor + (1 - factor) * np.cos(np.pi * t / 2) ** 2,
        "sqrt": 1 - (1 - factor) * t**0.5,
    }[shape]
    return np.concatenate([np.ones(total - length), phase])


@pytest.fixture(scope="module")
def model():
    return slope_model("sgd")


@pytest.fixture(autouse=True)
def as_new(model):
    model.optimizer.learning_rate = 1.0
    model.set_weights([np.zeros((1, 1), "float32")])


# --- the rate of every step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["step", "linear", "cosine", "sqrt"])
@pytest.mark.parametrize(
    ("last", "length"), [(0.3, 6), (2, 10), (1.0, 20), (0.01, 1), (0.33, 7), (9, 20), (np.float32(0.5), 10)]
)
def test_the_rate_of_every_step(model, shape, last, length):
    rates, history = fit(model, [FinalLearningRateDrop(0.25, last, shape, restore=True)])
    expected = by_hand(20, length, 0.25, shape)
    np.testing.assert_allclose(rates, expected, atol=2e-6)
    np.testing.assert_allclose(history["learning_rate"], expected[4::5], rtol=1e-6)
    assert all(type(value) is float for value in history["learning_rate"])
    assert rate(model) == 1.0


@pytest.mark.parametrize("first", [3, 4])
def test_initial_epoch_is_a_position_in_the_whole_run(model, first):
    rates, _ = fit(model, [FinalLearningRateDrop(0.25, 0.3, "linear", restore=True)], epochs=5, initial_epoch=first)
    np.testing.assert_allclose(rates, by_hand(25, 8, 0.25, "linear")[first * 5 :], atol=2e-6)


def test_the_reference_of_the_shapes_ends_at_the_factor():
    for shape in ("step", "linear", "cosine", "sqrt"):
        assert multiplier(0.0, 0.1, shape) == 1.0 and multiplier(1.0, 0.1, shape) == pytest.approx(0.1)
        assert multiplier(7.0, 0.1, shape) == pytest.approx(0.1)


@pytest.mark.parametrize("jit", [True, False])
def test_several_steps_in_one_execution(backend, jit):
    if backend == "torch":
        pytest.skip("the Torch backend runs one step at a time")
    model = slope_model(keras.optimizers.SGD(1.0), steps_per_execution=4, jit_compile=jit)
    rates, _ = fit(model, [FinalLearningRateDrop(0.25, 0.5)], epochs=2, steps=6)  # executions of 4 and 2 steps
    np.testing.assert_allclose(rates, [4, 2, 4 * 0.25, 2 * 0.25], rtol=1e-6)
    model.set_weights([np.zeros((1, 1), "float32")])
    rates, _ = fit(model, [FinalLearningRateDrop(0.5, 5 / 12)], epochs=2, steps=6)  # in the middle of an execution
    np.testing.assert_allclose(rates / 0.25, [4, 2, 1 + 3 * 0.5, 2 * 0.5], rtol=1e-6)


def test_eager_steps():
    model = slope_model(keras.optimizers.SGD(1.0), run_eagerly=True)
    rates, _ = fit(model, [FinalLearningRateDrop(0.25, 0.3)])
    np.testing.assert_allclose(rates, by_hand(20, 6, 0.25), rtol=1e-6)


def test_gradient_accumulation_takes_the_rate_of_the_step_that_updates():
    model = slope_model(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2))
    rates, _ = fit(model, [FinalLearningRateDrop(0.25, 3, "linear")], epochs=4, steps=2)
    np.testing.assert_allclose(rates, [0, 1, 0, 0.75, 0, 0.5, 0, 0.25], atol=1e-6)


# --- a dataset whose length nobody knows ------------------------------------------------------------------------------


def unknown_length(backend, steps):
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.data.Dataset.from_tensor_slices(data(steps)).batch(1).filter(lambda x, y: True)
    import torch

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(*data(steps), strict=True))

    return torch.utils.data.DataLoader(Stream(), batch_size=1)


# Keras says so about every dataset whose end it does not know.
ran_out_of_data = pytest.mark.filterwarnings("ignore:Your input ran out of data")


@ran_out_of_data
@pytest.mark.parametrize(
    ("last", "shape", "expected"),
    [
        (0.3, "step", by_hand(20, 6, 0.25)),
        (0.3, "linear", by_hand(20, 6, 0.25, "linear")),
        # Inside the first epoch the multiplier is the one at its begin.
        (0.9, "step", [1.0] * 5 + [0.25] * 15),
        (1.0, "linear", [1.0] * 5 + by_hand(20, 20, 0.25, "linear")[5:].tolist()),
        (4, "step", [0.25] * 20),
    ],
)
def test_unknown_length(model, backend, last, shape, expected):
    callback = FinalLearningRateDrop(0.25, last, shape, restore=True)
    rates, _ = fit(model, [callback], x=unknown_length(backend, 5))
    np.testing.assert_allclose(rates, expected, atol=2e-6)


@ran_out_of_data
@pytest.mark.parametrize(
    ("epochs", "first", "last", "shape", "expected"),
    [(1, 0, 0.1, "step", 1.0), (1, 0, 1, "linear", 1.0), (4, 3, 0.5, "linear", 0.625), (2, 1, 0.25, "step", 1.0)],
)
def test_no_drop_and_a_warning_if_the_only_epoch_has_no_known_length(
    model, backend, epochs, first, last, shape, expected
):
    callback = FinalLearningRateDrop(0.25, last, shape)
    x = unknown_length(backend, 5)
    for _ in range(2):
        with pytest.warns(UserWarning, match="unknown length.*stays multiplied by.*`steps_per_epoch`") as seen:
            rates, _ = fit(model, [callback], epochs=epochs, initial_epoch=first, x=x)
        assert sum("FinalLearningRateDrop" in str(each.message) for each in seen) == 1
        np.testing.assert_allclose(rates, expected, atol=2e-6)
        assert rate(model) == pytest.approx(expected)
        model.optimizer.learning_rate = 1.0


@ran_out_of_data
def test_no_warning_where_the_whole_epoch_belongs_to_the_last_phase(model, backend):
    for epochs, first, last in [(1, 0, 1), (1, 0, 1.0), (4, 3, 0.25)]:
        callback = FinalLearningRateDrop(0.25, last, restore=True)
        rates, _ = fit(model, [callback], epochs=epochs, initial_epoch=first, x=unknown_length(backend, 5))
        np.testing.assert_allclose(rates, [0.25] * 5, atol=2e-6)


def test_one_epoch_of_known_length(model):
    rates, history = fit(model, [FinalLearningRateDrop(0.25, 0.4)], epochs=1)
    np.testing.assert_allclose(rates, [1, 1, 1, 0.25, 0.25], atol=2e-6)
    assert history["learning_rate"] == [0.25]


# --- whatever the rate is ---------------------------------------------------------------------------------------------


STEPS = np.arange(20)
RATES = {
    "exponential": (lambda: schedules.ExponentialDecay(1.0, 10, 0.5), 0.5 ** (STEPS / 10)),
    "cosine": (lambda: schedules.CosineDecay(1.0, 40, alpha=0.1), 0.1 + 0.9 * (1 + np.cos(np.pi * STEPS / 40)) / 2),
    "callable": (lambda: lambda: 0.5, np.full(20, 0.5)),
}


@pytest.mark.parametrize("kind", RATES)
def test_schedules_and_callables(kind):
    make, base = RATES[kind]
    model = slope_model(keras.optimizers.SGD(make()))
    rates, history = fit(model, [FinalLearningRateDrop(0.25, 0.3)])
    expected = base * by_hand(20, 6, 0.25)
    np.testing.assert_allclose(rates, expected, atol=3e-6)
    np.testing.assert_allclose(history["learning_rate"], expected[4::5], rtol=1e-5)
    # The lower rate stays, on the user's own curve; a second fit drops again.
    after = make()(20) if kind != "callable" else 0.5
    assert rate(model) == pytest.approx(0.25 * float(keras.ops.convert_to_numpy(after)), rel=1e-5)
    again, _ = fit(model, [FinalLearningRateDrop(0.5, 1, restore=True)], epochs=2, steps=2)
    bare, _ = fit(model, [], epochs=1, steps=1)
    if kind == "exponential":  # the compiled step of the first fit must not go on with the schedule of then
        np.testing.assert_allclose(again, 0.25 * 0.5 ** (np.arange(20, 24) / 10) * [1, 1, 0.5, 0.5], atol=3e-6)
        np.testing.assert_allclose(bare, 0.25 * 0.5**2.4, atol=3e-6)


def test_learning_rate_scheduler_sees_the_rate_without_the_drop(model):
    seen = []

    def halve(epoch, learning_rate):
        seen.append(learning_rate)
        return learning_rate / 2

    callbacks = [keras.callbacks.LearningRateScheduler(halve), FinalLearningRateDrop(0.25, 0.3)]
    rates, history = fit(model, callbacks)
    np.testing.assert_allclose(rates, np.repeat([0.5, 0.25, 0.125, 0.0625], 5) * by_hand(20, 6, 0.25), atol=2e-6)
    assert seen == [1.0, 0.5, 0.25, 0.125]
    np.testing.assert_allclose(history["learning_rate"], [0.5, 0.25, 0.125 * 0.25, 0.0625 * 0.25])


def test_reduce_on_plateau(model):
    # The loss falls all the time; a plateau is a fall of less than 100.
    plateau = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=100, cooldown=0, min_lr=0)
    rates, _ = fit(model, [FinalLearningRateDrop(0.25, 0.3), plateau])
    np.testing.assert_allclose(rates, np.repeat([1, 1, 0.5, 0.25], 5) * by_hand(20, 6, 0.25), atol=2e-6)
    assert rate(model) == pytest.approx(0.125 * 0.25)


def test_drop_before_stop(model):
    stopping = EarlyStopping("loss", patience=1, min_delta=100, learning_rate_drop=0.5, max_drops=1)
    rates, _ = fit(model, [stopping, FinalLearningRateDrop(0.25, 0.5)], epochs=6)
    # Epoch 1 does not improve: back to epoch 0, half the rate; epoch 2 does not either: the end, before the last half.
    np.testing.assert_allclose(rates[11:], [0.5] * 4, atol=2e-6)  # the step before starts at the best weights
    assert stopping.stopped_epoch == 2 and len(rates) == 15
    assert rate(model) == pytest.approx(0.5)  # the final drop never came, not even by the look at the next step's rate


def test_two_drops_multiply(model):
    rates, _ = fit(model, [FinalLearningRateDrop(0.5, 0.5), FinalLearningRateDrop(0.5, 0.25)])
    np.testing.assert_allclose(rates, by_hand(20, 10, 0.5) * by_hand(20, 5, 0.5), atol=2e-6)
    assert rate(model) == pytest.approx(0.25)


def test_loss_scale_optimizer():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1.0), initial_scale=8.0)
    model = slope_model(optimizer)
    rates, history = fit(model, [FinalLearningRateDrop(0.25, 0.3)])
    np.testing.assert_allclose(rates, by_hand(20, 6, 0.25), rtol=1e-6)
    assert history["learning_rate"] == [1, 1, 0.25, 0.25] and rate(model) == 0.25


@pytest.mark.parametrize(
    "optimizer", [keras.optimizers.AdamW, keras.optimizers.SGD, keras.optimizers.Lion], ids=lambda cls: cls.__name__
)
def test_weight_decay_drops_too(optimizer):
    model = slope_model(optimizer(0.5, weight_decay=0.1))
    model.set_weights([np.ones((1, 1), "float32")])
    weights = Weights()
    x = np.zeros((20, 1), "float32")  # no gradient: nothing but the decay moves the weight
    callbacks = [FinalLearningRateDrop(0.25, 0.3), weights]
    model.fit(x, x, batch_size=1, epochs=1, verbose=0, callbacks=callbacks)
    shrunk = np.divide(weights.seen[1:], weights.seen[:-1])
    np.testing.assert_allclose(1 - shrunk, 0.1 * 0.5 * by_hand(20, 6, 0.25), rtol=1e-4)


# --- after fit --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore", [True, False])
def test_two_fits(model, restore):
    callback = FinalLearningRateDrop(0.25, 0.5, restore=restore)
    expected = by_hand(4, 2, 0.25)
    for scale in (1.0, 1.0 if restore else 0.25):
        rates, _ = fit(model, [callback], epochs=2, steps=2)
        np.testing.assert_allclose(rates, scale * expected, atol=2e-6)
        assert rate(model) == pytest.approx(scale * (1.0 if restore else 0.25))
    after, _ = fit(model, [], epochs=1)
    np.testing.assert_allclose(after, 1.0 if restore else 0.0625, atol=2e-6)


@pytest.mark.parametrize("last_epoch", [0, 1, 2])
def test_stopping_early_keeps_the_rate_of_the_last_step(model, last_epoch):
    def stop(epoch, logs):
        model.stop_training = epoch == last_epoch

    stopper = keras.callbacks.LambdaCallback(on_epoch_end=stop)
    rates, _ = fit(model, [FinalLearningRateDrop(0.25, 2, "linear"), stopper])
    expected = by_hand(20, 10, 0.25, "linear")[: (last_epoch + 1) * 5]
    np.testing.assert_allclose(rates, expected, atol=2e-6)
    assert rate(model) == pytest.approx(expected[-1])


def test_a_fit_that_raises_leaves_the_rate_as_it_was(model):
    def fail(epoch, logs):
        raise KeyError("planted")

    callback = FinalLearningRateDrop(0.25, 1.0)
    with pytest.raises(KeyError, match="planted"):
        fit(model, [callback, keras.callbacks.LambdaCallback(on_epoch_end=fail)])
    assert rate(model) == 1.0
    rates, _ = fit(model, [callback], epochs=1)
    np.testing.assert_allclose(rates, 0.25, atol=2e-6)


@pytest.mark.parametrize("kind", ["float", "exponential"])
def test_files(tmp_path, kind):
    start = 1.0 if kind == "float" else schedules.ExponentialDecay(1.0, 10, 0.5)
    model = slope_model(keras.optimizers.SGD(start))
    during = keras.callbacks.ModelCheckpoint(tmp_path / "during{epoch}.keras")
    fit(model, [FinalLearningRateDrop(0.25, 0.5), during], epochs=2, steps=2)
    config = json.loads(zipfile.ZipFile(tmp_path / "during2.keras").read("config.json"))
    assert "tf_tricks" not in json.dumps(config)  # it can be loaded where this package is not installed
    loaded = keras.saving.load_model(tmp_path / "during2.keras")
    assert rate(loaded) == pytest.approx(1.0 if kind == "float" else 0.5**0.4)
    model.save(tmp_path / "after.keras")
    loaded = keras.saving.load_model(tmp_path / "after.keras")
    rates = [fit(each, [], epochs=1, steps=3)[0] for each in (model, loaded)]
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-6)
    expected = 0.25 if kind == "float" else 0.25 * 0.5 ** (np.arange(4, 7) / 10)
    np.testing.assert_allclose(rates[0], expected, atol=2e-6)


@pytest.mark.parametrize("scope", ["mirrored_strategy", "data_parallel"])
def test_several_devices(scope, request):
    with request.getfixturevalue(scope).scope():
        model = slope_model(keras.optimizers.SGD(1.0), jit_compile=scope == "data_parallel")
        weights = Weights()
        x, y = np.ones((16, 1), "float32"), np.full((16, 1), -1e6, "float32")
        callbacks = [FinalLearningRateDrop(0.25, 0.5), weights]
        model.fit(x, y, batch_size=4, epochs=1, verbose=0, callbacks=callbacks)
    np.testing.assert_allclose(weights.rates, [1, 1, 0.25, 0.25], rtol=1e-6)
    assert rate(model) == 0.25


# --- arguments --------------------------------------------------------------------------------------------------------


def test_config_round_trip():
    config = {"factor": 0.5, "last": 3, "shape": "sqrt", "restore": True}
    saved = keras.saving.serialize_keras_object(FinalLearningRateDrop(**config))
    assert saved["registered_name"] == "tf_tricks>FinalLearningRateDrop"
    assert keras.saving.deserialize_keras_object(saved).get_config() == config


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"factor": 1.5}, ValueError, r"`factor` must lie in \(0, 1\). Received: factor=1.5"),
        ({"factor": "a"}, TypeError, "`factor` must be a number"),
        ({"last": 0.0}, ValueError, r"`last` must lie in \(0, 1\]. Received: last=0.0"),
        ({"last": 1.5}, ValueError, r"`last` must lie in \(0, 1\]"),
        ({"last": 0}, ValueError, "`last` must be an int >= 1. Received: last=0"),
        ({"last": "all"}, TypeError, r"`last` must be a float in \(0, 1\] or an int >= 1. Received: last='all'"),
        ({"last": True}, TypeError, "`last` must be a float"),
        ({"shape": "cliff"}, ValueError, "`shape` must be one of 'step', 'linear', 'cosine', 'sqrt'. Received"),
        ({"restore": 1}, TypeError, "`restore` must be True or False"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        FinalLearningRateDrop(**arguments)
