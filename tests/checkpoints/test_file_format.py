import inspect
import json
import os
import struct
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors
import xxhash

from tf_tricks.checkpoints import file_format
from tf_tricks.checkpoints.file_format import DamagedCheckpoint, check, read, read_notes, write

pytestmark = pytest.mark.any_backend

RNG = np.random.default_rng(0)
TREE = {
    "epoch": 7,
    "history": {"loss": [0.5, float("nan")]},
    "state": ("MT19937", RNG.integers(0, 2**32, 624, "uint32")),
    "model": {
        "dense/kernel": RNG.normal(size=(9, 7)).astype("float32"),
        "half": RNG.normal(size=5).astype(ml_dtypes.bfloat16),
        "flags": np.array([True, False]),
        "none": np.zeros((0, 4), "float16"),
        "strided": np.arange(40.0).reshape(8, 5)[::2, ::-1],
        "names": np.array(["a", "bcd"]),
        "count": np.int64(3),
    },
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.safetensors"
    write(path, TREE, {"metric": "0.25"})
    return path


def arrays_of(tree):
    return {"kernel": tree["state"][1], **tree["model"]}


def test_everything_comes_back_and_is_mapped_read_only(path):
    tree = read(path)
    assert list(tree) == list(TREE) and tree["epoch"] == 7 and tree["state"][0] == "MT19937"
    assert str(tree["history"]) == str(TREE["history"])
    for name, array in arrays_of(TREE).items():
        got = arrays_of(tree)[name]
        assert type(got) is type(array) and got.dtype == array.dtype and got.shape == array.shape
        assert got.tobytes() == array.tobytes()
        if isinstance(got, np.ndarray):
            assert not got.flags.writeable and got.flags.aligned and (not got.size or not got.flags.owndata)
    assert read_notes(path) == {"metric": "0.25"}
    check(path)
    assert os.listdir(path.parent) == [path.name]


def test_any_reader_of_safetensors_reads_it(path):
    with safetensors.safe_open(path, framework="np") as file:
        assert json.loads(file.metadata()["tree"])["epoch"] == 7
        for name in ("dense/kernel", "flags", "strided", "none"):
            assert file.get_tensor(f"model/{name}").tobytes() == TREE["model"][name].tobytes()
        assert file.get_tensor("model/dense/kernel").shape == (9, 7)
    half = dict(safetensors.deserialize(path.read_bytes()))["model/half"]  # NumPy itself has no bfloat16
    assert half["dtype"] == "BF16" and bytes(half["data"]) == TREE["model"]["half"].tobytes()


def test_the_checksum_is_the_hash_of_all_other_bytes(path):
    data = path.read_bytes()
    begin = data.index(b'"xxh3-64:') + 9
    others = data[:begin] + b"0" * 16 + data[begin + 16 :]
    assert data[begin : begin + 16].decode() == xxhash.xxh3_64_hexdigest(others)


def test_a_file_cut_short_anywhere_is_found(path):
    data = path.read_bytes()
    lengths = {*range(0, 60), len(data) - 1, *RNG.integers(0, len(data), 60).tolist()}
    for length in lengths:
        path.write_bytes(data[:length])
        for verify in (True, False):
            with pytest.raises(DamagedCheckpoint, match="run.safetensors` .*(empty|cut short)"):
                read(path, verify=verify)
    path.write_bytes(data + b"\0")
    with pytest.raises(DamagedCheckpoint, match="too long"):
        check(path)


def test_a_flipped_bit_anywhere_is_found(path):
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    places = {*range(60), header - 1, header, len(data) - 1}
    places |= {*RNG.integers(0, header, 150).tolist(), *RNG.integers(header, len(data), 150).tolist()}
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 1 << int(RNG.integers(8))
        path.write_bytes(changed)
        with pytest.raises(DamagedCheckpoint):
            check(path)
        with pytest.raises(DamagedCheckpoint):
            read(path)
    path.write_bytes(data)
    check(path)


def test_a_zeroed_file_or_block_is_found(path):
    data = path.read_bytes()
    for begin, end in [(0, len(data)), (0, 8), (0, 64), (100, 300), (len(data) - 512, len(data)), (512, 1024)]:
        path.write_bytes(data[:begin] + bytes(end - begin) + data[end:])
        with pytest.raises(DamagedCheckpoint, match="zeros|not a checkpoint|cannot be read|changed after"):
            check(path)


def test_files_of_another_kind_are_refused(path, tmp_path):
    import safetensors.numpy

    other = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(2)}, other)
    for content in (None, b"\x89HDF\r\n\x1a\n" + bytes(100), b"text" * 30, b"PK\x03\x04"):
        if content is not None:
            other.write_bytes(content)
        with pytest.raises(
            DamagedCheckpoint, match="weights.safetensors` is (not a checkpoint|cut short, or of another)"
        ):
            read(other)
        assert not file_format.looks_like_ours(other)
    assert file_format.looks_like_ours(path)
    with pytest.raises(FileNotFoundError):
        check(tmp_path / "none")


def resealed(data, old, new):
    """The file with a header changed by somebody who knows the format, checksum and length included."""
    assert old in data
    size = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + size].replace(old, new)
    data = bytearray(len(header).to_bytes(8, "little") + header + data[8 + size :])
    data[file_format.FIELD] = b"0" * 16
    data[file_format.FIELD] = xxhash.xxh3_64_hexdigest(bytes(data)).encode()
    return data


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"[9,7]", b"[9,8]"),
        (b'"dtype":"F32"', b'"dtype":"F99"'),
        (b"<U3", b"|O8"),
        (b"<U3", b"<U4"),
        (b'\\"$scalar\\"', b'\\"$pickle\\"'),
        (b'"raw":', b'"rew":'),
        (b'"format":"tf_tricks.checkpoint.1"', b'"format":"tf_tricks.checkpoint.1","x":[1]'),
    ],
)
def test_a_wrong_header_with_a_right_checksum_is_refused(path, old, new):
    path.write_bytes(resealed(path.read_bytes(), old, new))
    with pytest.raises(DamagedCheckpoint):
        read(path)


def test_a_later_format_is_not_taken_for_damage(path):
    path.write_bytes(resealed(path.read_bytes(), b"checkpoint.1", b"checkpoint.2"))
    with pytest.raises(ValueError, match="checkpoint.2.*Update") as caught:
        read(path)
    assert not isinstance(caught.value, DamagedCheckpoint)


def test_writing_again_replaces_and_a_failure_leaves_the_old_file(path):
    before = path.read_bytes()
    with pytest.raises(TypeError, match="`a` is a"):
        write(path, {"a": object()})
    assert path.read_bytes() == before
    mapped = read(path)["model"]["dense/kernel"]
    write(path, {"a": 1})
    assert read(path) == {"a": 1}
    np.testing.assert_array_equal(mapped, TREE["model"]["dense/kernel"])  # the old pages stay as long as they are used
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_errors_of_the_system_leave_the_old_file_and_nothing_else(path, fails, monkeypatch):
    def fail(*args):
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr(os, fails, fail)
    with pytest.raises(OSError, match="No space left"):
        write(path, {"a": np.zeros(10)})
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_the_directory_and_the_file_are_synced_in_the_right_order(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("dir" if os.path.isdir(f"/proc/self/fd/{fd}") else "file"))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write(tmp_path / "a", {"a": 1})
    assert calls == ["file", "replace", "dir"] and fsync is not os.fsync


def test_memory_holds_no_second_copy(tmp_path):
    import tracemalloc

    tree = {str(i): np.zeros(4_000_000, "float32") for i in range(4)}  # 64 MB
    tracemalloc.start()
    write(tmp_path / "a", tree)
    check(tmp_path / "a")
    read(tmp_path / "a")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12e6


def test_nothing_in_the_room_pickles():
    import tf_tricks.checkpoints.file_header as header
    import tf_tricks.checkpoints.packing as packing

    for module in (file_format, header, packing):
        assert "pickle" not in vars(module) and "import pickle" not in inspect.getsource(module)


@pytest.mark.skipif(sys.byteorder != "little", reason="the file is little-endian, and so is what it is compared with")
def test_arrays_are_little_endian_in_the_file(path):
    assert struct.pack("<9f", *TREE["model"]["dense/kernel"].ravel()[:9]) in path.read_bytes()
