"""Split nested Python data into JSON and named NumPy arrays, and put it together again bit for bit. No pickle."""

import math
import struct

import numpy as np

# An object with one key that starts with "$" is a tag, such as {"$tuple": [...]} or {"$array": "model/kernel"}.
_TAG = "$"
# Python's `random.getstate()` has 625 ints: as an array they are smaller, and read faster, than as digits.
_MIN_PACKED_NUMBERS = 100
_INT64 = range(-(2**63), 2**63)
_RESERVED = "__metadata__"  # the one name that a safetensors file keeps for itself
_ARRAY_TYPES = (np.ndarray, np.memmap)


def pack(tree):
    """Split `tree` into what JSON can hold and the arrays.

    Args:
        tree: nested dicts (with str keys), lists and tuples of NumPy arrays, NumPy scalars, int, float, bool, str,
            bytes and None.
    Returns:
        `(json_tree, arrays)`: data for `json.dumps(..., allow_nan=False)`, and a dict from the place of each array in
        the tree, such as "model/dense/kernel", to the array itself (not a copy).
    Raises:
        TypeError: something else is in the tree; the message says where.
    Example:
        >>> json_tree, arrays = pack({"epoch": 3, "model": {"bias": np.zeros(2)}})
        >>> json_tree, list(arrays)
        ({'epoch': 3, 'model': {'bias': {'$array': 'model/bias'}}}, ['model/bias'])
    """
    arrays = {}
    return _pack(tree, (), arrays), arrays


def unpack(json_tree, arrays):
    """The tree that `pack` split: same types, same order of keys, same bits.

    Args:
        json_tree: what `pack` made of it, also after a round trip through JSON.
        arrays: mapping from name to NumPy array; the arrays go into the tree as they are.
    Raises:
        ValueError: `json_tree` holds a tag that is not known.
        KeyError: `arrays` lacks a name that `json_tree` mentions.
    Example:
        >>> unpack({"epoch": 3, "state": {"$tuple": ["MT19937", {"$array": "state/1"}]}}, {"state/1": np.arange(2)})
        {'epoch': 3, 'state': ('MT19937', array([0, 1]))}
    """
    if isinstance(json_tree, list):
        return [unpack(each, arrays) for each in json_tree]
    if not isinstance(json_tree, dict):
        return json_tree
    if not _looks_like_a_tag(json_tree):
        return {key: unpack(value, arrays) for key, value in json_tree.items()}
    ((tag, value),) = json_tree.items()
    if tag not in _READERS:
        raise ValueError(f"Unknown tag {tag!r} in a packed tree; this version knows {', '.join(_READERS)}.")
    return _READERS[tag](value, arrays)


_READERS = {
    "$dict": lambda value, arrays: {key: unpack(each, arrays) for key, each in value.items()},
    "$tuple": lambda value, arrays: tuple(unpack(value, arrays)),
    "$int": lambda value, arrays: int(value, 16),
    "$float": lambda value, arrays: struct.unpack(">d", bytes.fromhex(value))[0],
    "$bytes": lambda value, arrays: arrays[value].tobytes(),
    "$array": lambda value, arrays: arrays[value],
    "$scalar": lambda value, arrays: arrays[value][()],
    "$numbers": lambda value, arrays: arrays[value].tolist(),
}


def _pack(value, place, arrays):
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:  # Python refuses to turn ints of over 4300 digits into decimals
        return value if value in _INT64 else {"$int": hex(value)}
    if kind is float:  # JSON has no NaN and no infinity; the bits keep a NaN's sign and payload too
        return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}
    if kind is dict:
        return _pack_dict(value, place, arrays)
    if kind in (list, tuple):
        packed = _pack_sequence(value, place, arrays)
        return {"$tuple": packed} if kind is tuple else packed
    if kind is bytes:
        return {"$bytes": _add(np.frombuffer(value, np.uint8), place, arrays)}
    if kind in _ARRAY_TYPES and not value.dtype.hasobject:
        return {"$array": _add(value, place, arrays)}
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return {"$scalar": _add(_scalar_array(value, place), place, arrays)}
    raise TypeError(_refusal(value, place))


def _pack_dict(value, place, arrays):
    for key in value:
        if type(key) is not str:
            raise TypeError(f"The dict at `{_spell(place)}` must have str keys. Received: {key!r}")
    packed = {key: _pack(each, (*place, key), arrays) for key, each in value.items()}
    return {"$dict": packed} if _looks_like_a_tag(packed) else packed


def _looks_like_a_tag(json_dict):
    return len(json_dict) == 1 and next(iter(json_dict)).startswith(_TAG)


def _pack_sequence(value, place, arrays):
    dtype = _dtype_of_numbers(value) if len(value) >= _MIN_PACKED_NUMBERS else None
    if dtype is not None:
        return {"$numbers": _add(np.array(value, dtype), place, arrays)}
    return [_pack(each, (*place, str(index)), arrays) for index, each in enumerate(value)]


def _dtype_of_numbers(values):
    """A dtype that holds plain ints, or plain floats, exactly; None for anything else."""
    kinds = set(map(type, values))
    if kinds == {float}:
        return np.dtype("float64")
    if kinds != {int}:
        return None
    low, high = min(values), max(values)
    if low >= 0:
        return np.min_scalar_type(high) if high < 2**64 else None
    return np.dtype("int64") if low in _INT64 and high in _INT64 else None


def _scalar_array(value, place):
    array = np.asarray(value)
    if array.dtype.kind in "SU" and array[()] != value:  # arrays drop NULs at the end of a string
        raise TypeError(_refusal(value, place))
    return array


def _add(array, place, arrays):
    """Put `array` into `arrays`; return its name, which says where in the tree it was."""
    # A safetensors file is UTF-8, which has no lone surrogates; keys with slashes could make two places one name.
    base = name = "/".join(place).encode("utf-8", "backslashreplace").decode() or "array"
    number = 1
    while name in arrays or name == _RESERVED:
        number += 1
        name = f"{base}#{number}"
    arrays[name] = array
    return name


def _refusal(value, place):
    kind = type(value)
    dtype = f" of dtype {value.dtype}" if isinstance(value, np.ndarray | np.generic) else ""
    return (
        f"`{_spell(place)}` is a {kind.__module__}.{kind.__qualname__}{dtype}, which a checkpoint cannot hold exactly. "
        "Give a dict with str keys, a list, a tuple, a NumPy array or scalar, int, float, bool, str, bytes or None "
        "(exactly these types: a subclass would come back as its base)."
    )


def _spell(place):
    return "/".join(place) or "the tree itself"
