"""Processes that run the job: a fork of one that has imported everything and computed nothing starts in no time.

    python benchmarks/resume_children.py

reads commands, one JSON object a line, and answers each with a line: `{"start": spec}` -> `{"pid": ...}`, and
`{"wait": pid}` -> what became of it. So a process that has computed already, in which a fork is not safe, can use it.
"""

import contextlib
import json
import os
import pathlib
import resource
import select
import signal
import sys
import tempfile
import time
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]

_compiled = tempfile.TemporaryDirectory(prefix="tf_tricks_jax_")  # or each child compiles for seconds


def import_everything(mechanisms=()):
    """Import what a child needs, so that it need not; no array is made, for a fork after that may hang."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    import keras
    import resume_mechanisms  # noqa: F401

    with contextlib.suppress(ImportError):  # on other backends too Keras imports it as soon as `fit` runs
        import tensorflow  # noqa: F401
    if "OrbaxCheckpoint" in mechanisms:
        with contextlib.suppress(ImportError):
            import orbax.checkpoint  # noqa: F401
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(1)


class Children:
    """Starts and awaits children."""

    def __init__(self):
        self._pipes = {}  # pid -> [end of the pipe, what came out of it, time when it started]

    def start(self, spec):
        """Begin the job in a child; return its pid.

        Args:
            spec: dict with "mechanism", "directory", "data" ("arrays" or "tf.data"), "seed", "fault" (see `Faults`).
        """
        reading, writing = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            os.close(reading)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background ignores it
            _run_and_exit(spec, writing)
        os.close(writing)
        os.set_blocking(reading, False)
        self._pipes[pid] = [reading, b"", time.monotonic()]
        return pid

    def wait(self, pid, kill_after=None, timeout=120):
        """Return when the child has ended or stopped itself.

        Args:
            kill_after: None, or seconds from the start after which it gets SIGKILL.
            timeout: seconds until it gets SIGKILL because it hangs.
        Returns:
            A dict: "status", exit status or minus the signal, None for a stopped one; "notes"; "output"; "hangs"; and
            "seconds" it took.
        """
        pipe, _, begin = self._pipes[pid]
        hangs = False
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            self._read(pid)
            if ended:
                break
            seconds = time.monotonic() - begin
            hangs = seconds > timeout
            if hangs or (kill_after is not None and seconds > kill_after):
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                self._read(pid)
                break
            select.select([pipe], [], [], 0.005)
            time.sleep(0.002)
        text = self._pipes[pid][1].decode(errors="replace")
        if stopped := os.WIFSTOPPED(status):
            self._pipes[pid][1] = b""
        else:
            os.close(self._pipes.pop(pid)[0])
        from resume_job import NOTE

        lines = text.splitlines()
        return {
            "status": None if stopped else os.waitstatus_to_exitcode(status),
            "notes": [json.loads(line.removeprefix(NOTE)) for line in lines if line.startswith(NOTE)],
            "output": "\n".join(line for line in lines if line and not line.startswith(NOTE)),
            "hangs": hangs,
            "seconds": time.monotonic() - begin,
        }

    def _read(self, pid):
        with contextlib.suppress(BlockingIOError):
            while more := os.read(self._pipes[pid][0], 1 << 16):
                self._pipes[pid][1] += more


def _run_and_exit(spec, writing):
    """The child; never returns."""
    status = 1
    try:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        import resume_job
        from resume_mechanisms import MECHANISMS

        if spec.get("fault"):
            _compile_for_oneself()
        if (spec.get("fault") or {}).get("kind") == "read-only":
            resume_job.obey_permissions()
        resume_job.run(spec, MECHANISMS[spec["mechanism"]])
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:  # KeyboardInterrupt too: what a user would see on the screen
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _compile_for_oneself():
    """A process that is killed while it writes compiled code would leave half of it to those that come."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)


def serve():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed goes elsewhere
    import_everything()
    children = Children()
    for line in sys.stdin:
        command = json.loads(line)
        if "start" in command:
            answer = {"pid": children.start(command["start"])}
        else:
            answer = children.wait(command.pop("wait"), **command)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
