"""One checkpoint, one safetensors file: arrays as they are in memory, all the rest as JSON, a checksum over every byte.

The header begins with the checksum, at a fixed place; it is computed with zeros there:

    8 bytes: length of the header | {"__metadata__":{"checksum":"xxh3-64:0123456789abcdef",...}, ...} | the arrays

XXH3 with 64 bits is there against broken discs and interrupted writes, not against forgery. It reads as fast as the
memory gives: 120 MB in 4 ms where CRC-32 takes 29 ms, a processor's time that training would miss.
"""

import math
import mmap
import os

import numpy as np

from tf_tricks._optional import import_optional
from tf_tricks.checkpoints import file_header
from tf_tricks.checkpoints.atomic import TEMPORARY_SUFFIX, replacing
from tf_tricks.checkpoints.file_header import FIELD, START, UNSET, DamagedCheckpoint
from tf_tricks.checkpoints.packing import unpack

__all__ = ["TEMPORARY_SUFFIX", "DamagedCheckpoint", "check", "looks_like_ours", "read", "read_notes", "write"]

_BUFFER = 8 << 20


def require_packages():
    """Raise ImportError if a package that this needs is not installed: better before training than at its end."""
    import_optional("safetensors", "checkpoints")
    import_optional("xxhash", "checkpoints")


def write(path, tree, notes=None):
    """Write `tree` to the file `path`, all of it or nothing.

    The bytes go to a temporary file beside `path`, which takes the name only when they are on the disc: whoever reads
    `path`, at whatever instant, sees the old file or the new one. Arrays are written from where they are; only one
    that is not contiguous is copied, and one at a time.

    Args:
        path: str or path-like.
        tree: see `packing.pack`.
        notes: dict of str to str or None, small facts that `read_notes` gets without reading the arrays.
    Raises:
        TypeError: something in the tree cannot be stored.
        OSError: the disc is full or the folder is not writable, say. `path` is untouched, and nothing is left behind.
        ImportError: safetensors or xxhash is not installed.
    Reference:
        The safetensors format, https://github.com/huggingface/safetensors#format; the checksum, https://xxhash.com.
    Example:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = os.path.join(directory, "run.safetensors")
        ...     write(path, {"epoch": 3, "kernel": np.ones(2, "float32")})
        ...     tf_tricks.checkpoints.file_format.read(path)
        {'epoch': 3, 'kernel': array([1., 1.], dtype=float32)}
    """
    require_packages()
    header, arrays = file_header.encode(tree, notes or {})
    parts = [_bytes_of(array) for array in arrays]
    header = header[: FIELD.start] + _checksum([header, *parts]) + header[FIELD.stop :]
    with replacing(path) as file:
        file.writelines([header, *parts])


def read(path, verify=True):
    """The tree that `write` put into the file.

    Args:
        path: str or path-like.
        verify: bool, compare every byte with the checksum first; False: check only header and length.
    Returns:
        The tree. Its arrays are read-only and map the file: a page comes from the disc when it is first used.
    Raises:
        DamagedCheckpoint: the file is not what was written.
        ValueError: a later version of tf_tricks wrote it.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        header, start = _checked(path, file, verify)
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    json_tree, parts = file_header.parts_of(path, header)
    try:
        arrays = {name: _array(mapped, start, *part) for name, *part in parts}
        return unpack(json_tree, arrays)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedCheckpoint(f"`{path}` does not hold what its header announces: {error!r}.") from error


def check(path):
    """Read the whole file and compare it with its checksum.

    Args:
        path: str or path-like.
    Raises:
        DamagedCheckpoint: the file is cut short, changed, or not a checkpoint; the message says which.
        ValueError: a later version of tf_tricks wrote it.
        OSError: it cannot be read.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        _checked(path, file, verify=True)


def read_notes(path, open_file=open):
    """The `notes` that `write` was given. Form and length of the file are checked, the arrays are not read.

    Args:
        path: str or path-like.
        open_file: callable like `open`, for a path that belongs to another file system.
    Raises:
        DamagedCheckpoint: the file is cut short, or its header is damaged.
    """
    with open_file(path, "rb") as file:
        return file_header.notes_of(file_header.parse(os.fspath(path), file)[0])


def looks_like_ours(path):
    """Whether the file begins like a checkpoint, damaged or not; False for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(8 + len(START))[8:] == START
    except OSError:
        return False


def _checksum(parts):
    hashed = import_optional("xxhash", "checkpoints").xxh3_64()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest().encode()


def _bytes_of(array):
    if not array.nbytes:
        return memoryview(b"")
    # A view of bytes, because extension dtypes such as bfloat16 have no buffer of their own.
    return memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _checked(path, file, verify):
    """The header, and where the arrays begin; the checksum comes before the format, which a flipped bit may change."""
    header, start = file_header.parse(path, file)
    if verify:
        _check_bytes(path, file)
    file_header.check_parts(path, header)
    return header, start


def _check_bytes(path, file):
    file.seek(0)
    head = bytearray(file.read(FIELD.stop))
    stored, head[FIELD] = bytes(head[FIELD]), UNSET
    found = _checksum(_chunks(head, file))
    if stored != found:
        raise DamagedCheckpoint(
            f"`{path}` was changed after it was written: its bytes have the checksum {found.decode()}, "
            f"and it says {stored.decode('latin-1')!r}."
        )


def _chunks(head, file):
    yield head
    buffer = memoryview(bytearray(_BUFFER))
    while count := file.readinto(buffer):
        yield buffer[:count]


def _array(mapped, start, dtype, shape, offsets):
    begin, end = offsets
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{end - begin} bytes for {dtype} of shape {shape}")
    if begin != end:
        return np.frombuffer(mapped, dtype, math.prod(shape), start + begin).reshape(shape)
    array = np.empty(shape, dtype)
    array.flags.writeable = False
    return array
