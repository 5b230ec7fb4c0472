import errno
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from tf_tricks.checkpoints import file_format, folders
from tf_tricks.checkpoints.atomic import remove_leftovers, replacing
from tf_tricks.checkpoints.store import Store

pytestmark = pytest.mark.any_backend

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def tree_of(step):
    return {"step": step, "weights": np.full(100, step, "float32")}


def steps(store):
    return [entry.step for entry in store.entries()]


def damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.fixture(params=["local", "memory"])
def directory(request, tmp_path):
    if request.param == "local":
        yield str(tmp_path / "a" / "run")
        return
    fsspec = pytest.importorskip("fsspec")
    yield f"memory://{tmp_path.name}/run"
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def test_saves_and_finds_the_newest(directory):
    store = Store(directory, keep=None)
    assert store.newest() is None and store.entries() == [] and store.best() is None
    for step in (5, 10_000_000_000, 70):
        entry = store.save(step, tree_of(step))
        assert entry.step == step and entry.read()["step"] == step
    assert steps(Store(directory)) == [5, 70, 10_000_000_000]
    newest = Store(directory).newest()
    assert newest.name == "step-10000000000.safetensors" and newest.path.endswith(newest.name)
    np.testing.assert_array_equal(newest.read()["weights"], tree_of(10_000_000_000)["weights"])
    store.save(70, {"step": "again"})
    assert [entry.read()["step"] for entry in store.entries()] == [5, "again", 10_000_000_000]


def test_keeps_the_last_and_the_one_just_written(directory):
    store = Store(directory, keep=2)
    for step in (1, 2, 3, 4):
        store.save(step, tree_of(step))
        assert steps(store) == [max(step - 1, 1), step][-min(step, 2) :]
    store.save("final", tree_of(0))
    store.save(2, tree_of(2))  # older than those that are there, and yet what the run holds now
    assert steps(store) == [None, 2, 3, 4]
    assert store.entries()[0].name == "final.safetensors"


@pytest.mark.parametrize(("mode", "best"), [("min", 2), ("max", 4)])
def test_keeps_the_best_across_a_restart(directory, mode, best):
    losses = {1: 0.5, 2: 0.25, 3: float("nan"), 4: 1.0, 5: 0.25, 6: 1.0, 7: None}
    for step, loss in losses.items():
        store = Store(directory, keep=1, keep_best=("val_loss", mode))  # each save is another process
        store.save(step, tree_of(step), metric=loss)
    assert steps(store) == [best, 7] and store.best().step == best
    other = Store(directory, keep=1, keep_best=("val_accuracy", "max"))  # cannot be compared with a loss
    assert other.best() is None
    other.save(8, tree_of(8), metric=np.float32(0.1))
    assert steps(other) == [8] and other.best().step == 8


def test_a_damaged_file_is_set_aside_and_one_warning_names_both(tmp_path):
    store = Store(tmp_path, keep=None)
    for suffix in ("damaged", "damaged-2"):  # what was set aside before is not overwritten
        for step in (1, 2, 3):
            store.save(step, tree_of(step))
        for step in (2, 3):
            damage(tmp_path / f"step-000000000{step}.safetensors")
        with pytest.warns(UserWarning) as caught:
            newest = Store(tmp_path).newest()
        assert newest.step == 1 and newest.read()["step"] == 1
        (message,) = [str(each.message) for each in caught]
        assert all(f"step-000000000{step}" in message for step in (1, 2, 3)) and "is used instead" in message
        assert message.count(f"{suffix}`") == 2
    assert sorted(os.listdir(tmp_path)) == [
        "step-0000000001.safetensors",
        *(f"step-000000000{step}.safetensors.damaged{number}" for step in (2, 3) for number in ("", "-2")),
    ]
    assert Store(tmp_path).newest().step == 1  # a second warning would be an error


def test_damage_without_an_older_one_and_files_of_others(tmp_path):
    store = Store(tmp_path)
    store.save(1, tree_of(1))
    damage(tmp_path / "step-0000000001.safetensors")
    (tmp_path / "weights.safetensors").write_bytes(b"not ours")
    (tmp_path / "notes.txt").write_text("not ours")
    with pytest.warns(UserWarning, match="passed over.*|renamed.*there is no older one"):
        assert store.newest() is None
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "step-0000000001.safetensors.damaged", "weights.safetensors"]


def test_a_damaged_file_is_named_before_it_is_renamed(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.save(1, tree_of(1))
    damage(tmp_path / "step-0000000001.safetensors")

    def killed(*names):
        raise SystemExit

    monkeypatch.setattr(store._folder, "rename", killed)
    with pytest.warns(UserWarning, match="renamed to"), pytest.raises(SystemExit):
        store.newest()


def test_damaged_in_memory(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    store = Store(f"memory://{tmp_path.name}")
    for step in (1, 2):
        store.save(step, tree_of(step))
    path = f"/{tmp_path.name}/step-0000000002.safetensors"
    fsspec.filesystem("memory").pipe_file(path, fsspec.filesystem("memory").cat_file(path)[:-10])
    with pytest.warns(UserWarning, match="cut short.*renamed to `step-0000000002.safetensors.damaged`.*01.* is used"):
        assert store.newest().step == 1
    assert fsspec.filesystem("memory").exists(path + ".damaged")


def test_errors_that_are_no_damage_are_raised_and_a_broken_disc_is_damage(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.save(1, tree_of(1))
    read, codes = file_format.read, [errno.EACCES, errno.EIO]

    def fail(path):
        raise OSError(codes.pop(0), "cannot be read", path)

    monkeypatch.setattr(file_format, "read", fail)
    with pytest.raises(PermissionError):
        store.newest()
    with pytest.warns(UserWarning, match="cannot be read"):
        assert store.newest() is None
    assert os.listdir(tmp_path) == ["step-0000000001.safetensors.damaged"] and read is not fail


def test_a_run_that_begins_anew_moves_the_old_files(directory):
    store = Store(directory, keep=None)
    assert store.set_all_aside() is None
    for number in (1, 2):
        for step in (1, 2):
            store.save(step, tree_of(step))
        assert store.set_all_aside() == f"{store._folder.path}/previous-{number}"
        assert store.entries() == []
    assert steps(Store(f"{directory}/previous-1")) == [1, 2]


def test_a_run_that_begins_anew_leaves_the_files_of_others(tmp_path):
    Store(tmp_path).save(1, tree_of(1))
    Store(tmp_path).save("mine", tree_of(2))
    (tmp_path / "theirs.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")  # a file of safetensors without arrays
    Store(tmp_path).set_all_aside()
    assert sorted(os.listdir(tmp_path)) == ["previous-1", "theirs.safetensors"]
    assert sorted(os.listdir(tmp_path / "previous-1")) == ["mine.safetensors", "step-0000000001.safetensors"]


@pytest.mark.parametrize("protocol", ["memory", "s3"])
def test_object_stores_get_one_put_and_others_a_move(tmp_path, monkeypatch, protocol):
    fsspec = pytest.importorskip("fsspec")
    memory, calls = type(fsspec.filesystem("memory")), []
    monkeypatch.setattr(folders, "_ATOMIC_PUT", {"memory"} if protocol == "s3" else {"s3"})
    for name in ("put_file", "mv"):
        original = getattr(memory, name)

        def record(self, source, target, *args, original=original, name=name, **kwargs):
            calls.append((name, target.rpartition("/")[2]))
            return original(self, source, target, *args, **kwargs)

        monkeypatch.setattr(memory, name, record)
    Store(f"memory://{tmp_path.name}").save(1, tree_of(1))
    target = "step-0000000001.safetensors"
    assert calls == ([("put_file", target)] if protocol == "s3" else [("put_file", ".writing.tmp"), ("mv", target)])


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path):
    (tmp_path / ".step-0000000001.safetensors.99-1.tmp").write_bytes(b"half")
    (tmp_path / ".hidden").write_bytes(b"not ours")
    (tmp_path / "mine.tmp").write_bytes(b"not ours")
    with replacing(tmp_path / "alive") as file:
        file.write(b"all of it")
        Store(tmp_path)
        assert len(os.listdir(tmp_path)) == 3
    assert sorted(os.listdir(tmp_path)) == [".hidden", "alive", "mine.tmp"]
    assert (tmp_path / "alive").read_bytes() == b"all of it"


def test_a_temporary_file_taken_for_a_leftover_is_made_again(tmp_path, monkeypatch):
    from tf_tricks.checkpoints import atomic

    rounds, try_lock = [], atomic.try_lock

    def cleaned_just_before(handle):
        rounds.append(handle)
        if len(rounds) == 1:
            monkeypatch.setattr(atomic, "try_lock", try_lock)
            remove_leftovers(tmp_path)
            monkeypatch.setattr(atomic, "try_lock", cleaned_just_before)
        return try_lock(handle)

    monkeypatch.setattr(atomic, "try_lock", cleaned_just_before)
    with replacing(tmp_path / "a") as file:
        file.write(b"x")
    assert len(rounds) == 2 and os.listdir(tmp_path) == ["a"]


def test_an_interrupted_rename_leaves_the_older_ones_and_nothing_is_pruned(tmp_path, monkeypatch):
    store = Store(tmp_path, keep=1)
    store.save(1, tree_of(1))

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        store.save(2, tree_of(2))
    assert os.listdir(tmp_path) == ["step-0000000001.safetensors"] and store.newest().step == 1


def test_the_old_one_goes_only_when_the_new_one_is_there(tmp_path, monkeypatch):
    store, seen, remove = Store(tmp_path, keep=1), [], os.remove

    def look(path):
        seen.append(sorted(name for name in os.listdir(tmp_path) if not name.startswith(".")))
        remove(path)

    store.save(1, tree_of(1))
    monkeypatch.setattr(os, "remove", look)
    store.save(2, tree_of(2))
    assert seen == [["step-0000000001.safetensors", "step-0000000002.safetensors"]]


# Writes without end; the parent kills it at some instant. The package's own `__init__` would import Keras: seconds.
ENDLESS = """
import sys, types
for name in ("tf_tricks", "tf_tricks.checkpoints"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [sys.argv[1] + "/" + name.replace(".", "/")]
import numpy as np
from tf_tricks.checkpoints.store import Store
store = Store(sys.argv[2], keep=2)
step = store.newest().step if store.entries() else 0
print("ready", flush=True)
while True:
    step += 1
    store.save(step, {"step": step, "weights": np.full(1_000_000, step, "float32")})
"""


def test_a_kill_in_the_middle_of_a_write_costs_at_most_that_write(tmp_path):
    last = 0
    for delay in np.random.default_rng(0).uniform(0.005, 0.06, 8):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", ENDLESS, ROOT, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "ready\n"
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stdout.close()
        store = Store(tmp_path, keep=2)
        assert not any(name.endswith(".tmp") for name in os.listdir(tmp_path))
        entries = store.entries()
        for entry in entries:
            tree = entry.read()
            assert tree["step"] == entry.step and (tree["weights"] == entry.step).all()
        if entries:
            assert entries[-1].step >= last
            last = store.newest().step
    assert last > 0
    store.save(last + 1, tree_of(last + 1))  # deletes what a killed one had no time to delete
    assert len(store.entries()) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"keep": 0}, ValueError, "`keep` must be an int >= 1"),
        ({"keep_best": "val_loss"}, TypeError, r"`keep_best` must be None or \(monitor, mode\)"),
        ({"keep_best": ("val_loss", "auto")}, ValueError, "with a mode of 'min', 'max'"),
    ],
)
def test_arguments_are_checked(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        Store(tmp_path, **arguments)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".x", "step-7", -1, True, 1.5])
def test_names_and_steps_are_checked(tmp_path, name):
    with pytest.raises((TypeError, ValueError), match=re.escape(f"Received: name_or_step={name!r}")):
        Store(tmp_path).save(name, {})


def test_places_that_are_not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        Store(tmp_path / "file")
    with pytest.raises(OSError):
        Store(tmp_path / "file" / "run")
    assert Store(f"file://{tmp_path}/run").save(1, tree_of(1)).path == f"{tmp_path}/run/step-0000000001.safetensors"
