"""Small runs on every kind of data that `fit` takes, to be interrupted and resumed."""

import keras
import numpy as np
from keras import layers

from tf_tricks._backend import BACKEND

SAMPLES, BATCH, EPOCHS = 24, 4, 3
STEPS = 6


class Killed(Exception):
    """Stands for the end of a process."""


class Kill(keras.callbacks.Callback):
    """Raises at the begin or end of the n-th batch that this process sees."""

    def __init__(self, at, when="end"):
        super().__init__()
        self.at, self.when, self.seen = at, when, 0

    def on_train_batch_begin(self, batch, logs=None):
        self._look("begin")

    def on_train_batch_end(self, batch, logs=None):
        self._look("end")

    def _look(self, when):
        if when == self.when:
            self.seen += 1
            if self.seen == self.at:
                raise Killed


def arrays():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(SAMPLES, 5)).astype("float32")
    return x, (x[:, :1] * 2 - x[:, 1:2] + rng.normal(size=(SAMPLES, 1)) / 9).astype("float32")


def model(optimizer=None, jit_compile=None, **compile_arguments):
    built = keras.Sequential(
        [
            keras.Input((5,)),
            layers.GaussianNoise(0.1),
            layers.Dense(8, activation="relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(1),
        ]
    )
    jit = BACKEND == "jax" if jit_compile is None else jit_compile
    built.compile(
        optimizer or keras.optimizers.Adam(0.01), "mse", metrics=["mae"], jit_compile=jit, **compile_arguments
    )
    return built


def small_model():
    """Where the data is in question: TensorFlow needs a fraction of the time to trace it. It draws numbers, too."""
    built = keras.Sequential([keras.Input((5,)), layers.Dropout(0.3), layers.Dense(1)])
    built.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"], jit_compile=BACKEND == "jax")
    return built


class Dataset(keras.utils.PyDataset):
    """Reshuffles after each epoch, in place, and augments each batch; with NumPy's generator or one of its own."""

    def __init__(self, own=False, shuffles=True, augments=True, **arguments):
        super().__init__(**arguments)
        self.x, self.y = arrays()
        self.order = np.arange(SAMPLES)
        self.random = np.random.default_rng(3) if own else np.random
        self.shuffles, self.augments = shuffles, augments

    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        chosen = self.order[index * BATCH : (index + 1) * BATCH]
        x = self.x[chosen]
        if self.augments:
            x = x + self.random.normal(size=x.shape).astype("float32") / 10
        return x, self.y[chosen]

    def on_epoch_end(self):
        if self.shuffles:
            self.random.shuffle(self.order)


class Remembering(Dataset):
    """Has no seed at all, and says itself what it remembers."""

    def __init__(self):
        super().__init__(own=True, augments=False)
        self.random = np.random.default_rng()

    def get_state(self):
        return {"order": self.order.copy(), "random": self.random.bit_generator.state}

    def set_state(self, state):
        self.order = np.array(state["order"])
        self.random.bit_generator.state = state["random"]


def generator():
    x, y = arrays()
    rng = np.random.default_rng(8)
    while True:
        chosen = rng.permutation(SAMPLES)[:BATCH]
        yield x[chosen], y[chosen]


def tf_data(shuffle="before", augment=None, repeat=False, known=True):
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(arrays())
    if shuffle == "before":
        dataset = dataset.shuffle(SAMPLES, seed=4)
    if augment == "tf":
        dataset = dataset.map(lambda x, y: (x + tf.random.normal(tf.shape(x), stddev=0.1), y))
    if augment == "keras":
        noise = layers.RandomBrightness(0.2, value_range=(-3, 3), seed=6)
        dataset = dataset.map(lambda x, y: (tf.reshape(noise(tf.reshape(x, (5, 1, 1)), training=True), (5,)), y))
    dataset = dataset.batch(BATCH)
    if shuffle == "after":
        dataset = dataset.shuffle(STEPS, seed=4)
    if not known:
        dataset = dataset.filter(lambda x, y: True)
    if repeat:
        dataset = dataset.repeat()
    return {"x": dataset.prefetch(2), "shuffle": False}


def _weighted():
    x, _ = arrays()
    y = (x[:, 0] > 0).astype("float32")[:, None]
    return {"x": x, "y": y, "batch_size": BATCH, "class_weight": {0: 1.0, 1: 3.0}}


def _short_last_batch():
    x, y = arrays()
    return {"x": x[:-2], "y": y[:-2], "batch_size": BATCH}


def _arrays(**arguments):
    x, y = arrays()
    return {"x": x, "y": y, "batch_size": BATCH, **arguments}


def _tensors():
    x, y = arrays()
    return {"x": keras.ops.convert_to_tensor(x), "y": keras.ops.convert_to_tensor(y), "batch_size": BATCH}


def _loader(**arguments):
    import torch

    data = torch.utils.data.TensorDataset(*map(torch.from_numpy, arrays()))
    return {"x": torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, **arguments), "shuffle": False}


CASES = {
    "arrays": _arrays,
    "arrays, short last batch": _short_last_batch,
    "arrays, shuffle=batch": lambda: _arrays(shuffle="batch"),
    "arrays, shuffle=False": lambda: _arrays(shuffle=False),
    "arrays, steps_per_epoch": lambda: _arrays(steps_per_epoch=4),
    "arrays, sample_weight": lambda: _arrays(sample_weight=np.linspace(0.1, 2, SAMPLES)),
    "arrays, validation_split": lambda: _arrays(validation_split=0.3),
    "arrays, class_weight": _weighted,
    "tensors": _tensors,
    "PyDataset": lambda: {"x": Dataset()},
    "PyDataset, own generator": lambda: {"x": Dataset(own=True)},
    "PyDataset, shuffle": lambda: {"x": Dataset(shuffles=False, augments=False), "shuffle": True},
    "PyDataset, workers": lambda: {"x": Dataset(augments=False, workers=2)},
    "PyDataset, get_state": lambda: {"x": Remembering()},
    "PyDataset, steps_per_epoch": lambda: {"x": Dataset(shuffles=False, augments=False), "steps_per_epoch": 4},
    "tf.data, shuffle before batch": tf_data,
    "tf.data, shuffle after batch": lambda: tf_data("after"),
    "tf.data, random map": lambda: tf_data(augment="tf"),
    "tf.data, Keras layer in map": lambda: tf_data(augment="keras"),
    "tf.data, repeat": lambda: {**tf_data(repeat=True, augment="tf"), "steps_per_epoch": 5},
    "tf.data, unknown length": lambda: tf_data(known=False),
    "generator": lambda: {"x": generator(), "steps_per_epoch": STEPS, "shuffle": False},
}
if BACKEND == "torch":
    CASES["DataLoader"] = _loader
    CASES["DataLoader, own generator"] = lambda: _loader(generator=__import__("torch").Generator().manual_seed(2))


def evidence(fitted, *callbacks):
    """Every number that a run ends with: name -> array."""
    groups = {
        "variables": fitted.variables,
        "optimizer": fitted.optimizer.variables,
        "metrics": fitted.metrics_variables,
    }
    found = {
        f"{group}/{i}/{variable.name}": np.array(keras.ops.convert_to_numpy(variable))
        for group, variables in groups.items()
        for i, variable in enumerate(variables)
    }
    strategy = getattr(fitted, "distribute_strategy", None)
    if strategy is not None and strategy.num_replicas_in_sync > 1:
        for name, variable in [(f"{i}/{v.name}", v.value) for i, v in enumerate(fitted.variables)]:
            parts = strategy.experimental_local_results(variable)
            found.update({f"replica {k}/{name}": part.numpy() for k, part in enumerate(parts)})
    history = fitted.history
    found["epochs"] = np.array(history.epoch)
    found.update({f"history/{key}": np.array(values) for key, values in history.history.items()})
    for i, callback in enumerate(callbacks):
        for name in ("wait", "best", "best_epoch", "stopped_epoch", "cooldown_counter"):
            if getattr(callback, name, None) is not None:
                found[f"callback {i}/{name}"] = np.array(getattr(callback, name))
    return found


def assert_same(got, wanted):
    """Bit for bit."""
    assert list(got) == list(wanted)
    different = [name for name in got if got[name].tobytes() != wanted[name].tobytes()]
    assert not different, f"{len(different)} of {len(got)} differ: {different[:6]}"
