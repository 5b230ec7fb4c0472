"""What all statistics do with a batch first: make a table of it, and refuse what they cannot count."""

import numpy as np

# A quarter of the machine epsilon: a feature of half precision may have no more than four values side by side, such as
# years in float16, and is not constant then. As many last bits of float32 mean nothing.
HALF = {"float16": 2.0**-12, "bfloat16": 2.0**-9}
LARGEST = 1e140  # in size; float64 has no room for a sum of many squares of larger ones


def as_table(batch, features):
    """Return `batch` as a two-dimensional array of a real dtype, missing values as NaN.

    Args:
        batch: array or sequence of shape (n, features) or (n,), which is one feature; None and masked values are
            missing.
        features: int, the number of columns that it must have, or None.
    Raises:
        TypeError: the values are not real numbers.
        ValueError: the shape is another.
    """
    if isinstance(batch, np.ma.MaskedArray):
        batch = batch.astype(np.float64).filled(np.nan) if np.ma.is_masked(batch) else batch.data
    table = np.asarray(batch)
    if table.dtype == object and not any(isinstance(value, (str, bytes)) for value in table.flat):
        table = table.astype(np.float64)  # None becomes NaN
    if table.dtype.name == "bfloat16":  # not one of NumPy's own
        table = table.astype(np.float32)
    if table.dtype.kind not in "biuf":
        raise TypeError(f"`batch` must hold real numbers (None and NaN are missing). Received: dtype={table.dtype}")
    if table.ndim == 1:
        table = table[:, None]
    if table.ndim != 2 or table.shape[1] == 0:
        raise ValueError(f"`batch` must be of shape (n, features) or (n,). Received: shape={np.shape(batch)}")
    if features is not None and table.shape[1] != features:
        raise ValueError(
            f"`batch` must have as many features as those before it, {features}. Received: shape={np.shape(batch)}"
        )
    if table.dtype.itemsize < 4 and table.dtype.kind in "bf":
        return table.astype(np.float32)  # exact, and NumPy computes faster with it
    return table.astype(np.float64) if table.dtype.itemsize > 8 else table


def rounding_of(batch, table):
    """The machine epsilon of the values of `batch`, of half precision a quarter of it; 0.0 for integers.

    Args:
        batch: as `as_table` takes it.
        table: what that returned.
    """
    half = HALF.get(str(getattr(batch, "dtype", "")))
    if half is not None:
        return half
    return float(np.finfo(table.dtype).eps) if table.dtype.kind == "f" else 0.0


def check_values(table):
    """Raise ValueError if `table` holds an infinite value, or one whose square would be."""
    if table.dtype.kind != "f":
        return
    with np.errstate(invalid="ignore"):
        bad = np.abs(table, dtype=np.float64) > LARGEST  # False for NaN
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"`batch` must be finite and at most {LARGEST:g} in size. "
            f"Received: {table[row, column]} at row {row} of the batch, feature {column}"
        )


def not_finite(table):
    """False if `table` holds no NaN and no infinite value for sure, which its sum tells."""
    with np.errstate(over="ignore", invalid="ignore"):
        return table.dtype.kind == "f" and not np.isfinite(np.add.reduce(table, axis=None))


def to_list(array):
    """Return `array` as nested lists for JSON, NaN as None."""
    array = np.asarray(array)
    return np.where(np.isnan(array), None, array.astype(object)).tolist()


def to_array(values):
    """Turn around `to_list`."""
    return np.array(values, dtype=object).astype(np.float64)


def check_keys(cls, saved, names):
    """Raise ValueError unless `saved` is a dict with the keys `names`."""
    if not isinstance(saved, dict) or set(saved) != set(names):
        raise ValueError(f"`saved` must be what {cls.__name__}.to_dict() returned. Received: {list(saved)}")


def check_same_kind(one, other):
    """Raise unless two statistics can be merged: of one class, over equally many features."""
    if type(other) is not type(one):
        raise TypeError(f"`other` must be of class {type(one).__name__}. Received: {type(other).__name__}")
    if None not in (one.features, other.features) and one.features != other.features:
        raise ValueError(f"`other` must be over {one.features} features. Received: {other.features} features")
