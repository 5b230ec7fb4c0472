import errno
import gc
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

from tf_tricks.checkpoints import file_format
from tf_tricks.checkpoints.writer import THREAD_NAME, BackgroundWriter

pytestmark = pytest.mark.any_backend

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def writer_threads():
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


class Gate:
    """A `save` that waits until it is let through, and notes what it was given."""

    def __init__(self):
        self.started, self.through, self.saved = threading.Semaphore(0), threading.Semaphore(0), []

    def __call__(self, job):
        self.started.release()
        assert self.through.acquire(timeout=30)
        self.saved.append(job)


@pytest.mark.parametrize("max_jobs", [1, 2])
def test_no_more_than_max_jobs_are_in_memory(max_jobs):
    gate = Gate()
    writer = BackgroundWriter(gate, max_jobs)
    for job in range(max_jobs):
        assert writer.wait_until_free(timeout=0)
        writer.submit(job)
    assert gate.started.acquire(timeout=30)
    assert not writer.wait_until_free(timeout=0.01) and not writer.flush(timeout=0.01)
    blocked = threading.Thread(target=writer.submit, args=("late",))
    blocked.start()
    blocked.join(0.05)
    assert blocked.is_alive() and gate.saved == []
    gate.through.release()
    blocked.join(30)
    assert not blocked.is_alive() and gate.saved == [0]
    gate.through.release(), gate.through.release()
    assert writer.flush(timeout=30) and writer.wait_until_free(timeout=0)
    assert gate.saved == [*range(max_jobs), "late"]
    writer.close()
    assert writer_threads() == []


def test_jobs_run_in_one_other_thread_and_close_ends_it():
    threads = []
    writer = BackgroundWriter(lambda *args, **kwargs: threads.append((threading.current_thread(), args, kwargs)))
    assert writer_threads() == []
    for each in range(2):  # it can be used again
        writer.submit(each, metric=1.0)
        writer.submit(each)
        assert len(writer_threads()) == 1 and writer_threads()[0].daemon
        writer.close()
        writer.close()
        assert writer_threads() == []
    assert [args for _, args, _ in threads] == [(0,), (0,), (1,), (1,)]
    assert threads[0][2] == {"metric": 1.0} and threading.main_thread() not in {thread for thread, _, _ in threads}


def test_errors_are_kept_for_the_training_thread_and_the_next_job_runs():
    saved = []

    def save(job):
        if isinstance(job, BaseException):
            raise job
        saved.append(job)

    writer = BackgroundWriter(save)
    for error in (OSError(28, "full"), SystemExit(), KeyboardInterrupt()):
        writer.submit(error)
        writer.submit("next")
        writer.flush()
        assert writer.take_error() is error and writer.take_error() is None
    writer.submit(ValueError("last"))
    writer.close()
    assert saved == ["next"] * 3 and str(writer.take_error()) == "last"


def test_the_arrays_are_let_go_after_the_job_and_after_an_error():
    def save(array):
        try:
            raise ValueError("first")
        except ValueError:
            raise OSError(28, "full") from None

    for each in (save, lambda array: None):
        writer = BackgroundWriter(each)
        array = np.zeros(10)
        gone = weakref.ref(array)
        writer.submit(array)
        del array
        writer.flush()
        error = writer.take_error()
        gc.collect()
        assert gone() is None and (error is None) == (each is not save)
        writer.close()


def test_max_jobs_is_checked():
    with pytest.raises(ValueError, match="max_jobs"):
        BackgroundWriter(print, 0)


# The disc is "full" after 200 kB: the system refuses more bytes for a file, as it does on a full disc or over a quota.
# The package's own `__init__` would import Keras: seconds.
FULL = """
import os, resource, sys, threading, types
for name in ("tf_tricks", "tf_tricks.checkpoints"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
import numpy as np
from tf_tricks.checkpoints.store import Store
from tf_tricks.checkpoints.writer import BackgroundWriter

store = Store(sys.argv[2], keep=2)
writer = BackgroundWriter(store.save)
writer.submit(1, {"a": np.ones(1000)})
writer.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
writer.submit(2, {"a": np.ones(1_000_000)})
writer.flush()
error = writer.take_error()
print(type(error).__name__, error.errno, sorted(os.listdir(sys.argv[2])))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.submit(3, {"a": np.ones(1_000_000)})
writer.close()
print(writer.take_error(), store.newest().step, threading.active_count())
print([name for name in os.listdir("/proc/self/fd") if sys.argv[2] in os.path.realpath(f"/proc/self/fd/{name}")])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_FSIZE and /proc")
def test_a_full_disc_leaves_no_half_file_and_the_next_save_works(tmp_path):
    command = [sys.executable, "-W", "error", "-c", FULL, ROOT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == f"OSError {errno.EFBIG} ['step-0000000001.safetensors']"
    assert second == "None 3 1" and third == "[]"
    assert sorted(os.listdir(tmp_path)) == ["step-0000000001.safetensors", "step-0000000003.safetensors"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES], ids=errno.errorcode.get)
def test_errors_of_the_system_are_kept_and_leave_nothing(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    with BackgroundWriter(file_format.write) as writer:
        writer.submit(tmp_path / "a", {"a": np.zeros(10)})
        writer.flush()
        assert writer.take_error().errno == code and os.listdir(tmp_path) == []
    with BackgroundWriter(file_format.write) as writer:  # a folder that cannot be written to, even by root
        (tmp_path / "file").write_text("")
        writer.submit(tmp_path / "file" / "a", {"a": np.zeros(10)})
    assert isinstance(writer.take_error(), NotADirectoryError)
