"""One row per augmentation layer: how to make one, and what it refuses."""

import dataclasses
import typing

import keras
import numpy as np

import tf_tricks.layers

SIDE = 8
_rng = np.random.default_rng(0)
IMAGES = _rng.uniform(0, 255, (4, SIDE, SIDE, 3)).astype("float32")
LABELS = np.eye(3, dtype="float32")[[0, 1, 2, 0]]

_NUMBER, _FACTOR = "a number in", "[-1, 1]"
_UNIT = "[0, 1]"
# Arguments that many layers have: (value, exception, what the message says is accepted).
COMMON = {
    "bounding_box_format": [("corners", ValueError, "one of")],
    "data_format": [("channels", ValueError, "one of")],
    "fill_value": [("0", TypeError, "a number")],
    "fill_mode": [("mirror", ValueError, "one of")],
    "interpolation": [("cubic", ValueError, "one of")],
    "num_classes": [(1, ValueError, "an int >= 2")],
    "seed": [("0", TypeError, "an int >= 0"), (-1, ValueError, "an int >= 0")],
    "value_range": [((1, 0), ValueError, "a pair (low, high)")],
}


@dataclasses.dataclass
class AugmentationRow:
    """What the contracts need to know of a layer.

    Attributes:
        make: callable that returns a typical instance; keyword arguments replace its choices.
        required: dict of the arguments without a default.
        bad: list of (argument, value, exception, what the message says is accepted).
        size: side of the images that come out.
        any_value: names of arguments that no value is bad for.
        labels: does it need labels?
    """

    make: typing.Callable
    required: dict
    bad: list = dataclasses.field(default_factory=list)
    size: int = SIDE
    any_value: tuple = ()
    labels: bool = False


def _row(name, required=None, **row):
    required = required or {}
    return AugmentationRow(
        lambda **arguments: getattr(tf_tricks.layers, name)(**{**required, **arguments}), required, **row
    )


def _factor(name="factor", accepted=_FACTOR):
    return [(name, 1.5, ValueError, accepted), (name, "1", TypeError, _NUMBER)]


def _at_least_one(name):
    return [(name, 0, ValueError, "an int >= 1")]


AUGMENTATIONS = {
    "Augmentation": _row(
        "Augmentation",
        {"layers": [tf_tricks.layers.RandomFlip(), tf_tricks.layers.RandomBrightness(0.2)]},
        bad=[
            ("layers", 3, TypeError, "a list of layers"),
            ("probability", 1.5, ValueError, _UNIT),
        ],
        any_value=("value_range",),  # the members' own, or refused with theirs
    ),
    "CutMix": _row("CutMix", bad=_factor(accepted=_UNIT), labels=True),
    "MixUp": _row("MixUp", bad=[("alpha", 0, ValueError, "(0, inf)")], labels=True),
    "RandAugment": _row(
        "RandAugment", bad=[("num_ops", -1, ValueError, "an int >= 0"), ("factor", 1.5, ValueError, _UNIT)]
    ),
    "RandomBrightness": _row("RandomBrightness", {"factor": 0.2}, bad=_factor()),
    "RandomColorJitter": _row(
        "RandomColorJitter",
        {"brightness_factor": 0.2, "contrast_factor": 0.2, "saturation_factor": (0.3, 0.7), "hue_factor": 0.1},
        bad=[
            *_factor("brightness_factor"),
            *_factor("contrast_factor", _UNIT),
            *_factor("saturation_factor", _UNIT),
            *_factor("hue_factor", _UNIT),
            ("mode", "fast", ValueError, "one of"),
        ],
    ),
    "RandomContrast": _row("RandomContrast", {"factor": 0.2}, bad=_factor(accepted=_UNIT)),
    "RandomCrop": _row(
        "RandomCrop",
        {"height": 6, "width": 6},
        bad=[*_at_least_one("height"), *_at_least_one("width")],
        any_value=("name",),
        size=6,
    ),
    "RandomErasing": _row(
        "RandomErasing",
        bad=[
            *_factor(accepted=_UNIT),
            *_factor("scale", _UNIT),
            ("fill_value", "noise", ValueError, "None (noise), a number"),
        ],
    ),
    "RandomFlip": _row("RandomFlip", bad=[("mode", "diagonal", ValueError, "one of"), ("keypoint_pairs", 3, None, "")]),
    "RandomGaussianBlur": _row(
        "RandomGaussianBlur",
        bad=[
            *_factor(accepted=_UNIT),
            ("kernel_size", 2, ValueError, "an odd int"),
            ("sigma", (1, 2, 3), ValueError, "a number >= 0"),
        ],
    ),
    "RandomGaussianNoise": _row("RandomGaussianNoise", {"factor": 0.1}, bad=_factor(accepted=_UNIT)),
    "RandomGrayscale": _row("RandomGrayscale", bad=_factor(accepted=_UNIT)),
    "RandomGridMask": _row(
        "RandomGridMask",
        bad=[
            ("unit", 0.0, ValueError, "(0, 1]"),
            ("ratio", 2.0, ValueError, _UNIT),
            *_factor("rotation_factor"),
            ("fill_value", "noise", ValueError, "None (noise), a number"),
            ("probability", 2.0, ValueError, _UNIT),
        ],
    ),
    "RandomHue": _row("RandomHue", {"factor": 0.1}, bad=_factor(accepted=_UNIT)),
    "RandomPerspective": _row("RandomPerspective", bad=[*_factor(accepted=_UNIT), ("scale", 2.0, ValueError, _UNIT)]),
    "RandomRGBShift": _row("RandomRGBShift", {"factor": 0.1}, bad=_factor()),
    "RandomResizedCrop": _row(
        "RandomResizedCrop",
        {"height": 6, "width": 6},
        bad=[*_at_least_one("height"), *_at_least_one("width"), ("scale", 3, None, ""), ("ratio", 3, None, "")],
        size=6,
    ),
    "RandomRotation": _row("RandomRotation", {"factor": 0.1}, bad=_factor()),
    "RandomSaltAndPepper": _row(
        "RandomSaltAndPepper", {"factor": 0.1}, bad=[*_factor(accepted=_UNIT), ("salt", 2.0, ValueError, _UNIT)]
    ),
    "RandomSaturation": _row("RandomSaturation", {"factor": (0.3, 0.7)}, bad=_factor(accepted=_UNIT)),
    "RandomShear": _row(
        "RandomShear",
        {"x_factor": 0.1, "y_factor": 0.1},
        bad=[*_factor("x_factor", _UNIT), *_factor("y_factor", _UNIT)],
    ),
    "RandomShotNoise": _row("RandomShotNoise", {"factor": 0.1}, bad=_factor(accepted=_UNIT)),
    "RandomTranslation": _row(
        "RandomTranslation",
        {"height_factor": 0.2, "width_factor": 0.2},
        bad=[*_factor("height_factor"), *_factor("width_factor")],
    ),
    "RandomZoom": _row(
        "RandomZoom",
        {"height_factor": 0.2},
        bad=[(f"{side}_factor", "1", TypeError, _NUMBER) for side in ("height", "width")],
    ),
    "TrivialAugment": _row("TrivialAugment", bad=[("num_magnitude_bins", 0, ValueError, "an int >= ")]),
}


def as_array(value):
    return np.array(keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")))


def given(name):
    """Data for a layer: images, or a dict with labels where it needs them."""
    return {"images": IMAGES, "labels": LABELS} if AUGMENTATIONS[name].labels else IMAGES


def images_of(result):
    return result["images"] if isinstance(result, dict) else result
