"""The replay must see every call, give the gradients of the real step, and leave no trace."""

import random

import keras
import numpy as np
import pytest
from keras import layers, ops

from tf_tricks.fit_hooks import replay, replay_calls
from tf_tricks.fit_hooks.replay import replay_forward, replay_gradient
from tf_tricks.fit_hooks.replay_state import sublayers


class Probe(layers.Layer):
    """A layer that keeps things in Python, as many custom layers do."""

    def __init__(self, fail=False, **kwargs):
        super().__init__(**kwargs)
        self.fail, self.seen = fail, []
        self.seed_generator = keras.random.SeedGenerator(3)

    def call(self, x):
        noise = keras.random.normal(ops.shape(x), seed=self.seed_generator) * np.random.uniform() * random.random()
        self.add_loss(1e-3 * ops.mean(ops.square(x)))
        self.last = x
        self.seen.append(x)
        if self.fail:
            raise RuntimeError("planted")
        return x + noise


def busy_model(fail=False, probe=True):
    inputs = keras.Input((6,), dtype="int32")
    hidden = layers.Embedding(5, 4, mask_zero=True, name="embedding")(inputs)
    hidden = layers.Dropout(0.3, seed=1)(hidden)
    hidden = layers.SimpleRNN(4, kernel_regularizer="l2")(hidden)
    hidden = layers.BatchNormalization(name="bn")(hidden)
    shared = layers.Dense(4, activation="tanh", name="shared")
    hidden = shared(shared(hidden)) + hidden
    hidden = Probe(fail, name="probe")(hidden) if probe else hidden
    model = keras.Model(inputs, layers.Dense(1, name="head")(hidden))
    model.compile(keras.optimizers.SGD(1.0), "mse", metrics=["mae"])
    return model


def batch():
    generator = np.random.default_rng(0)
    x = generator.integers(0, 5, (8, 6)).astype("int32")
    y = generator.normal(size=(8, 1)).astype("float32")
    return ops.convert_to_tensor(x), ops.convert_to_tensor(y)


def variables_of(model):
    """All state as bytes, with metrics, seeds and the optimizer."""
    everything = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    everything += [layer.seed_generator.state for layer in model.layers if hasattr(layer, "seed_generator")]
    return [ops.convert_to_numpy(v.value).tobytes() for v in everything]


def attributes_of(model):
    return [
        {k: (id(v), list(v) if isinstance(v, (list, set)) else None) for k, v in vars(layer).items()}
        for layer in sublayers(model)
    ]


@pytest.mark.parametrize("fail", [False, True], ids=["healthy", "a layer raises"])
def test_replay_leaves_no_trace(fail):
    model, (x, y) = busy_model(), batch()
    model.fit(ops.convert_to_numpy(x), ops.convert_to_numpy(y), epochs=1, verbose=0)
    model.get_layer("probe").fail = fail
    before = variables_of(model), attributes_of(model)
    random_state = random.getstate(), str(np.random.get_state())
    doors = {(id(owner), name): getattr(owner, name) for owner, name in replay_calls.elementary_functions()}
    call = keras.Operation.__call__
    replayed = replay_forward(model, x, y, None)
    replay_gradient(model, x, y, None, replayed)
    assert replayed.error == (fail and "RuntimeError: Exception encountered when calling Probe.call(). planted" or None)
    assert before == (variables_of(model), attributes_of(model))
    assert random_state == (random.getstate(), str(np.random.get_state()))
    assert keras.Operation.__call__ is call
    found = {(id(owner), name): getattr(owner, name) for owner, name in replay_calls.elementary_functions()}
    assert all(found[key] == doors[key] for key in doors)


def test_gradients_and_loss_are_those_of_the_train_step():
    """With SGD at rate 1 the step is the gradient: dropout, mask, shared layer and regularizer included."""
    model, (x, y) = busy_model(probe=False), batch()
    replayed = replay_gradient(model, x, y, None, replay_forward(model, x, y, None))
    assert replayed.error is None
    before = [ops.convert_to_numpy(v.value).copy() for v in model.trainable_variables]
    logs = model.train_on_batch(ops.convert_to_numpy(x), ops.convert_to_numpy(y), return_dict=True)
    assert replayed.loss == pytest.approx(float(logs["loss"]), rel=1e-4)
    assert [v.path for v, _ in replayed.gradients] == [v.path for v in model.trainable_variables]
    for (variable, gradient), old in zip(replayed.gradients, before, strict=True):
        step = old - ops.convert_to_numpy(variable.value)
        np.testing.assert_allclose(gradient, step, rtol=1e-3, atol=1e-5, err_msg=variable.path)


def test_each_call_of_a_shared_layer_has_its_own_gradient():
    inputs = keras.Input((1,))
    double = layers.Dense(1, use_bias=False, kernel_initializer=keras.initializers.Constant(2.0), name="double")
    model = keras.Model(inputs, double(double(inputs)) + inputs)
    model.compile("sgd", lambda y, p: ops.sum(p))
    x = ops.convert_to_tensor(np.array([[3.0]], "float32"))
    replayed = replay_gradient(model, x, x, None, replay_forward(model, x, x, None))
    calls = [call for call in replayed.calls if call.name == "double"]
    # p = 2 * (2 * x) + x: by hand, the slope is 1 at the last output, 2 between the calls and 4 at the first input.
    assert [c.outputs[0].gradient.item() for c in calls] == [2.0, 1.0]
    assert [c.inputs[0].gradient.item() for c in calls] == [4.0, 2.0]


def test_calls_are_recorded_innermost_with_their_parents():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="deep")], name="inner")
    inputs = keras.Input((3,))
    model = keras.Model(inputs, ops.exp(inner(inputs)), name="outer")
    model.compile("sgd", "mse")
    x = ops.convert_to_tensor(np.ones((2, 3), "float32"))
    calls = replay_forward(model, x, ops.convert_to_tensor(np.ones((2, 2), "float32")), None).calls
    names = [(c.kind, c.name, c.parent) for c in calls if c.kind in ("layer", "loss")]
    assert names == [("layer", "outer", None), ("layer", "inner", 0), ("layer", "deep", 1), ("loss", "loss", None)]
    assert [c.type_name for c in calls if c.kind == "operation"] == ["Exp"]


def test_a_recurrent_layer_is_one_call():
    model = keras.Sequential([keras.Input((5, 2)), layers.LSTM(3, name="lstm")])
    model.compile("sgd", "mse")
    x, y = ops.ones((2, 5, 2)), ops.ones((2, 3))
    assert [c.name for c in replay_forward(model, x, y, None).calls if c.kind == "layer"][1:] == ["lstm"]


def test_keras_still_sends_layer_calls_through_operation_call():
    """If this fails, Keras no longer calls layers through `keras.Operation.__call__`, the hook of fit_hooks/replay."""
    assert keras.Operation.__call__ is not keras.layers.Layer.__call__
    recorder, layer = replay_calls.CallRecorder(), layers.Dense(1, name="watched")
    with recorder.installed():
        layer(ops.ones((1, 2)))
    assert [call.name for call in recorder.calls] == ["watched"]


def test_no_private_attribute_of_keras_is_used():
    assert replay.PRIVATE_ATTRIBUTES == {}
