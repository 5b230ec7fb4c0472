"""What `EarlyStopping` knows about monitored quantities: which way is better, by how much, and the checks of arguments.

No callback in here: functions of names, values and a model.
"""

import dataclasses
import math
import re
import warnings

import keras
import numpy as np

from tf_tricks._checks import check_one_of

_HIGHER_IS_BETTER = set(
    "acc accuracy auc precision recall f1 fbeta iou r2 sensitivity specificity similarity correlation dice bleu".split()
)
_LOWER_IS_BETTER = set(
    "loss error crossentropy hinge divergence kldivergence poisson logcosh cosh mse mae mape msle rmse".split()
)


# --- arithmetic ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Track:
    """What is known of one monitor: its best value, and its moving average before the correction for the start."""

    best: float | None = None
    average: float = 0.0
    count: int = 0

    def smoothed(self, value, smoothing):
        """Take in a value; return its moving average, or None if the value is not finite."""
        if not math.isfinite(value):
            return None
        if smoothing is None:
            return value
        self.count += 1
        self.average = smoothing * self.average + (1 - smoothing) * value
        return self.average / (1 - smoothing**self.count)


def is_improvement(value, reference, direction, margin, relative=False):
    """Is `value` better than `reference` by more than `margin`?

    Args:
        value: float, or None for a value that is not finite: never an improvement.
        reference: float, or None: anything is better than nothing.
        direction: 1 if higher is better, -1 if lower is better.
        margin: float >= 0, in the unit of `value`, or with `relative=True` a fraction of the size of `reference`.
    """
    if value is None or reference is None:
        return value is not None
    if relative:
        margin = margin * abs(reference)
    # In the precision of Keras's own comparison, so that an improvement by exactly `min_delta` is none here either.
    precision = np.float64 if keras.backend.floatx() == "float64" else np.float32
    with np.errstate(over="ignore"):
        return bool(direction * precision(value - direction * margin) > direction * precision(reference))


def scalar(name, value):
    """A value of `logs` as a float; it may be a tensor or an array of one element."""
    if isinstance(value, float):
        return value
    value = np.asarray(keras.ops.convert_to_numpy(value))
    if value.size != 1:
        raise ValueError(
            f"EarlyStopping: monitor `{name}` must be a single number. Received: an array of shape {value.shape}. "
            "Let the metric average it."
        )
    return float(value.reshape(()))


def spread(value, names):
    """A list with one entry per monitor, from such a list or from one value for all."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * len(names)


# --- which way is better --------------------------------------------------------------------------------------------


def direction_of(mode, monitor, model):
    """1 if higher values of the monitor are better, -1 if lower ones are; asks if "auto" cannot tell."""
    if mode != "auto":
        return 1 if mode == "max" else -1
    name = monitor.removeprefix("val_")
    of_metrics = map(_direction_of_metric, _metrics_called(name, model))
    found = next(filter(None, of_metrics), None) or _direction_of_name(name)
    if found is None:
        raise ValueError(
            f"EarlyStopping: cannot tell whether monitor `{monitor}` should be as high or as low as possible. "
            "Pass mode='max' or mode='min'."
        )
    return found


def _metrics_called(name, model):
    """The model's metrics that write this log key: those with the very name first, then those of named outputs."""
    metrics = []
    for metric in getattr(model, "metrics", None) or []:
        metrics += [each for each in getattr(metric, "metrics", [])] or [metric]
    exact = [metric for metric in metrics if metric.name == name]
    return exact or [metric for metric in metrics if re.fullmatch(rf".+_{re.escape(metric.name)}(_\d+)?", name)]


def _direction_of_metric(metric):
    for cls in type(metric).__mro__:
        if cls is keras.metrics.MeanMetricWrapper:
            # A metric made of a loss function: lower is better, also for the cosine similarity, whose loss is negated.
            return -1 if _wraps_a_loss_of_keras(metric) else None
        if cls in (keras.metrics.Mean, keras.metrics.Metric):
            return None
        if found := _direction_of_name(cls.__name__):
            return found
    return None


def _wraps_a_loss_of_keras(metric):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a lambda cannot be serialized safely, which does not matter here
        try:
            function = metric.get_config()["fn"]
        except Exception:  # whatever a function of the user does that cannot be serialized: it is not Keras's
            return False
    # A function is described by its own name, a loss object by its class.
    function = function if isinstance(function, dict) else {}
    names = (function.get("config"), function.get("class_name"))
    return any(isinstance(name, str) and hasattr(keras.losses, name) for name in names)


def _direction_of_name(name):
    """1 or -1 if the words of a name, in any spelling, say so; None if they do not, or contradict each other."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("io_u", "iou")
    words = set(re.findall(r"[a-z0-9]+", snake))
    higher, lower = words & _HIGHER_IS_BETTER, words & _LOWER_IS_BETTER
    if name == "loss" or name.endswith("_loss") or (lower and not higher):
        return -1
    return 1 if higher and not lower else None


# --- arguments ----------------------------------------------------------------------------------------------------


def check_monitor(monitor):
    """Return a str, or a list of different str, else raise."""
    if isinstance(monitor, str):
        return monitor
    if not isinstance(monitor, (list, tuple)) or not all(isinstance(name, str) for name in monitor):
        raise TypeError(f"`monitor` must be a str or a list of str. Received: monitor={monitor!r}")
    if not monitor or len(set(monitor)) != len(monitor):
        raise ValueError(f"`monitor` must name at least one quantity, and none twice. Received: monitor={monitor!r}")
    return list(monitor)


def check_each(name, value, names, check, *args):
    """Check one value for all monitors, or a list with one for each."""
    if not isinstance(value, (list, tuple)):
        return check(name, value, *args)
    if len(value) != len(names):
        raise ValueError(f"`{name}` must have one entry per monitor ({len(names)}). Received: {name}={value!r}")
    return [check(name, each, *args) for each in value]


def check_thresholds(above, below):
    """Refuse two thresholds between which no value lies."""
    if above is not None and below is not None and below >= above:
        raise ValueError(
            f"`stop_below` must lie below `stop_above`, else any value stops. Received: stop_below={below!r}, "
            f"stop_above={above!r}"
        )


def check_restore_best(value, restore_best_weights):
    """Return `restore_best` if it is one of its values and does not contradict Keras's own argument."""
    check_one_of("restore_best", value, (None, False, "weights", "all"))
    if value is False and restore_best_weights:
        raise ValueError(
            "`restore_best` must not be False with restore_best_weights=True. Received: restore_best=False"
        )
    return value
