"""Which random operations a `tf.data` pipeline has, and an order of Keras's own that can be taken up again.

TensorFlow may be there without being Keras's backend: a pipeline can feed JAX and Torch, too.
"""

import contextlib
import os
import sys

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "tf.data.Dataset._inputs": "the datasets that a dataset reads from",
    "tf.data.Dataset._functions": "the functions that it maps, with the random operations in them",
    "tf.data.Dataset._seed": "the first seed of a `shuffle`; both are 0 if the operating system is to draw them",
    "tf.data.Dataset._seed2": "the second one",
    "DistributedDataset._original_dataset": "the pipeline that a distribution strategy distributes",
    "EpochIterator._distributed_dataset": "the pipeline that `fit` feeds: one with our order takes its place",
    "EpochIterator._distribute_strategy": "what distributes it",
    "DataAdapter.get_tf_dataset": "builds it anew, with our `tf.random.shuffle` in it",
}


PYTHON = "Python code"  # may draw from whatever it likes
_PYTHON_OPERATIONS = {"PyFunc", "EagerPyFunc"}


def random_operations(dataset):
    """List of `(name, seed, seed2)` of every random operation in a pipeline; seeds 0 and 0 are drawn anew each time."""
    found = []
    for each in _parts(dataset):
        if hasattr(each, "_seed2"):
            name = "shuffle" if "Shuffle" in type(each).__name__ else type(each).__name__.strip("_")
            found.append((name, int(each._seed), int(each._seed2)))
        for function in each._functions():
            found += _in_graph(function.function.graph)
    return found


def shuffles(dataset):
    """Ids of the datasets in a pipeline that shuffle."""
    return {id(each) for each in _parts(dataset) if hasattr(each, "_seed2") and "Shuffle" in type(each).__name__}


def captured(dataset):
    """The tensors from outside that the functions of a pipeline use, handles of variables among them."""
    functions = [function.function for each in _parts(dataset) for function in each._functions()]
    return [tensor for function in functions for tensor in function.captured_inputs]


def _parts(dataset):
    """A dataset and all that it reads from."""
    waiting, seen = [getattr(dataset, "_original_dataset", None) or dataset], {}
    while waiting:
        each = waiting.pop()
        if id(each) not in seen:
            seen[id(each)] = each
            waiting += each._inputs()
    return list(seen.values())


def _in_graph(graph):
    # The definition has the functions inside of functions too: branches of `tf.cond`, a `map` in an `interleave`.
    definition = graph.as_graph_def()
    found = []
    for nodes in (definition.node, *(function.node_def for function in definition.library.function)):
        by_name = {node.name: node for node in nodes}
        for node in nodes:
            if node.op.startswith("ShuffleDataset"):  # a pipeline inside of `flat_map` or `interleave`
                seeds = [_constant(by_name.get(each.partition(":")[0])) for each in node.input[2:4]]
                if None not in seeds:
                    found.append(("shuffle", *seeds))
            elif node.op in _PYTHON_OPERATIONS:
                found.append((PYTHON, 0, 0))
            elif "seed2" in node.attr:
                found.append((node.op, node.attr["seed"].i, node.attr["seed2"].i))
    return found


def _constant(node):
    """The int in a node of a graph, None if it is no constant."""
    if node is None or node.op != "Const":
        return None
    return int(sys.modules["tensorflow"].make_ndarray(node.attr["value"].tensor))


class ArrayOrder:
    """The order in which Keras on TensorFlow feeds shuffled arrays, made one that can be repeated.

    With a global seed it is a function of that seed already. Without one the operating system draws it: then it is
    replaced by an order keyed by a number that is drawn once and the number of the pass over the data.

    Args:
        epoch_iterator: Keras's iterator over arrays with `shuffle=True` or `"batch"`.
        saved: what `get_state` returned in the run that is resumed, or None.
    """

    def __init__(self, epoch_iterator, saved=None):
        import tensorflow as tf

        present = _seeds_of_shuffle(epoch_iterator._distributed_dataset)
        if saved is None:
            saved = {"seeds": present, "key": int.from_bytes(os.urandom(7), "little")}
        self._state = {"seeds": tuple(saved["seeds"]), "key": saved["key"]}
        self._pass = None
        if any(self._state["seeds"]):
            if self._state["seeds"] == present:
                return
            seed, seed2 = self._state["seeds"]
            shuffle = lambda indices: tf.raw_ops.RandomShuffle(value=indices, seed=seed, seed2=seed2)  # noqa: E731
        else:
            with tf.init_scope():
                self._pass = tf.Variable(0, dtype="int64", trainable=False)
            shuffle = self._shuffle
        with _instead_of_shuffle(tf, shuffle):
            dataset = epoch_iterator.data_adapter.get_tf_dataset()
        if dataset is not epoch_iterator._distributed_dataset:
            dataset = epoch_iterator._distribute_strategy.experimental_distribute_dataset(dataset)
        epoch_iterator._distributed_dataset = dataset

    def _shuffle(self, indices):
        import tensorflow as tf

        # `shuffle="batch"` shuffles each batch by itself: its first index tells the batches apart.
        seed = tf.stack([self._state["key"] + indices[0], self._pass])
        return tf.random.experimental.stateless_shuffle(indices, seed)

    def begin_pass(self, number):
        """A new iterator is about to be made, the `number`th."""
        if self._pass is not None:
            self._pass.assign(number)

    def get_state(self):
        """A dict of plain values."""
        return dict(self._state)


def _seeds_of_shuffle(dataset):
    return next((seeds for name, *seeds in map(list, random_operations(dataset)) if name == "RandomShuffle"), [0, 0])


@contextlib.contextmanager
def _instead_of_shuffle(tf, shuffle):
    # Keras looks `tf.random.shuffle` up while it builds the pipeline, and nowhere else meanwhile.
    original, tf.random.shuffle = tf.random.shuffle, shuffle
    try:
        yield
    finally:
        tf.random.shuffle = original
