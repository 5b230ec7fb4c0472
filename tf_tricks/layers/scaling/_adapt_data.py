"""Any data that a user may give to `adapt`, as NumPy batches of its features, one at a time."""

import itertools
import time

import keras
import numpy as np

from tf_tricks.layers._in_tensorflow import tensorflow

BLOCK = 1 << 22  # values of an array that are looked at together: 16 MiB of float32
ROWS = 1024  # rows of an unbatched tf.data.Dataset that are looked at together
JOINED = 1 << 18  # values of small tf.data batches that are joined: each batch costs a tenth of a millisecond in Python
QUIET = 3.0  # seconds before a progress bar appears

ACCEPTED = (
    "a NumPy array, a tensor, a tf.data.Dataset, a keras.utils.PyDataset, a DataLoader, an iterable of batches, or a "
    "dict of arrays"
)


def batches_of(data, steps=None):
    """Yield the features of `data` batch by batch: NumPy arrays, or dicts of them for a dict of features.

    No more than `steps` batches of `data` are used; small ones of a tf.data.Dataset come joined.

    Labels and sample weights are dropped: of a batch that is a tuple (or a list of arrays) only the first entry counts.
    An array is cut into views of its rows, so nothing of it is copied here.

    Raises:
        TypeError: `data` is nothing of the kind, or a tuple of arrays: they may be `x` and `y`.
        ValueError: an array has no batch axis; `steps` is missing for data without an end, or given for a dict of
            arrays; a batch is ragged.
    """
    if steps is None and _has_no_end(data):
        raise ValueError("`steps` must be given, because `data` has no end. Received: steps=None")
    if isinstance(data, dict):
        if steps is not None:
            raise ValueError(f"`steps` must be None for a dict of arrays. Received: steps={steps!r}")
        for name, column in data.items():
            for block in _blocks(column if is_array(column) else to_numpy(column)):
                yield {name: block}
    elif hasattr(data, "as_numpy_iterator"):
        yield from map(_features, _batched(data, steps).as_numpy_iterator())
    else:
        yield from itertools.islice(_python_batches(data), steps)


def _python_batches(data):
    """The same for data that is neither a dict of arrays nor a tf.data.Dataset."""
    if is_array(data):
        yield from _blocks(data)
    elif isinstance(data, list | tuple) and not any(_holds_arrays(each) for each in data):
        yield from _blocks(to_numpy(data))
    elif isinstance(data, tuple):
        raise TypeError(
            "`data` must not be a tuple of arrays: give x alone, or a list of batches. "
            f"Received: a tuple of {len(data)} entries"
        )
    elif isinstance(data, keras.utils.PyDataset):
        position = 0
        while data.num_batches is None or position < data.num_batches:
            yield _features(data[position])
            position += 1
    elif hasattr(data, "__iter__"):
        yield from map(_features, data)
    else:
        raise TypeError(f"`data` must be {ACCEPTED}. Received: data={data!r}")


def count_batches(data, steps):
    """How many batches `batches_of(data)` yields, if that is known; at most `steps`."""
    if hasattr(data, "as_numpy_iterator"):
        return None  # they come joined
    if isinstance(data, keras.utils.PyDataset):
        found = data.num_batches
    elif is_array(data) and len(data.shape):
        found = len(range(0, len(data), _rows(data)))
    else:
        found = None  # the length of a list of numbers is not its number of batches
    return min((each for each in (found, steps) if each is not None), default=None)


def with_progress(batches, total, verbose):
    """Yield what `batches` yields; from `QUIET` seconds on, show a progress bar if `verbose`."""
    bar, shown = keras.utils.Progbar(total, verbose=1), False
    begin, number = time.monotonic(), 0
    for number, batch in enumerate(batches, 1):
        yield batch
        if verbose and time.monotonic() - begin > QUIET:
            bar.update(number, finalize=False)
            shown = True
    if shown:
        bar.update(number, finalize=True)


def is_array(x):
    return hasattr(x, "shape") and (keras.ops.is_tensor(x) or hasattr(x, "__array__"))


def to_numpy(x):
    """`x` as a NumPy array of a dtype that NumPy itself knows, or bfloat16; a masked array stays one."""
    try:
        x = keras.ops.convert_to_numpy(x) if keras.ops.is_tensor(x) else np.asanyarray(x)
    except ValueError as error:
        raise ValueError(f"`data` must hold arrays of one shape and of numbers. NumPy says: {error}") from None
    if x.dtype.kind == "V" and x.dtype.name != "bfloat16":  # float8 and the like; the statistics know bfloat16
        return x.astype("float32")
    return x


def _has_no_end(data):
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches is None
    return hasattr(data, "as_numpy_iterator") and int(data.cardinality()) == -1  # tf.data.INFINITE_CARDINALITY


def _rows(array):
    return max(1, BLOCK // max(1, int(np.prod(array.shape[1:]))))


def _blocks(array):
    if len(array.shape) == 0:
        raise ValueError(f"`data` must have a batch axis. Received: data={array!r}")
    rows = _rows(array)
    for start in range(0, len(array), rows):
        yield to_numpy(array[start : start + rows])


def _holds_arrays(batch):
    if isinstance(batch, list | tuple):
        return any(_holds_arrays(each) for each in batch)
    return isinstance(batch, dict) or (is_array(batch) and len(batch.shape) > 0)


def _features(batch):
    if isinstance(batch, list | tuple) and any(_holds_arrays(each) for each in batch):
        batch = batch[0]
        if isinstance(batch, list | tuple) and any(_holds_arrays(each) for each in batch):
            raise _several_inputs(batch)
    if isinstance(batch, dict):
        return {name: to_numpy(column) for name, column in batch.items()}
    return to_numpy(batch)


def _several_inputs(features):
    return TypeError(f"`data` must hold several inputs as a dict. Received: a {type(features).__name__} of them")


def _single(spec):
    """Are the elements of a tf.data.Dataset single rows? A vector is one unless its length is unknown, as in Keras."""
    if not isinstance(spec, dict):
        return spec.shape.rank == 0 or (spec.shape.rank == 1 and spec.shape[0] is not None)
    shapes = [each.shape for each in spec.values()]
    if any(shape.rank is None for shape in shapes):
        return False
    firsts = {shape[0] if shape.rank else 0 for shape in shapes}
    if all(shape.rank == 1 for shape in shapes) and len(firsts) == 1 and None not in firsts:
        raise ValueError(
            "`data` must tell rows from batches: dicts of vectors of one length may be either. Batch single rows; for "
            f"batches of scalars leave out `drop_remainder`. Received: data with elements of shape {shapes[0]}"
        )
    # The features of a batch have as many rows each.
    return any(shape.rank == 0 for shape in shapes) or len(firsts - {None}) > 1


def _batched(dataset, steps):
    """A tf.data.Dataset of batches of features: single rows are put together, as Keras does it, and small batches."""
    if isinstance(dataset.element_spec, tuple):
        dataset = dataset.map(lambda features, *labels: features)
    spec = dataset.element_spec
    if isinstance(spec, tuple):
        raise _several_inputs(spec)
    specs = list(spec.values()) if isinstance(spec, dict) else [spec]
    if not all(isinstance(each, tensorflow().TensorSpec) for each in specs):
        raise TypeError(f"`data` must hold dense tensors, neither ragged nor sparse ones. Received: data of {spec}")
    single = _single(spec)
    if single:
        dataset = dataset.batch(ROWS)
    if steps is not None:
        dataset = dataset.take(steps)
    shapes = [each.shape for each in specs]
    if single or any(shape.rank is None or None in shape[1:] for shape in shapes):
        return dataset  # batches of several shapes cannot be joined
    rows = JOINED // max(1, sum(int(np.prod(shape[1:])) for shape in shapes))
    # It would cut longer batches, and cutting wide ones copies more than it saves.
    is_shorter = rows >= ROWS if shapes[0][0] is None else shapes[0][0] < rows
    return dataset.rebatch(rows) if is_shorter else dataset
