"""Batches for an experiment, whatever the user feeds to `fit`."""

import itertools

import keras
import numpy as np

from tf_tricks.fit_hooks import random_state

OTHERS = 64  # batches of another shape in a row, after which none of the first one's is waited for
_NO_BATCH = "`x` must have a sample at least. Received: a dataset without a batch"


class Samples:
    """A limited number of samples as arrays in host memory.

    Attributes:
        x, y, sample_weight: arrays, or structures of them as the model takes them; None where there is none.
        size: int, number of samples.
    """

    def __init__(self, x, y=None, sample_weight=None):
        self.x, self.y, self.sample_weight = (_arrays(each) for each in (x, y, sample_weight))
        self.size = _size(self.x)

    def __iter__(self):
        return iter((self.x, self.y, self.sample_weight))

    def take(self, chosen):
        """The `Samples` of a slice or of an array of indices."""
        return Samples(*(_map(lambda a: a[chosen], each) for each in self))

    def batches(self, batch_size, seed=0, shuffle=True):
        """Endless `Samples` of `batch_size` (of all, if there are fewer), in another order each time through."""
        generator = np.random.default_rng(seed)
        batch_size = min(batch_size, self.size)
        while True:
            order = generator.permutation(self.size) if shuffle else np.arange(self.size)
            for start in range(0, self.size - batch_size + 1, batch_size):
                yield self.take(order[start : start + batch_size])


def samples(x, y=None, sample_weight=None, limit=None, seed=0):
    """The first `limit` samples of a dataset, or as many of arrays at random.

    Reading leaves the random states of the process and of the dataset's own generators as they were, so training
    afterwards draws what it would have drawn. The batches of a generator are used up, and so is one order of a
    tf.data.Dataset that shuffles anew each time. If batches are padded to different lengths, those of the first one's
    shape are taken.

    Args:
        x: arrays, or tensors, in the structure that the model takes; or, with `y=None`, a tf.data.Dataset, PyDataset,
            Torch DataLoader or generator of batches, each `x`, `(x, y)` or `(x, y, sample_weight)`.
        y, sample_weight: arrays, or None.
        limit: int, or None for all of a dataset that ends.
        seed: int, of the random choice among arrays, which keeps their order.
    Raises:
        TypeError, ValueError: `x` is none of these, has no sample, or `x` and `y` have different numbers of them.
    """
    if is_dataset(x):
        if y is not None or sample_weight is not None:
            raise ValueError(f"`y` must be None for a dataset, which brings it along. Received: y={type(y).__name__}")
        with random_state.unchanged(None if hasattr(x, "__next__") else x):
            found = _first(x, limit)
    else:
        found = Samples(x, y, sample_weight)
        _check_sizes(found)
        if limit is not None and limit < found.size:
            found = found.take(np.sort(np.random.default_rng(seed).choice(found.size, limit, replace=False)))
    if not found.size:
        raise ValueError("`x` must have a sample at least. Received: none")
    return found


def check_targets(model, found):
    """Raise ValueError if `model` was compiled with a loss that needs targets, and the `Samples` have none."""
    cls = type(model)
    has_own_loss = cls.compute_loss is not keras.Model.compute_loss or cls.train_step is not keras.Model.train_step
    if found.y is None and model.loss is not None and not has_own_loss:
        raise ValueError("`y` must hold the targets, or `x` be a dataset that brings them along. Received: y=None")


def fixed_batch_size(model):
    """int, how many samples `model` takes at once if its inputs are built for one number of them; None for any."""
    try:
        inputs = keras.tree.flatten(getattr(model, "inputs", None))
    except ValueError:  # a `Sequential` that is not built
        return None
    sizes = {tensor.shape[0] for tensor in inputs if tensor is not None}
    return sizes.pop() if len(sizes) == 1 else None


def one_batch(model, found):
    """The `Samples`, or as many of them as `model` takes if that is one number: some more than once if need be."""
    size = fixed_batch_size(model)
    return found if size is None else filled(found, size)


def filled(found, size):
    """The first `size` of the `Samples`, which begin again if there are fewer."""
    return found.take(np.arange(size) % found.size)


def is_dataset(x):
    """Is `x` something that gives batches, rather than arrays in a structure?"""
    if isinstance(x, keras.utils.PyDataset) or hasattr(x, "element_spec") or hasattr(x, "batch_sampler"):
        return True
    return hasattr(x, "__next__")


def first_batch(dataset):
    """(`Samples` of its first batch, the dataset with all its batches): what can be read only once loses none."""
    once = hasattr(dataset, "__next__")
    with random_state.unchanged(None if once else dataset):
        batch = next(iter(_batches_of(dataset)), None)
    if batch is None:
        raise ValueError(_NO_BATCH)
    if once:
        dataset = itertools.chain([batch], dataset)
    return Samples(*keras.utils.unpack_x_y_sample_weight(batch)), dataset


def _first(dataset, limit):
    parts, size, others = [], 0, 0
    for batch in _batches_of(dataset):
        part = Samples(*keras.utils.unpack_x_y_sample_weight(batch))
        if parts and _shapes(part) != _shapes(parts[0]):
            others += 1
            if limit is not None and others >= OTHERS:
                break
            continue
        parts.append(part)
        size, others = size + part.size, 0
        if limit is not None and size >= limit:
            break
    if not parts:
        raise ValueError(_NO_BATCH)
    joined = [_map(lambda *a: np.concatenate(a), *each) for each in zip(*parts, strict=True)]
    return Samples(*joined).take(slice(limit))


def _shapes(part):
    """What the samples of a batch look like: arrays of one shape each, in the same structure, can be joined."""
    return [(path, np.shape(leaf)[1:]) for path, leaf in keras.tree.flatten_with_path(tuple(part))]


def _batches_of(dataset):
    if isinstance(dataset, keras.utils.PyDataset):
        numbers = itertools.count() if dataset.num_batches is None else range(dataset.num_batches)
        return (dataset[number] for number in numbers)
    return dataset


def _map(function, *structures):
    """As `keras.tree.map_structure`, leaving out None, which stands for what is not there."""
    return keras.tree.map_structure(lambda *leaves: None if leaves[0] is None else function(*leaves), *structures)


def _arrays(structure):
    return _map(_array, structure)


def _array(leaf):
    if hasattr(leaf, "iloc"):  # a table or a column of pandas
        return leaf.to_numpy()
    if isinstance(leaf, np.ndarray):
        return leaf
    return np.array(keras.ops.convert_to_numpy(leaf)) if keras.ops.is_tensor(leaf) else np.asarray(leaf)


def _size(structure):
    leaves = [leaf for leaf in keras.tree.flatten(structure) if leaf is not None]
    if not leaves or any(not np.ndim(leaf) for leaf in leaves):
        raise TypeError(
            "`x` must be arrays with a sample axis, a tf.data.Dataset, a PyDataset, a DataLoader or a generator. "
            f"Received: x={structure!r}"
        )
    return len(leaves[0])


def _check_sizes(found):
    for name, structure in (("x", found.x), ("y", found.y), ("sample_weight", found.sample_weight)):
        for leaf in keras.tree.flatten(structure):
            if leaf is not None and len(leaf) != found.size:
                raise ValueError(
                    f"`{name}` must have as many samples as `x`, {found.size}. Received: {name} with {len(leaf)}"
                )
