"""A borrowed model goes on training as its twin that was never borrowed, to the bit."""

import random

import keras
import numpy as np
import pytest

from tf_tricks._backend import BACKEND, tf, torch
from tf_tricks.fit_hooks.borrowing import borrowed

layers = keras.layers
X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 16)


def body():
    return [
        layers.Dense(8, activation="relu", kernel_regularizer="l2"),
        layers.BatchNormalization(),
        layers.Dropout(0.3, seed=5),
        layers.Dense(3, activation="softmax"),
    ]


class TwoOptimizers(keras.Model):
    """Subclassed, not built beforehand, with an optimizer of its own beside the compiled one."""

    def __init__(self):
        super().__init__()
        self.body = body()
        self.second = keras.optimizers.SGD(0.01, momentum=0.9)
        self.calls = []

    def call(self, inputs, training=False):
        self.calls.append(1)
        for layer in self.body:
            inputs = layer(inputs, training=training) if isinstance(layer, layers.Dropout) else layer(inputs)
        return inputs


def compiled(model, learning_rate=0.01):
    model.compile(keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.jit_compile = BACKEND == "jax"
    return model


def sequential(**options):
    return compiled(keras.Sequential([keras.Input((6,)), *body()]), **options)


def scheduled():
    return sequential(learning_rate=keras.optimizers.schedules.ExponentialDecay(0.01, 2, 0.5))


MODELS = {
    "sequential": sequential,
    "schedule": scheduled,
    "callable": lambda: sequential(learning_rate=lambda: 0.01),
    "mixed precision": lambda: with_policy("mixed_float16"),
    "subclass": lambda: compiled(TwoOptimizers()),
}


def with_policy(policy):
    keras.config.set_dtype_policy(policy)
    return sequential()


def twins(make, fitted):
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(1)
        models.append(make())
        models[-1](X[:2])
        if fitted:
            train(models[-1], 1)
    return models


def train(model, epochs):
    keras.utils.set_random_seed(2)
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0)


def state(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [keras.ops.convert_to_numpy(variable) for variable in variables]


def drawn():
    return random.random(), np.random.rand(), keras.ops.convert_to_numpy(keras.random.normal((2,))).tolist()


def experiment(model):
    """As much disorder as an experiment can make."""
    with borrowed(model, X, Y) as loan:
        loan.learning_rate = 0.3
        losses = [loan.step(X, Y) for _ in range(2)]
        for layer in model.layers if isinstance(model, keras.Sequential) else model.body:
            if isinstance(layer, layers.Dropout):
                layer.rate = 0.0
            for weight in layer.weights:
                weight.regularizer = None
        loan.forget_steps()
        loan.step(X, Y)
        model.layers[0].trainable = False
        random.random(), np.random.rand(), keras.random.normal((2,))
        raise KeyboardInterrupt(losses)


@pytest.mark.parametrize("fitted", [False, True], ids=["new", "trained"])
@pytest.mark.parametrize("name", MODELS)
def test_a_borrowed_model_goes_on_like_its_twin_even_after_ctrl_c(name, fitted):
    model, twin = twins(MODELS[name], fitted)
    before = [type(each) for each in model.optimizer.variables]
    keras.utils.set_random_seed(7)
    with pytest.raises(KeyboardInterrupt) as caught:
        experiment(model)
    first, second = caught.value.args[0]
    assert first != second  # it did train
    numbers = drawn()
    keras.utils.set_random_seed(7)
    assert numbers == drawn()
    assert [type(each) for each in model.optimizer.variables] == before
    for variable, other in zip(model.variables, twin.variables, strict=True):
        assert (variable.regularizer is None) == (other.regularizer is None)
        assert (variable.trainable, variable.shape) == (other.trainable, other.shape)
    assert len(model.trainable_variables) == len(twin.trainable_variables)
    for a, b in zip(state(model), state(twin), strict=True):
        np.testing.assert_array_equal(a, b)
    for each in (model, twin):
        train(each, 2)
    for a, b in zip(state(model), state(twin), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.history.history == twin.history.history


def test_regularizers_that_were_taken_off_are_back():
    model = sequential()
    kernel = model.layers[0].kernel
    with borrowed(model, X, Y):
        kernel.regularizer = None
    assert isinstance(kernel.regularizer, keras.regularizers.L2)


def test_a_loan_starts_again_after_reset():
    model = sequential()
    with borrowed(model, X, Y) as loan:
        first = [loan.step(X, Y) for _ in range(3)]
        loan.reset()
        assert [loan.step(X, Y) for _ in range(3)] == first
        assert len(set(first)) == 3


def test_a_loan_that_forgot_its_steps_sees_what_was_changed():
    model = sequential()
    with borrowed(model, X, Y) as loan:
        first = loan.step(X, Y)
        loan.reset()
        dense = model.layers[0]
        vars(dense)["call"] = lambda inputs, *_, **__: -type(dense).call(dense, inputs)
        loan.forget_steps()
        changed = loan.step(X, Y)
        assert abs(changed - first) > 1e-3


def test_the_learning_rate_of_a_loan_is_the_one_of_its_steps():
    for model in (sequential(), scheduled()):
        with borrowed(model, X, Y) as loan:
            loan.learning_rate = 0.0
            before = model.layers[0].get_weights()[0]
            loan.step(X, Y)
            np.testing.assert_array_equal(model.layers[0].get_weights()[0], before)
            loan.learning_rate = 0.5
            assert loan.learning_rate == 0.5
            loan.step(X, Y)
            assert np.abs(model.layers[0].get_weights()[0] - before).max() > 0.1
        assert loan.learning_rate == pytest.approx(0.01)


def test_a_variable_made_later_at_a_forgotten_address_is_tracked():
    model = sequential()
    optimizer = model.optimizer
    for _ in range(20):  # ids are given again as soon as an object is gone
        with borrowed(model, X, Y):
            optimizer.extra = keras.Variable(np.zeros(3))
        optimizer.extra = keras.Variable(np.zeros(3))
        assert any(optimizer.extra is variable for variable in optimizer.variables)
        optimizer.__dict__.pop("extra")


@pytest.mark.parametrize("with_y", [True, False])
def test_a_train_step_gets_the_data_as_fit_gives_it(with_y):
    class Own(keras.Sequential):
        def train_step(self, *arguments):
            seen.append(len(arguments[-1]) if isinstance(arguments[-1], (tuple, list)) else "x alone")
            return super().train_step(*arguments)

        def compute_loss(self, x, y, y_pred, sample_weight, training=True):
            return keras.ops.mean(keras.ops.square(y_pred))

    model = Own([keras.Input((6,)), layers.Dense(1)])
    model.compile("sgd")
    seen, y = [], X[:, :1] if with_y else None
    model.fit(X, y, batch_size=len(X), verbose=0)
    with borrowed(model, X, y) as loan:
        loan.step(X, y)
    assert "train_step" not in vars(model) and all(each == seen[0] for each in seen)
    assert seen[0] == (2 if with_y else "x alone")


def test_a_model_of_a_strategy_of_several_devices(mirrored_strategy):
    with mirrored_strategy.scope():
        model = keras.Sequential([layers.Dense(3, activation="softmax")])
        model.compile(keras.optimizers.SGD(lambda: 0.1), "sparse_categorical_crossentropy", jit_compile=False)
    with borrowed(model, X, Y) as loan:  # it is not built: variables come into being in the loan
        before = [v.numpy() for v in model.variables]
        loan.learning_rate = 0.5
        assert loan.step(X, Y) > loan.step(X, Y)
    model.fit(X, Y, batch_size=8, verbose=0, shuffle=False)
    counts = [[copy.numpy() for copy in v.value.values] for v in model.metrics_variables]
    with borrowed(model, X, Y) as loan:
        for each, value in zip(model.variables, before, strict=True):
            each.assign(value)
        model.metrics_variables[0].assign(7.0)
    assert [[copy.numpy() for copy in v.value.values] for v in model.metrics_variables] == counts
    assert counts[0][0] != counts[0][1] and np.any(model.variables[0].numpy() != before[0])


def test_a_train_step_without_a_loss_is_refused():
    class Silent(keras.Sequential):
        def train_step(self, *arguments):
            logs = super().train_step(*arguments)
            if BACKEND == "jax":
                return {"cost": logs[0]["loss"]}, logs[1]
            return {"cost": logs["loss"]}

    model = compiled(Silent([keras.Input((6,)), *body()]))
    with borrowed(model, X, Y) as loan, pytest.raises(ValueError, match="must return the loss under the name 'loss'"):
        loan.step(X, Y)


@pytest.mark.skipif(BACKEND != "torch", reason="Torch keeps gradients on its parameters")
def test_no_gradient_is_left_on_the_parameters():
    model = sequential()
    with borrowed(model, X, Y) as loan:
        loan.step(X, Y)
        assert model.trainable_variables[0].value.grad is not None
    assert [v.path for v in model.trainable_variables if v.value.grad is not None] == []


@pytest.mark.skipif(BACKEND != "torch", reason="modules of Torch")
def test_buffers_of_torch_modules_come_back():
    module = torch.nn.BatchNorm1d(6)
    model = compiled(keras.Sequential([keras.Input((6,)), layers.TorchModuleWrapper(module), *body()]))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with borrowed(model, X, Y) as loan:
        loan.step(X, Y)
        assert not torch.equal(module.running_mean, before["running_mean"])
    assert [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])] == []


@pytest.mark.skipif(BACKEND != "tensorflow", reason="variables of TensorFlow")
def test_variables_of_tensorflow_come_back():
    class Counts(layers.Layer):
        def __init__(self):
            super().__init__()
            self.count = tf.Variable(0, trainable=False)

        def call(self, inputs):
            self.count.assign_add(1)
            return inputs

    layer = Counts()
    model = compiled(keras.Sequential([keras.Input((6,)), layer, *body()]))
    before = int(layer.count.numpy())
    with borrowed(model, X, Y) as loan:
        loan.step(X, Y)
        assert int(layer.count.numpy()) > before
    assert int(layer.count.numpy()) == before
