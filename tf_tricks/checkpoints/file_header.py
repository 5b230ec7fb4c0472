"""The header of a checkpoint file: what `file_format` writes in front of the arrays, and what it accepts."""

import json

import ml_dtypes  # Keras itself depends on it
import numpy as np

from tf_tricks._optional import import_optional
from tf_tricks.checkpoints.packing import pack, unpack

FORMAT = "tf_tricks.checkpoint.1"
START = b'{"__metadata__":{"checksum":"xxh3-64:'
UNSET = b"0" * 16
FIELD = slice(8 + len(START), 8 + len(START) + len(UNSET))  # the checksum: sixteen hexadecimal digits
_METADATA = "__metadata__"
_NOTE = "note:"
_ALIGNMENT = 64
_LONGEST = 100_000_000  # a limit of safetensors
# What every reader of safetensors since 0.4 knows. Arrays of other dtypes are stored as bytes, with a description.
_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_NAMES = {code: name for name, code in _CODES.items()}
# What a header raises that is not ours: only somebody else's program can make one with a right checksum.
_WRONG = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)


class DamagedCheckpoint(ValueError):
    """A file is not, or is no longer, the checkpoint that was written: cut short, changed, or of another kind.

    Example:
        >>> try:
        ...     tf_tricks.checkpoints.verify(tf_tricks.__file__)
        ... except tf_tricks.checkpoints.DamagedCheckpoint as error:
        ...     print(error)
        `...__init__.py` is not a checkpoint of tf_tricks, or its first bytes were changed.
    """


def encode(tree, notes):
    """The header, its checksum still unset, and the arrays of `tree` in the order of the file."""
    json_tree, arrays = pack(tree)
    # Wide elements first: each array then begins at a multiple of its element's size.
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].dtype.alignment))
    raw = {name: (_describe(name, a.dtype), a.shape) for name, a in arrays.items() if not _is_common(a.dtype)}
    metadata = {
        "checksum": f"xxh3-64:{UNSET.decode()}",
        "format": FORMAT,
        "tree": _json(json_tree),
        "raw": _json(pack(raw)[0]),
        **{_NOTE + name: text for name, text in notes.items()},
    }
    header, offset = {_METADATA: metadata}, 0
    for name, array in arrays.items():
        code, shape = ("U8", (array.nbytes,)) if name in raw else (_CODES[array.dtype.name], array.shape)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": (offset, offset + array.nbytes)}
        offset += array.nbytes
    text = _json(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > _LONGEST:
        raise ValueError(f"The lists and texts of the tree need {len(text)} bytes; at most {_LONGEST} fit into a file.")
    return len(text).to_bytes(8, "little") + text, list(arrays.values())


def parse(path, file):
    """The header as a dict, and where the arrays begin; its form and the file's length are checked, not the bytes.

    Args:
        path: str, for the messages.
        file: binary file, at its beginning.
    Raises:
        DamagedCheckpoint: the file is cut short, or no checkpoint.
    """
    start = file.read(8 + len(START))
    size = file.seek(0, 2)
    if start[8:] != START:
        raise DamagedCheckpoint(f"`{path}` {_what_it_is(size, start)}.")
    begin = 8 + int.from_bytes(start[:8], "little")
    if begin > min(size, _LONGEST):
        raise DamagedCheckpoint(f"`{path}` is cut short or changed: {size} bytes; its header alone would take {begin}.")
    file.seek(8)
    try:
        header = json.loads(file.read(begin - 8))
        end = begin + max((entry["data_offsets"][1] for name, entry in header.items() if name != _METADATA), default=0)
        texts = header[_METADATA].values()
    except _WRONG as error:
        raise DamagedCheckpoint(f"`{path}` has a header that cannot be read: {error!r}.") from None
    if size != end:
        wrong = "is cut short" if size < end else "is too long"
        raise DamagedCheckpoint(f"`{path}` {wrong}: {size} bytes instead of {end}.")
    if not all(isinstance(text, str) for text in texts):
        raise DamagedCheckpoint(f"`{path}` has a header that is not ours.")
    return header, begin


def check_parts(path, header):
    """Raise if a header whose checksum is right is not one that this version, and other readers, understand."""
    found = header[_METADATA].get("format")
    if found != FORMAT:  # not damaged, so it must not be treated as if it were
        raise ValueError(
            f"`{path}` has format {found!r}; this version of tf_tricks reads {FORMAT!r}. Update tf_tricks."
        )
    safetensors = import_optional("safetensors", "checkpoints")
    try:
        with safetensors.safe_open(path, framework="np"):  # dtypes, shapes, no gaps and no overlaps
            pass
    except safetensors.SafetensorError as error:
        raise DamagedCheckpoint(f"`{path}` is no valid safetensors file: {error}.") from None


def notes_of(header):
    """The `notes` that `encode` was given."""
    return {name.removeprefix(_NOTE): text for name, text in header[_METADATA].items() if name.startswith(_NOTE)}


def parts_of(path, header):
    """The tree without its arrays, and `(name, dtype, shape, (begin, end))` for each of the arrays."""
    try:
        metadata = header[_METADATA]
        raw = unpack(json.loads(metadata["raw"]), {})
        parts = []
        for name, entry in header.items():
            if name != _METADATA:
                descr, shape = raw[name] if name in raw else (_NAMES[entry["dtype"]], entry["shape"])
                parts.append((name, _dtype(descr), tuple(shape), tuple(entry["data_offsets"])))
        return json.loads(metadata["tree"]), parts
    except _WRONG as error:
        raise DamagedCheckpoint(f"`{path}` does not hold what its header announces: {error!r}.") from error


def _json(value):
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _is_common(dtype):
    return dtype.name in _CODES and dtype.isnative


def _describe(name, dtype):
    """What `_dtype` makes the same dtype of: a name, or NumPy's own description as in a .npy file."""
    descr = dtype.name if dtype.type.__module__ == ml_dtypes.__name__ else np.lib.format.dtype_to_descr(dtype)
    if _dtype(descr) != dtype:
        raise TypeError(f"`{name}` has dtype {dtype}, which a file cannot hold exactly. Give its fields one by one.")
    return descr


def _dtype(descr):
    if isinstance(descr, str) and hasattr(ml_dtypes, descr):
        return np.dtype(getattr(ml_dtypes, descr))
    return np.lib.format.descr_to_dtype(descr)


def _what_it_is(size, start):
    if size == 0:
        return "is empty"
    if not any(start):
        return "begins with zeros"
    if size < 8 + len(START):
        return f"is cut short, or of another kind: {size} bytes"
    return "is not a checkpoint of tf_tricks, or its first bytes were changed"
