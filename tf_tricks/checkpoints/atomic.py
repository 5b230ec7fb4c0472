"""A file that appears under its name all at once, or not at all, and what dead writers leave."""

import contextlib
import os
import threading

from tf_tricks.checkpoints.lock import try_lock

TEMPORARY_SUFFIX = ".tmp"
_BUFFER = 1 << 20  # gathers small writes; large ones pass it by


@contextlib.contextmanager
def replacing(path):
    """Open a temporary file beside `path`; when the block ends, and its bytes are on the disc, it becomes `path`.

    Whoever opens `path`, at whatever instant, finds the old file or the new one. If the block raises, or the disc is
    full, `path` stays as it was and the temporary file goes.

    Args:
        path: str or path-like.
    Raises:
        OSError: the folder is missing or not writable, or the disc is full.
    Example:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     with replacing(os.path.join(directory, "note")) as file:
        ...         _ = file.write(b"all or nothing")
        ...         before = os.listdir(directory)
        ...     before[0][:6], os.listdir(directory)
        ('.note.', ['note'])
    """
    directory, name = os.path.split(os.fspath(path))
    temporary = os.path.join(directory, f".{name}.{os.getpid()}-{threading.get_ident()}{TEMPORARY_SUFFIX}")
    try:
        with _create_locked(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    sync_directory(directory)


def _create_locked(temporary):
    """Create and lock the file; the lock tells `remove_leftovers` that its writer lives."""
    while True:
        file = open(temporary, "wb", buffering=_BUFFER)
        try:
            locked = try_lock(file.fileno())
        except OSError:  # a file system without locks
            return file
        if locked and os.path.exists(temporary):
            return file
        file.close()  # somebody took it for a leftover before it was locked


def remove_leftovers(directory):
    """Delete the temporary files in `directory` whose writers died."""
    for name in os.listdir(directory):
        if name.startswith(".") and name.endswith(TEMPORARY_SUFFIX):
            with contextlib.suppress(OSError), open(os.path.join(directory, name), "rb+") as file:
                if try_lock(file.fileno()):
                    os.remove(os.path.join(directory, name))


def sync_directory(directory):
    """Make the names in `directory` durable: without it a new name may be lost in a power cut."""
    if os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(directory or ".", os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(handle)
    finally:
        os.close(handle)
