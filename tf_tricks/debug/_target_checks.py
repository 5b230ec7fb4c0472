"""Checks of targets against the loss and the outputs: plain functions, each returns a `Finding` or None."""

import keras
import numpy as np

from tf_tricks.debug._result import Finding

SPARSE = ("sparsecategoricalcrossentropy",)
CATEGORICAL = ("categoricalcrossentropy", "categoricalfocalcrossentropy", "kldivergence")
BINARY = ("binarycrossentropy", "binaryfocalcrossentropy")
DISTANCES = (
    "meansquarederror",
    "meanabsoluteerror",
    "meansquaredlogarithmicerror",
    "meanabsolutepercentageerror",
    "huber",
    "logcosh",
    "poisson",
)
IMBALANCE = 10  # samples of the largest class for one of the smallest
LARGE = 30.0


def loss_kind(loss):
    """One of the words above, or None for a loss that is not Keras's own: its targets are its own matter."""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            return None
    own = type(loss).__module__ if isinstance(loss, keras.losses.Loss) else getattr(loss, "__module__", None)
    if loss is None or not str(own).startswith("keras."):
        return None
    name = getattr(loss, "__name__", type(loss).__name__) if not isinstance(loss, keras.losses.Loss) else ""
    word = (name or type(loss).__name__).replace("_", "").lower()
    return word if word in (*SPARSE, *CATEGORICAL, *BINARY, *DISTANCES) else None


def is_one_hot(y):
    """Is each row of the last axis a single 1 among zeros?"""
    if y.ndim < 2 or y.shape[-1] < 2:
        return False
    return bool(np.all((y == 0) | (y == 1)) and np.all(y.sum(axis=-1) == 1))


def is_integer(y):
    return y.dtype.kind in "iub" or (y.dtype.kind == "f" and bool(np.all(y == np.round(y))))


def wrong_encoding(name, y, units, kind, rank):
    """One-hot labels for a loss of integers, integers for a loss of one-hot labels, a softmax over one unit.

    Args:
        units: int, entries of the last axis of the outputs.
        rank: int, number of axes of the outputs.
    """
    if kind in (*SPARSE, *CATEGORICAL) and units == 1:
        text = (
            f"`{name}`: a cross-entropy over classes needs an output unit for each, and there is one: a softmax over "
            'one unit is always 1. For two classes use a sigmoid with "binary_crossentropy".'
        )
        return Finding("one_unit", text, evidence={"units": units})
    if kind in SPARSE and y.ndim == rank and y.shape[-1] > 1 and is_one_hot(y):
        text = (
            f'`{name}` of shape {_shape(y)} is one-hot, and the loss takes integers: use "categorical_crossentropy" '
            "or `np.argmax(y, axis=-1)`."
        )
        return Finding("one_hot_targets", text, evidence={"shape": y.shape})
    if kind in CATEGORICAL and is_integer(y) and (y.ndim < rank or (y.shape[-1] == 1 and units > 1)):
        text = (
            f"`{name}` of shape {_shape(y)} holds integers up to {y.max():g}, and the loss takes one row of {units} "
            'probabilities for each sample: use "sparse_categorical_crossentropy" or `keras.utils.to_categorical`.'
        )
        return Finding("integer_targets", text, evidence={"shape": y.shape, "units": units})
    return None


def out_of_range(name, y, units, kind, ignore_class=None):
    """Labels that no output unit stands for, or that are no probability."""
    if kind in SPARSE:
        if not is_integer(y):
            return Finding("not_integers", f"`{name}` holds {y.ravel()[0]:g}, ...: the loss takes class numbers.")
        wrong = (y < 0) | (y >= units)
        if ignore_class is not None:
            wrong &= y != ignore_class
        limits = f"0 to {units - 1}, one for each of the {units} output units"
        advice = "Count the classes from 0, or give the model a unit for each."
    elif kind in (*BINARY, *CATEGORICAL):
        wrong = (y < 0) | (y > 1)
        limits, advice = "probabilities from 0 to 1", "Recode them, -1 or 2 as 0 or 1."
    else:
        return None
    if not wrong.any():
        return None
    bad = np.unique(y[wrong])
    shown = ", ".join(f"{value:g}" for value in bad[:5])
    return Finding(
        "labels_out_of_range",
        f"`{name}`: {int(wrong.sum())} labels ({shown}{', ...' if len(bad) > 5 else ''}) are out of range; the loss "
        f"takes {limits}. {advice}",
        evidence={"labels": bad.tolist(), "count": int(wrong.sum()), "units": units},
    )


def class_balance(name, y):
    """A single class, or one that is much rarer than another. `y`: class numbers or one-hot rows."""
    labels = np.argmax(y, axis=-1) if is_one_hot(y) else y
    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) == 1:
        text = f"All {labels.size} labels of `{name}` are {classes[0]:g}: a constant is the right answer."
        return Finding("single_class", text, evidence={"class": float(classes[0])})
    if counts.max() < IMBALANCE * counts.min():
        return None
    rare, frequent = classes[np.argmin(counts)], classes[np.argmax(counts)]
    share = counts.max() / counts.sum()
    return Finding(
        "imbalance",
        f"`{name}`: class {rare:g} has {counts.min()} samples, class {frequent:g} has {counts.max()}. Always "
        f"answering {frequent:g} has an accuracy of {100 * share:.1f} %: watch another metric (AUC, F1), and try "
        "`class_weight` or `PriorBias`.",
        is_fault=False,
        evidence={"classes": classes.tolist(), "counts": counts.tolist()},
    )


def target_scale(name, y, kind):
    """A constant target, or one that the default initialisation is far from."""
    if kind not in (None, *DISTANCES) or y.dtype.kind not in "fiu":
        return None
    stddev, mean = float(np.std(y, dtype="float64")), float(np.mean(y, dtype="float64"))
    if stddev == 0 and len(y) > 1:
        text = f"`{name}` is {mean:.4g} for every sample: there is nothing to learn."
        return Finding("constant_target", text, evidence={"value": mean})
    if max(abs(mean), stddev) < LARGE:
        return None
    return Finding(
        "target_scale",
        f"`{name}` has mean {mean:.3g} and stddev {stddev:.3g}, while a new model gives numbers near 0: it takes long "
        "to get there. Standardise the targets, or several orders of magnitude by a logarithm.",
        is_fault=False,
        evidence={"mean": mean, "stddev": stddev},
    )


def aligned(target, output):
    """The shapes as a loss of Keras compares them: it drops, or adds, a last axis of one entry if the ranks differ."""
    target, output = tuple(target), tuple(output)
    if len(target) == len(output) + 1 and target[-1] == 1:
        return (target, (*output, 1)) if len(output) == 1 else (target[:-1], output)
    if len(output) == len(target) + 1 and output[-1] == 1:
        return ((*target, 1), output) if len(target) == 1 else (target, output[:-1])
    return target, output


def broadcasts(name, target, output, kind):
    """A target of another shape than the prediction, which the loss stretches without a word."""
    if kind not in (*DISTANCES, *BINARY):
        return None
    a, b = aligned(target, output)
    stretched = None if a == b else _stretched(a, b)
    if stretched is None:
        return None
    return Finding(
        "broadcast",
        f"`{name}` of shape {_words(target)} and the output of shape {_words(output)} are stretched to "
        f"{_words(stretched)} in the loss, without a word: each is compared with entries that are not its own.",
        evidence={"target": tuple(target), "output": tuple(output), "compared": stretched},
    )


def does_not_fit(name, target, output, kind):
    """A target of another shape than the prediction, which the loss cannot compare with it."""
    target, output = tuple(target), tuple(output)
    if kind in SPARSE:  # the classes may lie along any axis
        fitting = [output[:axis] + output[axis + 1 :] for axis in range(1, len(output))]
        squeezed = target[:-1] if len(target) == len(output) and target[-1] == 1 else target
        a, b = squeezed, squeezed if squeezed in fitting else output[:-1]
        wanted = output[:-1]
    elif kind in (*CATEGORICAL, *DISTANCES, *BINARY):
        a, b = aligned(target, output)
        wanted = output
    else:
        return None
    if a == b or (kind in (*DISTANCES, *BINARY) and _stretched(a, b) is not None):
        return None
    return Finding(
        "target_shape",
        f"`{name}` of shape {_words(target)} does not fit the output of shape {_words(output)}, for which the loss "
        f"takes {_words(wanted)}: give the last layer as many units as there are targets, or `{name}` that shape.",
        evidence={"target": target, "output": output},
    )


def _stretched(a, b):
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        return None


def _shape(y):
    return _words(y.shape)


def _words(shape):
    return f"(n{''.join(f', {size}' for size in shape[1:])}{',' if len(shape) == 1 else ''})"
