"""Samples that occur twice: in training and validation, or with two labels. Plain functions."""

import collections
import hashlib

import numpy as np

from tf_tricks.debug._input_rows import CHUNK
from tf_tricks.debug._result import Finding

ROWS, COLUMNS = 2000, 512  # that are looked at to tell whether samples can be equal by chance


def row_keys(leaves, rows=None, dtypes=None):
    """16 bytes per sample, equal where all arrays of `leaves` are.

    Args:
        leaves: list of arrays of n samples each.
        rows: indices of the samples that count, or None for all.
        dtypes: None, or the dtype of each array to compare in.
    """
    rows = np.arange(len(leaves[0])) if rows is None else rows
    step = max(1, CHUNK // max(1, sum(leaf[:1].size for leaf in leaves)))
    keys = []
    for start in range(0, len(rows), step):
        chosen = rows[start : start + step]
        some = slice(chosen[0], chosen[-1] + 1) if chosen[-1] - chosen[0] + 1 == len(chosen) else chosen
        parts = [leaf[some] for leaf in leaves]
        if dtypes is not None:
            parts = [part.astype(dtype, copy=False) for part, dtype in zip(parts, dtypes, strict=True)]
        flat = [np.ascontiguousarray(part).reshape(len(chosen), -1) for part in parts]
        joined = (b"".join(part.tobytes() for part in row) for row in zip(*flat, strict=True))
        keys += [hashlib.blake2b(each, digest_size=16).digest() for each in joined]
    return keys


def are_unmistakable(leaves, keys, rows=None):
    """bool, are samples so rich in numbers that two equal ones are one and the same?

    A table of a few categories, one-hot or not, repeats itself. A continuous column, whose values lie on no grid, does
    not: among u distinct values the smallest gap is about 1 / u**2 of the range (the birthday problem). Of the other
    columns each gives the chance that two samples agree in it. Were they independent, equal pairs would be as rare as
    the product of these chances; as they never are, a third of their digits has to do.

    Args:
        leaves: list of arrays of n samples each.
        keys: list of the `row_keys`. rows: the number of the sample that each key is of; None: they count from 0.
    """
    rows = np.arange(len(keys)) if rows is None else np.asarray(rows)
    first = dict(zip(reversed(keys), reversed(rows.tolist()), strict=True))
    distinct = np.sort(list(first.values()))
    distinct = distinct[np.unique(np.linspace(0, len(distinct) - 1, ROWS).astype(int))]
    if len(distinct) < 3:
        return False
    table = np.hstack([leaf[distinct].reshape(len(distinct), -1) for leaf in leaves])
    table = table[:, np.unique(np.linspace(0, table.shape[1] - 1, COLUMNS).astype(int))]
    exponent, total = 0.0, len(distinct)
    for column in table.T:
        values, counts = np.unique(column, return_counts=True)
        cells = (values[-1] - values[0]) / np.diff(values).min() if len(values) > 1 else 1.0
        if len(values) >= total / 2 and cells > total**1.5:
            return True
        equal_pairs = np.sum(counts * (counts - 1.0)) / (total * (total - 1.0))
        exponent += np.log(max(equal_pairs, 1 / total))
    return bool(2 * np.log(len(keys)) + exponent / 3 < 0)


def leakage(train_keys, validation_keys, are_unmistakable, train_rows=None, validation_rows=None):
    """Samples of the validation data that are in the training data, more than chance repeats samples.

    Args:
        train_keys, validation_keys: lists of `row_keys`.
        are_unmistakable: bool, see there: repeats within the training data are then no excuse.
        train_rows, validation_rows: the number of the sample that each key is of; None: they count from 0.
    """
    train_rows = range(len(train_keys)) if train_rows is None else train_rows
    validation_rows = range(len(validation_keys)) if validation_rows is None else validation_rows
    seen, count = {}, collections.Counter(train_keys)
    for i, key in zip(train_rows, train_keys, strict=True):
        seen.setdefault(key, int(i))
    found = [(key, int(j)) for j, key in zip(validation_rows, validation_keys, strict=True) if key in seen]
    if not found:
        return None
    pairs = [(seen[key], j) for key, j in found]
    share, natural = len(pairs) / len(validation_keys), 1 - len(seen) / len(train_keys)
    if are_unmistakable:  # but for one that is everywhere, as an empty picture
        everywhere = max(30, 0.01 * len(train_keys))
        is_fault = sum(count[key] <= everywhere for key, _ in found) > 0.01 * len(validation_keys)
    else:  # a table of few small numbers repeats itself: that is no leak
        is_fault = share > max(0.01, 3 * natural)
    shown = ", ".join(f"{i} = {j}" for i, j in pairs[:3])
    return Finding(
        "leakage",
        f"{len(pairs)} of {len(validation_keys)} validation samples ({100 * share:.3g} %) are in the training data, "
        f"too (training = validation: {shown}); within the training data {100 * natural:.3g} % repeat another. The "
        "validation loss flatters: drop them.",
        is_fault=is_fault,
        evidence={"pairs": pairs, "share": share, "natural": natural},
    )


def conflicting_labels(keys, label_keys, are_unmistakable, rows=None):
    """Equal samples with different labels.

    Args:
        keys, label_keys: lists of `row_keys`, of features and of labels.
        are_unmistakable: bool, see there: where equal samples are common, they may have different labels.
        rows: the number of the sample that each key is of; None: they count from 0.
    """
    rows = range(len(keys)) if rows is None else rows
    first, conflicts = {}, []
    for i, key, label in zip(rows, keys, label_keys, strict=True):
        original, its_label = first.setdefault(key, (int(i), label))
        if label != its_label:
            conflicts.append((original, int(i)))
    if not conflicts or len(first) == 1:
        return None
    shown = ", ".join(f"{i} and {j}" for i, j in conflicts[:3])
    share = len(conflicts) / len(keys)
    return Finding(
        "conflicting_labels",
        f"{len(conflicts)} of {len(keys)} samples ({100 * share:.3g} %) repeat another one with a different label "
        f"(samples {shown}): wrong labels, or features that do not tell the samples apart.",
        is_fault=are_unmistakable and share > 0.001,
        evidence={"pairs": conflicts},
    )
