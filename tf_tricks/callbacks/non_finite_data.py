"""Is the data of a batch itself at fault? Non-finite entries with their rows, labels out of range."""

import keras
import numpy as np

from tf_tricks.callbacks.non_finite_causes import Cause, join, kind_text, rows_text, true_rows
from tf_tricks.fit_hooks.replay import to_numpy


def named_arrays(name, structure):
    """(label, array) of each numeric leaf: `x`, `x['image']`, `x[1]`."""
    if isinstance(structure, dict):
        return [pair for key in structure for pair in named_arrays(f"{name}[{key!r}]", structure[key])]
    if isinstance(structure, (list, tuple)):
        return [pair for i, part in enumerate(structure) for pair in named_arrays(f"{name}[{i}]", part)]
    if structure is None:
        return []
    try:
        array = to_numpy(structure)
    except Exception:  # ragged and sparse tensors have no dense form to look at
        return []
    return [(name, array)] if array.dtype.kind in "fiu" else []


def explain_data(name, structure):
    """The first leaf with a non-finite entry, or None."""
    for label, array in named_arrays(name, structure):
        bad = ~np.isfinite(array)
        if array.dtype.kind != "f" or not bad.any():
            continue
        rows = true_rows(bad) if array.ndim else None
        where = f" at {rows_text(rows, len(array))}" if rows else ""
        fix = f"Clean the data before `fit`: drop or fill these rows; `np.isfinite({name}).all()` checks an array."
        more = "A division by a range or standard deviation of 0, or a log of 0, makes such values in a pipeline."
        return Cause(f"`{label}` contains {kind_text(array)}{where}", [fix, more], rows)
    return None


def explain_labels(model, y, predictions):
    """A class index outside 0..C-1 under a sparse categorical crossentropy."""
    labels, outputs = named_arrays("y", y), keras.tree.flatten(predictions)
    losses = _losses(getattr(model, "loss", None), len(outputs))
    if len(labels) != len(outputs):
        return None
    for (name, label), output, loss in zip(labels, outputs, losses, strict=True):
        if not _is_sparse(loss) or output is None or output.ndim < 2 or label.size * output.shape[-1] != output.size:
            continue
        classes = output.shape[-1]
        wrong = (label < 0) | (label >= classes)
        ignored = getattr(loss, "ignore_class", None)
        wrong &= label != ignored if ignored is not None else True
        if wrong.any():
            rows = true_rows(wrong)
            shown = join(sorted({int(v) for v in label[wrong]})[:5])
            return Cause(
                f"label {shown} at {rows_text(rows, len(label))} is outside 0..{classes - 1}"
                + (f" (`{name}`)" if len(labels) > 1 else ""),
                [
                    f"The model has {classes} output units: give it one per class, or renumber the labels from 0.",
                    'A label that means "ignore" goes into `SparseCategoricalCrossentropy(ignore_class=...)`.',
                ],
                rows,
            )
    return None


def _losses(loss, count):
    flat = list(loss.values()) if isinstance(loss, dict) else loss
    flat = list(flat) if isinstance(flat, (list, tuple)) else [flat] * count
    return flat if len(flat) == count else [None] * count


def _is_sparse(loss):
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        return True
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", "")
    return name == "sparse_categorical_crossentropy"
