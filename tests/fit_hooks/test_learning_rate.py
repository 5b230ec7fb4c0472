import keras
import numpy as np
import pytest

from tf_tricks.fit_hooks import learning_rate
from tf_tricks.fit_hooks.learning_rate import ScaledLearningRate, base_rate, optimizer_rate

schedules = keras.optimizers.schedules


def number(x):
    return float(keras.ops.convert_to_numpy(x))


def test_scaled_schedule_and_its_config():
    scaled = ScaledLearningRate(schedules.ExponentialDecay(0.8, 2, 0.5), 0.25)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(scaled))
    expected = 0.2 * 0.5 ** (np.arange(5) / 2)
    for each in (scaled, restored, ScaledLearningRate.from_config(scaled.get_config())):
        np.testing.assert_allclose([number(each(step)) for step in range(5)], expected, rtol=1e-6)


def test_apply_to_a_float():
    optimizer = keras.optimizers.Adam(0.5)
    ScaledLearningRate.apply_to(optimizer, 0.1)
    ScaledLearningRate.apply_to(optimizer, 0.5)
    assert number(optimizer.learning_rate) == pytest.approx(0.025)
    assert not callable(optimizer_rate(optimizer))  # still a plain rate, which other callbacks may set


@pytest.mark.parametrize("rate", [schedules.ExponentialDecay(0.5, 1, 0.5), lambda: 0.5], ids=["schedule", "callable"])
def test_apply_to_a_schedule_twice_does_not_nest(rate):
    optimizer = keras.optimizers.SGD(rate)
    ScaledLearningRate.apply_to(optimizer, 0.1)
    ScaledLearningRate.apply_to(optimizer, 0.5)
    assert optimizer_rate(optimizer).schedule is rate
    assert number(optimizer.learning_rate) == pytest.approx(0.025)


def test_base_rate_of_the_last_step():
    optimizer = keras.optimizers.SGD(schedules.ExponentialDecay(1.0, 1, 0.5), gradient_accumulation_steps=2)
    variable = keras.Variable(np.zeros(2, "float32"))
    assert number(base_rate(optimizer, -1)) == 1.0  # before the first one
    for _ in range(3):
        optimizer.apply([keras.ops.ones(2)], [variable])
    assert number(base_rate(optimizer)) == 0.125 and number(base_rate(optimizer, -1)) == 0.25
    assert number(base_rate(keras.optimizers.SGD(0.5), -1)) == 0.5


_WRAPPERS = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer", "OptimizerMap"}
OPTIMIZERS = [
    getattr(keras.optimizers, name)
    for name in dir(keras.optimizers)
    if isinstance(getattr(keras.optimizers, name), type) and name not in _WRAPPERS
]


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_every_optimizer_asks_get_current_learning_rate(cls):
    """The hook `learning_rate` scales what `Optimizer._get_current_learning_rate` returns."""

    def halved(optimizer):
        # As the hook does it: on Torch a subclass made before the instance would be another implementation.
        class Half(type(optimizer)):
            def _get_current_learning_rate(self):
                return 0.5 * super()._get_current_learning_rate()

        object.__setattr__(optimizer, "__class__", Half)
        return optimizer

    moved = []
    for optimizer in (cls(learning_rate=0.5), halved(cls(learning_rate=1.0))):
        variable = keras.Variable(np.ones((2, 2), "float32"))
        for _ in range(2):
            optimizer.apply([keras.ops.full((2, 2), 0.25)], [variable])
        moved.append(keras.ops.convert_to_numpy(variable))
    assert not np.allclose(moved[0], 1.0)
    hint = "fit_hooks.learning_rate: Keras no longer asks `_get_current_learning_rate` for the rate of an update"
    np.testing.assert_allclose(moved[0], moved[1], rtol=1e-6, err_msg=hint)


@pytest.mark.parametrize("rate", [schedules.ExponentialDecay(0.5, 1, 0.5), lambda: 0.5], ids=["schedule", "callable"])
def test_the_optimizer_keeps_the_schedule(rate):
    hint = "fit_hooks.learning_rate: Keras keeps a schedule elsewhere than in `Optimizer._learning_rate`"
    assert optimizer_rate(keras.optimizers.SGD(rate)) is rate, hint


def test_private_attributes_may_only_shrink():
    assert set(learning_rate.PRIVATE_ATTRIBUTES) <= {"Optimizer._learning_rate", "Optimizer._iterations"}
