"""Where checkpoints lie: a folder of this machine, or one that fsspec reaches. Both have the same methods."""

import os
import tempfile

from tf_tricks._optional import import_optional
from tf_tricks.checkpoints import file_format
from tf_tricks.checkpoints.atomic import remove_leftovers, sync_directory

# Object stores: what is put there appears as a whole or not at all, and "moving" would be a second transfer.
_ATOMIC_PUT = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "r2"}
_TEMPORARY = ".writing" + file_format.TEMPORARY_SUFFIX  # one name, so that no more than one is ever left over


def is_url(directory):
    """Whether `directory` is for fsspec; "file://" is not."""
    text = os.fspath(directory)
    return "://" in text and not text.startswith("file://")


def open_folder(directory):
    """The folder, made if it is not there."""
    return RemoteFolder(os.fspath(directory)) if is_url(directory) else LocalFolder(directory)


class LocalFolder:
    """A folder of this machine. What dead writers left in it is deleted when it is opened."""

    def __init__(self, directory):
        self.path = os.fspath(directory).removeprefix("file://")
        os.makedirs(self.path, exist_ok=True)
        remove_leftovers(self.path)

    def path_of(self, name):
        return os.path.join(self.path, name)

    def names(self):
        with os.scandir(self.path) as entries:
            return [entry.name for entry in entries]

    def write(self, name, tree, notes):
        file_format.write(self.path_of(name), tree, notes)

    def read(self, name):
        return file_format.read(self.path_of(name))

    def notes(self, name):
        return file_format.read_notes(self.path_of(name))

    def remove(self, name):
        os.remove(self.path_of(name))

    def rename(self, name, new_name):
        """`new_name` may be in a subfolder, which is made. The caller sees to it that the name is free."""
        os.makedirs(os.path.dirname(self.path_of(new_name)), exist_ok=True)
        os.rename(self.path_of(name), self.path_of(new_name))
        sync_directory(self.path)


class RemoteFolder:
    """A folder at a URL such as "s3://bucket/run". Files pass through a temporary one of this machine.

    Object stores get each file in one put, which is all or nothing. Elsewhere the file is put under another name and
    then moved; where the file system moves by copying, a kill in that instant leaves a cut file, which its checksum
    shows. There is no lock.
    """

    def __init__(self, url):
        self.path = url.rstrip("/")
        self._files, self._root = import_optional("fsspec", "remote").url_to_fs(self.path)
        protocols = self._files.protocol
        self._atomic = not _ATOMIC_PUT.isdisjoint([protocols] if isinstance(protocols, str) else protocols)
        self._files.makedirs(self._root, exist_ok=True)

    def path_of(self, name):
        return f"{self.path}/{name}"

    def _inside(self, name):
        return f"{self._root.rstrip('/')}/{name}"

    def names(self):
        self._files.invalidate_cache(self._root)
        try:
            return [path.rstrip("/").rpartition("/")[2] for path in self._files.ls(self._root, detail=False)]
        except FileNotFoundError:  # an object store has no empty folders
            return []

    def write(self, name, tree, notes):
        with tempfile.TemporaryDirectory() as directory:
            local = os.path.join(directory, name)
            file_format.write(local, tree, notes)
            if self._atomic:
                self._files.put_file(local, self._inside(name))
            else:
                self._files.put_file(local, self._inside(_TEMPORARY))
                self._files.mv(self._inside(_TEMPORARY), self._inside(name))

    def read(self, name):
        # POSIX lets a file go whose pages are mapped; Windows does not, and keeps it.
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            local = os.path.join(directory, name)
            self._files.get_file(self._inside(name), local)
            return file_format.read(local)

    def notes(self, name):
        return file_format.read_notes(self._inside(name), self._files.open)

    def remove(self, name):
        self._files.rm_file(self._inside(name))

    def rename(self, name, new_name):
        self._files.makedirs(self._inside(new_name).rpartition("/")[0], exist_ok=True)
        self._files.mv(self._inside(name), self._inside(new_name))
