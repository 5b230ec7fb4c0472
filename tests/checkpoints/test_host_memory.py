import keras
import numpy as np
import pytest

from tf_tricks.checkpoints.host_memory import HostMemory, own_copies


def variables(*values, dtype="float32"):
    return [keras.Variable(np.asarray(value), dtype=dtype, trainable=False) for value in values]


def block_of(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int32", "uint32", "bool"])
@pytest.mark.parametrize("copy", [own_copies, lambda each: HostMemory().copies(each)], ids=["own", "block"])
def test_copies_have_value_dtype_and_shape_and_do_not_change_with_the_variable(copy, dtype):
    values = [np.arange(12).reshape(3, 4) % 2, np.array(1), np.zeros((0, 3)), np.ones(5)]
    each = variables(*values, dtype=dtype)
    expected = [np.array(keras.ops.convert_to_numpy(variable)) for variable in each]
    got = copy(each)
    for variable in each:
        variable.assign(keras.ops.zeros_like(variable.value))
    for array, wanted in zip(got, expected, strict=True):
        assert (array.dtype, array.shape, array.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())


def test_the_block_is_used_again_only_when_nobody_holds_a_copy():
    memory = HostMemory()
    first = memory.copies(variables(np.ones((2, 3)), np.arange(4.0)))
    block = block_of(first[1])
    assert block is block_of(first[0])
    held = first[1][1:].reshape(3, 1)  # a view of a view holds it, too
    del first
    assert block_of(memory.copies(variables(np.zeros(4)))[0]) is not block
    np.testing.assert_array_equal(held[:, 0], [1, 2, 3])
    del block, held
    second = memory.copies(variables(np.ones(4)))
    address = second[0].ctypes.data
    del second
    assert memory.copies(variables(np.full(3, 7.0)))[0].ctypes.data == address


def test_reserved_memory_is_what_the_first_copies_go_to():
    memory, each = HostMemory(), variables(np.arange(1000.0), np.ones((3, 5)))
    memory.reserve(each)
    address = memory._block.ctypes.data
    got = memory.copies(each)
    assert got[0].ctypes.data == address
    np.testing.assert_array_equal(got[0], np.arange(1000.0))
    np.testing.assert_array_equal(got[1], np.ones((3, 5)))


def test_a_block_that_is_too_small_is_replaced():
    memory = HostMemory()
    memory.copies(variables(np.ones(2)))
    np.testing.assert_array_equal(memory.copies(variables(np.arange(1000.0)))[0], np.arange(1000.0))
    memory.release()
    np.testing.assert_array_equal(memory.copies(variables(np.arange(3.0)))[0], [0, 1, 2])
