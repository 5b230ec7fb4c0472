"""Checks of the features: plain functions of NumPy arrays, each returns a `Finding` with its numbers, or None.

Columns are the entries of the last axis of tables and sequences, and the channels of pictures.
"""

import numpy as np

from tf_tricks.debug._result import Finding

LARGE = 30.0  # root mean square, in units of what initialisers and activations expect
SPREAD = 1000.0  # ratio of the stddevs of two columns
SHIFT = 5.0  # ratio of the widths of a column in two sets
FEWEST = 20  # samples, for comparing distributions
MANY_VALUES = 16  # numbers of a sample, from which on two equal samples are no coincidence


def columns_of(array):
    """(rows, columns) in float64."""
    array = np.asarray(array)
    return array.reshape(len(array), -1).astype("float64") if array.ndim < 3 else _last_axis(array)


def _last_axis(array):
    return array.reshape(-1, array.shape[-1]).astype("float64")


def not_finite(name, array):
    """NaN or infinities, with their columns."""
    if array.dtype.kind not in "fc":
        return None
    bad = ~np.isfinite(array)
    if not bad.any():
        return None
    rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
    columns = np.flatnonzero(bad.reshape(-1, bad.shape[-1]).any(axis=0)) if bad.ndim > 1 else np.array([0])
    kinds = [word for word, found in (("NaN", np.isnan(array)), ("Inf", np.isinf(array))) if found.any()]
    return Finding(
        "not_finite",
        f"`{name}` has {int(bad.sum())} entries that are {' or '.join(kinds)}, in {len(rows)} of {len(bad)} samples "
        f"(the first is {rows[0]}), {_list('column', columns)}: one of them makes all weights NaN. Fill them or leave "
        "these samples out.",
        evidence={"entries": int(bad.sum()), "samples": rows.tolist(), "columns": columns.tolist()},
    )


def constant_columns(name, array):
    """Columns with one value only."""
    columns = columns_of(array)
    if len(columns) < 2:
        return None
    constant = np.flatnonzero(np.ptp(columns, axis=0) == 0)
    if not len(constant):
        return None
    everything = len(constant) == columns.shape[1]
    consequence = "there is nothing to learn from" if everything else "they tell nothing: leaving them out is cheaper"
    return Finding(
        "constant_columns",
        f"`{name}`: {_list('column', constant)} of {columns.shape[1]} {_are(constant)} constant; {consequence}.",
        is_fault=everything,
        evidence={"columns": constant.tolist()},
    )


def duplicate_columns(name, array):
    """Columns equal to another one."""
    if array.ndim != 2 or len(array) < 2 or array.shape[1] > 20_000:
        return None
    first, found = {}, []
    for i, column in enumerate(np.ascontiguousarray(array.T)):
        if np.all(column == column[0]):
            continue
        original = first.setdefault(column.tobytes(), i)
        if original != i:
            found.append((original, i))
    if not found:
        return None
    shown = ", ".join(f"{i} = {j}" for i, j in found[:5])
    return Finding(
        "duplicate_columns",
        f"`{name}`: {len(found)} of {array.shape[1]} columns repeat another one ({shown}): counted twice, learned "
        "twice as fast.",
        is_fault=False,
        evidence={"pairs": found},
    )


def not_scaled(name, array, arriving=None, layer=None):
    """Values far from 1, as they arrive at the first layer with a kernel if that is known.

    Args:
        array: (n, ...) as the user has it.
        arriving: None, or what of it arrives at `layer`. Without it the finding is a remark: a layer may scale it.
    """
    seen = array if arriving is None else arriving
    where = "" if arriving is None else f" where it arrives at `{layer}`"
    advice = "Standardise (`tf_tricks.layers.Standardize`, `AutoScale`) with the training data's statistics."
    if _is_raw_picture(array, seen):
        text = (
            f"`{name}` holds whole numbers from {array.min():g} to {array.max():g} that nobody scales: root mean "
            f"square {_rms(seen):.3g}{where}. Divide by 255, or begin the model with `keras.layers.Rescaling(1 / "
            "255)`."
        )
        evidence = {"maximum": float(array.max()), "rms": _rms(seen)}
        return Finding("images_not_scaled", text, arriving is not None, evidence)
    if seen.ndim > 3 or seen.dtype.kind not in "fiu":  # pictures with a mean taken off keep their range on purpose
        return None
    columns = columns_of(seen)
    rms, stddev = np.sqrt(np.mean(columns**2, axis=0)), columns.std(axis=0)
    large = np.flatnonzero(rms > LARGE)
    evidence = {"columns": large.tolist(), "largest_rms": float(rms.max(initial=0))}
    if len(large):
        worst = int(np.argmax(rms))
        text = (
            f"`{name}`: {_list('column', large)} of {columns.shape[1]} {_are(large)} far from unit scale (column "
            f"{worst}: mean {columns[:, worst].mean():.3g}, stddev {stddev[worst]:.3g}){where}. {advice}"
        )
        return Finding("not_scaled", text, arriving is not None, evidence)
    free = np.flatnonzero((stddev > 0) & ~_two_valued(columns))
    if len(free) > 1 and stddev[free].max() > SPREAD * stddev[free].min():
        low, high = free[np.argmin(stddev[free])], free[np.argmax(stddev[free])]
        text = (
            f"`{name}`: the stddev of column {high} is {stddev[high]:.3g}, that of column {low} "
            f"{stddev[low]:.3g}{where}; "
            f"the small one is hardly seen. {advice}"
        )
        return Finding("not_scaled", text, arriving is not None, {"columns": [int(low), int(high)]})
    return None


def scaled_differently(name, train, validation):
    """Columns that lie elsewhere, or are wider or narrower by far, in the validation data."""
    if train.shape[1:] != validation.shape[1:]:
        return Finding(
            "shapes_differ",
            f"`{name}` has samples of shape {train.shape[1:]} in training and {validation.shape[1:]} in validation.",
            evidence={"train": train.shape[1:], "validation": validation.shape[1:]},
        )
    a, b = columns_of(train), columns_of(validation)
    if min(len(a), len(b)) < FEWEST:
        return None
    (low, middle, high), (low_b, middle_b, high_b) = (np.percentile(each, [5, 50, 95], axis=0) for each in (a, b))
    width, width_b = high - low, high_b - low_b
    usual = (width > 0) & (width_b > 0)
    outside = np.mean((b < np.min(a, axis=0)) | (b > np.max(a, axis=0)), axis=0) > 0.5
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(usual, width_b / width, 1.0)
        # Quantiles jump for columns that are nearly always 0, stddevs for columns with long tails: both have to differ.
        stddevs = np.where(usual, np.std(b, axis=0) / np.std(a, axis=0), 1.0)
    wider, narrower = (ratio > SHIFT) & (stddevs > SHIFT), (ratio < 1 / SHIFT) & (stddevs < 1 / SHIFT)
    off = np.flatnonzero((outside & (np.ptp(a, axis=0) > 0)) | wider | narrower)
    if not len(off):
        return None
    worst = int(off[np.argmax(np.abs(np.log(ratio[off])))])
    return Finding(
        "scaled_differently",
        f"`{name}`: {_list('column', off)} of {a.shape[1]} {_are(off)} scaled differently in validation (column "
        f"{worst}: median "
        f"{middle[worst]:.3g}, nine tenths in [{low[worst]:.3g}, {high[worst]:.3g}] in training; median "
        f"{middle_b[worst]:.3g}, "
        f"[{low_b[worst]:.3g}, {high_b[worst]:.3g}] in validation). Scale both with the statistics of training.",
        evidence={"columns": off.tolist(), "column": worst, "width_ratio": float(ratio[worst])},
    )


def row_keys(leaves):
    """One bytes object per sample, equal where all arrays of `leaves` are."""
    flat = [np.ascontiguousarray(leaf).reshape(len(leaf), -1) for leaf in leaves]
    return [b"".join(part.tobytes() for part in row) for row in zip(*flat, strict=True)]


def leakage(train_keys, validation_keys):
    """Samples of the validation data that are in the training data, more than chance repeats samples."""
    seen = {}
    for i, key in enumerate(train_keys):
        seen.setdefault(key, i)
    pairs = [(seen[key], j) for j, key in enumerate(validation_keys) if key in seen]
    share, natural = len(pairs) / len(validation_keys), 1 - len(seen) / len(train_keys)
    if not pairs:
        return None
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


def conflicting_labels(keys, label_keys, numbers):
    """Equal samples with different labels. `numbers`: how many numbers a sample has."""
    first, conflicts = {}, []
    for i, (key, label) in enumerate(zip(keys, label_keys, strict=True)):
        original, its_label = first.setdefault(key, (i, label))
        if label != its_label:
            conflicts.append((original, i))
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


def _is_raw_picture(array, seen):
    # Each number of a sample counts: 0 is there, and something near 255, and nothing above. Few columns are a table.
    if array.ndim < 3 and (array.ndim < 2 or array.shape[1] < 64):
        return False
    low, high = array.min(), array.max()
    if array.dtype.kind not in "fiu" or low < 0 or not 128 <= high <= 255 or seen.min() < 0 or _rms(seen) < LARGE:
        return False
    return array.dtype.kind != "f" or bool(np.all(array[:50] == np.round(array[:50])))


def _rms(array):
    return float(np.sqrt(np.mean(np.square(array, dtype="float64"))))


def _two_valued(columns):
    low, high = columns.min(axis=0), columns.max(axis=0)
    return np.all((columns == low) | (columns == high), axis=0)


def _list(word, numbers, most=6):
    shown = ", ".join(str(int(number)) for number in numbers[:most])
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"{word}{'s' if len(numbers) > 1 else ''} {shown}{more}"


def _are(numbers):
    return "are" if len(numbers) > 1 else "is"
