"""What kind of data the user gave to `fit`, what it draws from, and whether it can be repeated at all."""

import keras

from tf_tricks.fit_hooks import random_state, tf_data

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "ArrayDataAdapter._shuffle": "the `shuffle` of `fit`, for arrays",
    "TFDatasetAdapter._dataset": "the user's tf.data pipeline",
    "PyDatasetAdapter.py_dataset": "the user's PyDataset",
    "GeneratorDataAdapter.generator": "tells that the data is a generator",
    "TorchDataLoaderAdapter._dataloader": "the user's torch DataLoader",
}


GENERATOR = (
    "the data is a generator: as many batches are drawn and dropped, which is exact only if a new process makes it "
    "yield the same batches again. Use a tf.data pipeline, a keras.utils.PyDataset or arrays"
)


def kind_of(adapter):
    """What the user gave to `fit`: "arrays", "tf.data", "PyDataset", "generator", "DataLoader" or "other"."""
    if hasattr(adapter, "py_dataset"):
        return "PyDataset"
    if hasattr(adapter, "_dataloader"):
        return "DataLoader"
    if hasattr(adapter, "generator"):
        return "generator"
    dataset = getattr(adapter, "_dataset", None)
    if hasattr(dataset, "_inputs") or hasattr(dataset, "_original_dataset"):
        return "tf.data"  # not one that a function makes on each worker, which shows nothing of itself
    return "arrays" if hasattr(adapter, "_shuffle") else "other"


def has_an_order(x):
    """Is `x`, as the user gave it, data that may be read in another order each time, and can be read again?"""
    return isinstance(x, keras.utils.PyDataset) or hasattr(x, "element_spec") or hasattr(x, "batch_sampler")


def data_seeds(adapter, model):
    """The seed generators that the data draws from; arrays have none."""
    kind = kind_of(adapter)
    if kind == "DataLoader":
        return random_state.LoaderSeeds(adapter._dataloader)
    if kind == "PyDataset":
        return random_state.DataSeeds(model, owner=adapter.py_dataset)
    handles = {"arrays": lambda: [], "tf.data": lambda: tf_data.captured(adapter._dataset)}.get(kind, lambda: None)()
    return random_state.DataSeeds(model, handles)


def offers_state(dataset):
    return dataset is not None and hasattr(dataset, "get_state") and hasattr(dataset, "set_state")


def random_operations(adapter):
    """List of `(name, seed, seed2)`: what a tf.data pipeline draws; empty for other kinds of data."""
    return tf_data.random_operations(adapter._dataset) if kind_of(adapter) == "tf.data" else []


def shuffles(adapter):
    """The ids of the `shuffle`s in a tf.data pipeline: those of one are those of all pipelines that it is part of."""
    return tf_data.shuffles(adapter._dataset) if kind_of(adapter) == "tf.data" else set()


def remedy(adapter):
    """Why the order of this data cannot be brought back and what to do about it; None if it can."""
    if kind_of(adapter) == "generator":
        return GENERATOR
    unseeded = [name for name, *seeds in random_operations(adapter) if not any(seeds)]
    if tf_data.PYTHON in unseeded:
        return (
            "the tf.data pipeline calls Python code (`py_function`, `numpy_function`, `from_generator`): it is exact "
            "only if that code remembers nothing. Use TensorFlow's own operations, or a keras.utils.PyDataset"
        )
    if unseeded:
        return (
            f"the tf.data pipeline draws without a seed ({', '.join(dict.fromkeys(unseeded))}): no other process can "
            "repeat it. Call `keras.utils.set_random_seed(...)` before you build it, or give `seed=`"
        )
    return None
