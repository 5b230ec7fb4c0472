"""One row per layer: how to make one, what it refuses, and data that it is adapted to."""

import dataclasses
import typing

import keras
import numpy as np

import tf_tricks.layers

_rng = np.random.default_rng(0)
# Rows of features of different kinds: shifted, skewed, bounded and spread out.
X = np.stack([_rng.normal(3, 2, 48), _rng.exponential(50, 48), _rng.uniform(-1, 1, 48)], axis=1).astype("float32")


@dataclasses.dataclass
class LayerRow:
    """What the contracts need to know of a layer.

    Attributes:
        make: callable that returns a typical instance, not adapted; keyword arguments replace its choices.
        variants: list of dicts, other arguments worth a config round trip.
        bad: list of (argument, value, exception, what the message says is accepted) or, with a fifth entry, the other
            arguments that make the value bad.
        any_value: names of arguments that no value is bad for.
        passes_on: does it hand its inputs through as they are, dtype included?
    """

    make: typing.Callable
    variants: list = dataclasses.field(default_factory=list)
    bad: list = dataclasses.field(default_factory=list)
    any_value: tuple = ()
    passes_on: bool = False


def adapted(name, **arguments):
    """A layer that knows `X`."""
    layer = LAYERS[name].make(**arguments)
    layer.adapt(X, verbose=0)
    return layer


def as_array(value):
    return np.array(keras.ops.convert_to_numpy(value))


def _row(name, typical=None, **row):
    row["bad"] = [
        ("axis", 1.5, TypeError, "an int, a tuple of int"),
        ("axis", (1, 1), ValueError, "none twice"),
        *row.get("bad", []),
    ]
    return LayerRow(lambda **arguments: getattr(tf_tricks.layers, name)(**{**(typical or {}), **arguments}), **row)


_YES_NO, _PAIR = "True or False", "a pair (low, high)"
LAYERS = {
    "AutoScale": _row("AutoScale"),
    "MatchCheck": _row("MatchCheck", passes_on=True),
    "MinMaxScale": _row(
        "MinMaxScale",
        variants=[{"range": (-1.0, 1.0), "clip": True, "axis": None}],
        bad=[
            ("range", (1, 0), ValueError, _PAIR),
            ("range", 3, TypeError, _PAIR),
            ("clip", 1, TypeError, _YES_NO),
        ],
    ),
    "QuantileScale": _row(
        "QuantileScale",
        variants=[{"output": "normal", "num_quantiles": 10}],
        bad=[
            ("output", "gauss", ValueError, "one of 'uniform', 'normal'"),
            ("num_quantiles", 1, ValueError, "an int >= 2"),
        ],
    ),
    "RobustScale": _row(
        "RobustScale",
        variants=[{"quantile_range": (0.1, 0.9)}],
        bad=[
            ("quantile_range", (0.5, 0.5), ValueError, _PAIR),
            ("quantile_range", (0, 1), ValueError, "(0, 1)"),
            ("quantile_range", 0.5, TypeError, _PAIR),
        ],
    ),
    "SignedLogScale": _row(
        "SignedLogScale",
        variants=[{"kind": "log1p"}, {"scale": 2.0}, {"scale": [1.0, 2.0, 3.0]}],
        bad=[
            ("kind", "log", ValueError, "one of 'asinh', 'log1p'"),
            ("scale", -1.0, ValueError, "finite and > 0"),
            ("scale", "wide", TypeError, "number"),
        ],
    ),
    "Standardize": _row(
        "Standardize",
        variants=[
            {"axis": None},
            {"mean": [1.0, 2.0, 3.0], "variance": [4.0, 5.0, 6.0]},
            {"mean": 1.0, "variance": 4.0, "invert": True},
        ],
        bad=[
            ("mean", 1.0, ValueError, "come with `variance`"),
            ("mean", "high", TypeError, "number", {"variance": 1.0}),
            ("mean", [1.0, 2.0], ValueError, "the same shape", {"variance": [1.0]}),
            ("variance", -1.0, ValueError, ">= 0", {"mean": 1.0}),
            ("invert", 1, TypeError, _YES_NO),
        ],
    ),
    "TanhScale": _row(
        "TanhScale",
        variants=[{"C": 5.0}, {"quantile": 0.5, "at": 0.7, "center": True}],
        bad=[
            ("C", 0.0, ValueError, "finite and > 0"),
            ("C", -1.0, ValueError, "finite and > 0"),
            ("C", "five", TypeError, "number"),
            ("quantile", 1.0, ValueError, "(0, 1)"),
            ("at", 0.0, ValueError, "(0, 1)"),
            ("center", 1, TypeError, _YES_NO),
            ("center", True, ValueError, "False where `C` is given", {"C": 3.0}),
        ],
    ),
    "Whiten": _row(
        "Whiten",
        variants=[{"kind": "zca", "epsilon": 0.1}, {"num_components": 2}, {"patch_size": 4}],
        bad=[
            ("kind", "svd", ValueError, "one of 'pca', 'zca'"),
            ("epsilon", -1.0, ValueError, "[0, inf)"),
            ("num_components", 0, ValueError, "an int >= 1"),
            ("num_components", 2, ValueError, "None for kind='zca'", {"kind": "zca"}),
            ("patch_size", 0, ValueError, "an int >= 1"),
            ("data_format", "last", ValueError, "one of None, 'channels_last'"),
            ("axis", 1, ValueError, "left at -1", {"patch_size": 4}),
        ],
    ),
}
