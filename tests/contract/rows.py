"""One row per public name: how to make one, what proves that it worked, what it refuses."""

import dataclasses
import typing

import keras
import numpy as np

import tf_tricks
from tests.contract.models import EPOCHS, STEPS
from tf_tricks.fit_hooks.learning_rate import ScaledLearningRate

ALL_SECTIONS = ("Args", "Raises", "Reference", "Example")


@dataclasses.dataclass
class Row:
    """What the contracts need to know of a public name.

    Attributes:
        make: callable that returns a typical instance; keyword arguments replace its choices.
        sections: sections that the docstring must have; empty for a name that is not a class.
        variants: list of dicts, other arguments worth a config round trip.
        changes_training: do the weights after `fit` differ from those without it, on healthy data?
        proof: callable `(callback, history)` that asserts what the callback must have seen in a healthy run.
        bad: list of (argument, value, exception, what the message says is accepted) or, with a fifth entry, the other
            arguments that make the value bad.
        any_value: names of arguments that no value is bad for.
    """

    make: typing.Callable | None = None
    sections: tuple = ()
    variants: list = dataclasses.field(default_factory=list)
    changes_training: bool = False
    proof: typing.Callable | None = None
    bad: list = dataclasses.field(default_factory=list)
    any_value: tuple = ()


# --- callbacks ----------------------------------------------------------------------------------------------------


def _early_stopping(**arguments):
    return tf_tricks.callbacks.EarlyStopping(**{"monitor": "loss", "patience": 5, **arguments})


def _early_stopping_worked(callback, history):
    assert callback.best_epoch == int(np.argmin(history["loss"]))
    assert callback.best == min(history["loss"])
    assert callback.stopped_reason is None


def _final_drop(**arguments):
    return tf_tricks.callbacks.FinalLearningRateDrop(**{"factor": 0.1, "last": 0.5, **arguments})


def _final_drop_worked(callback, history):
    first, last = history["learning_rate"]
    assert type(first) is float
    np.testing.assert_allclose([first, last], [0.01, 0.001], rtol=1e-6)


def _gradient_norms(**arguments):
    return tf_tricks.callbacks.GradientNormLogger(**{"verbose": 0, **arguments})


def _gradient_norms_worked(callback, history):
    norms = callback.history["grad_norm/global"]
    assert callback.history["step"].tolist() == list(range(EPOCHS * STEPS))
    assert np.isfinite(norms).all() and (norms > 0).all()
    assert len(callback.history) > 8  # the layers too
    np.testing.assert_allclose(history["grad_norm/global"], norms.reshape(EPOCHS, STEPS).mean(1), rtol=1e-6)
    assert all(0 < ratio < 1 for ratio in history["update_ratio/global"])


def _nan_guard(**arguments):
    return tf_tricks.callbacks.NaNGuard(**{"verbose": 0, **arguments})


def _nan_guard_worked(callback, history):
    assert callback.report is None
    assert (callback.num_skipped, callback.num_rollbacks, callback.non_finite_metrics) == (0, 0, [])


_AT_LEAST_0, _AT_LEAST_1, _YES_NO = "an int >= 0", "an int >= 1", "True or False"

_EARLY_STOPPING_BAD = [
    ("monitor", 3, TypeError, "a str or a list of str"),
    ("monitor", [], ValueError, "at least one quantity"),
    ("monitor", ["loss", "loss"], ValueError, "none twice"),
    ("min_delta", "small", TypeError, "a number in (-inf, inf)"),
    ("min_delta", float("nan"), ValueError, "(-inf, inf)"),
    ("min_delta", [0.1], ValueError, "one entry per monitor (2)", {"monitor": ["loss", "mae"]}),
    ("patience", -1, ValueError, _AT_LEAST_0),
    ("patience", 1.5, TypeError, _AT_LEAST_0),
    ("verbose", -1, ValueError, _AT_LEAST_0),
    ("mode", "down", ValueError, "one of 'auto', 'min', 'max'"),
    ("baseline", "0.1", TypeError, "a number in (-inf, inf)"),
    ("restore_best_weights", 1, TypeError, _YES_NO),
    ("start_from_epoch", -1, ValueError, _AT_LEAST_0),
    ("min_delta_mode", "percent", ValueError, "one of 'absolute', 'relative'"),
    ("smoothing", 1.0, ValueError, "[0, 1)"),
    ("max_seconds", 0, ValueError, "(0, inf)"),
    ("stop_above", "high", TypeError, "a number in (-inf, inf)"),
    ("stop_below", 2.0, ValueError, "below `stop_above`", {"stop_above": 1.0}),
    ("divergence", -1.0, ValueError, "(0, inf)"),
    ("learning_rate_drop", 1.0, ValueError, "(0, 1)"),
    ("max_drops", 0, ValueError, _AT_LEAST_1),
    ("restore_best", "optimizer", ValueError, "one of None, False, 'weights', 'all'"),
    ("restore_best", False, ValueError, "must not be False", {"restore_best_weights": True}),
]
_FINAL_DROP_BAD = [
    ("factor", 1.5, ValueError, "(0, 1)"),
    ("factor", 0.0, ValueError, "(0, 1)"),
    ("factor", float("nan"), ValueError, "(0, 1)"),
    ("factor", "0.1", TypeError, "a number in (0, 1)"),
    ("last", 0.0, ValueError, "(0, 1]"),
    ("last", 1.5, ValueError, "(0, 1]"),
    ("last", 0, ValueError, _AT_LEAST_1),
    ("last", True, TypeError, _AT_LEAST_1),
    ("shape", "exponential", ValueError, "one of 'step', 'linear', 'cosine', 'sqrt'"),
    ("restore", 1, TypeError, _YES_NO),
]
_GRADIENT_NORMS_BAD = [
    ("every", "step", ValueError, "one of 'epoch'"),
    ("every", 0, ValueError, _AT_LEAST_1),
    ("every", True, TypeError, _AT_LEAST_1),
    ("per", "block", ValueError, "one of 'global', 'layer', 'variable'"),
    ("update_ratio", "yes", TypeError, _YES_NO),
    ("verbose", -1, ValueError, _AT_LEAST_0),
]
_NAN_GUARD_BAD = [
    ("on_nan", "halt", ValueError, "one of 'stop', 'raise', 'skip', 'rollback'"),
    ("patience", 0, ValueError, _AT_LEAST_1),
    ("patience", "two", TypeError, _AT_LEAST_1),
    ("lr_factor", 0.0, ValueError, "(0, 1]"),
    ("lr_factor", None, TypeError, "a number in (0, 1]"),
    ("snapshot_every", 0, ValueError, _AT_LEAST_1),
    ("verbose", -1, ValueError, _AT_LEAST_0),
    ("look_every", 0, ValueError, _AT_LEAST_1),
]

# --- other names --------------------------------------------------------------------------------------------------


def _report(**arguments):
    typical = {"step": 7, "epoch": 0, "batch": 7, "origin": "input", "cause": "`x` contains NaN at row 3"}
    return tf_tricks.NonFiniteReport(**{**typical, **arguments})


def _snapshot():
    return tf_tricks.checkpoints.Snapshot([("kernel", np.ones((2, 2), "float32"))], [("iteration", np.array(3))])


def _scaled(**arguments):
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=1, decay_rate=0.5)
    return ScaledLearningRate(**{"schedule": decay, "factor": 0.1, **arguments})


_CALLBACKS = {
    "EarlyStopping": Row(
        _early_stopping,
        ALL_SECTIONS,
        [
            {"monitor": ["loss", "mae"], "min_delta": [0.1, 0.2], "mode": ["min", "max"]},
            {"smoothing": 0.5, "max_seconds": 9.0, "divergence": 3.0, "stop_above": 2.0, "stop_below": 1.0},
            {"learning_rate_drop": 0.5, "max_drops": 2, "restore_best": "all", "min_delta_mode": "relative"},
        ],
        proof=_early_stopping_worked,
        bad=_EARLY_STOPPING_BAD,
    ),
    "FinalLearningRateDrop": Row(
        _final_drop,
        ALL_SECTIONS,
        [{"last": 2, "shape": "cosine"}, {"factor": 0.3, "shape": "sqrt", "restore": True}],
        changes_training=True,
        proof=_final_drop_worked,
        bad=_FINAL_DROP_BAD,
    ),
    "GradientNormLogger": Row(
        _gradient_norms,
        ALL_SECTIONS,
        [{"every": 3, "per": "variable"}, {"per": "global", "update_ratio": False, "log_dir": "logs"}],
        proof=_gradient_norms_worked,
        bad=_GRADIENT_NORMS_BAD,
        any_value=("log_dir",),
    ),
    "NaNGuard": Row(
        _nan_guard,
        ALL_SECTIONS,
        [{"on_nan": "skip", "patience": 3}, {"on_nan": "rollback", "lr_factor": 0.5, "snapshot_every": 7}],
        proof=_nan_guard_worked,
        bad=_NAN_GUARD_BAD,
    ),
}
_OTHERS = {
    "NonFiniteError": Row(lambda: tf_tricks.NonFiniteError(_report()), ("Args", "Example")),
    "NonFiniteReport": Row(_report, ("Args", "Example")),
    "ScaledLearningRate": Row(_scaled, ("Args", "Example"), [{"factor": 2.0}]),
    "Snapshot": Row(_snapshot, ALL_SECTIONS),
    "__version__": Row(),
    "callbacks": Row(),
    "checkpoints": Row(),
}
ROWS = {**_CALLBACKS, **_OTHERS}
CALLBACKS = sorted(_CALLBACKS)
