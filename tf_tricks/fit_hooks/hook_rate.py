"""The part of a `FitHook` that knows the learning rate: the user's, times what the callbacks ask for."""

import math

import keras

from tf_tricks.fit_hooks import gradients
from tf_tricks.fit_hooks.learning_rate import ScaledLearningRate, base_rate, optimizer_rate


class RatePart:
    """Methods of `FitHook`. They read its `model`, its `position()` and, during a step, its driver."""

    def __init__(self):
        self._scale = 1.0  # what stays of the multiplier after `fit`
        self._rates = []  # `Position -> float`, of the owners
        self._noted_rate = None

    def scale_learning_rate(self, factor):
        """Multiply the learning rate by `factor` from the next step on; it stays multiplied after `fit`."""
        self._scale *= factor

    def rate_at(self, position):
        """The multiplier of the user's learning rate at a position."""
        return math.prod((rate(position) for rate in self._rates), start=self._scale)

    def learning_rate(self):
        """The effective learning rate of the next step, as a float; NaN for a `MultiOptimizer`, which has several."""
        return self._base_learning_rate() * self.rate_at(self.position())

    def last_learning_rate(self):
        """The effective learning rate of the last step that was begun, as a float."""
        base = self._base_learning_rate(-1) if self._noted_rate is None else self._noted_rate
        return base * self.rate_at(self.position(-1))

    def _note_rate(self):
        # Before other callbacks set the rate of the next epoch.
        rate = optimizer_rate(gradients.innermost(self.model.optimizer))
        self._noted_rate = None if callable(rate) else float(self._driver.value(rate))

    def _base_learning_rate(self, ahead=0):
        optimizer = gradients.innermost(self.model.optimizer)
        if not hasattr(optimizer, "learning_rate"):
            return math.nan
        rate = base_rate(optimizer, ahead)
        return float(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(rate)))

    def _bake_rate(self):
        """After `fit` the optimizer shall go on with the rate that `scale_learning_rate` left."""
        if self._scale != 1.0:
            optimizer = gradients.innermost(self.model.optimizer)
            if callable(optimizer_rate(optimizer)):
                self._original = None  # a schedule is compiled into the step: the next `fit` has to build a new one
            ScaledLearningRate.apply_to(optimizer, self._scale)
            self._scale = 1.0
