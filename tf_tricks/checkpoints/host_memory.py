"""Copies of variables in one block of host memory, which is used again for the next copies."""

import math
import sys
import threading

import keras
import numpy as np

from tf_tricks._backend import BACKEND, tf

_ALIGNMENT = 64  # bytes, a cache line
_SLACK = 1 << 20  # for the few small variables that are not there yet when memory is reserved


class HostMemory:
    """A block of memory for copies of variables; it grows as needed.

    New memory costs a copy about half as much again: the system has to find and clear every page of it. So the block
    is kept. As long as anybody holds a copy, it is not touched: the next copies then get a new block.

    Example:
        >>> memory = HostMemory()
        >>> first = memory.copies([keras.Variable(np.arange(3.0, dtype="float32"))])[0]
        >>> second = memory.copies([keras.Variable(np.zeros(3, "float32"))])[0]
        >>> first, second
        (array([0., 1., 2.], dtype=float32), array([0., 0., 0.], dtype=float32))
    """

    def __init__(self):
        self._block = None
        self._fetching = None

    def reserve(self, variables):
        """Have a thread fetch the memory for copies of these variables; the first `copies` waits for it."""
        variables = list(variables)
        if not variables or _is_own(_host_array(variables[0])):
            return
        self.release()
        self._block = np.empty(sum(map(_padded_size, variables)) + _SLACK, np.uint8)
        self._fetching = threading.Thread(target=self._block.fill, args=(0,), daemon=True)
        self._fetching.start()

    def copies(self, variables):
        """List of NumPy arrays with the present values of the variables, in host memory that no backend knows of."""
        arrays = [_host_array(variable) for variable in variables]
        block, begin = self._free_block(sum(_padded(array) for array in arrays if not _is_own(array))), 0
        for k, array in enumerate(arrays):
            if not _is_own(array):
                arrays[k] = block[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
                np.copyto(arrays[k], array)
                begin += _padded(array)
        return arrays

    def release(self):
        """Give the block back to the system, as soon as nobody holds a copy."""
        self._wait()
        self._block = None

    def _wait(self):
        if self._fetching is not None:
            self._fetching.join()
            self._fetching = None

    def _free_block(self, nbytes):
        self._wait()
        # Every array in the block refers to it: two references, here and the argument's, mean that there is none.
        if self._block is None or self._block.nbytes < nbytes or sys.getrefcount(self._block) > 2:
            self._block = None  # before the new one is made, or both would be there for a while
            self._block = np.empty(nbytes, np.uint8)
        return self._block


def own_copies(variables):
    """List of NumPy arrays with the present values of the variables, each with memory of its own."""
    arrays = (_host_array(variable) for variable in variables)
    return [array if _is_own(array) else np.array(array) for array in arrays]


def _host_array(variable):
    """The value of a variable as an array: the backend's own memory where that is possible, a copy elsewhere."""
    value = getattr(variable, "value", variable)
    try:
        if BACKEND == "tensorflow":
            value = tf.convert_to_tensor(value)
        elif BACKEND == "torch":
            value = value.detach()
        else:
            value.block_until_ready()  # the last step may still be at work on it
        return np.from_dlpack(value)
    except Exception:  # on a GPU, sharded, of a dtype such as bfloat16: each backend raises something else
        return np.asarray(keras.ops.convert_to_numpy(variable))


def _padded(array):
    return -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT


def _padded_size(variable):
    nbytes = math.prod(variable.shape) * np.dtype(variable.dtype).itemsize  # keras brings bfloat16 along
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _is_own(array):
    # What is a view, or may not be written to, belongs to the backend: the next step may overwrite it.
    return array.flags.owndata and array.flags.writeable
