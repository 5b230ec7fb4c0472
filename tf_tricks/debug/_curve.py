"""A recorded learning curve, and robust numbers about a short, noisy series."""

import dataclasses

import numpy as np

FEWEST = 5  # epochs, below which a curve has no shape


@dataclasses.dataclass
class Curve:
    """What was recorded, as float64 arrays.

    Attributes:
        epochs: (n,) numbers of the epochs, from 0.
        loss: (n,) of training.
        val_at: (m,) positions among the n epochs that were validated.
        val: (m,) the same loss on the validation data; m may be 0.
        rate: (n,) learning rate, or None.
        success: None or the last value of a metric whose best value is 1: accuracy, R2.
        baseline: None or the loss of predicting the mean.
    """

    epochs: np.ndarray
    loss: np.ndarray
    val_at: np.ndarray
    val: np.ndarray
    rate: np.ndarray | None = None
    success: float | None = None
    baseline: float | None = None

    def __post_init__(self):
        self.smooth, self.smooth_val = running_median(self.loss), running_median(self.val)
        self.noise, self.val_noise = noise(self.loss), noise(self.val)

    def level(self, value):
        """What a change is small or large against: the value itself, or the range of a loss that can be negative."""
        return abs(value) if self.loss.min() > 0 else float(np.ptp(self.loss)) or 1.0

    def epoch(self, position):
        return int(self.epochs[position])


def running_median(values):
    """The median over a centred window of about a tenth of the series, three values at least; shorter at its ends."""
    n = len(values)
    half = max(1, n // 20)
    if n < 5:
        return np.array(values, "float64")
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(n)])


def noise(values):
    """float, the standard deviation of a value about the line through its neighbours; 0.0 for fewer than five values.

    From second differences, which a trend leaves at 0 and independent noise gives the stddev sqrt(6); by their median,
    so that single jumps do not count.
    """
    if len(values) < 5:
        return 0.0
    return float(np.median(np.abs(np.diff(values, 2))) / 0.6745 / np.sqrt(6))


def tail_median(values):
    """float, the median of the last tenth."""
    return float(np.median(values[-max(1, len(values) // 10) :]))


def decline_to_come(values):
    """(float, float): by how much the last quarter of a series fell, and how much more it will fall.

    Two quarters in which a curve falls by d and then by q * d with q < 1 are followed by d * q**2 + ..., in all
    q * d * q / (1 - q); no more than three further quarters at the present pace.
    """
    quarter = max(2, len(values) // 4)
    third, fourth = values[-2 * quarter : -quarter], values[-quarter:]
    # By straight lines, so that the noise of single values does not count.
    before, last = (-_slope(part) * quarter for part in (third, fourth))
    if last <= 0:
        return 0.0, 0.0
    ratio = last / before if before > last else 1.0
    return float(last), float(min(last * ratio / (1 - ratio), 3 * last) if ratio < 1 else 3 * last)


def _slope(values):
    return np.polyfit(np.arange(len(values)), values, 1)[0]
