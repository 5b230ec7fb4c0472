"""One row per debugging function: how to call it and what it refuses. `tests/test_debug_contract.py` reads them.

Keep them sorted; what several rows share stands above.
"""

import dataclasses

import keras

_A_MODEL = "a keras.Model"


@dataclasses.dataclass
class DebugRow:
    """What the contracts need to know of a debugging function.

    Attributes:
        bad: list of (argument, value, exception, what the message says is accepted) or, with a fifth entry, a dict of
            the other arguments that make the value bad.
        any_value: names of arguments that no single value is bad for.
        quick: dict of keyword arguments that make a call take a second: the contracts pass them.
        takes: "model": called as `f(model, x, y)`; "data": as `f(x, y)`; "history": as `f(history)`.
        reference: bool, whether the docstring cites where the method comes from.
    """

    bad: list
    any_value: tuple = ()
    quick: dict = dataclasses.field(default_factory=dict)
    takes: str = "model"
    reference: bool = True


DEBUG = {
    "batch_size_advice": DebugRow(
        [
            ("model", 3, TypeError, _A_MODEL),
            ("batch_size", 0, ValueError, "an int >= 1"),
            ("seconds", 0, ValueError, "lie in (0, inf)"),
            ("steps", 3, ValueError, "an int >= 4"),
            ("seed", -1, ValueError, "an int >= 0"),
            ("verbose", -1, ValueError, "an int >= 0"),
        ],
        any_value=("x", "y", "sample_weight"),
        quick={"steps": 4, "verbose": 0},
    ),
    "check_gradients": DebugRow(
        [
            ("model", 3, TypeError, _A_MODEL),
            ("batch_size", 0, ValueError, "an int >= 1"),
            ("tolerance", 1.0, ValueError, "lie in (0, 1)"),
            ("seconds", 0, ValueError, "lie in (0, inf)"),
            ("steps", 0, ValueError, "an int >= 1"),
            ("seed", -1, ValueError, "an int >= 0"),
            ("verbose", -1, ValueError, "an int >= 0"),
        ],
        any_value=("x", "y", "sample_weight"),
        quick={"steps": 20, "verbose": 0},
    ),
    "check_inputs": DebugRow(
        [
            ("model", 3, TypeError, "a keras.Model or None"),
            ("validation", 0.2, TypeError, "(x, y), (x, y, sample_weight), a dataset or None"),
            ("samples", 49, ValueError, "an int >= 50"),
            ("seconds", 0, ValueError, "lie in (0, inf)"),
            ("seed", -1, ValueError, "an int >= 0"),
            ("verbose", -1, ValueError, "an int >= 0"),
        ],
        any_value=("x", "y"),
        quick={"verbose": 0},
        takes="data",
    ),
    "diagnose_learning_curve": DebugRow(
        [
            ("history", 3, TypeError, "what `fit` returned, a dict of lists, or the path of a CSV file"),
            ("monitor", "mae", ValueError, "one of loss, val_loss"),
            ("monitor", None, TypeError, "a str"),
            ("baseline", 0, ValueError, "lie in (0, inf)"),
            ("validation_freq", 0, ValueError, "an int >= 1"),
        ],
        takes="history",
    ),
    "find_learning_rate": DebugRow(
        [
            ("model", 3, TypeError, _A_MODEL),
            ("batch_size", 0, ValueError, "an int >= 1"),
            ("lowest", 0, ValueError, "lie in (0, inf)"),
            ("highest", 1e-8, ValueError, "lie in (1e-07, inf)"),
            ("steps", 0, ValueError, "an int >= 1"),
            ("seconds", 0, ValueError, "lie in (0, inf)"),
            ("seed", -1, ValueError, "an int >= 0"),
            ("verbose", -1, ValueError, "an int >= 0"),
        ],
        any_value=("x", "y", "sample_weight"),
        quick={"steps": 80, "verbose": 0},
    ),
    "loss_outliers": DebugRow(
        [
            ("model", 3, TypeError, _A_MODEL),
            ("limit", 1, ValueError, "an int >= 2"),
            ("cross_fit", 1, TypeError, "True or False"),
            ("forget", 1, TypeError, "True or False"),
            ("seconds", 0, ValueError, "lie in (0, inf)"),
            ("steps", 0, ValueError, "an int >= 1"),
            ("seed", -1, ValueError, "an int >= 0"),
            ("verbose", -1, ValueError, "an int >= 0"),
        ],
        any_value=("x", "y", "sample_weight"),
        quick={"steps": 4, "verbose": 0},
    ),
    "overfit_one_batch": DebugRow(
        [
            ("model", 3, TypeError, _A_MODEL),
            ("samples", 0, ValueError, "an int >= 1"),
            ("steps", 0, ValueError, "an int >= 1"),
            ("seconds", 0, ValueError, "lie in (0, inf)"),
            ("seed", -1, ValueError, "an int >= 0"),
            ("verbose", -1, ValueError, "an int >= 0"),
        ],
        any_value=("x", "y", "sample_weight"),
        quick={"steps": 60, "verbose": 0},
    ),
    "without_batch_norm": DebugRow(
        [
            ("model", 3, TypeError, _A_MODEL),
            ("y", None, ValueError, "hold the targets"),
            ("bypass", "norm", TypeError, "a layer class or a tuple of them"),
            ("batch_size", 1, ValueError, "an int >= 2"),
            ("steps", 0, ValueError, "an int >= 1"),
            ("seconds", 0, ValueError, "lie in (0, inf)"),
            ("seed", -1, ValueError, "an int >= 0"),
            ("verbose", -1, ValueError, "an int >= 0"),
        ],
        any_value=("x",),
        # Not each model of the contracts has a normalisation, and one without is refused.
        quick={
            "bypass": (keras.layers.BatchNormalization, keras.layers.Dropout, keras.layers.InputLayer),
            "steps": 2,
            "verbose": 0,
        },
    ),
}
