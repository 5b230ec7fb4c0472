"""Samples out of whatever `fit` takes: as many as asked for, each with its own target."""

import itertools
import random

import keras
import numpy as np
import pytest

from tf_tricks._backend import BACKEND
from tf_tricks.debug._data import Samples, filled, first_batch, fixed_batch_size, one_batch, samples

X = np.arange(20, dtype="float32").reshape(10, 2)
Y = X[:, 0] * 10


class Sequence(keras.utils.PyDataset):
    num_batches = 4

    def __getitem__(self, index):
        chosen = slice(3 * index, 3 * index + 3)
        return X[chosen], Y[chosen]


def generator():
    for start in range(0, 10, 3):
        yield X[start : start + 3], Y[start : start + 3]


def tensorflow_dataset():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(3)


def loader():
    torch = pytest.importorskip("torch")
    return torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=3
    )


DATASETS = {"PyDataset": Sequence, "generator": generator}
DATASETS |= {"tf.data": tensorflow_dataset} if BACKEND == "tensorflow" else {}
DATASETS |= {"DataLoader": loader} if BACKEND == "torch" else {}


@pytest.mark.parametrize("kind", DATASETS)
@pytest.mark.parametrize("limit", [4, 6, None])
def test_the_first_samples_of_a_dataset(kind, limit):
    found = samples(DATASETS[kind](), limit=limit)
    np.testing.assert_array_equal(found.x, X[:limit])
    np.testing.assert_array_equal(found.y, Y[:limit])
    assert (found.size, found.sample_weight) == (limit or 10, None)


def test_samples_of_arrays_are_chosen_at_random_and_keep_their_partners():
    found = samples({"a": X, "b": (X + 1, X + 2)}, Y, np.arange(10), limit=4)
    assert found.size == 4 and found.x["a"].shape == (4, 2)
    np.testing.assert_array_equal(found.x["a"][:, 0] * 10, found.y)
    np.testing.assert_array_equal(found.x["b"][1], found.x["a"] + 2)
    np.testing.assert_array_equal(found.sample_weight * 20, found.y)
    assert (np.diff(found.y) > 0).all()
    others = samples(X, Y, limit=4, seed=1)
    assert others.y.tolist() != found.y.tolist()
    np.testing.assert_array_equal(samples(X, Y, limit=50).x, X)


def test_tensors_become_arrays():
    found = samples(keras.ops.convert_to_tensor(X), keras.ops.convert_to_tensor(Y))
    assert type(found.x) is np.ndarray and type(found.y) is np.ndarray


def test_batches_go_through_all_samples_in_another_order_each_time():
    drawn = samples(X, Y).batches(5)
    first, second = ([next(drawn) for _ in range(2)] for _ in range(2))
    for through in (first, second):
        assert sorted(np.concatenate([batch.y for batch in through])) == sorted(Y)
    assert first[0].y.tolist() != second[0].y.tolist()
    assert next(samples(X, Y).batches(64)).size == 10


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((3,), TypeError, "`x` must be arrays with a sample axis"),
        ((X, Y[:7]), ValueError, "`y` must have as many samples as `x`, 10. Received: y with 7"),
        ((X, Y, Y[:2]), ValueError, "`sample_weight` must have as many samples"),
        ((X[:0],), ValueError, "`x` must have a sample at least"),
        ((iter([]),), ValueError, "a dataset without a batch"),
        ((generator(), Y), ValueError, "`y` must be None for a dataset"),
    ],
)
def test_what_cannot_be_samples_is_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        samples(*arguments)


def test_a_slice_of_samples():
    assert Samples(X, Y).take(slice(2)).y.tolist() == [0.0, 20.0]


def test_a_model_that_takes_batches_of_one_size():
    fixed = keras.Sequential([keras.Input(batch_shape=(4, 2)), keras.layers.Dense(1)])
    free = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    assert [fixed_batch_size(each) for each in (fixed, free, unbuilt, keras.Model())] == [4, None, None, None]
    found = samples(X, Y)
    assert one_batch(fixed, found).y.tolist() == Y[:4].tolist() and one_batch(free, found) is found
    assert filled(found.take(slice(3)), 4).y.tolist() == [*Y[:3], Y[0]]


class Drawing(Sequence):
    """Draws from everything there is, and from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(5)

    def __getitem__(self, index):
        noise = np.random.rand() + random.random() + self.rng.random() + float(keras.random.uniform(()))
        return X[:3] + noise, Y[:3]


def drawn(dataset):
    uniform = float(keras.ops.convert_to_numpy(keras.random.uniform(())))
    return random.random(), np.random.rand(), np.random.randn(), uniform, [float(b[0].sum()) for b in dataset]


def shuffling_loader():
    import torch

    tensors = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(np.arange(10)))
    return torch.utils.data.DataLoader(tensors, batch_size=3, shuffle=True)


def drawing():
    dataset = Drawing()
    return dataset, lambda: (dataset[i] for i in range(4))


def shuffling():
    dataset = shuffling_loader()
    return dataset, lambda: [(x.numpy(), y) for x, y in dataset]


@pytest.mark.parametrize("kind", [drawing, *([shuffling] if BACKEND == "torch" else [])])
@pytest.mark.parametrize("read", [samples, first_batch])
def test_reading_leaves_what_is_drawn_afterwards_as_it_was(kind, read):
    expected, got = [], []
    for found, look in ((expected, False), (got, True)):
        keras.utils.set_random_seed(3)
        dataset, batches = kind()
        if look:
            read(dataset)
        found += drawn(batches())
    assert got == expected


def test_batches_padded_to_different_lengths():
    def padded(lengths):
        for length in lengths:
            yield np.ones((2, length)), np.full(2, length)

    assert samples(padded([5, 7, 5, 9])).y.tolist() == [5, 5, 5, 5]
    assert samples(padded([5, 7, 5, 9]), limit=3).y.tolist() == [5, 5, 5]
    assert samples(padded(itertools.count(4)), limit=10).y.tolist() == [4, 4]  # does not wait for ever
    assert samples(padded([5, 5])).x.shape == (4, 5)


@pytest.mark.parametrize("read", [samples, first_batch])
def test_a_dataset_without_a_batch_is_refused(read):
    with pytest.raises(ValueError, match="a dataset without a batch"):
        read(iter([]))
