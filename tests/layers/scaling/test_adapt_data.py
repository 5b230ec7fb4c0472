"""Every kind of data that `adapt` takes gives the statistics of its rows."""

import keras
import numpy as np
import pytest

from tf_tricks.layers import Standardize
from tf_tricks.layers.scaling import _adapt_data

X = np.random.default_rng(0).normal(3, 2, (90, 4)).astype("float32")
Y = np.zeros(90, "float32")
BATCHES = [X[i : i + 20] for i in range(0, 90, 20)]


class Rows(keras.utils.PyDataset):
    """Batches of 20, with or without labels."""

    def __init__(self, form):
        super().__init__()
        self.form = form

    def __len__(self):
        return len(BATCHES)

    def __getitem__(self, index):
        x = BATCHES[index]
        return {"x": x, "x_and_y": (x, Y[: len(x)]), "x_y_and_weights": (x, Y[: len(x)], Y[: len(x)])}[self.form]


class Frame:
    """What a data frame shows of itself."""

    def __init__(self, values):
        self.values, self.shape = values, values.shape

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)

    def __getitem__(self, rows):
        return Frame(self.values[rows])

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter("abcd")


def torch_loader(*arrays):
    torch = pytest.importorskip("torch")
    tensors = [torch.from_numpy(each) for each in arrays]
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), batch_size=20)


def tf_dataset(*arrays, batch=20):
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0])
    return dataset.batch(batch) if batch else dataset


KINDS = {
    "array": lambda: X,
    "float64": lambda: X.astype("float64"),
    "not contiguous": lambda: np.asfortranarray(X)[::-1],
    "tensor": lambda: keras.ops.convert_to_tensor(X),
    "list of rows": lambda: X.tolist(),
    "list of batches": lambda: BATCHES,
    "list of tensors": lambda: [keras.ops.convert_to_tensor(each) for each in BATCHES],
    "list of pairs": lambda: [(each, Y[: len(each)]) for each in BATCHES],
    "generator": lambda: (each for each in BATCHES),
    "generator of lists": lambda: (each.tolist() for each in BATCHES),
    "generator of pairs": lambda: ((each, Y[: len(each)]) for each in BATCHES),
    "PyDataset": lambda: Rows("x"),
    "PyDataset of pairs": lambda: Rows("x_and_y"),
    "PyDataset of triples": lambda: Rows("x_y_and_weights"),
    "DataLoader": lambda: torch_loader(X),
    "DataLoader of pairs": lambda: torch_loader(X, Y),
    "tf.data": lambda: tf_dataset(X),
    "tf.data of pairs": lambda: tf_dataset(X, Y),
    "tf.data of triples": lambda: tf_dataset(X, Y, Y),
    "tf.data of single rows": lambda: tf_dataset(X, batch=None),
    "tf.data of single pairs": lambda: tf_dataset(X, Y, batch=None),
    "data frame": lambda: Frame(X),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data(kind, capsys):
    layer = Standardize()
    layer.adapt(KINDS[kind]())
    np.testing.assert_allclose(layer.mean[0], X.mean(axis=0, dtype="float64"), rtol=1e-6)
    np.testing.assert_allclose(layer.variance[0], X.var(axis=0, dtype="float64"), rtol=1e-6)
    assert (layer.statistics.moments.count == 90).all()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["dict", "generator", "tf.data", "tf.data of single rows", "tf.data of pairs"])
def test_every_kind_of_dict(kind):
    features = {"a": X[:, 0], "b": X[:, 1:]}
    pieces = [{"a": each[:, 0], "b": each[:, 1:]} for each in BATCHES]
    if kind == "tf.data of single rows":
        features = {"a": X[:, 0], "b": X[:, 1]}
    data = {
        "dict": lambda: {"a": X[:, 0].tolist(), "b": X[:, 1:]},
        "generator": lambda: ((each, Y[:1]) for each in pieces),
        "tf.data": lambda: tf_dataset(features),
        "tf.data of single rows": lambda: tf_dataset(features, batch=None),
        "tf.data of pairs": lambda: tf_dataset(features, Y),
    }[kind]()
    layer = Standardize()
    layer.adapt(data)
    assert set(layer.statistics) == {"a", "b"}
    for name, values in features.items():
        moments = layer.statistics[name].moments
        np.testing.assert_allclose(moments.mean, np.atleast_1d(values.mean(axis=0, dtype="float64")), rtol=1e-6)
        assert (moments.count == 90).all()


def test_a_batch_of_scalars_from_tf_data():
    tf = pytest.importorskip("tensorflow")
    for dataset in (tf.data.Dataset.from_tensor_slices(X[:, 0]), tf.data.Dataset.from_tensor_slices(X[:, 0]).batch(20)):
        layer = Standardize()
        layer.adapt(dataset)
        np.testing.assert_allclose(layer.statistics.moments.mean, [X[:, 0].mean(dtype="float64")], rtol=1e-6)


def test_masked_arrays():
    x = np.ma.masked_less(X, 0)
    layer = Standardize()
    layer.adapt(x)
    np.testing.assert_allclose(layer.mean[0], x.mean(axis=0, dtype="float64"), rtol=1e-6)


def test_steps_end_data_without_an_end():
    def endless():
        while True:
            yield BATCHES[0]

    tf = pytest.importorskip("tensorflow")
    for data in (endless(), tf.data.Dataset.from_tensor_slices(BATCHES[0]).batch(20).repeat()):
        layer = Standardize()
        layer.adapt(data, steps=3)
        assert (layer.statistics.moments.count == 60).all()


def test_data_without_an_end_needs_steps():
    class Endless(Rows):
        num_batches = None

    tf = pytest.importorskip("tensorflow")
    for data in (Endless("x"), tf.data.Dataset.from_tensor_slices(X).batch(20).repeat()):
        with pytest.raises(ValueError, match="`steps` must be given, because `data` has no end"):
            Standardize().adapt(data)
        layer = Standardize()
        layer.adapt(data, steps=2)
        assert (layer.statistics.moments.count == 40).all()


def test_steps_of_a_dict_of_arrays():
    with pytest.raises(ValueError, match="`steps` must be None for a dict of arrays. Received: steps=1"):
        Standardize().adapt({"a": X, "b": X}, steps=1)


@pytest.mark.parametrize("kind", ["generator", "list", "tf.data"])
def test_several_inputs_in_a_tuple_are_refused(kind):
    batches = [((each, each), Y[: len(each)]) for each in BATCHES]
    data = {
        "generator": lambda: iter(batches),
        "list": lambda: batches,
        "tf.data": lambda: tf_dataset((X, X), Y),
    }[kind]()
    with pytest.raises(TypeError, match="`data` must hold several inputs as a dict. Received: a tuple of them"):
        Standardize().adapt(data)


def test_a_tuple_of_arrays_is_refused():
    """It would be taken for two batches, and the labels for features where the shapes agree."""
    for data in ((X, Y), (X, X), ({"a": X}, Y)):
        with pytest.raises(TypeError, match="`data` must not be a tuple of arrays: give x alone, or a list of batches"):
            Standardize().adapt(data)
    layer = Standardize()
    layer.adapt(tuple(tuple(row) for row in X.tolist()))  # numbers are rows
    assert (layer.statistics.moments.count == 90).all()


def test_batches_that_are_ragged_are_refused():
    tf = pytest.importorskip("tensorflow")
    rows = [[1.0, 2.0], [3.0]]
    for data in (tf.data.Dataset.from_tensor_slices(tf.ragged.constant(rows)).batch(2), iter([rows]), rows):
        with pytest.raises((TypeError, ValueError), match="`data` must hold (dense tensors|arrays of one shape)"):
            Standardize().adapt(data)


def test_single_rows_of_a_dict_with_vectors():
    for features in ({"a": X, "b": X[:, 0]}, {"a": X, "b": X[:, :2]}):
        layer = Standardize()
        layer.adapt(tf_dataset(features, batch=None))
        for name, values in features.items():
            mean = np.atleast_1d(values.mean(axis=0, dtype="float64"))
            np.testing.assert_allclose(layer.statistics[name].moments.mean, mean, rtol=1e-6)
    either = tf_dataset({"a": X[:80, 0], "b": X[:80, 1]}, batch=None).batch(20, drop_remainder=True)
    for dataset in (either, tf_dataset({"a": X}, batch=None)):
        with pytest.raises(ValueError, match="`data` must tell rows from batches"):
            Standardize().adapt(dataset)


def test_a_single_number_is_no_data():
    for number in (np.float32(3), keras.ops.convert_to_tensor(3.0)):
        with pytest.raises(ValueError, match="`data` must have a batch axis"):
            Standardize().adapt(number)


def test_an_array_is_read_in_views(monkeypatch):
    monkeypatch.setattr(_adapt_data, "BLOCK", 40)
    blocks = list(_adapt_data.batches_of(X))
    assert [len(each) for each in blocks] == [10] * 9 and all(np.shares_memory(each, X) for each in blocks)
    assert _adapt_data.count_batches(X, None) == 9 and _adapt_data.count_batches(X, 4) == 4
    layer = Standardize()
    layer.adapt(X)
    np.testing.assert_allclose(layer.mean[0], X.mean(axis=0, dtype="float64"), rtol=1e-6)


@pytest.mark.parametrize(("verbose", "seen"), [("auto", True), (1, True), (0, False)])
def test_the_progress_bar_appears_on_long_work_only(verbose, seen, monkeypatch, capsys):
    monkeypatch.setattr(_adapt_data, "QUIET", -1.0)
    Standardize().adapt(Rows("x"), verbose=verbose)
    out = capsys.readouterr().out
    assert ("5/5" in out) == seen and (seen or out == "")
    monkeypatch.setattr(_adapt_data, "QUIET", 3.0)
    Standardize().adapt(Rows("x"), verbose=1)
    assert capsys.readouterr().out == ""


def test_the_number_of_batches_where_it_is_known():
    assert _adapt_data.count_batches(tf_dataset(X), None) is None  # they come joined
    assert _adapt_data.count_batches(Rows("x"), 3) == 3
    assert _adapt_data.count_batches(iter(BATCHES), None) is None


def test_small_batches_of_tf_data_come_joined_and_steps_count_the_user_s():
    joined = list(_adapt_data.batches_of(tf_dataset(X)))
    assert len(joined) == 1
    np.testing.assert_array_equal(joined[0], X)
    first = list(_adapt_data.batches_of(tf_dataset(X), steps=2))
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(list(tf_dataset(X).take(2))))


def test_long_batches_of_tf_data_are_not_cut_and_steps_count_the_user_s():
    x = np.ones((200, 3072), "float32")
    assert [len(batch) for batch in _adapt_data.batches_of(tf_dataset(x, batch=100))] == [100, 100]
    layer = Standardize()
    layer.adapt(tf_dataset(x, batch=100), steps=1)
    assert (layer.statistics.moments.count == 100).all()


def test_tf_data_batches_of_several_shapes_are_not_joined():
    import tensorflow as tf

    def images():
        for size in (3, 4):
            yield np.full((2, size, size, 1), size, "float32")

    dataset = tf.data.Dataset.from_generator(images, output_signature=tf.TensorSpec((None, None, None, 1)))
    assert [batch.shape for batch in _adapt_data.batches_of(dataset)] == [(2, 3, 3, 1), (2, 4, 4, 1)]
