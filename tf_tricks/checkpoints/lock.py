"""A lock on a directory, which the operating system takes away from a process that dies."""

import contextlib
import errno
import json
import os
import socket
import warnings
import weakref

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK_NAME = ".tf_tricks.lock"
_FAR = 1 << 30  # Windows lets nobody read a locked byte, so one is locked that the file does not have
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class DirectoryLock:
    """The right to write into a directory, for one object of one process at a time.

    The operating system holds the lock for an open file and gives it back when the process ends, however it ends; the
    file that a killed process leaves means nothing. Children made by a fork do not share the lock. At a URL nothing is
    locked, because object stores have no locks: each run needs one of its own.

    Args:
        directory: str or path-like, made if it is not there; or a URL.
    Raises:
        RuntimeError: `acquire`, while another process, or another object of this one, has the lock.
        OSError: `acquire`, when no file can be made in `directory`.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory, DirectoryLock(directory):
        ...     DirectoryLock(directory).acquire()
        Traceback (most recent call last):
        ...
        RuntimeError: `...` is in use by this process already (pid ...)...
    """

    def __init__(self, directory):
        self.directory = os.fspath(directory)
        self._file = None

    def acquire(self):
        """Take the lock, or raise RuntimeError that names who has it; returns the object itself."""
        if self._file is not None:
            raise RuntimeError(_refusal(self.directory, _this_process()))
        if "://" in self.directory:
            return self
        os.makedirs(self.directory, exist_ok=True)
        path = os.path.join(self.directory, LOCK_NAME)
        while self._file is None:
            file = open(path, "a+b", buffering=0)
            if not _try_lock_or_warn(file, self.directory):
                owner = _read_owner(file)
                file.close()
                raise RuntimeError(_refusal(self.directory, owner))
            if _is_at(file, path):
                self._file = file
            else:
                file.close()  # its last owner removed it between our opening and our locking it
        self._file.truncate(0)
        self._file.write(json.dumps(_this_process()).encode())
        _held.add(self)
        return self

    def release(self):
        """Give the lock back; nothing happens if it is not held."""
        if self._file is None:
            return
        with contextlib.suppress(OSError):  # Windows keeps a file that is open; it does no harm
            os.remove(os.path.join(self.directory, LOCK_NAME))
        self._close()

    def _close(self):
        _held.discard(self)
        file, self._file = self._file, None
        file.close()

    @property
    def held(self):
        """Whether this object has the lock."""
        return self._file is not None

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *exc_info):
        self.release()


def try_lock(handle):
    """Lock the open file, without waiting; return whether it worked. Closing the file, or dying, gives the lock back.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(handle, _FAR, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
    except (BlockingIOError, PermissionError):
        return False
    return True


# A forked child (a worker of a PyDataset) shares the open file, and would keep the lock alive after its parent's death.
_held = weakref.WeakSet()


def _let_go_in_child():
    for lock in list(_held):
        lock._close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _try_lock_or_warn(file, directory):
    try:
        return try_lock(file.fileno())
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            file.close()
            raise
        warnings.warn(
            f"The file system of `{directory}` has no locks ({error.strerror}): nothing stops a second run from "
            "writing into the same directory. Give each run its own.",
            stacklevel=3,
        )
        return True


def _is_at(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _this_process():
    return {"pid": os.getpid(), "host": socket.gethostname()}


def _read_owner(file):
    """Who has the lock; an empty dict while the owner is just taking it."""
    try:
        file.seek(0)
        return dict(json.loads(file.read(1000)))
    except (ValueError, OSError):
        return {}


def _refusal(directory, owner):
    if owner == _this_process():
        who, remedy = f"this process already (pid {owner['pid']})", "Give each callback its own directory"
    else:
        who = f"another process (pid {owner.get('pid', 'unknown')} on host {owner.get('host', 'unknown')})"
        remedy = "Wait for it, end it, or give this run its own directory"
    return f"`{directory}` is in use by {who}. {remedy}."
