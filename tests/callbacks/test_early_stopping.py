import copy
import json
import warnings

import keras
import numpy as np
import pytest

from tests.clock import Clock
from tf_tricks.callbacks import early_stopping
from tf_tricks.callbacks.early_stopping import EarlyStopping

NAN, INF = float("nan"), float("inf")
RELATIVE = {"min_delta_mode": "relative"}


def scalar_model(weight=0.0, compiled=True):
    """A model with the single weight `weight`: its value shows which epoch was restored."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    model.set_weights([np.array([[weight]], "float32")])
    if compiled:
        model.compile("sgd", "mse")
        model.optimizer.build(model.trainable_variables)
    return model


@pytest.fixture(scope="module")
def model():
    return scalar_model()


def drive(callback, logs, model, first_epoch=0):
    """Play the part of `fit`: one dict of logs per epoch. The weight after epoch n is n + 1."""
    model.stop_training = False
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, each in enumerate(logs, first_epoch):
        callback.on_epoch_begin(epoch)
        callback.on_train_batch_begin(0)
        model.set_weights([np.full((1, 1), epoch + 1.0, "float32")])
        callback.on_epoch_end(epoch, each)
        if model.stop_training:
            break
    callback.on_train_end()
    return epoch


def script(values, monitor="val_loss"):
    return [{} if value is None else {monitor: value} for value in values]


def run(values, model, monitor="val_loss", **kwargs):
    callback = EarlyStopping(monitor, **kwargs)
    drive(callback, script(values, monitor), model)
    return callback


# --- where Keras is right, do what Keras does -------------------------------------------------------------------------


def random_case(rng):
    mode = str(rng.choice(["min", "max"]))
    trend = np.linspace(0, rng.normal(scale=4), 20)
    values = np.round(rng.uniform(0, 1) * rng.normal(size=20) + trend, int(rng.integers(1, 7)))
    values = [float(np.float32(value)) if rng.random() > 0.1 else None for value in values]
    arguments = {
        "mode": mode,
        "min_delta": float(rng.choice([0, 0.1, -0.1, 0.5])),
        "patience": int(rng.integers(0, 6)),
        "baseline": None if rng.random() < 0.5 else round(float(rng.normal()), 1),
        "restore_best_weights": bool(rng.random() < 0.7),
        "start_from_epoch": int(rng.choice([0, 0, 3])),
    }
    return values, arguments


@pytest.mark.parametrize("seed", range(6))
def test_random_losses_end_as_with_keras(seed, model):
    rng = np.random.default_rng(seed)
    stopped = 0
    for _ in range(60):
        values, arguments = random_case(rng)
        ends = []
        for cls in (keras.callbacks.EarlyStopping, EarlyStopping):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Keras warns in every epoch without validation
                callback = cls("val_loss", **arguments)
                last = drive(callback, script(values), model)
            kept = None if callback.best_weights is None else np.asarray(callback.best_weights).ravel().tolist()
            ends.append([last, model.stop_training, callback.stopped_epoch, callback.best, callback.best_epoch or 0])
            ends[-1] += [callback.wait, kept, float(model.get_weights()[0][0, 0])]
        assert ends[0] == ends[1], (values, arguments)
        stopped += ends[0][1]
    assert 20 < stopped < 59  # both kinds of end were seen


def test_positional_arguments_are_those_of_keras():
    arguments = ("loss", 0.5, 3, 1, "max", 0.7, True, 2)
    theirs, ours = keras.callbacks.EarlyStopping(*arguments), EarlyStopping(*arguments)
    for name in "monitor min_delta patience verbose mode baseline restore_best_weights start_from_epoch".split():
        assert getattr(ours, name) == getattr(theirs, name)


def test_a_real_fit_ends_as_with_keras():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype("float32")
    y = x[:, :1] + rng.normal(size=(64, 1)).astype("float32")
    ends = []
    for cls in (keras.callbacks.EarlyStopping, EarlyStopping):
        keras.utils.set_random_seed(1)
        net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)])
        net.compile(keras.optimizers.Adam(0.03), "mse", metrics=["mae"], jit_compile=False)
        callback = cls("val_mae", patience=4, restore_best_weights=True)
        history = net.fit(x, y, validation_split=0.5, epochs=40, verbose=0, callbacks=[callback]).history
        ends.append((history, net.get_weights(), callback.best_epoch))
    assert ends[0][0] == ends[1][0] and 3 < len(ends[0][0]["loss"]) < 40 and ends[0][2] == ends[1][2]
    for theirs, ours in zip(ends[0][1], ends[1][1], strict=True):
        np.testing.assert_array_equal(theirs, ours)


def keras_direction(net, monitor):
    callback = keras.callbacks.EarlyStopping(monitor, patience=1)
    try:
        drive(callback, script([1.0, 2.0, 1.5], monitor), net)
    except ValueError:
        return None
    return "max" if callback.best == 2.0 else "min"


def metrics_of_keras():
    arguments = {"IoU": {"num_classes": 2, "target_class_ids": [0]}}
    arguments |= {"OneHotIoU": arguments["IoU"], "MeanIoU": {"num_classes": 2}, "OneHotMeanIoU": {"num_classes": 2}}
    arguments |= {name: {name.split("At")[1].lower(): 0.5} for name in dir(keras.metrics) if "At" in name}
    for name in dir(keras.metrics):
        cls = getattr(keras.metrics, name)
        if isinstance(cls, type) and name not in ("Metric", "MeanMetricWrapper"):
            for label in ({}, {"name": "x1"}):  # the name that Keras gives, and one that says nothing
                yield cls(**arguments.get(name, {}), **label)
    for loss in (keras.losses.cosine_similarity, keras.losses.huber, keras.losses.MeanSquaredError()):
        yield keras.metrics.MeanMetricWrapper(loss, name="x2")


def test_auto_knows_every_direction_that_keras_knows():
    known = 0
    for metric in metrics_of_keras():
        net = scalar_model(compiled=False)
        net.compile("sgd", "mse", metrics=[metric])
        net.metrics[-1].build(np.ones((2, 1)), np.ones((2, 1)))
        monitor = f"val_{metric.name}"
        expected = keras_direction(net, monitor)
        if expected is not None:
            known += 1
            assert run([1.0, 2.0, 1.5], net, monitor).best == (2.0 if expected == "max" else 1.0), metric
    assert known >= 70


@pytest.mark.parametrize(
    ("monitor", "best"),
    [("val_out_loss", 1.0), ("val_out_accuracy", 2.0), ("val_out_x3", 2.0), ("my_f1", 2.0), ("GoodnessError", 1.0)],
)
def test_auto_knows_more_than_keras(monitor, best):
    net = scalar_model(compiled=False)
    net.compile("sgd", "mse", metrics=[keras.metrics.BinaryAccuracy(name="x3"), lambda y_true, y_pred: y_pred])
    net.evaluate(np.ones((2, 1)), np.ones((2, 1)), verbose=0)
    assert run([1.0, 2.0, 1.5], net, monitor).best == best


@pytest.mark.parametrize("monitor", ["score", "accuracy_error", "val_accelerated"])
def test_auto_asks_when_it_cannot_tell(monitor, model):
    with pytest.raises(ValueError, match=f"monitor `{monitor}` should be as high or as low.*mode='max' or mode='min'"):
        run([1.0], model, monitor)
    assert run([1.0, 2.0], model, monitor, mode="max").best == 2.0


# --- where Keras is wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_not_finite_is_never_best(bad, mode, model):
    callback = run([bad, 0.5, bad, 0.5, bad, bad], model, mode=mode, patience=3, restore_best_weights=True)
    assert (callback.best, callback.best_epoch, callback.stopped_epoch) == (0.5, 1, 4)
    assert model.get_weights()[0] == 2.0


def test_a_run_that_is_never_finite_stops_without_a_best(model):
    callback = run([NAN] * 5, model, patience=3, restore_best_weights=True, learning_rate_drop=None)
    assert (callback.stopped_epoch, callback.best, callback.best_epoch, callback.best_weights) == (2, None, None, None)
    assert callback.stopped_reason == "val_loss has not been finite in 3 epochs"
    assert model.get_weights()[0] == 3.0


def test_epochs_without_validation_do_not_count_and_do_not_warn(model):
    values = [None, 1.0, None, 2.0, None, 2.0, None, 2.0]
    callback = EarlyStopping(patience=3)
    drive(callback, [{"loss": 0.0, **each} for each in script(values)], model)
    assert (callback.stopped_epoch, callback.best_epoch) == (7, 1)
    assert callback.stopped_reason == "val_loss has not improved for 3 measured epochs (best 1 at epoch 2)"


def test_validation_freq_in_a_real_fit():
    net = scalar_model(1.0)
    net.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = np.ones((1, 1), "float32"), np.zeros((1, 1), "float32")
    callback = EarlyStopping(patience=2)
    history = net.fit(x, y, epochs=30, verbose=0, validation_data=(x, y), validation_freq=3, callbacks=[callback])
    assert len(history.epoch) == 9 and callback.best_epoch == 2


@pytest.mark.parametrize(
    ("monitor", "logs", "epochs"),
    [
        ("val_los", [{"loss": 1.0}, {"loss": 1.0, "val_loss": 1.0}, {"loss": 1.0, "val_loss": 1.0}], 2),
        ("acuracy", [{"loss": 1.0, "val_loss": 1.0}] * 3, 1),
        ("val_loss", [{"loss": 1.0}] * 3, 3),
    ],
    ids=["misspelled", "no such metric", "no validation"],
)
def test_one_warning_when_the_monitor_could_have_been_there(monitor, logs, epochs, model):
    callback = EarlyStopping(monitor, mode="min")
    with pytest.warns(
        UserWarning, match=f"EarlyStopping: monitor `{monitor}` is not in the logs.*loss.*Change"
    ) as seen:
        drive(callback, logs, model)
    assert len(seen) == 1
    with warnings.catch_warnings(record=True) as early:
        warnings.simplefilter("always")
        callback.on_train_begin()
        for epoch, each in enumerate(logs[:epochs]):
            before = len(early)
            callback.on_epoch_end(epoch, each)
    assert before == 0  # not before it was due
    assert len(early) == (0 if epochs == 3 else 1)


# --- more than Keras --------------------------------------------------------------------------------------------------


def test_min_delta_relative(model):
    values = [100.0, 99.5, 98.9, 98.0, 97.92, 97.0]
    callback = run(values, model, min_delta=0.01, **RELATIVE, patience=9)
    assert (callback.best_epoch, callback.best, callback.wait) == (5, 97.0, 0)
    # 1 % of 100: 98.9 is the first improvement. 1 % of 98.9 is 0.989: 97.9 or less, so only 97.0 comes next.
    assert run(values[:5], model, min_delta=0.01, **RELATIVE, patience=9).best == 98.9
    negative = [-100.0, -100.5, -101.5]  # a log-likelihood as a loss: the margin is 1 % of the magnitude
    assert run(negative, model, min_delta=0.01, **RELATIVE, patience=9).best == -101.5
    assert run(negative[:2], model, min_delta=0.01, **RELATIVE, patience=9).best == -100.0


def test_smoothing_is_the_bias_corrected_average_of_what_is_finite(model):
    values = np.random.default_rng(0).normal(size=12)
    weights = 0.8 ** np.arange(12)[::-1]
    expected = [np.sum(weights[-n:] * values[:n]) / np.sum(weights[-n:]) for n in range(1, 13)]
    callback = run([*values[:5], NAN, INF, *values[5:]], model, smoothing=0.8, patience=99)
    assert callback.best == pytest.approx(min(expected), rel=1e-12)
    best = int(np.argmin(expected))
    assert callback.best_epoch == best + (2 if best >= 5 else 0)


def test_smoothing_zero_is_no_smoothing(model):
    values = np.random.default_rng(1).normal(size=10).tolist()
    smooth, plain = run(values, model, smoothing=0.0, patience=3), run(values, model, patience=3)
    assert (smooth.best, smooth.best_epoch, smooth.stopped_epoch) == (plain.best, plain.best_epoch, plain.stopped_epoch)


def test_smoothing_is_patient_with_noise(model):
    values = np.linspace(2, 1, 30) + np.random.default_rng(0).normal(scale=0.3, size=30)
    assert run(values, model, patience=5).stopped_epoch < 25
    assert run(values, model, patience=5, smoothing=0.9).stopped_reason is None


def test_several_monitors(model):
    logs = [
        {"a": 1.0, "acc": 0.5},
        {"a": 2.0, "acc": 0.6},  # the second one improves: no waiting, but epoch 0 stays the best
        {"a": 2.0, "acc": 0.6},
        {"a": 2.0},  # does not count
        {"a": 2.0, "acc": NAN},
        {"a": 0.0, "acc": 0.0},
    ]
    callback = EarlyStopping(["a", "acc"], patience=2, mode=["min", "auto"], restore_best_weights=True)
    assert drive(callback, logs, model) == 4
    assert (callback.best, callback.best_epoch) == (1.0, 0) and model.get_weights()[0] == 1.0
    assert callback.stopped_reason == "none of a, acc has improved for 2 measured epochs (best a 1 at epoch 1)"


def test_several_monitors_with_margins_and_a_baseline(model):
    logs = [{"a": 5.0 - n, "b": 1.0 - 0.01 * n} for n in range(4)] + [{"a": 2.0, "b": 0.0}] * 3
    callback = EarlyStopping(("a", "b"), min_delta=[0, 0.1], mode="min", patience=2, baseline=1.5)
    assert drive(callback, logs, model) == 5  # the baseline is the first monitor's; `b` improved in epoch 4
    assert "improved on the baseline 1.5 for 6 epochs" in callback.stopped_reason


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(early_stopping, "time", clock)
    return clock


def test_max_seconds_ends_a_long_epoch(clock):
    net, batches = scalar_model(), []

    class Tick(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            clock.now += 10
            batches.append(batch)

    callback = EarlyStopping("loss", max_seconds=35, patience=99)
    x = np.ones((20, 1), "float32")
    for _ in range(2):  # the clock starts anew with each fit
        batches.clear()
        net.fit(x, x, batch_size=1, epochs=5, verbose=0, callbacks=[Tick(), callback])
        assert batches == [0, 1, 2, 3, 4]
        assert callback.stopped_reason == "the time limit of 35 seconds was reached in epoch 1"
        assert callback.stopped_epoch == 0


def test_max_seconds_at_the_end_of_an_epoch(clock, model):
    callback = EarlyStopping(max_seconds=25, patience=0, learning_rate_drop=None, start_from_epoch=99)
    callback.set_model(model)
    callback.on_train_begin()
    for epoch in range(3):
        clock.now += 10
        model.stop_training = False
        callback.on_epoch_end(epoch, {"val_loss": 1.0})
        assert model.stop_training == (epoch == 2)


@pytest.mark.parametrize(
    ("values", "arguments", "epoch", "reason"),
    [
        ([0.5, 0.9, 1.0], {"stop_above": 1, "mode": "max"}, 2, "val_loss is 1 in epoch 3, at or above stop_above=1"),
        ([0.5, 0.25, 0.1], {"stop_below": 0.25}, 1, "val_loss is 0.25 in epoch 2, at or below stop_below=0.25"),
        ([0.5, 9.0], {"stop_above": 5}, 1, "val_loss is 9 in epoch 2, at or above stop_above=5"),
        ([0.1, 0.1], {"stop_below": 0.2}, 0, "val_loss is 0.1 in epoch 1, at or below stop_below=0.2"),
        ([1.0, 1.9, 2.1], {"divergence": 1}, 2, "val_loss has diverged to 2.1 in epoch 3 (best 1 at epoch 1)"),
        ([2, 5, 7], {"divergence": 2, **RELATIVE}, 2, "val_loss has diverged to 7 in epoch 3 (best 2 at epoch 1)"),
        ([9, 4], {"divergence": 3, "mode": "max"}, 1, "val_loss has diverged to 4 in epoch 2 (best 9 at epoch 1)"),
        ([NAN, 0.9, NAN], {"divergence": 0.3}, 2, "val_loss is no longer finite in epoch 3 (best 0.9 at epoch 2)"),
    ],
)  # fmt: skip
def test_thresholds_and_divergence(values, arguments, epoch, reason, model):
    callback = run([*values, 0.3, 0.3], model, patience=99, **arguments)
    assert (callback.stopped_epoch, callback.stopped_reason) == (epoch, reason)


def test_before_start_from_epoch_only_the_clock_counts(model):
    callback = run([9.0, 0.1, 5.0, 4.0], model, patience=99, stop_below=1, divergence=1, start_from_epoch=2)
    assert (callback.best, callback.stopped_reason) == (4.0, None)


def test_patience_gives_a_reason(model):
    callback = run([0.2, 0.1234567, 0.5, 0.5, 0.5], model, patience=3)
    assert callback.stopped_reason == "val_loss has not improved for 3 epochs (best 0.1235 at epoch 2)"
    assert run([0.2, 0.3], model).stopped_reason == "val_loss has not improved for 1 epoch (best 0.2 at epoch 1)"
    assert run([0.2, 0.1], model).stopped_reason is None


def test_two_fits_with_one_object(model):
    callback = EarlyStopping(patience=2, restore_best_weights=True, smoothing=0.5)
    first = [drive(callback, script([1.0, 0.5, 2.0, 2.0, 2.0]), model), callback.best, callback.best_epoch]
    assert drive(callback, script([9.0, 8.0]), model) == 1 and callback.stopped_reason is None
    assert callback.best_epoch == 1 and model.get_weights()[0] == 2.0
    assert [drive(callback, script([1.0, 0.5, 2.0, 2.0, 2.0]), model), callback.best, callback.best_epoch] == first


def test_verbose(capsys, model):
    values = [1.0, 0.5, 2.0, 2.0]
    run(values, model, patience=2, restore_best_weights=True)
    assert capsys.readouterr().out == ""
    run(values, model, patience=2, restore_best_weights=True, verbose=1)
    assert capsys.readouterr().out == (
        "Epoch 4: early stopping: val_loss has not improved for 2 epochs (best 0.5 at epoch 2).\n"
        "Restoring model weights from the end of the best epoch: 2.\n"
    )


# --- drop before stop, in a real fit ----------------------------------------------------------------------------------


class Record(keras.callbacks.Callback):
    """What the weight and the optimizer's step were when the epoch began and ended."""

    def __init__(self):
        super().__init__()
        self.begin, self.end = [], []

    def state(self):
        optimizer = self.model.optimizer
        return float(self.model.get_weights()[0][0, 0]), int(optimizer.iterations)

    def on_epoch_begin(self, epoch, logs=None):
        self.begin.append(self.state())

    def on_epoch_end(self, epoch, logs=None):
        self.end.append(self.state())


def constant_schedule(rate):
    return keras.optimizers.schedules.ExponentialDecay(rate, decay_steps=1, decay_rate=1.0)


def fit_parabola(net, callbacks, epochs=20, **kwargs):
    """One step per epoch on the loss `weight**2`: a step multiplies the weight by `1 - 2 * learning_rate`."""
    x, y = np.ones((1, 1), "float32"), np.zeros((1, 1), "float32")
    return net.fit(x, y, epochs=epochs, verbose=0, callbacks=callbacks, **kwargs).history["loss"]


@pytest.mark.parametrize("rate", [float, constant_schedule], ids=["float", "schedule"])
def test_drop_before_stop(rate, capsys):
    net, record = scalar_model(1.0), Record()
    net.compile(keras.optimizers.SGD(rate(1.0)), "mse")  # with this rate the weight jumps from 1 to -1 and back
    callback = EarlyStopping("loss", patience=2, learning_rate_drop=0.25, verbose=1)
    losses = fit_parabola(net, [callback, record])
    # Patience runs out in epoch 2: back to -1, rate 0.25, and the weight halves. It improves until it is tiny.
    expected = [1.0, 1.0, 1.0, 1.0] + [0.25**n for n in range(1, 17)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    assert callback.drop_epochs == [2] and callback.stopped_reason is None
    assert record.end[2] == (-1.0, 1) == record.begin[3]  # weight and optimizer step of the best epoch, 0
    assert float(net.optimizer.learning_rate) == pytest.approx(0.25)  # it stays
    reason = "loss has not improved for 2 epochs (best 1 at epoch 1)"
    assert capsys.readouterr().out == f"Epoch 3: {reason}. Going on from epoch 1, learning rate 1 -> 0.25.\n"


@pytest.mark.parametrize("rate", [float, constant_schedule], ids=["float", "schedule"])
def test_drops_that_do_not_help_end_the_run(rate):
    net, record = scalar_model(1.0), Record()
    net.compile(keras.optimizers.SGD(rate(4.0)), "mse")  # diverges, and still does with 2.0
    callback = EarlyStopping("loss", patience=2, learning_rate_drop=0.5, max_drops=2, restore_best="all")
    losses = fit_parabola(net, [callback, record])
    # rate 4: the weight is multiplied by -7 per step; rate 2: by -3; rate 1: by -1. Always from -7 on, at step 1.
    np.testing.assert_allclose(np.sqrt(losses), [1, 7, 49, 7, 21, 7, 7], rtol=1e-5)
    assert callback.drop_epochs == [2, 4]
    assert (callback.stopped_epoch, callback.best_epoch) == (6, 0)
    assert callback.stopped_reason == (
        "loss has not improved for 2 epochs, nor after dropping the learning rate 2x (best 1 at epoch 1)"
    )
    assert net.get_weights()[0] == -7.0 and int(net.optimizer.iterations) == 1
    assert float(net.optimizer.learning_rate) == pytest.approx(1.0)


def test_drop_keeps_what_other_callbacks_did_to_the_rate():
    net = scalar_model(1.0)
    net.compile(keras.optimizers.SGD(1.0), "mse")
    plateau = keras.callbacks.ReduceLROnPlateau("loss", patience=1, factor=0.999, min_delta=0)
    fit_parabola(net, [plateau, EarlyStopping("loss", patience=2, min_delta=0.5, learning_rate_drop=0.25)], epochs=3)
    assert float(net.optimizer.learning_rate) == pytest.approx(0.25 * 0.999**2, rel=1e-5)


def test_two_fits_with_drops():
    net = scalar_model(1.0)
    net.compile(keras.optimizers.SGD(1.0), "mse")
    callback = EarlyStopping("loss", patience=1, learning_rate_drop=0.5, min_delta=10)
    fit_parabola(net, [callback])
    assert callback.drop_epochs == [1] and float(net.optimizer.learning_rate) == pytest.approx(0.5)
    fit_parabola(net, [callback])
    assert callback.drop_epochs == [1] and float(net.optimizer.learning_rate) == pytest.approx(0.25)


def test_drop_forgets_the_average_of_the_epochs_it_takes_back(monkeypatch, model):
    monkeypatch.setattr("tf_tricks.fit_hooks.attach", lambda *args, **kwargs: NoHook())
    callback = run([1.0, 9.0, 9.0, 0.9], model, smoothing=0.5, patience=2, learning_rate_drop=0.5)
    assert callback.best == pytest.approx((0.5 * 1.0 + 0.9) / 1.5)


def test_the_average_at_the_best_epoch_survives_a_pause(monkeypatch, model):
    monkeypatch.setattr("tf_tricks.fit_hooks.attach", lambda *args, **kwargs: NoHook())
    arguments = {"smoothing": 0.5, "patience": 2, "learning_rate_drop": 0.5}
    state = run([1.0, 9.0], model, **arguments).get_state()
    resumed = EarlyStopping(**arguments)
    resumed.set_state(state)
    drive(resumed, script([9.0, 0.9]), model, first_epoch=2)
    assert resumed.drop_epochs == [2] and resumed.best == pytest.approx((0.5 * 1.0 + 0.9) / 1.5)


class NoHook:
    def scale_learning_rate(self, factor):
        pass

    def learning_rate(self):
        return 1.0

    def detach(self, owner):
        pass


# --- bringing back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restore_best", [None, False, "weights", "all"])
@pytest.mark.parametrize("drop", [None, 0.999])
def test_restore_best(restore_best, drop):
    net, record = scalar_model(1.0), Record()
    net.compile(keras.optimizers.Adam(0.4), "mse", jit_compile=False)
    kept = {}

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            kept[epoch] = [
                np.array(v) for v in (*self.model.get_weights(), *map(numpy, self.model.optimizer.variables))
            ]

    callback = EarlyStopping("loss", patience=1, restore_best=restore_best, learning_rate_drop=drop)
    fit_parabola(net, [Keep(), record, callback])
    assert callback.stopped_reason and 1 <= callback.best_epoch < callback.stopped_epoch
    got = [*net.get_weights(), *map(numpy, net.optimizer.variables)]
    best, last = kept[callback.best_epoch], kept[callback.stopped_epoch]
    rate = next(i for i, v in enumerate(net.optimizer.variables, 1) if v.path.endswith("learning_rate"))
    assert got[rate] == pytest.approx(0.4 * (drop or 1.0))
    for i in set(range(len(got))) - {rate}:
        source = best if restore_best == "all" or (restore_best == "weights" and i == 0) else last
        np.testing.assert_array_equal(got[i], source[i])


def test_all_brings_back_the_rate_of_the_best_epoch():
    net = scalar_model(1.0)
    net.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=False)
    plateau = keras.callbacks.ReduceLROnPlateau("loss", patience=1, factor=0.999, min_delta=0)
    fit_parabola(net, [plateau, EarlyStopping("loss", patience=2, min_delta=0.5, restore_best="all")], epochs=3)
    assert float(net.optimizer.learning_rate) == 1.0


def numpy(variable):
    return keras.ops.convert_to_numpy(variable)


@pytest.mark.parametrize("drop", [None, 0.25])
@pytest.mark.parametrize("scope", ["mirrored_strategy", "data_parallel"])
def test_several_devices(scope, drop, request):
    with request.getfixturevalue(scope).scope():
        net = scalar_model(1.0)
        net.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=scope == "data_parallel")
        callback = EarlyStopping("loss", patience=2, learning_rate_drop=drop, restore_best="all")
        x, y = np.ones((8, 1), "float32"), np.zeros((8, 1), "float32")
        losses = net.fit(x, y, batch_size=8, epochs=7, verbose=0, callbacks=[callback]).history["loss"]
    np.testing.assert_allclose(losses, [1.0] * 4 + [0.25, 0.0625, 0.015625] if drop else [1.0] * 3, rtol=1e-5)
    assert callback.best_weights[0] == pytest.approx(-0.0625 if drop else -1.0) == net.get_weights()[0]
    assert int(numpy(net.optimizer.iterations)) == (5 if drop else 1)


# --- resumed runs -----------------------------------------------------------------------------------------------------


def whole_state(net, callback):
    state = copy.deepcopy(callback.get_state())
    return state, [np.array(numpy(v)) for v in (*net.weights, *net.optimizer.variables)]


def outcome(callback):
    names = "stopped_epoch stopped_reason best best_epoch wait drop_epochs".split()
    return {name: getattr(callback, name) for name in names}


def resumable(rate):
    net = scalar_model(1.0)
    rate = constant_schedule(4.0) if rate == "schedule" else 4.0
    net.compile(keras.optimizers.SGD(rate, momentum=0.1), "mse", jit_compile=False)
    arguments = {"patience": 3, "learning_rate_drop": 0.5, "max_drops": 2, "smoothing": 0.3, "restore_best": "all"}
    return net, EarlyStopping("loss", **arguments)


@pytest.fixture(scope="module", params=["float", "schedule"])
def uninterrupted(request):
    """One whole run, with what a checkpoint would have held after each epoch."""
    net, callback = resumable(request.param)
    saved = {}

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            saved[epoch] = whole_state(self.model, callback)

    losses = fit_parabola(net, [callback, Save()])
    assert callback.drop_epochs == [3, 6] and callback.stopped_epoch == 9
    return request.param, losses, saved, outcome(callback), whole_state(net, callback)[1]


@pytest.mark.parametrize("pause", [0, 3, 7])
@pytest.mark.parametrize("moment", ["saved during fit", "saved after fit"])
def test_a_resumed_run_is_the_uninterrupted_run(uninterrupted, pause, moment):
    rate, losses, saved, expected, expected_values = uninterrupted
    state, values = saved[pause]
    if moment == "saved after fit":
        net, callback = resumable(rate)
        callback.restore_best = False  # the end of this half shall not go back
        fit_parabola(net, [callback], epochs=pause + 1)
        state, values = whole_state(net, callback)

    net, callback = resumable(rate)
    net.optimizer.build(net.trainable_variables)
    variables = [*net.weights, *net.optimizer.variables]
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    restore = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: callback.set_state(state))
    callbacks = [callback, restore]
    if pause == 3:  # once before `fit`, once while it begins
        callback.set_state(state)
        callbacks = [callback]
    more = fit_parabola(net, callbacks, initial_epoch=pause + 1)
    np.testing.assert_allclose(more, losses[pause + 1 :], rtol=1e-6)
    assert outcome(callback) == {**expected, "best": pytest.approx(expected["best"])}
    for got, wanted in zip(variables, expected_values, strict=True):
        np.testing.assert_allclose(numpy(got), wanted, rtol=1e-6)


def test_state_is_plain(model):
    callback = run([1.0, 0.5, 2.0], model, restore_best="all", patience=9)
    state = callback.get_state()
    arrays = state["best_state"]
    assert json.loads(json.dumps({**state, "best_state": None}))["best_epoch"] == 1
    assert {type(value) for group in arrays.values() for value in group["values"]} == {np.ndarray}
    other = EarlyStopping(restore_best="all", patience=9)
    other.set_state(json.loads(json.dumps({**state, "best_state": None})) | {"best_state": arrays})
    drive(other, script([3.0]), model, first_epoch=3)
    assert (other.wait, other.best, other.best_epoch) == (2, 0.5, 1) and model.get_weights()[0] == 2.0
    drive(other, script([3.0]), model)  # a second fit starts anew
    assert (other.wait, other.best, other.best_epoch) == (0, 3.0, 0)


def test_time_limit_counts_the_time_before_a_pause(clock, model):
    callback = EarlyStopping(max_seconds=25, patience=9)
    callback.set_model(model)
    callback.on_train_begin()
    clock.now += 20
    callback.on_epoch_end(0, {"val_loss": 1.0})
    state = callback.get_state()
    clock.now += 1000
    resumed = EarlyStopping(max_seconds=25, patience=9)
    resumed.set_state(state)
    clock.now += 1000
    model.stop_training = False
    resumed.set_model(model)
    resumed.on_train_begin()
    clock.now += 4
    resumed.on_epoch_end(1, {"val_loss": 1.0})
    assert not model.stop_training
    clock.now += 1
    resumed.on_epoch_end(2, {"val_loss": 1.0})
    assert model.stop_training and "25 seconds" in resumed.stopped_reason


def test_a_stopped_run_stays_stopped():
    net = scalar_model(1.0)
    callback = EarlyStopping("loss", patience=2, min_delta=100, restore_best="all")
    fit_parabola(net, [callback])
    before = outcome(callback), net.get_weights()[0]
    resumed = EarlyStopping("loss", patience=2, min_delta=100, restore_best="all")
    resumed.set_state(callback.get_state())
    assert len(fit_parabola(net, [resumed], initial_epoch=3)) == 1
    assert outcome(resumed) == before[0] and net.get_weights()[0] == before[1]


def test_state_of_other_monitors_is_refused(model):
    state = run([1.0], model).get_state()
    with pytest.raises(ValueError, match="state is one of 1 monitors, this object has .*'a', 'b'"):
        EarlyStopping(["a", "b"]).set_state(state)


# --- arguments --------------------------------------------------------------------------------------------------------


def test_config_round_trip():
    arguments = {
        "monitor": ["a", "b"], "min_delta": [0.1, 0.2], "patience": 3, "verbose": 1, "mode": ["min", "max"],
        "baseline": 0.5, "restore_best_weights": True, "start_from_epoch": 2, "min_delta_mode": "relative",
        "smoothing": 0.5, "max_seconds": 60.0, "stop_above": 2.0, "stop_below": 1.0, "divergence": 3.0,
        "learning_rate_drop": 0.5, "max_drops": 2, "restore_best": "all",
    }  # fmt: skip
    callback = EarlyStopping(**arguments)
    assert callback.get_config() == arguments == json.loads(json.dumps(callback.get_config()))
    for config in (arguments, EarlyStopping().get_config()):
        saved = keras.saving.serialize_keras_object(EarlyStopping.from_config(config))
        assert saved["registered_name"] == "tf_tricks>EarlyStopping"
        assert keras.saving.deserialize_keras_object(saved).get_config() == config


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"monitor": 3}, TypeError, "`monitor` must be a str or a list of str. Received: monitor=3"),
        ({"monitor": []}, ValueError, "`monitor` must name at least one quantity"),
        ({"monitor": ["a", "a"]}, ValueError, "`monitor` must name at least one quantity, and none twice"),
        ({"mode": "up"}, ValueError, "`mode` must be one of 'auto', 'min', 'max'. Received: mode='up'"),
        ({"mode": ["min", "max"]}, ValueError, r"`mode` must have one entry per monitor \(1\)"),
        ({"min_delta": "a"}, TypeError, "`min_delta` must be a number"),
        ({"min_delta": NAN}, ValueError, "`min_delta` must lie in"),
        ({"patience": -1}, ValueError, "`patience` must be an int >= 0. Received: patience=-1"),
        ({"patience": 1.5}, TypeError, "`patience` must be an int >= 0. Received: patience=1.5"),
        ({"baseline": INF}, ValueError, "`baseline` must lie in"),
        ({"min_delta_mode": "percent"}, ValueError, "`min_delta_mode` must be one of 'absolute', 'relative'"),
        ({"smoothing": 1.0}, ValueError, r"`smoothing` must lie in \[0, 1\). Received: smoothing=1.0"),
        ({"max_seconds": 0}, ValueError, r"`max_seconds` must lie in \(0, inf\)"),
        ({"stop_above": 1, "stop_below": 1}, ValueError, "`stop_below` must lie below `stop_above`"),
        ({"divergence": -1}, ValueError, "`divergence` must lie in"),
        ({"learning_rate_drop": 1.5}, ValueError, r"`learning_rate_drop` must lie in \(0, 1\). Received"),
        ({"max_drops": 0}, ValueError, "`max_drops` must be an int >= 1"),
        ({"restore_best": True}, ValueError, "`restore_best` must be one of None, False, 'weights', 'all'"),
        ({"restore_best": False, "restore_best_weights": True}, ValueError, "`restore_best` must not be False"),
        ({"restore_best_weights": 1}, TypeError, "`restore_best_weights` must be True or False"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        EarlyStopping(**arguments)


def test_a_monitor_that_is_no_number(model):
    with pytest.raises(ValueError, match=r"monitor `f1` must be a single number.*shape \(3,\)"):
        run([np.zeros(3)], model, "f1")
    assert run([np.float32(0.5), np.array([0.75])], model, "f1").best == 0.75
    assert run([keras.ops.convert_to_tensor(0.5)], model, "f1").best == 0.5


def test_it_does_not_slow_down_the_batches():
    assert EarlyStopping.async_safe is True
    assert EarlyStopping.on_train_batch_end is keras.callbacks.Callback.on_train_batch_end
