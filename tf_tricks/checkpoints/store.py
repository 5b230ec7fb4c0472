"""The checkpoints in one directory: write the next one, find the newest good one, delete those that are not kept."""

import contextlib
import errno
import math
import re
import warnings

from tf_tricks._checks import check_integer, check_keep_best, check_optional
from tf_tricks.checkpoints.file_format import DamagedCheckpoint
from tf_tricks.checkpoints.folders import open_folder

_SUFFIX = ".safetensors"
_STEP_FILE = re.compile(r"step-(\d+)\.safetensors")
_PLAIN_NAME = re.compile(r"\w[\w.-]*")


class Entry:
    """One checkpoint of a `Store`.

    Attributes:
        name: str, name of the file in the directory.
        path: str, directory or URL and name.
        step: int, or None for one that was saved under a name.
    """

    def __init__(self, folder, name, tree=None):
        self.name, self.path, self.step = name, folder.path_of(name), _step_of(name)
        self._folder, self._tree = folder, tree

    def read(self):
        """The tree that was saved, verified.

        Raises:
            DamagedCheckpoint: the file is not what was written.
        """
        return self._folder.read(self.name) if self._tree is None else self._tree

    def __repr__(self):
        return f"Entry({self.path!r})"


class Store:
    """Checkpoints in a directory or at a URL, numbered by step; the last ones, and the best one, are kept.

    A file appears under its name only when all of it is on the disc, and older ones are deleted only after that: there
    is a good checkpoint at every instant after the first. For writing, hold a `DirectoryLock` meanwhile.

    Args:
        directory: str or path-like, made if it is not there; or a URL that fsspec knows, such as "s3://bucket/run".
        keep: int >= 1, how many of the last steps to keep; None: all.
        keep_best: None, or `(monitor, mode)` such as ("val_loss", "min"): also keep the one with the best `metric`.
            `mode` is "min" or "max". The metric is in the file, so it is known after a restart.
    Raises:
        TypeError, ValueError: an argument is out of range.
        ImportError: `directory` is a URL, and fsspec is not installed.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     store = Store(directory, keep=2)
        ...     for step in (10, 20, 30):
        ...         _ = store.save(step, {"weights": np.zeros(3)})
        ...     [entry.step for entry in store.entries()], store.newest().name
        ([20, 30], 'step-0000000030.safetensors')
    """

    def __init__(self, directory, keep=3, keep_best=None):
        self.keep = check_optional(check_integer, "keep", keep, 1)
        self.keep_best = check_keep_best(keep_best)
        self._folder = open_folder(directory)
        self._metrics = {}  # file name -> metric, so that each header is read once

    def save(self, name_or_step, tree, metric=None):
        """Write a checkpoint, then delete those that are not to be kept.

        Args:
            name_or_step: int >= 0; or str, a file name without its suffix: that one is never deleted.
            tree: see `packing.pack`.
            metric: float or None, value of what `keep_best` monitors.
        Returns:
            The `Entry`.
        Raises:
            OSError: the disc is full or the directory is not writable, say; what was there before is untouched.
            TypeError: something in the tree cannot be stored.
        """
        name = _file_name(name_or_step)
        self._folder.write(name, tree, self._notes(metric))
        self._metrics.pop(name, None)
        self._prune(name)
        return Entry(self._folder, name)

    def entries(self):
        """List of `Entry`: those saved under a name, then the steps; the newest is the last. None of them is read."""
        names = [name for name in self._folder.names() if name.endswith(_SUFFIX) and not name.startswith(".")]
        return [Entry(self._folder, name) for name in sorted(names, key=_order)]

    def newest(self):
        """The last `Entry` whose checksum is right, or None. Its `read` does not read the file again.

        A damaged one is renamed to `*.damaged`, and one warning says which was taken instead.
        """
        damaged = {}
        for entry in reversed(self.entries()):
            try:
                taken = Entry(self._folder, entry.name, self._folder.read(entry.name))
                break
            except FileNotFoundError:  # somebody else deleted or renamed it just now
                continue
            except DamagedCheckpoint as error:
                damaged[entry.name] = error
            except OSError as error:
                if error.errno != errno.EIO:  # a broken disc is damage; a missing permission is not
                    raise
                damaged[entry.name] = error
        else:
            taken = None
        if damaged:
            self._set_aside(damaged, taken)
        return taken

    def best(self):
        """The `Entry` with the best metric, the first of equals; None without one, or without `keep_best`."""
        if self.keep_best is None:
            return None
        known = [(self._metric(entry.name), entry) for entry in self.entries()]
        known = [(metric, entry) for metric, entry in known if metric is not None]
        choose = min if self.keep_best[1] == "min" else max
        return choose(known, key=lambda pair: pair[0])[1] if known else None

    def set_all_aside(self):
        """Move all checkpoints into a new subfolder `previous-1`, `-2`, ..., for a run that begins anew.

        Safetensors files that somebody else wrote stay where they are.

        Returns:
            The subfolder's path, or None if there was nothing to move.
        """
        entries, taken = [entry for entry in self.entries() if self._is_ours(entry)], self._folder.names()
        subfolder = _first_free("previous-{}".format, taken)
        for entry in entries:
            self._folder.rename(entry.name, f"{subfolder}/{entry.name}")
        self._metrics.clear()
        return self._folder.path_of(subfolder) if entries else None

    def _is_ours(self, entry):
        if entry.step is not None:
            return True
        try:
            self._folder.notes(entry.name)
        except (OSError, DamagedCheckpoint):
            return False
        return True

    def _notes(self, metric):
        if self.keep_best is None or metric is None:
            return {}
        return {"monitor": self.keep_best[0], "metric": repr(float(metric))}

    def _metric(self, name):
        """The metric in the file, if it is the one that `keep_best` monitors, and a number."""
        if name not in self._metrics:
            try:
                notes = self._folder.notes(name)
                metric = float(notes.get("metric", "nan"))
            except (OSError, ValueError):
                return None
            usable = notes.get("monitor") == self.keep_best[0] and not math.isnan(metric)
            self._metrics[name] = metric if usable else None
        return self._metrics[name]

    def _prune(self, just_written):
        if self.keep is None:
            return
        steps = [entry.name for entry in self.entries() if entry.step is not None]
        best = self.best()
        kept = {just_written, *steps[-self.keep :], *([best.name] if best else [])}
        for name in steps:
            if name not in kept:
                with contextlib.suppress(OSError):  # the next save tries again
                    self._folder.remove(name)
                    self._metrics.pop(name, None)

    def _set_aside(self, damaged, taken):
        """Say which files are damaged, then rename them: the other way round, a kill in between would hide them."""
        names, sentences = self._folder.names(), []
        aside = {name: _first_free(_damaged_name(name), names) for name in damaged if _step_of(name) is not None}
        for name, error in damaged.items():
            # A name that is not ours is perhaps a file of somebody else.
            done = f"It is renamed to `{aside[name]}`" if name in aside else "It is passed over"
            sentences.append(f"{str(error).rstrip('.')}. {done}.")
        instead = f"`{taken.path}` is used instead" if taken else "there is no older one"
        try:
            warnings.warn(f"{' '.join(sentences)} Now {instead}.", stacklevel=3)
        finally:
            for name, new in aside.items():
                try:
                    self._folder.rename(name, new)
                except OSError as problem:
                    warnings.warn(f"`{name}` could not be renamed: {problem}.", stacklevel=3)


def _damaged_name(name):
    return lambda number: f"{name}.damaged{f'-{number}' if number > 1 else ''}"


def _file_name(name_or_step):
    if not isinstance(name_or_step, str):
        return f"step-{check_integer('name_or_step', name_or_step, 0):010d}{_SUFFIX}"
    name = name_or_step + _SUFFIX
    if not _PLAIN_NAME.fullmatch(name_or_step) or _step_of(name) is not None:
        raise ValueError(
            "`name_or_step` must be an int >= 0, or a plain file name without folder and suffix that does not look "
            f"like a step's. Received: name_or_step={name_or_step!r}"
        )
    return name


def _step_of(name):
    found = _STEP_FILE.fullmatch(name)
    return int(found[1]) if found else None


def _order(name):
    step = _step_of(name)
    return (step is not None, step or 0, name)


def _first_free(name_of, taken):
    number = 1
    while name_of(number) in taken:
        number += 1
    return name_of(number)
