import json
import math
import random
import struct

import ml_dtypes
import numpy as np
import pytest

from tf_tricks.checkpoints.packing import pack, unpack

pytestmark = pytest.mark.any_backend


def through_json(tree):
    json_tree, arrays = pack(tree)
    return unpack(json.loads(json.dumps(json_tree, allow_nan=False)), arrays)


def same(a, b):
    """Equal in type, order, dtype and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray | np.generic):
        if a.dtype.char in "gG":  # the padding of a long double is no part of it
            return a.dtype == b.dtype and np.array_equal(a, b)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return a == b


def test_same_sees_differences():
    for a, b in [(1, True), (0.0, -0.0), ([1], (1,)), ({"a": 1, "b": 2}, {"b": 2, "a": 1}), (1, np.int64(1))]:
        assert not same(a, b)


@pytest.mark.parametrize(
    "tree",
    [
        None,
        "",
        {"": 1, "$tuple": [1], "a/b": {"ü": "\ud800 \0"}},
        {"$array": "not a tag"},
        {"$x": {"$dict": {"$y": 0}}},
        [[], (), {}, ((),), [None, True, False]],
        [0, -1, 2**63, -(2**63) - 1, 10**5000, -(10**5000)],
        [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan, -math.nan],
        [struct.unpack("d", b"\x01\0\0\0\0\0\xf8\x7f")[0]],  # a NaN with a payload
        {"epoch": 3, "order": [2, 1], "z": 0, "a": 0},
        {
            "few": [1.5, math.nan],
            "many": [1.5, math.nan] * 100,
            "ints": tuple(range(-100, 100)),
            "big": [2**64 - 1] * 100,
        },
        {"too_big": [2**70] * 100, "mixed": [1, 1.0] * 100, "bools": [True] * 100, "wide": [-1, 2**63] * 50},
        b"",
        [b"bytes \0\xff"],
        random.Random(0).getstate(),
        np.random.RandomState(0).get_state(),
        np.random.default_rng(0).bit_generator.state,
        np.random.RandomState(0).get_state(legacy=False),
    ],
)
def test_plain_data_comes_back(tree):
    assert same(through_json(tree), tree)


COMMON = "float64 float32 float16 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool".split()
OTHER = [
    ">f4",
    "<U3",
    "S2",
    "M8[ns]",
    "m8[D]",
    "complex64",
    "complex128",
    "longdouble",
    [("a", "f4"), ("b", "i8", (2,))],
]
EXTENSIONS = [
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.int4,
]


def example_array(dtype, shape=(2, 3)):
    dtype = np.dtype(dtype)
    if dtype.kind == "U":
        return np.array([["a", "bcd", ""], ["ü", "\0x", "z"]], dtype)
    if dtype == np.longdouble:  # random padding would be no part of the number
        return (np.arange(6, dtype=dtype) / 3).reshape(shape)
    low = 2 if dtype.name in ("bool", "int4") else 256
    return np.random.default_rng(0).integers(0, low, (*shape[:-1], shape[-1] * dtype.itemsize), "uint8").view(dtype)


@pytest.mark.parametrize("dtype", [*COMMON, *OTHER, *EXTENSIONS], ids=str)
def test_arrays_and_scalars_come_back(dtype):
    array = example_array(dtype)
    tree = {"2d": array, "0d": array[0, 0:1].reshape(()), "empty": array[:0], "strided": array[:, ::2], "t": array.T}
    if array.dtype.kind != "S":  # random bytes may end in NUL, which an array drops
        tree["scalar"] = array[1, 1]
    assert same(through_json(tree), tree)


def test_arrays_are_named_after_their_place_and_are_not_copied():
    kernel = np.zeros(3)
    json_tree, arrays = pack({"model": {"weights": {"dense/kernel": kernel}}, "list": [1, (kernel,)]})
    assert list(arrays) == ["model/weights/dense/kernel", "list/1/0"]
    assert arrays["model/weights/dense/kernel"] is kernel
    assert json_tree["list"] == [1, {"$tuple": [{"$array": "list/1/0"}]}]


def test_two_places_with_one_spelling_stay_apart():
    tree = {
        "a/b": np.array(1),
        "a": {"b": np.array(2), "b#2": np.array(3)},
        "__metadata__": np.array(4),
        "\ud800": np.array(5),
    }
    assert same(through_json(tree), tree)
    assert "__metadata__" not in pack(tree)[1]


def test_long_lists_of_numbers_are_compact():
    json_tree, arrays = pack(random.Random(0).getstate())
    assert len(json.dumps(json_tree)) < 100
    assert sum(array.nbytes for array in arrays.values()) == 4 * 625


class MyDict(dict):
    pass


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": [0, {1, 2}]}, r"`a/1` is a builtins\.set"),
        ({"a": {"b": object()}}, r"`a/b` is a builtins\.object"),
        (1j, r"`the tree itself` is a builtins\.complex"),
        ({"a": MyDict()}, r"`a` is a .*MyDict.*a subclass would come back as its base"),
        ({"a": np.array([None])}, r"`a` is a numpy\.ndarray of dtype object"),
        ({"a": np.ma.array([1], mask=[True])}, r"`a` is a numpy\.ma.*MaskedArray"),
        ({"a": np.bytes_(b"x\0")}, r"`a` is a numpy\.bytes_"),
        ({"a": {"b": {3: 0}}}, r"dict at `a/b` must have str keys\. Received: 3"),
        (lambda: 0, r"is a builtins\.function"),
    ],
)
def test_anything_else_is_refused_with_its_place(tree, message):
    with pytest.raises(TypeError, match=message):
        pack(tree)


def test_unknown_tags_and_missing_arrays():
    with pytest.raises(ValueError, match=r"Unknown tag '\$pickle'"):
        unpack({"a": {"$pickle": "x"}}, {})
    with pytest.raises(KeyError, match="gone"):
        unpack({"$array": "gone"}, {})
