"""Torch's functions under NumPy's names give what those of `keras.ops` give."""

import keras
import numpy as np
import pytest

from tf_tricks.layers.augmentation._in_torch import Functions
from tf_tricks.layers.augmentation._namespaces import OPS

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="the functions are Torch's")

RNG = np.random.default_rng(0)
FLOATS, OTHERS = RNG.normal(size=(2, 3, 4, 3)).astype("float32") * 3, RNG.normal(size=(2, 3, 4, 3)).astype("float32")
POSITIVE, HALVES = np.abs(FLOATS) + 0.1, np.array([-1.5, -0.5, 0.5, 1.5, 2.5], "float32")
INTEGERS, BYTES = RNG.integers(-(2**31), 2**31, (5, 7)).astype("int32"), RNG.integers(0, 256, (5, 7)).astype("uint8")
MASK = FLOATS > 0

CALLS = {
    "abs": [(FLOATS,), (INTEGERS,)],
    "ceil": [(FLOATS,), (INTEGERS,)],
    "cos": [(FLOATS,), (INTEGERS,)],
    "exp": [(FLOATS,), (BYTES,)],
    "floor": [(FLOATS,), (INTEGERS,)],
    "log": [(POSITIVE,), (BYTES + 1,)],
    "round": [(HALVES,), (INTEGERS,)],
    "sin": [(FLOATS,), (INTEGERS,)],
    "sqrt": [(POSITIVE,), (BYTES,)],
    "maximum": [(FLOATS, OTHERS), (FLOATS, 0.5), (FLOATS, 1), (INTEGERS, 3), (INTEGERS, BYTES), (2, 3)],
    "minimum": [(FLOATS, OTHERS), (FLOATS, 0.5), (FLOATS, 1), (INTEGERS, 3), (INTEGERS, BYTES), (2, 3)],
    "bitwise_and": [(INTEGERS, 255), (INTEGERS, INTEGERS[:1]), (BYTES, 7)],
    "bitwise_xor": [(INTEGERS, -5), (INTEGERS, INTEGERS[:1]), (BYTES, 7)],
    "right_shift": [(INTEGERS, 7), (INTEGERS, np.abs(INTEGERS) % 31), (BYTES, 2)],
    "logical_and": [(MASK, ~MASK), (MASK, True), (FLOATS, MASK)],
    "logical_or": [(MASK, ~MASK), (MASK, True), (FLOATS, MASK)],
    "cast": [(FLOATS, "uint8"), (BYTES, "float32"), (FLOATS, "float16"), (1.5, "int32"), (MASK, "float32")],
    "concatenate": [([FLOATS, OTHERS], -1), ([INTEGERS, BYTES],)],
    "stack": [([FLOATS, OTHERS], -1), ([INTEGERS, BYTES],), ([1.0, 2.0],)],
    "reshape": [(FLOATS, (-1, 3)), (FLOATS, [24, 3]), (1.0, (1, 1))],
    "shape": [(FLOATS,)],
    "transpose": [(FLOATS, (0, 3, 1, 2))],
    "matmul": [(FLOATS, np.swapaxes(OTHERS, 2, 3))],
    "mean": [(FLOATS, (1, 2)), (FLOATS, 1, True), (INTEGERS, 0)],
    "where": [(MASK, FLOATS, OTHERS), (MASK, FLOATS, 0.0), (MASK, 1, 0), (INTEGERS > 0, INTEGERS, BYTES)],
    "zeros_like": [(FLOATS,), (BYTES,)],
    "ones_like": [(FLOATS,), (BYTES,)],
    "argsort": [(FLOATS[0, 0, :, 0],)],  # one that `keras.ops` computes
}


def test_nothing_is_left_out():
    own = {name for name in {*vars(Functions()), *vars(Functions)} if not name.startswith("_")}
    assert own == set(CALLS) - {"argsort"}


def as_tensors(value):
    if isinstance(value, list):
        return [as_tensors(each) for each in value]
    return keras.ops.convert_to_tensor(value) if isinstance(value, np.ndarray) else value


OF_TENSORS_ONLY = {"shape", "transpose", "matmul", "mean", "zeros_like", "ones_like"}


@pytest.mark.parametrize(
    ("name", "given"),
    [(name, "tensors") for name in CALLS] + [(name, "arrays") for name in CALLS if name not in OF_TENSORS_ONLY],
)
def test_values_and_dtypes_are_those_of_keras(name, given):
    for args in CALLS[name]:
        args = [as_tensors(each) if given == "tensors" else each for each in args]
        found, expected = getattr(OPS, name)(*args), getattr(keras.ops, name)(*args)
        if name == "shape":
            assert found == tuple(expected)
            continue
        assert found.dtype == expected.dtype, args[1:]
        np.testing.assert_array_equal(found.numpy(), expected.numpy())
