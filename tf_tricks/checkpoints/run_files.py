"""The checkpoints of one running `fit`: a folder with a lock, its files, and the thread that writes them."""

import os
import weakref

from tf_tricks.checkpoints import model_state, replicas
from tf_tricks.checkpoints.host_memory import HostMemory
from tf_tricks.checkpoints.lock import DirectoryLock
from tf_tricks.checkpoints.saving import layout
from tf_tricks.checkpoints.store import Store
from tf_tricks.checkpoints.writer import BackgroundWriter

_open = weakref.WeakValueDictionary()  # folder -> the RunFiles of this process that has it


def open_run(directory, keep, keep_best, is_running, writes=True):
    """Open a folder for one `fit`.

    Args:
        directory: str, a folder or an `fsspec` URL; made if it is not there.
        keep, keep_best: see `Store`.
        is_running: callable without arguments; does the `fit` that the files belong to still run?
        writes: bool, False for a process that only reads, as all but one of several workers do.
    Raises:
        NotADirectoryError: `directory` is a file.
        RuntimeError: another process, or another `fit` of this one, works in the folder.
    """
    directory = directory.removeprefix("file://")
    if "://" not in directory and os.path.exists(directory) and not os.path.isdir(directory):
        raise NotADirectoryError(f"`directory` must be a folder, or not be there yet. Received the file {directory!r}")
    before = _open.get(_key(directory))
    if before is not None and not before.is_running():
        before.close()  # its `fit` raised, and nobody told it
    files = RunFiles(directory, keep, keep_best, is_running, writes)
    _open[_key(directory)] = files
    return files


def _key(directory):
    return directory if "://" in directory else os.path.realpath(directory)


class RunFiles:
    """Made by `open_run`."""

    def __init__(self, directory, keep, keep_best, is_running, writes):
        self.is_running = is_running
        self._lock = self._writer = None
        self._memory = HostMemory()  # for the copies of the state, one after the other
        if writes:
            self._lock = DirectoryLock(directory)
            self._lock.acquire()
        try:
            self._store = Store(directory, keep=keep, keep_best=keep_best)
        except BaseException:
            self.close()
            raise
        if writes:
            # One: while a copy of the state is being written, no second one is made.
            self._writer = BackgroundWriter(self._store.save, max_jobs=1)
            # For a `fit` that raised, of which nobody tells us.
            weakref.finalize(self, _let_go, self._writer, self._lock)

    def newest(self):
        """The tree of the newest checkpoint that verifies, with its file's name under "name"; None if there is none."""
        entry = self._store.newest()
        if entry is None:
            return None
        tree = entry.read()
        if "schedule" not in tree["run"]:
            raise ValueError(
                f"`{entry.path}` is not a checkpoint of a running `fit`, but one of `tf_tricks.checkpoints.save`. Give "
                "TrainingCheckpoint a `directory` of its own."
            )
        return {**tree, "name": entry.name}

    def set_all_aside(self):
        """Move what the folder holds into a subfolder, for a run that begins anew. Returns None."""
        if self._writer is not None:
            self._store.set_all_aside()

    def wait_until_free(self):
        """Return when no copy of the state waits to be written."""
        if self._writer is not None:
            self._writer.wait_until_free()

    def reserve_memory(self, model):
        """Have the memory for the first copy of the state fetched beside the next steps; all variables are there."""
        if self._writer is not None:
            self._memory.reserve([*model.variables, *model.optimizer.variables])

    def tree(self, model, **run):
        """A checkpoint of a running `fit`: the model with its optimizer, seeds and metrics, and what `run` holds."""
        run["replicas"] = replicas.take(model)
        return layout(model_state.take(model, seeds=True, metrics=True, memory=self._memory), run)

    def write(self, step, tree, metric=None):
        """Hand a tree to the thread that writes."""
        if self._writer is not None:
            self._writer.submit(step, tree, metric)

    def take_error(self):
        """The last error of the writing thread as a sentence, or None; once."""
        error = None if self._writer is None else self._writer.take_error()
        return None if error is None else f"{type(error).__name__}: {error}."

    def flush(self):
        """Return when everything is on the disc, or has failed."""
        if self._writer is not None:
            self._writer.flush()

    def close(self):
        """Finish writing and let go of the folder."""
        _let_go(self._writer, self._lock)
        self._memory.release()


def _let_go(writer, lock):
    if writer is not None:
        writer.close()
    if lock is not None:
        lock.release()


def assign(model, tree):
    """Put the model's part of a checkpoint back, all of it or nothing.

    Raises:
        ValueError: model or optimizer differ from the saved ones.
    """
    model_state.assign(
        model,
        tree["model"],
        advice="Run it with the model and optimizer that it was saved with, or give another `directory`; the files are "
        "as they were.",
    )
    replicas.put_back(model, tree["run"].get("replicas"))
