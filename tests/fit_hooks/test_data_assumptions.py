"""What `fit_hooks` takes for granted about the data that `fit` draws, each checked on Keras and TensorFlow alone.

An order of the data can be resumed only as long as all of this holds.
"""

import functools
import random

import keras
import numpy as np
import pytest

from tests.fit_hooks.assumptions import AtBegin, array, assumes, build, data, fit, local_of_fit
from tf_tricks._backend import BACKEND

POSITION = "fit_hooks/data_position.py: "
PIPELINE = "fit_hooks/tf_data.py: "


def fit_with(function, x=None, y=None, **options):
    """Fit with a function that is given the epoch iterator in `on_train_begin`."""
    x, y = data() if x is None else (x, y)
    options = {"verbose": 0, "shuffle": False, "batch_size": 4 if y is not None else None, **options}
    begin = AtBegin(lambda model: function(local_of_fit("epoch_iterator")))
    return build().fit(x, y, callbacks=[begin], **options)


def adapter_of(x, y=None, **options):
    found = []
    fit_with(lambda iterator: found.append(iterator.data_adapter), x, y, **options)
    return found[0]


class Batches(keras.utils.PyDataset):
    """Four batches; notes the calls of its hooks."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.calls = []

    def __len__(self):
        return 4

    def __getitem__(self, index):
        x, y = data()
        return x[index * 4 : index * 4 + 4], y[index * 4 : index * 4 + 4]

    def on_epoch_begin(self):
        self.calls.append("begin")

    def on_epoch_end(self):
        self.calls.append("end")


# --- fit_hooks/data_position.py: the iterator of `fit` --------------------------------------------------------------
@assumes("EpochIterator._enumerate_iterator")
def test_fit_takes_its_steps_from_the_instance_s_enumerate_iterator():
    seen = []

    def install(iterator):
        original = iterator._enumerate_iterator

        def steps():
            for begin, end, batches in original():
                seen.append((begin, end, hasattr(batches, "__next__")))
                yield begin, end, batches

        iterator._enumerate_iterator = steps

    fit_with(install)
    assert seen == [(step, step, True) for step in range(4)], (
        POSITION + "`fit` no longer takes `(first step, last step, iterator)` from the instance's "
        "`_enumerate_iterator`: TrainingCheckpoint sees no step, and saves none"
    )


@assumes("EpochIterator._enumerate_iterator")
def test_steps_that_are_left_out_are_not_trained_on():
    batches, updates = [], []

    class Counts(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            batches.append(batch)

        def on_train_end(self, logs=None):
            updates.append(int(self.model.optimizer.iterations))

    def install(model):
        iterator = local_of_fit("epoch_iterator")
        original = iterator._enumerate_iterator
        iterator._enumerate_iterator = lambda: (each for each in original() if each[0] >= 3)

    fit(build(), AtBegin(install), Counts())
    assert (batches, updates) == ([3], [1]), (
        POSITION + "`fit` counts or trains on a step that `_enumerate_iterator` leaves out: a resumed run is longer "
        "than one that was not interrupted"
    )


@assumes("EpochIterator._get_iterator")
def test_the_instance_s_get_iterator_makes_the_iterator_of_each_epoch():
    made = []

    def install(iterator):
        original = iterator._get_iterator

        def get_iterator():
            made.append(1)
            return original()

        iterator._get_iterator = get_iterator

    fit_with(install, epochs=3)
    assert len(made) >= 3, (
        POSITION + "`fit` no longer calls the instance's `_get_iterator` for each epoch's iterator: nobody sees how "
        "many batches were drawn, and a resumed run reads the data from its begin"
    )


@assumes(
    "EpochIterator._current_iterator",
    "EpochIterator._steps_seen",
    "EpochIterator._num_batches",
    "EpochIterator.steps_per_epoch",
)
def test_with_steps_per_epoch_one_iterator_spans_epochs():
    seen, begun = [], []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            iterator = local_of_fit("epoch_iterator")
            seen.append((iterator.steps_per_epoch, iterator._num_batches, iterator._steps_seen))
            begun.append(iterator._current_iterator)

    fit(build(), Look(), steps_per_epoch=1, epochs=3)
    assert seen == [(1, 4, 1), (1, 4, 2), (1, 4, 3)] and begun[0] is begun[2] is not None, (
        POSITION + "with `steps_per_epoch` the iterator no longer spans epochs in `_current_iterator`, with its used "
        "steps in `_steps_seen`: a resumed run begins the data anew in the middle"
    )
    got = []

    def move_on(iterator):
        batches = iter(iterator._get_iterator())
        got.append(next(batches))
        iterator._current_iterator, iterator._steps_seen = batches, 3

    steps = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: got.append(batch))
    fit(build(), AtBegin(lambda model: move_on(local_of_fit("epoch_iterator"))), steps, steps_per_epoch=1, epochs=1)
    assert len(got) == 2, POSITION + "`fit` makes an iterator of its own although `_current_iterator` is set"


@assumes("EpochIterator._num_batches")
def test_the_length_of_the_data_is_known_when_it_has_ended():
    lengths = []
    look = AtBegin(lambda model: lengths.append(local_of_fit("epoch_iterator")._num_batches))
    end = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: lengths.append(local_of_fit("epoch_iterator")._num_batches)
    )
    x, y = data()
    batches = ((x[i : i + 4], y[i : i + 4]) for i in range(0, 16, 4))
    with pytest.warns(UserWarning, match="ran out of data"):
        build().fit(batches, shuffle=False, verbose=0, callbacks=[look, end])
    # The step that finds the end of the data counts as one.
    assert lengths[0] is None and lengths[1] in (4, 5), (
        POSITION + "`_num_batches` is no longer None until the end of the data and its length after it: a run over "
        "data of unknown length is resumed at a wrong step"
    )


# --- fit_hooks/data_position.py: kinds of data ----------------------------------------------------------------------
@assumes("EpochIterator.data_adapter", "ArrayDataAdapter._shuffle")
def test_the_adapter_of_arrays_knows_how_they_are_shuffled():
    x, y = data()
    for shuffle in (True, False, "batch"):
        assert adapter_of(x, y, shuffle=shuffle)._shuffle == shuffle, (
            POSITION + "`data_adapter._shuffle` is no longer the `shuffle` of `fit`: arrays are taken for data of "
            "another kind, and their order is lost"
        )


@pytest.mark.parametrize("kind", ["py_dataset", "generator", "_dataset", "_dataloader", "_shuffle"])
@assumes(
    "PyDatasetAdapter.py_dataset",
    "GeneratorDataAdapter.generator",
    "TFDatasetAdapter._dataset",
    "TorchDataLoaderAdapter._dataloader",
)
def test_each_kind_of_data_is_told_by_one_attribute(kind):
    names = {"py_dataset", "generator", "_dataset", "_dataloader", "_shuffle"}
    given, options = GIVEN[kind](), {"shuffle": True} if kind == "_shuffle" else {}
    if kind == "generator":
        options = {"steps_per_epoch": 2}
    adapter = adapter_of(*given, **options) if isinstance(given, tuple) else adapter_of(given, **options)
    assert {name for name in names if hasattr(adapter, name)} == {kind}, (
        POSITION + f"`data_adapter.{kind}` no longer tells what the user gave to `fit`: this kind of data is taken for "
        "another one, and its order is lost"
    )
    if kind in ("py_dataset", "_dataset", "_dataloader"):
        assert getattr(adapter, kind) is given, POSITION + f"`data_adapter.{kind}` is no longer the user's object"


def loader():
    torch = pytest.importorskip("torch")
    if BACKEND != "torch":
        pytest.skip("a DataLoader feeds Torch")
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*map(torch.from_numpy, data())), batch_size=4)


def endless():
    while True:
        yield Batches()[0]


def pipeline():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(data()).batch(4)


GIVEN = {
    "py_dataset": Batches,
    "generator": endless,
    "_dataset": pipeline,
    "_dataloader": loader,
    "_shuffle": data,
}


@assumes("DataAdapter.on_epoch_begin", "DataAdapter.on_epoch_end")
def test_the_hooks_of_a_py_dataset_are_called_through_its_adapter():
    called, dataset = [], Batches()

    def note(name, original):
        called.append(name)
        original()

    def install(iterator):
        adapter = iterator.data_adapter
        dataset.calls.clear()
        for name in ("on_epoch_begin", "on_epoch_end"):
            setattr(adapter, name, functools.partial(note, name, getattr(adapter, name)))

    fit_with(install, dataset, epochs=2)
    assert (called, dataset.calls) == (["on_epoch_begin", "on_epoch_end"] * 2, ["begin", "end"] * 2), (
        POSITION + "`fit` no longer calls the hooks of a PyDataset once an epoch, through its adapter's instance: a "
        "dataset that reshuffles itself is in another order after a resume"
    )


@assumes("PyDatasetAdapter.enqueuer", "PyDatasetEnqueuer.ready_queue")
def test_workers_that_read_ahead_leave_batches_in_a_queue():
    assert adapter_of(Batches()).enqueuer is None
    seen = []

    def look(iterator):
        seen.append(iterator.data_adapter.enqueuer.ready_queue.qsize())

    dataset = Batches(workers=2)
    fit_with(look, dataset)
    assert seen[0] == (0 if BACKEND == "tensorflow" else 3), (
        POSITION + "what workers read before the first epoch is no longer in `enqueuer.ready_queue` (one of four "
        "batches builds the model): the first epoch of a run begins with batches of another order"
    )
    drained = []

    def drain(iterator):
        queue = iterator.data_adapter.enqueuer.ready_queue
        while not queue.empty():
            drained.append(queue.get())

    batches = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: seen.append(batch))
    model = build()
    model.fit(Batches(workers=2), verbose=0, shuffle=False,
              callbacks=[AtBegin(lambda model: drain(local_of_fit("epoch_iterator"))), batches])  # fmt: skip
    assert seen[1:] == [0, 1, 2, 3], POSITION + "an epoch is cut short when `enqueuer.ready_queue` was emptied before"


# --- what the order of arrays is a function of ----------------------------------------------------------------------
def orders(iterators, **options):
    """The rows in the order in which `fit` would draw them, for each of the iterators that are made one by one."""
    found = []

    def look(iterator):
        for _ in range(iterators):
            batches = iterator._get_iterator()
            found.append([int(row[0]) for batch in batches for row in array(batch[0])])

    x = np.arange(16, dtype="float32")[:, None] * np.ones((1, 3), "float32")
    fit_with(look, x, np.zeros((16, 1), "float32"), **{"shuffle": True, **options})
    return found


@pytest.mark.skipif(BACKEND == "tensorflow", reason="TensorFlow shuffles with an operation of its own")
@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_the_order_of_arrays_is_a_function_of_the_random_state_when_the_iterator_is_made(shuffle):
    found = []

    def look(iterator):
        for seed in (1, 2, 1):
            np.random.seed(seed)
            if BACKEND == "torch":
                keras.utils.set_random_seed(seed)
            found.append([int(row[0]) for batch in iterator._get_iterator() for row in array(batch[0])])

    x = np.arange(16, dtype="float32")[:, None] * np.ones((1, 3), "float32")
    fit_with(look, x, np.zeros((16, 1), "float32"), shuffle=shuffle)
    assert found[0] == found[2] != found[1], (
        POSITION + "the order of shuffled arrays no longer follows from NumPy's (Torch's) random state at the moment "
        "the iterator is made: a resumed run sees the rest of the epoch in another order"
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a tf.data pipeline feeds TensorFlow's backend alone")
@assumes("EpochIterator._distributed_dataset", "EpochIterator._distribute_strategy", "DataAdapter.get_tf_dataset")
@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_keras_looks_tf_random_shuffle_up_while_it_builds_the_pipeline(shuffle, monkeypatch):
    import tensorflow as tf

    calls = []

    def reverse(indices):
        calls.append(1)
        return indices[::-1]

    found = []

    def install(iterator):
        calls.clear()
        monkeypatch.setattr(tf.random, "shuffle", reverse)
        dataset = iterator.data_adapter.get_tf_dataset()
        monkeypatch.undo()
        assert calls, PIPELINE + "Keras no longer calls `tf.random.shuffle` while it builds the pipeline of arrays"
        iterator._distributed_dataset = iterator._distribute_strategy.experimental_distribute_dataset(dataset)
        found.append([int(row[0]) for batch in iterator._get_iterator() for row in array(batch[0])])

    x = np.arange(16, dtype="float32")[:, None] * np.ones((1, 3), "float32")
    fit_with(install, x, np.zeros((16, 1), "float32"), shuffle=shuffle)
    whole = list(range(15, -1, -1))
    batchwise = [row for start in range(0, 16, 4) for row in range(start + 3, start - 1, -1)]
    assert found[0] == (batchwise if shuffle == "batch" else whole), (
        PIPELINE + "a pipeline that is set as `_distributed_dataset` is no longer the one that `fit` reads: without a "
        "global seed a resumed run sees arrays in another order"
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a tf.data pipeline feeds TensorFlow's backend alone")
def test_with_a_global_seed_each_iterator_over_arrays_begins_with_the_same_order():
    first, second = orders(2)
    assert first == second != sorted(first), (
        PIPELINE + "a new iterator no longer restarts the seeded `tf.random.shuffle` in Keras's pipeline: with a "
        "global seed, the order of arrays after a resume is another one"
    )


# --- fit_hooks/tf_data.py: pipelines --------------------------------------------------------------------------------
tensorflow_is_there = pytest.mark.skipif(BACKEND != "tensorflow", reason="pipelines are checked with their own backend")


def numbers(dataset):
    return [float(value) for value in dataset]


@tensorflow_is_there
def test_each_iterator_restarts_the_random_operations_of_a_map():
    import tensorflow as tf

    tf.random.set_seed(3)
    dataset = tf.data.Dataset.range(6).map(lambda i: tf.random.uniform(()) + 0.0 * tf.cast(i, "float32"))
    first, second = numbers(dataset), numbers(dataset)
    assert first == second and len(set(first)) == 6, (
        PIPELINE + "a new tf.data iterator no longer restarts the kernels of random operations in `map`: random "
        "augmentation differs after a resume"
    )


@tensorflow_is_there
def test_each_iterator_moves_a_reshuffling_shuffle_on_by_one():
    import tensorflow as tf

    def make():
        tf.random.set_seed(3)
        return tf.data.Dataset.range(12).shuffle(12, seed=4)

    sentence = (
        PIPELINE + "the order of a reshuffling `shuffle` is no longer a function of its seed and of how many iterators "
        "were made: a resumed run sees other orders of the data in all epochs to come"
    )
    dataset = make()
    epochs = [numbers(dataset) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2], sentence
    dataset = make()
    for _ in range(2):
        iter(dataset)  # nothing is drawn from these
    assert numbers(dataset) == epochs[2], sentence


@tensorflow_is_there
@assumes("tf.data.Dataset._seed", "tf.data.Dataset._seed2")
def test_a_shuffle_knows_its_seeds():
    import tensorflow as tf

    def seeds(dataset):
        return int(dataset._seed), int(dataset._seed2)

    sentence = (
        PIPELINE + "`_seed` and `_seed2` are no longer the seeds of a `shuffle`, 0 and 0 where there is none: no "
        "warning is given where the order cannot be repeated, or one where it can"
    )
    tf.random.set_seed(3)
    assert seeds(tf.data.Dataset.range(3).shuffle(3)) != (0, 0), sentence
    assert seeds(tf.data.Dataset.range(3).shuffle(3, seed=4))[1] == 4, sentence
    tf.random.set_seed(None)
    assert seeds(tf.data.Dataset.range(3).shuffle(3)) == (0, 0), sentence
    unseeded = tf.data.Dataset.range(20).shuffle(20)
    assert numbers(unseeded) != numbers(tf.data.Dataset.range(20).shuffle(20)), sentence


@tensorflow_is_there
@assumes("tf.data.Dataset._inputs", "tf.data.Dataset._functions")
def test_a_pipeline_shows_what_it_reads_from_and_its_functions():
    import tensorflow as tf

    variable = tf.Variable(1.0)
    source = tf.data.Dataset.range(3)
    mapped = source.map(lambda i: tf.random.uniform((), seed=9) * variable)
    sentence = (
        PIPELINE + "`_inputs()` and `_functions()` no longer lead to the graphs of a pipeline: random operations and "
        "seed generators in a `map` are overlooked, and no warning is given where they cannot be repeated"
    )
    assert mapped.batch(2)._inputs()[0] is mapped and mapped._inputs() == [source], sentence
    function = mapped._functions()[0].function
    types = {each.type: each.node_def.attr for each in function.graph.get_operations()}
    assert types["RandomUniform"]["seed2"].i == 9, sentence
    assert any(tensor is variable.handle for tensor in function.captured_inputs), sentence


@tensorflow_is_there
def test_a_keras_layer_in_a_map_draws_from_a_variable_that_the_function_captures():
    import tensorflow as tf

    layer = keras.layers.RandomBrightness(0.2, value_range=(0, 1), seed=6)
    dataset = tf.data.Dataset.from_tensors(np.ones((2, 2, 3), "float32")).map(lambda x: layer(x, training=True))
    captured = dataset._functions()[0].function.captured_inputs
    handle = layer.generator.state.value.handle if hasattr(layer, "generator") else None
    handles = [variable.value.handle for variable in layer.variables] + ([handle] if handle is not None else [])
    assert any(tensor is each for tensor in captured for each in handles), (
        "fit_hooks/random_state.py: the SeedGenerator of a layer in `map` is no longer a variable that the function "
        "captures: its random state is not saved, and augmentation differs after a resume"
    )


@assumes("DistributedDataset._original_dataset")
def test_a_distributed_dataset_knows_its_pipeline(mirrored_strategy):
    import tensorflow as tf

    dataset = tf.data.Dataset.range(8).batch(4)
    distributed = mirrored_strategy.experimental_distribute_dataset(dataset)
    assert isinstance(distributed._original_dataset, tf.data.Dataset), (
        PIPELINE + "`_original_dataset` of a distributed dataset is no longer its pipeline: under MirroredStrategy no "
        "random operation is found, and `fit` with TrainingCheckpoint raises"
    )


def test_shuffling_of_a_py_dataset_uses_python_s_random_state():
    given = []

    class Order(Batches):
        def __getitem__(self, index):
            given.append(index)
            return super().__getitem__(index)

    found = []

    def look(iterator):
        for seed in (1, 2, 1):
            random.seed(seed)
            given.clear()
            list(iterator._get_iterator())
            found.append(list(given))

    fit_with(look, Order(), shuffle=True)
    assert found[0] == found[2] != found[1], (
        POSITION + "`fit` shuffles the batches of a PyDataset no longer with Python's random state: a resumed run sees "
        "the rest of the epoch in another order"
    )
