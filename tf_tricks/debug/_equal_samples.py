"""Samples that occur twice: in training and validation, or with two labels. Plain functions."""

import hashlib

import numpy as np

from tf_tricks.debug._input_rows import CHUNK
from tf_tricks.debug._result import Finding

MANY_VALUES = 16  # numbers of a sample, from which on two equal samples are no coincidence


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


def leakage(train_keys, validation_keys, train_rows=None, validation_rows=None):
    """Samples of the validation data that are in the training data, more than chance repeats samples.

    Args:
        train_keys, validation_keys: lists of `row_keys`.
        train_rows, validation_rows: the number of the sample that each key is of; None: they count from 0.
    """
    train_rows = range(len(train_keys)) if train_rows is None else train_rows
    validation_rows = range(len(validation_keys)) if validation_rows is None else validation_rows
    seen = {}
    for i, key in zip(train_rows, train_keys, strict=True):
        seen.setdefault(key, int(i))
    pairs = [(seen[key], int(j)) for j, key in zip(validation_rows, validation_keys, strict=True) if key in seen]
    if not pairs:
        return None
    share, natural = len(pairs) / len(validation_keys), 1 - len(seen) / len(train_keys)
    # A table of few small numbers repeats itself: that is no leak.
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


def conflicting_labels(keys, label_keys, numbers, rows=None):
    """Equal samples with different labels.

    Args:
        keys, label_keys: lists of `row_keys`, of features and of labels.
        numbers: int, how many numbers a sample has.
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
        is_fault=numbers >= MANY_VALUES and share > 0.001,
        evidence={"pairs": conflicts},
    )
