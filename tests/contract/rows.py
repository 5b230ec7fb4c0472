"""One row per public name: how to make one, what proves that it worked, what it refuses."""

import dataclasses
import os
import tempfile
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
        arguments: for a function: callable that returns good arguments as a dict.
    """

    make: typing.Callable | None = None
    sections: tuple = ()
    variants: list = dataclasses.field(default_factory=list)
    changes_training: bool = False
    proof: typing.Callable | None = None
    bad: list = dataclasses.field(default_factory=list)
    any_value: tuple = ()
    arguments: typing.Callable | None = None


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


def _unfreezing(**arguments):
    # With one rate throughout: it would multiply that of FinalLearningRateDrop.
    typical = {"stages": "large", "learning_rates": [1.0, 1.0], "relative": True}
    return tf_tricks.callbacks.GradualUnfreezing(**{**typical, **arguments})


def _unfreezing_worked(callback, history):
    assert history["unfreezing/stage"] == [0.0, 1.0]
    np.testing.assert_allclose(history["learning_rate"][0], 0.01, rtol=1e-6)
    assert set(callback.get_state()["since"]) == {0, STEPS}  # the head, and what is below it


def _nan_guard(**arguments):
    return tf_tricks.callbacks.NaNGuard(**{"verbose": 0, **arguments})


def _nan_guard_worked(callback, history):
    assert callback.report is None
    assert (callback.num_skipped, callback.num_rollbacks, callback.non_finite_metrics) == (0, 0, [])


_folders = tempfile.TemporaryDirectory(prefix="tf_tricks_contract_")


def _new_folder():
    return tempfile.mkdtemp(dir=_folders.name)


def _training_checkpoint(**arguments):
    return tf_tricks.callbacks.TrainingCheckpoint(**{"directory": _new_folder(), "every": 2, "verbose": 0, **arguments})


def _training_checkpoint_worked(callback, history):
    newest = tf_tricks.checkpoints.describe(callback.directory)
    assert (newest.epoch, newest.step, newest.damage) == (EPOCHS, EPOCHS * STEPS, None)
    files = [name for name in os.listdir(callback.directory) if name.endswith(".safetensors")]
    assert 1 < len(files) <= callback.keep
    assert len(history["loss"]) == EPOCHS


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
_PRESETS, _TWO_RATES = "one of 'small', 'medium', 'large'", "None or a list of 2 floats > 0"
_UNFREEZING_BAD = [
    ("stages", "huge", ValueError, _PRESETS),
    ("stages", 3, TypeError, _PRESETS),
    ("stages", [], ValueError, "a list of growing floats in (0, 1]"),
    ("stages", [0.5, 0.2], ValueError, "a list of growing floats in (0, 1]"),
    ("stages", [0.5, 1.5], ValueError, "a list of growing floats in (0, 1]"),
    ("stages", [["head"], []], ValueError, "layers, names or lists of them"),
    ("stages", [["head"], 3], TypeError, "layers, names or lists of them"),
    ("learning_rates", 0.1, TypeError, _TWO_RATES),
    ("learning_rates", [0.1], ValueError, _TWO_RATES),
    ("learning_rates", [0.1, -0.1], ValueError, _TWO_RATES),
    ("relative", 1, TypeError, _YES_NO),
    ("epochs", 0, ValueError, _AT_LEAST_1),
    ("epochs", 1.5, TypeError, _AT_LEAST_1),
    ("epochs", [1, 1], ValueError, "a list of 1 of them"),
    ("freeze_batch_norm", "yes", TypeError, _YES_NO),
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

_TRAINING_CHECKPOINT_BAD = [
    (argument, value, error, accepted, {"directory": "run"} if argument != "directory" else {})
    for argument, value, error, accepted in [
        ("directory", 3, TypeError, "a str or a path"),
        ("every", "step", ValueError, '"epoch", an int >= 1 (steps) or a time such as "30s"'),
        ("every", "0s", ValueError, 'a time such as "30s"'),
        ("every", "-1min", ValueError, 'a time such as "30s"'),
        ("every", "10 days", ValueError, 'a time such as "30s"'),
        ("every", 0, ValueError, _AT_LEAST_1),
        ("every", 1.5, TypeError, _AT_LEAST_1),
        ("every", True, TypeError, _AT_LEAST_1),
        ("keep", 0, ValueError, _AT_LEAST_1),
        ("keep", None, TypeError, _AT_LEAST_1),
        ("resume", 1, TypeError, _YES_NO),
        ("save_on_exit", "yes", TypeError, _YES_NO),
        ("keep_best", "val_loss", TypeError, "None or (monitor, mode)"),
        ("keep_best", ("val_loss",), TypeError, "None or (monitor, mode)"),
        ("keep_best", (3, "min"), TypeError, "None or (monitor, mode)"),
        ("keep_best", ("val_loss", "auto"), ValueError, "'min', 'max'"),
        ("verbose", -1, ValueError, _AT_LEAST_0),
    ]
]

# --- other names --------------------------------------------------------------------------------------------------


def _report(**arguments):
    typical = {"step": 7, "epoch": 0, "batch": 7, "origin": "input", "cause": "`x` contains NaN at row 3"}
    return tf_tricks.NonFiniteReport(**{**typical, **arguments})


def _snapshot():
    return tf_tricks.checkpoints.Snapshot([("kernel", np.ones((2, 2), "float32"))], [("iteration", np.array(3))])


def _restore_report(**arguments):
    return tf_tricks.checkpoints.RestoreReport(**{"path": "run.safetensors", "loaded": ["kernel"], **arguments})


def _description(**arguments):
    return tf_tricks.checkpoints.Description(**{"path": "run.safetensors", **arguments})


def _model():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    return model


def _file_and_model():
    """Good arguments of `save` and `restore`; the file is there."""
    arguments = {"path": os.path.join(_new_folder(), "run.safetensors"), "model": _model()}
    tf_tricks.checkpoints.save(**arguments)
    return arguments


def _file():
    return {"path": _file_and_model()["path"]}


def _folder():
    return {"directory": os.path.dirname(_file_and_model()["path"])}


_A_PATH, _A_MODEL = "a str or a path", "a keras.Model"
_NO_FILE = ("path", "/nowhere/run.safetensors", FileNotFoundError, "an existing file or folder")
_SAVE_BAD = [
    ("path", 3, TypeError, _A_PATH),
    ("path", "run.weights.h5", ValueError, "not end in .h5 or .keras"),
    ("path", "run.keras", ValueError, "not end in .h5 or .keras"),
    ("model", 3, TypeError, _A_MODEL),
    ("optimizer", 1, TypeError, _YES_NO),
    ("epoch", -1, ValueError, _AT_LEAST_0),
    ("epoch", 1.5, TypeError, _AT_LEAST_0),
]
_RESTORE_BAD = [
    ("path", 3, TypeError, _A_PATH),
    _NO_FILE,
    ("model", 3, TypeError, _A_MODEL),
    ("strict", 1, TypeError, _YES_NO),
    ("optimizer", True, ValueError, "one of 'require', 'if-present', 'ignore'"),
    ("partial", [], ValueError, "a list of patterns"),
    ("partial", [3], ValueError, "a list of patterns"),
]
_LATEST_BAD = [
    ("directory", 3, TypeError, _A_PATH),
    ("directory", "/nowhere", NotADirectoryError, "a folder"),
]
_FILE_BAD = [("path", 3, TypeError, _A_PATH), _NO_FILE]


def _scaled(**arguments):
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=1, decay_rate=0.5)
    return ScaledLearningRate(**{"schedule": decay, "factor": 0.1, **arguments})


def _residual():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(4, activation="relu")(inputs)
    return {"model": keras.Model(inputs, inputs + keras.layers.Dense(4)(hidden))}


def _model_and_batch():
    x = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    return {"model": _model(), "x": x}


def _signals(**arguments):
    return tf_tricks.debug.signal_propagation(**_model_and_batch(), **arguments)


_SEED = "None, an int or a keras.random.SeedGenerator"
_LSUV_BAD = [
    ("model", 3, TypeError, _A_MODEL),
    ("tolerance", 0.0, ValueError, "(0, inf)"),
    ("max_divisions", 0, ValueError, _AT_LEAST_1),
    ("orthonormal", 1, TypeError, _YES_NO),
    ("seed", "one", TypeError, _SEED),
]
_SIGNAL_BAD = [
    ("model", 3, TypeError, _A_MODEL),
    ("bypass", "BatchNormalization", TypeError, "a layer class"),
]

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
    "GradualUnfreezing": Row(
        _unfreezing,
        ALL_SECTIONS,
        [
            {"stages": "small", "learning_rates": None, "verbose": 1},
            {"stages": [0.2, 0.5, 1.0], "learning_rates": [1.0, 0.5, 0.1], "relative": True, "epochs": [1, 3]},
            {"stages": [["head"], ["b5_*", "b4_*"]], "relative": False, "epochs": 4, "freeze_batch_norm": False},
        ],
        changes_training=True,
        proof=_unfreezing_worked,
        bad=_UNFREEZING_BAD,
    ),
    "NaNGuard": Row(
        _nan_guard,
        ALL_SECTIONS,
        [{"on_nan": "skip", "patience": 3}, {"on_nan": "rollback", "lr_factor": 0.5, "snapshot_every": 7}],
        proof=_nan_guard_worked,
        bad=_NAN_GUARD_BAD,
    ),
    "TrainingCheckpoint": Row(
        _training_checkpoint,
        ALL_SECTIONS,
        [
            {"directory": "run", "every": "10min", "keep": 1, "keep_best": ("val_loss", "min")},
            {"directory": "memory://run", "every": "epoch", "resume": False, "save_on_exit": False, "verbose": 1},
        ],
        proof=_training_checkpoint_worked,
        bad=_TRAINING_CHECKPOINT_BAD,
    ),
}
_FUNCTIONS = {
    "describe": Row(sections=("Args", "Returns", "Raises", "Example"), bad=_FILE_BAD, arguments=_file),
    "lsuv": Row(sections=("Returns", *ALL_SECTIONS), bad=_LSUV_BAD, any_value=("x",), arguments=_model_and_batch),
    "latest": Row(sections=("Args", "Raises", "Example"), bad=_LATEST_BAD, arguments=_folder),
    "restore": Row(sections=("Returns", *ALL_SECTIONS), bad=_RESTORE_BAD, arguments=_file_and_model),
    "save": Row(sections=ALL_SECTIONS, bad=_SAVE_BAD, any_value=("metadata",), arguments=_file_and_model),
    "signal_propagation": Row(
        sections=("Returns", *ALL_SECTIONS), bad=_SIGNAL_BAD, any_value=("x", "y"), arguments=_model_and_batch
    ),
    "verify": Row(sections=("Args", "Raises", "Example"), bad=_FILE_BAD, arguments=_file),
    "zero_init_residual": Row(
        sections=("Returns", *ALL_SECTIONS), bad=[("model", 3, TypeError, _A_MODEL)], arguments=_residual
    ),
}
_OTHERS = {
    "DamagedCheckpoint": Row(lambda: tf_tricks.checkpoints.DamagedCheckpoint("cut short"), ("Example",)),
    "Description": Row(_description, ("Args", "Example")),
    "NonFiniteError": Row(lambda: tf_tricks.NonFiniteError(_report()), ("Args", "Example")),
    "NonFiniteReport": Row(_report, ("Args", "Example")),
    "RestoreReport": Row(_restore_report, ("Args", "Example")),
    "ScaledLearningRate": Row(_scaled, ("Args", "Example"), [{"factor": 2.0}]),
    "SignalPropagation": Row(_signals, ("Attributes", "Example")),
    "Snapshot": Row(_snapshot, ALL_SECTIONS),
    "__version__": Row(),
    "callbacks": Row(),
    "checkpoints": Row(),
    "debug": Row(),
    "initializers": Row(),
    "layers": Row(),
}
ROWS = {**_CALLBACKS, **_FUNCTIONS, **_OTHERS}
CALLBACKS, FUNCTIONS = sorted(_CALLBACKS), sorted(_FUNCTIONS)
