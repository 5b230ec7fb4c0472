"""Steps that go wrong half way, and `train_step`s that do not apply their gradients in the usual way."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tf_tricks import fit_hooks
from tf_tricks._backend import BACKEND, tf, torch
from tf_tricks.callbacks import FinalLearningRateDrop, GradientNormLogger, NaNGuard

stateful = pytest.mark.skipif(BACKEND == "jax", reason="JAX has one stateless_apply for all variables")


def data(rows=96):
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype("float32")
    return x, x[:, :1]


def build(cls=keras.Model, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    outputs = layers.Dense(1, name="second")(layers.Dense(3, name="first")(inputs))
    model = cls(inputs, outputs)
    model.compile("sgd", "mse", jit_compile=False, **options)
    return model


class Failing(keras.callbacks.Callback):
    """Raises while the host reads the rows, that is inside the step."""

    async_safe = True

    def on_train_begin(self, logs=None):
        self.hook = fit_hooks.attach(self.model, self, columns=["grad_norm"], on_rows=self.fail)

    def fail(self, steps, loss, columns):
        raise OSError("no space left on device")


def test_an_error_inside_a_step_leaves_the_weights_of_the_steps_before_it():
    x, y = data()
    model, bare = build(), build()
    with pytest.raises(OSError, match="no space"):
        model.fit(x, y, batch_size=3, shuffle=False, verbose=0, callbacks=[Failing()])
    bare.fit(x, y, batch_size=3, shuffle=False, verbose=0)
    for got, expected in zip(model.get_weights(), bare.get_weights(), strict=True):
        np.testing.assert_array_equal(got, expected)
    assert np.isfinite(model.fit(x, y, verbose=0).history["loss"]).all()


def test_a_metric_may_be_a_vector():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])
    model.compile("sgd", "categorical_crossentropy", metrics=[keras.metrics.F1Score()])
    guard = NaNGuard(verbose=0)
    model.fit(data()[0], np.eye(3, dtype="float32")[np.arange(96) % 3], verbose=0, callbacks=[guard])
    assert guard.report is None and guard.non_finite_metrics == []


def gradients_of(model, x, y, variables):
    if BACKEND == "tensorflow":
        with tf.GradientTape() as tape:
            loss = ops.mean(ops.square(model(x) - y))
        return tape.gradient(loss, [variable.value for variable in variables])
    return torch.autograd.grad(ops.mean(ops.square(model(x) - y)), [variable.value for variable in variables])


class InGroups(keras.Model):
    """Applies the gradients of some variables after those of others; `groups` names the layers."""

    groups = (("second",), ("first",))
    poison = None

    def train_step(self, batch):
        x, y = batch
        for group in self.groups:
            variables = [v for name in group for v in self.get_layer(name).trainable_variables]
            grads = gradients_of(self, x, y, variables)
            if group[0] == self.poison:
                grads = [grad * float("nan") for grad in grads]
            if BACKEND == "torch":
                with torch.no_grad():
                    self.optimizer.apply(grads, variables)
            else:
                self.optimizer.apply(grads, variables)
        return {"loss": ops.mean(ops.square(self(x) - y))}


def in_groups(*groups, poison=None):
    model = build(type("InGroups", (InGroups,), {"groups": groups, "poison": poison}))
    model.optimizer.build(model.trainable_variables)
    return model


@stateful
@pytest.mark.parametrize("groups", [(("second",), ("first",)), (("second", "first"),), (("second",),)])
def test_norms_stand_under_the_right_layers_whatever_the_order(groups):
    x, y = data(8)
    model = in_groups(*groups)
    logger = GradientNormLogger(verbose=0)
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0, callbacks=[logger])
    for name in ("first", "second"):
        weights = np.concatenate([np.ravel(value) for value in model.get_layer(name).get_weights()])
        np.testing.assert_allclose(logger.history[f"weight_norm/{name}"][0], np.linalg.norm(weights), rtol=1e-5)
        trained = any(name in group for group in groups)
        assert (logger.history[f"grad_norm/{name}"][0] > 0) == trained


@stateful
@pytest.mark.parametrize("poison", ["first", "second"])
def test_a_bad_gradient_in_any_of_several_applications_is_reported(poison):
    guard = NaNGuard(verbose=0)
    model = in_groups(("second",), ("first",), poison=poison)
    model.fit(*data(), verbose=0, callbacks=[guard])
    assert guard.report is not None
    assert all(np.isfinite(value).all() for value in model.get_weights())


@stateful
def test_a_step_that_does_not_use_the_optimizer_is_named():
    model = in_groups()
    with pytest.warns(UserWarning, match="does not call `model.optimizer.apply`"):
        model.fit(*data(), verbose=0, callbacks=[NaNGuard(verbose=0)])


def test_a_train_step_set_on_the_instance():
    model = build()
    step, calls = model.train_step, []

    def counted(*arguments):
        calls.append(1)
        return step(*arguments)

    model.train_step = counted
    model.fit(*data(), verbose=0, callbacks=[NaNGuard(verbose=0), GradientNormLogger(verbose=0)])
    assert calls and model.train_step is counted


def test_two_guards_are_refused():
    with pytest.raises(ValueError, match="one `fit` takes one guard"):
        build().fit(*data(), verbose=0, callbacks=[NaNGuard("skip"), NaNGuard("raise")])


@pytest.mark.parametrize("callback", [NaNGuard, GradientNormLogger, FinalLearningRateDrop])
def test_a_model_without_optimizer_is_named(callback):
    with pytest.raises(ValueError, match=f"{callback.__name__}: the model has no optimizer"):
        callback_of_a_fit = callback()
        model = build()
        model.optimizer = None
        callback_of_a_fit.set_model(model)
        callback_of_a_fit.on_train_begin()


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.skipif(BACKEND == "torch", reason="no batch waits there")
def test_an_interrupt_while_waiting_batches_are_trained_on_leaves_the_weights(monkeypatch):
    x, y = data(16)
    x[5] = np.nan
    calls, remember = [], fit_hooks.FitHook._remember

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) > 4:  # the four batches of the epoch came first
            raise KeyboardInterrupt
        return remember(*arguments)

    monkeypatch.setattr(fit_hooks.FitHook, "_remember", interrupted)
    model = build()
    batches = ((x[i : i + 4], y[i : i + 4]) for i in range(0, 16, 4))  # of unknown length
    with pytest.raises(KeyboardInterrupt):
        model.fit(batches, shuffle=False, verbose=0, callbacks=[NaNGuard("skip", verbose=0)])
    monkeypatch.undo()
    assert np.isfinite(model.predict(x[:4], verbose=0)).all()
    assert np.isfinite(model.fit(x[8:], y[8:], verbose=0).history["loss"]).all()


class StopInEpoch2(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.epoch == 2 and batch == 1:
            self.model.stop_training = True


def test_the_logged_rate_is_that_of_an_epoch_that_was_cut_short():
    rates = [0.01, 0.005, 0.002, 0.002]
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rates[epoch])
    drop = FinalLearningRateDrop(last=1, restore=True)
    history = build().fit(*data(), epochs=4, verbose=0, callbacks=[schedule, drop, StopInEpoch2()]).history
    np.testing.assert_allclose(history["learning_rate"], rates[:3], rtol=1e-6)
