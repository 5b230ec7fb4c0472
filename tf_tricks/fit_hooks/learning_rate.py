"""A learning rate times a factor, whatever the rate is: a float, a schedule or a callable."""

import keras


@keras.saving.register_keras_serializable(package="tf_tricks")
class ScaledLearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule times a constant.

    Args:
        schedule: a `LearningRateSchedule`, or a callable without arguments that returns the rate.
        factor: float > 0, the multiplier, dimensionless.
    Example:
        >>> decay = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=1, decay_rate=0.5)
        >>> round(float(ScaledLearningRate(decay, 0.1)(1)), 6)
        0.005
    """

    def __init__(self, schedule, factor):
        self.schedule = schedule
        self.factor = float(factor)

    def __call__(self, step):
        is_schedule = isinstance(self.schedule, keras.optimizers.schedules.LearningRateSchedule)
        return self.factor * (self.schedule(step) if is_schedule else self.schedule())

    def get_config(self):
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "factor": self.factor}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["schedule"]), config["factor"])

    @staticmethod
    def apply_to(optimizer, factor):
        """Multiply an optimizer's learning rate for good."""
        rate = optimizer_rate(optimizer)
        if not callable(rate):
            optimizer.learning_rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate)) * factor
        elif isinstance(rate, ScaledLearningRate):
            optimizer.learning_rate = ScaledLearningRate(rate.schedule, rate.factor * factor)
        else:
            optimizer.learning_rate = ScaledLearningRate(rate, factor)


# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "Optimizer._learning_rate": "the property `learning_rate` returns a schedule's value, never the schedule itself",
    "Optimizer._iterations": "what a schedule is called with; counts the calls of `apply` while gradients accumulate",
}


def optimizer_rate(optimizer):
    """What the user gave as `learning_rate`: a variable, a schedule or a callable."""
    return optimizer._learning_rate


def base_rate(optimizer, ahead=0):
    """The rate of the optimizer's next step (`ahead=-1`: of its last one), as a tensor or variable."""
    rate = optimizer_rate(optimizer)
    if ahead and isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return rate(keras.ops.maximum(optimizer._iterations + ahead, 0))  # `iterations` counts accumulated steps as one
    return optimizer.learning_rate


def highest_rate(optimizer):
    """The highest rate that is ahead, as a float: a schedule is asked at steps up to 100 000 ahead."""
    ahead = [0]
    if isinstance(optimizer_rate(optimizer), keras.optimizers.schedules.LearningRateSchedule):
        ahead += sorted({round(10 ** (eighths / 8)) for eighths in range(41)})
    return max(float(keras.ops.convert_to_numpy(base_rate(optimizer, steps))) for steps in ahead)
