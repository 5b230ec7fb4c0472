"""Checks of the features: plain functions of NumPy arrays, each returns a `Finding` with its numbers, or None.

Columns are the entries of the last axis of tables and sequences, and the channels of pictures.
"""

import numpy as np

from tf_tricks.debug._input_rows import chunks
from tf_tricks.debug._result import Finding

LARGE = 30.0  # root mean square, in units of what initialisers and activations expect
SPREAD = 1000.0  # ratio of the stddevs of two columns
SHIFT = 5.0  # ratio of the widths of a column in two sets
FEWEST = 20  # samples, for comparing distributions
PICTURES = 1000.0  # root mean square of pictures; those of 0 to 255 reach 255
COLUMNS, NUMBERS = 2048, 2**24  # that statistics are made of


def columns_of(array):
    """(rows, columns) in float64: no more than 2048 columns and 16 million numbers, evenly chosen."""
    array = np.asarray(array)
    if array.ndim < 3:
        array = array.reshape(len(array), -1)
    array = array[..., column_numbers(array)] if array.shape[-1] > COLUMNS else array
    array = array[:: -(-array.size // NUMBERS) or 1]
    return array.reshape(-1, array.shape[-1]).astype("float64")


def column_numbers(array):
    """Which columns `columns_of` takes."""
    total = array.shape[-1] if array.ndim > 1 else 1
    return np.unique(np.linspace(0, total - 1, min(total, COLUMNS)).round().astype(int))


def not_finite(name, array):
    """NaN or infinities, with their columns."""
    if array.dtype.kind not in "fc":
        return None
    entries, rows, columns, nan, inf = 0, [], set(), False, False
    for start, part in chunks(array):
        bad = ~np.isfinite(part)
        if bad.any():
            entries += int(bad.sum())
            nan, inf = nan or bool(np.isnan(part).any()), inf or bool(np.isinf(part).any())
            rows += (start + np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))).tolist()
            columns |= set(np.flatnonzero(bad.reshape(-1, _width(bad)).any(axis=0)).tolist())
    if not entries:
        return None
    columns = sorted(columns)
    kinds = " or ".join(word for word, found in (("NaN", nan), ("Inf", inf)) if found)
    return Finding(
        "not_finite",
        f"`{name}` has {entries} entries that are {kinds}, in {len(rows)} of {len(array)} samples "
        f"(the first is {rows[0]}), {_list('column', columns)}: one of them makes all weights NaN. Fill them or leave "
        "these samples out.",
        evidence={"entries": entries, "samples": rows, "columns": columns},
    )


def constant_columns(name, array):
    """Columns with one value only; NaN and infinities do not count."""
    if len(array) < 2:
        return None
    flat = array.ndim < 3
    total = array[0].size if flat else array.shape[-1]
    low = high = None
    for _, part in chunks(array):
        part = part.reshape(-1, total)
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            part = np.where(np.isfinite(part), part, np.nan)
        if not len(part):
            continue
        a, b = np.fmin.reduce(part, axis=0), np.fmax.reduce(part, axis=0)
        low, high = (a, b) if low is None else (np.fmin(low, a), np.fmax(high, b))
    constant = np.array([], int) if low is None else np.flatnonzero(low == high)
    if not len(constant):
        return None
    everything = len(constant) == total
    consequence = "there is nothing to learn from" if everything else "they tell nothing: leaving them out is cheaper"
    return Finding(
        "constant_columns",
        f"`{name}`: {_list('column', constant)} of {total} {_are(constant)} constant; {consequence}.",
        is_fault=everything,
        evidence={"columns": constant.tolist()},
    )


def duplicate_columns(name, array, everything=None):
    """Columns equal to another one: in some samples, `array`, and then in `everything`."""
    if array.ndim != 2 or len(array) < 2 or array.shape[1] > 20_000:
        return None
    first, found = {}, []
    for i, column in enumerate(np.ascontiguousarray(array.T)):
        if np.all(column == column[0]):
            continue
        original = first.setdefault(column.tobytes(), i)
        if original != i and (everything is None or _equal(everything[:, original], everything[:, i])):
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
            f"square {_rms(seen):.3g}{where}. Divide by 255, or begin the model with "
            "`keras.layers.Rescaling(1 / 255)`."
        )
        evidence = {"maximum": float(array.max()), "rms": _rms(seen)}
        return Finding("images_not_scaled", text, arriving is not None, evidence)
    if seen.dtype.kind not in "fiu":
        return None
    if seen.ndim > 3:  # pictures with a mean taken off keep their range on purpose
        rms = _rms(seen)
        if not rms > PICTURES:
            return None
        text = f"`{name}` holds pictures with a root mean square of {rms:.3g}{where}, far from unit scale. {advice}"
        return Finding("images_not_scaled", text, arriving is not None, {"maximum": float(seen.max()), "rms": rms})
    columns, numbers = columns_of(seen), column_numbers(seen)
    of = columns.shape[1] if len(numbers) == _width(seen) else f"{len(numbers)} that were looked at"
    rms, stddev = np.sqrt(np.mean(columns**2, axis=0)), columns.std(axis=0)
    large = np.flatnonzero(rms > LARGE)
    evidence = {"columns": numbers[large].tolist(), "largest_rms": float(rms.max(initial=0))}
    if len(large):
        worst = int(np.argmax(rms))
        text = (
            f"`{name}`: {_list('column', numbers[large])} of {of} {_are(large)} far from unit scale (column "
            f"{numbers[worst]}: mean {columns[:, worst].mean():.3g}, stddev {stddev[worst]:.3g}){where}. {advice}"
        )
        return Finding("not_scaled", text, arriving is not None, evidence)
    free = np.flatnonzero((stddev > 0) & ~_two_valued(columns))
    if len(free) > 1 and stddev[free].max() > SPREAD * stddev[free].min():
        low, high = free[np.argmin(stddev[free])], free[np.argmax(stddev[free])]
        text = (
            f"`{name}`: the stddev of column {numbers[high]} is {stddev[high]:.3g}, that of column {numbers[low]} "
            f"{stddev[low]:.3g}{where}; "
            f"the small one is hardly seen. {advice}"
        )
        return Finding("not_scaled", text, arriving is not None, {"columns": numbers[[low, high]].tolist()})
    return None


def scaled_differently(name, train, validation):
    """Columns that lie elsewhere, or are wider or narrower by far, in the validation data."""
    if train.shape[1:] != validation.shape[1:]:
        return Finding(
            "shapes_differ",
            f"`{name}` has samples of shape {train.shape[1:]} in training and {validation.shape[1:]} in validation.",
            evidence={"train": train.shape[1:], "validation": validation.shape[1:]},
        )
    a, b, numbers = columns_of(train), columns_of(validation), column_numbers(train)
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
    of = len(numbers) if len(numbers) == _width(train) else f"{len(numbers)} that were looked at"
    return Finding(
        "scaled_differently",
        f"`{name}`: {_list('column', numbers[off])} of {of} {_are(off)} scaled differently in validation (column "
        f"{numbers[worst]}: median {middle[worst]:.3g}, nine tenths in [{low[worst]:.3g}, {high[worst]:.3g}] in "
        f"training; median {middle_b[worst]:.3g}, [{low_b[worst]:.3g}, {high_b[worst]:.3g}] in validation). Scale both "
        "with the statistics of training.",
        evidence={"columns": numbers[off].tolist(), "column": int(numbers[worst]), "width_ratio": float(ratio[worst])},
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
    return float(np.sqrt(np.mean(columns_of(array) ** 2)))


def _width(array):
    return array.shape[-1] if array.ndim > 1 else 1


def _equal(a, b):
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _two_valued(columns):
    low, high = columns.min(axis=0), columns.max(axis=0)
    return np.all((columns == low) | (columns == high), axis=0)


def _list(word, numbers, most=6):
    shown = ", ".join(str(int(number)) for number in numbers[:most])
    more = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return f"{word}{'s' if len(numbers) > 1 else ''} {shown}{more}"


def _are(numbers):
    return "are" if len(numbers) > 1 else "is"
