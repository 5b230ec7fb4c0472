"""One row per initializer: how to make one, a kernel for it, a model that it begins, and what it refuses."""

import dataclasses
import typing

import keras

import tf_tricks.initializers


@dataclasses.dataclass
class InitializerRow:
    """What the contracts need to know of an initializer.

    Attributes:
        make: callable that returns a typical instance; keyword arguments replace its choices.
        shape: of a weight that it is made for.
        model: callable from an instance to a small built model with it.
        variants: list of dicts, other arguments worth a config round trip.
        bad: list of (argument, value, exception, what the message says is accepted) or, with a fifth entry, the other
            arguments that make the value bad.
        any_value: names of arguments that no value is bad for.
    """

    make: typing.Callable
    shape: tuple
    model: typing.Callable
    variants: list = dataclasses.field(default_factory=list)
    bad: list = dataclasses.field(default_factory=list)
    any_value: tuple = ()


def _maker(name, **typical):
    return lambda **arguments: getattr(tf_tricks.initializers, name)(**{**typical, **arguments})


def _dense(initializer):
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, kernel_initializer=initializer)])


def _biased(initializer):
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(3, bias_initializer=initializer)])


def _convolution(initializer):
    return keras.Sequential(
        [keras.Input((6, 6, 4)), keras.layers.Conv2D(8, 3, padding="same", kernel_initializer=initializer)]
    )


_SEED = "None, an int or a keras.random.SeedGenerator"
_WITH_RELU = {"activation": "relu"}
INITIALIZERS = {
    "ActivationScaling": InitializerRow(
        _maker("ActivationScaling", activation="gelu", seed=1),
        (8, 8),
        _dense,
        [
            {"activation": "relu", "mode": "fan_out", "distribution": "orthogonal", "seed": 3},
            {"activation": "tanh", "kind": "depthwise", "distribution": "uniform"},
            {"activation": "silu", "mirrored": "both", "distribution": "normal"},
            {"activation": "relu", "kind": "transposed"},
            {"input_axes": [0], "output_axes": [1, 2], "seed": None},
        ],
        [
            (argument, value, error, accepted, {**({} if argument == "activation" else _WITH_RELU), **others})
            for argument, value, error, accepted, others in [
                ("activation", "rellu", ValueError, "the name of a Keras activation", {}),
                ("activation", 3, TypeError, "the name of a Keras activation", {}),
                ("mode", "fan", ValueError, "one of 'fan_in', 'fan_out', 'fan_avg'", {}),
                ("distribution", "gauss", ValueError, "one of 'truncated_normal'", {}),
                ("kind", "conv", ValueError, "one of 'auto', 'attention'", {}),
                ("mirrored", True, ValueError, "one of None, 'outputs', 'inputs', 'both'", {}),
                ("mirrored", "both", ValueError, "None where `kind`", {"kind": "embedding"}),
                ("input_axes", 0, TypeError, "a sequence of ints", {"output_axes": [1]}),
                ("input_axes", [0], ValueError, "together with `output_axes`", {}),
                ("output_axes", ["x"], TypeError, "a sequence of ints", {"input_axes": [1]}),
                ("seed", "one", TypeError, _SEED, {}),
            ]
        ],
    ),
    "DeltaOrthogonal": InitializerRow(
        _maker("DeltaOrthogonal", seed=1),
        (3, 3, 4, 8),
        _convolution,
        [{"gain": 1.5, "seed": 3}, {"seed": None}],
        [("gain", 0.0, ValueError, "(0, inf)"), ("gain", "1", TypeError, "a number"), ("seed", 1.5, TypeError, _SEED)],
    ),
    "Dirac": InitializerRow(
        _maker("Dirac"),
        (3, 3, 4, 8),
        _convolution,
        [{"groups": 2}],
        [("groups", 0, ValueError, "an int >= 1"), ("groups", 1.5, TypeError, "an int >= 1")],
    ),
    "ICNR": InitializerRow(
        _maker("ICNR", scale=2, initializer=keras.initializers.HeNormal(seed=1)),
        (3, 3, 4, 8),
        _convolution,
        [{"order": "pixel_shuffle"}],
        [
            ("scale", 0, ValueError, "an int >= 1"),
            ("initializer", "henormal2", ValueError, "the name of a Keras initializer", {"scale": 2}),
            ("initializer", 3, TypeError, "the name of a Keras initializer", {"scale": 2}),
            ("order", "rows", ValueError, "one of 'depth_to_space', 'pixel_shuffle'", {"scale": 2}),
        ],
    ),
    "PriorBias": InitializerRow(
        _maker("PriorBias", class_counts=[70, 20, 10]),
        (3,),
        _biased,
        [{"class_counts": None, "probability": 0.01}, {"class_counts": None, "probability": [0.1, 0.2, 0.3]}],
        [
            ("probability", 1.0, ValueError, "in (0, 1)"),
            ("probability", "rare", TypeError, "in (0, 1)"),
            ("probability", None, ValueError, "given"),
            ("class_counts", [3, 0], ValueError, "a sequence of numbers > 0"),
            ("class_counts", 3, TypeError, "a sequence of numbers > 0"),
            ("class_counts", [3], ValueError, "None where `probability` is given", {"probability": 0.5}),
        ],
    ),
}
