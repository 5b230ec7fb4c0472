"""A thread that saves, so that training pays only for the copy of its state."""

import threading
import traceback

from tf_tricks._checks import check_integer

THREAD_NAME = "tf_tricks-checkpoint-writer"


class BackgroundWriter:
    """Call `save` in one thread, one job after the other, with a bounded number of jobs in memory.

    Take the copy of the state only after `wait_until_free()`; then no more than `max_jobs` copies exist: the one that
    is being written, and those that wait. The thread starts with the first job and ends with `close`; after that the
    object may be used again.

    Args:
        save: callable that writes one job. Its errors never reach the training thread: `take_error` returns them.
        max_jobs: int >= 1, jobs being written or waiting; 1: `submit` waits for the last one's end.
    Raises:
        TypeError, ValueError: `max_jobs` is not an int >= 1.
    Example:
        >>> saved = []
        >>> with BackgroundWriter(saved.append) as writer:
        ...     if writer.wait_until_free():  # then copy the state
        ...         writer.submit({"step": 1})
        >>> saved, writer.take_error()
        ([{'step': 1}], None)
    """

    def __init__(self, save, max_jobs=2):
        self._save = save
        self._max_jobs = check_integer("max_jobs", max_jobs, 1)
        self._jobs = []  # the first one is being written
        self._error = None
        self._closing = False
        self._thread = None
        self._changed = threading.Condition()

    def wait_until_free(self, timeout=None):
        """Wait until a job more may be in memory; return whether that is so (False after `timeout` seconds)."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self._jobs) < self._max_jobs, timeout)

    def submit(self, *args, **kwargs):
        """Have `save(*args, **kwargs)` called in the thread; waits while `max_jobs` are in memory."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._jobs) < self._max_jobs)
            self._jobs.append((args, kwargs))
            if self._thread is None:
                # A daemon: a program that forgets `close` can end. What it was writing is then lost, not half there.
                self._closing = False
                self._thread = threading.Thread(target=self._run, name=THREAD_NAME, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def take_error(self):
        """The latest error of `save` that was not taken yet, or None."""
        with self._changed:
            error, self._error = self._error, None
            return error

    def flush(self, timeout=None):
        """Wait until every job is done; return whether that is so (False after `timeout` seconds)."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._jobs, timeout)

    def close(self):
        """Do what is left, then end the thread. Errors stay for `take_error`."""
        with self._changed:
            thread, self._closing = self._thread, True
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def _run(self):
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closing)
                if not self._jobs:
                    self._thread = None
                    return
                args, kwargs = self._jobs[0]
            error = _call(self._save, args, kwargs)
            del args, kwargs  # or this thread would hold the arrays until the next job
            with self._changed:
                del self._jobs[0]
                self._error = error or self._error
                self._changed.notify_all()


def _call(save, args, kwargs):
    """The error of `save(*args, **kwargs)`, or None."""
    try:
        save(*args, **kwargs)
    except BaseException as error:  # whatever it is, the thread lives on: the next save may work
        # Its frames hold the arrays, and so does the frame of this function, which theirs refer to.
        args = kwargs = None
        each = error
        while each is not None:
            traceback.clear_frames(each.__traceback__)
            each = each.__context__
        return error
    return None
