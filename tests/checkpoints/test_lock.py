import errno
import os
import signal
import socket
import subprocess
import sys
import warnings

import pytest

from tf_tricks.checkpoints import lock
from tf_tricks.checkpoints.lock import LOCK_NAME, DirectoryLock

pytestmark = pytest.mark.any_backend
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# The module alone: a child that imports Keras would take seconds. It lives until it is killed.
LOAD = """
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("lock", os.path.join(sys.argv[1], "tf_tricks/checkpoints/lock.py"))
lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(lock)
"""
HOLD = LOAD + "held = lock.DirectoryLock(sys.argv[2]).acquire(); print('held', flush=True); sys.stdin.read()"
FORK = (
    LOAD
    + """
held = lock.DirectoryLock(sys.argv[2]).acquire()
if os.fork() == 0:
    print('held', flush=True)
    os.close(1)
    sys.stdin.read()  # outlives its parent
    os._exit(0)
time.sleep(100)
"""
)


def child(code, directory):
    process = subprocess.Popen(
        [sys.executable, "-c", code, ROOT, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def end(process):
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_who_has_it(tmp_path):
    process = child(HOLD, tmp_path)
    try:
        for _ in range(2):
            with pytest.raises(
                RuntimeError, match=rf"another process \(pid {process.pid} on host {socket.gethostname()}\)"
            ):
                DirectoryLock(tmp_path).acquire()
    finally:
        end(process)
    with DirectoryLock(tmp_path) as mine:  # the file that the killed process left means nothing
        assert mine.held
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_parent(tmp_path):
    process = child(FORK, tmp_path)
    with pytest.raises(RuntimeError, match=f"pid {process.pid}"):
        DirectoryLock(tmp_path).acquire()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        with DirectoryLock(tmp_path) as mine:
            assert mine.held
    finally:
        end(process)


def test_a_second_object_of_the_same_process_is_refused(tmp_path):
    first = DirectoryLock(tmp_path / "made")
    with first:
        for second in (DirectoryLock(tmp_path / "made"), first):
            with pytest.raises(RuntimeError, match=rf"in use by this process already \(pid {os.getpid()}\).*its own"):
                second.acquire()
        assert first.held
    first.release()
    with DirectoryLock(tmp_path / "made"), DirectoryLock(tmp_path / "other"):
        pass
    with first:
        assert first.held


def test_a_file_removed_by_its_last_owner_is_not_locked_in_vain(tmp_path, monkeypatch):
    taken, try_lock = [], lock.try_lock

    def after_the_owner_left(handle):
        if not taken:
            taken.append(os.remove(tmp_path / LOCK_NAME))
        return try_lock(handle)

    monkeypatch.setattr(lock, "try_lock", after_the_owner_left)
    with DirectoryLock(tmp_path):
        assert (tmp_path / LOCK_NAME).exists()
        with pytest.raises(RuntimeError):
            DirectoryLock(tmp_path).acquire()


@pytest.mark.skipif(lock.fcntl is None, reason="needs fcntl")
def test_file_systems_without_locks_warn_and_other_errors_are_raised(tmp_path, monkeypatch):
    def fail(code):
        def flock(*args):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(lock.fcntl, "flock", flock)

    fail(errno.ENOLCK)
    with pytest.warns(UserWarning, match="has no locks"), DirectoryLock(tmp_path):
        pass
    fail(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        DirectoryLock(tmp_path).acquire()


def test_a_file_instead_of_the_directory_and_a_url(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        DirectoryLock(tmp_path / "file").acquire()
    with warnings.catch_warnings(), DirectoryLock("memory://locked"), DirectoryLock("memory://locked"):
        pass
    assert os.listdir(tmp_path) == ["file"]
