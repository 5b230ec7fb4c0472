"""Random operations of pipelines, and an order of shuffled arrays that can be taken up again."""

import keras
import numpy as np
import pytest

from tests.fit_hooks.assumptions import AtBegin, build, local_of_fit
from tf_tricks._backend import BACKEND

tf = pytest.importorskip("tensorflow")

from tf_tricks.fit_hooks import tf_data  # noqa: E402
from tf_tricks.fit_hooks.tf_data import ArrayOrder, captured, random_operations  # noqa: E402

ROWS, BATCH = 14, 4


def uniform(*args, seed=None):
    return tf.random.uniform((), seed=seed)


PIPELINES = {
    "nothing random": lambda data: data.map(lambda i: i + 1).batch(2).prefetch(1),
    "shuffle": lambda data: data.shuffle(5).batch(2),
    "shuffle, seed": lambda data: data.shuffle(5, seed=4).batch(2),
    "map": lambda data: data.map(uniform).repeat(2),
    "map, seed": lambda data: data.map(lambda i: uniform(seed=9)),
    "both, one seeded": lambda data: data.shuffle(5, seed=4).map(uniform).prefetch(1),
    "zip": lambda data: tf.data.Dataset.zip((data.shuffle(5), data.map(uniform))),
    "flat_map": lambda data: data.flat_map(lambda i: tf.data.Dataset.range(3).shuffle(3)),
    "interleave": lambda data: data.interleave(lambda i: tf.data.Dataset.range(3).map(uniform)),
    "cond": lambda data: data.map(lambda i: tf.cond(i > 3, uniform, lambda: 0.0)),
    "filter": lambda data: data.filter(lambda i: uniform() < 0.5),
    "stateless": lambda data: data.map(lambda i: tf.random.stateless_uniform((), (1, i))),
}
NAMES = {
    "nothing random": [],
    "stateless": [],
    "shuffle": ["shuffle"],
    "shuffle, seed": ["shuffle"],
    "both, one seeded": ["RandomUniform", "shuffle"],
    "zip": ["RandomUniform", "shuffle"],
    "flat_map": ["shuffle"],
}
SEEDED = ("shuffle, seed", "map, seed")


@pytest.mark.parametrize("name", PIPELINES)
def test_random_operations_are_found_with_and_without_seeds(name):
    tf.random.set_seed(None)
    found = random_operations(PIPELINES[name](tf.data.Dataset.range(6)))
    assert sorted(each for each, *_ in found) == NAMES.get(name, ["RandomUniform"])
    unseeded = [each for each, *seeds in found if not any(seeds)]
    wanted = [] if name in SEEDED else ["RandomUniform"] if name.startswith("both") else NAMES.get(name, unseeded)
    assert sorted(unseeded) == wanted


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.filterwarnings("ignore:Seed 3 from outer graph")
def test_a_global_seed_seeds_them_all(name):
    tf.random.set_seed(3)
    found = random_operations(PIPELINES[name](tf.data.Dataset.range(6)))
    assert [each for each, *seeds in found if not any(seeds)] == []


@pytest.mark.parametrize("name", PIPELINES)
def test_those_without_seeds_are_those_that_cannot_be_repeated(name):
    """What is said of a pipeline, compared with what two pipelines made alike give."""

    def values():
        # The operating system draws a seed when an iterator is made, so 40 numbers that agree by chance are no worry.
        return [np.array(value).tolist() for value in PIPELINES[name](tf.data.Dataset.range(40)).prefetch(1)]

    tf.random.set_seed(None)
    dataset = PIPELINES[name](tf.data.Dataset.range(40))
    unseeded = any(not any(seeds) for _, *seeds in random_operations(dataset))
    assert unseeded == (values() != values())


def test_a_pipeline_used_twice_is_looked_at_once():
    data = tf.data.Dataset.range(6).shuffle(5, seed=4)
    assert len(random_operations(tf.data.Dataset.zip((data, data)))) == 1


def test_variables_that_a_pipeline_captures():
    variable = tf.Variable(2.0)
    data = tf.data.Dataset.range(3).map(lambda i: tf.cast(i, "float32") * variable).batch(2)
    assert any(tensor is variable.handle for tensor in captured(data))
    assert captured(tf.data.Dataset.range(3).batch(2)) == []


# --- the order of arrays --------------------------------------------------------------------------------------------
needs_tensorflow = pytest.mark.skipif(BACKEND != "tensorflow", reason="the order of Keras's pipeline on TensorFlow")


def passes(numbers, saved=None, shuffle=True, seed=None, own=True):
    """The rows in the order of each pass of `numbers`, and the state."""
    found, states = [], []

    def look(model):
        iterator = local_of_fit("epoch_iterator")
        order = ArrayOrder(iterator, saved) if own else None
        states.append(order and order.get_state())
        for number in numbers:
            if order:
                order.begin_pass(number)
            found.append([int(row) for batch in iterator._get_iterator() for row in batch[0].numpy()[:, 0]])

    x = np.arange(ROWS, dtype="float32")[:, None] * np.ones((1, 3), "float32")
    model = build()
    if seed is None:
        tf.random.set_seed(None)
    else:
        keras.utils.set_random_seed(seed)
    model.fit(x, x[:, :1], batch_size=BATCH, shuffle=shuffle, verbose=0, callbacks=[AtBegin(look)])
    return found, states[0]


@needs_tensorflow
@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_without_a_global_seed_each_pass_is_another_permutation_that_can_be_repeated(shuffle):
    first, state = passes(range(4), shuffle=shuffle)
    assert all(sorted(each) == list(range(ROWS)) for each in first)
    assert len({tuple(each) for each in [*first, list(range(ROWS))]}) == 5
    again, kept = passes([2, 0, 3], state, shuffle=shuffle)
    assert again == [first[2], first[0], first[3]]
    assert kept == state
    other, _ = passes([0], shuffle=shuffle)  # another run, another key
    assert other[0] != first[0]


@needs_tensorflow
def test_shuffle_batch_stays_within_batches_and_shuffles_each_in_its_own_way():
    for order in passes(range(3), shuffle="batch")[0]:
        batches = [order[start : start + BATCH] for start in range(0, ROWS, BATCH)]
        assert [sorted(each) for each in batches] == [
            list(range(s, min(s + BATCH, ROWS))) for s in range(0, ROWS, BATCH)
        ]
        ranks = {tuple(np.argsort(each)) for each in batches[:3]}
        assert len(ranks) > 1


@needs_tensorflow
@pytest.mark.parametrize("shuffle", [True, "batch"])
def test_with_a_global_seed_the_order_is_keras_s_own(shuffle):
    assert passes(range(3), shuffle=shuffle, seed=5)[0] == passes(range(3), shuffle=shuffle, seed=5, own=False)[0]


@needs_tensorflow
@pytest.mark.parametrize("shuffle", [True, "batch"])
@pytest.mark.parametrize("present", [None, 6])
def test_the_seed_of_the_run_that_is_resumed_counts(present, shuffle):
    wanted, state = passes(range(3), shuffle=shuffle, seed=5)
    assert any(state["seeds"])
    assert passes(range(3), state, shuffle=shuffle, seed=present)[0] == wanted
    assert passes(range(3), shuffle=shuffle, seed=6)[0] != wanted


@needs_tensorflow
@pytest.mark.parametrize("present", [None, 6])
def test_a_run_without_a_seed_is_resumed_in_its_order_in_a_process_that_has_one(present):
    wanted, state = passes(range(3))
    assert passes(range(3), state, seed=present)[0] == wanted


@needs_tensorflow
def test_every_permutation_comes_up_about_as_often():
    order = ArrayOrder.__new__(ArrayOrder)
    order._state, order._pass = {"key": 12345}, tf.Variable(0, dtype="int64")
    draw = tf.function(order._shuffle)
    counts = {}
    for number in range(600):
        order.begin_pass(number)
        drawn = tuple(draw(tf.range(3, dtype="int64")).numpy())
        counts[drawn] = counts.get(drawn, 0) + 1
    # 100 each, with a standard deviation of 9; a fixed key, so never by bad luck.
    assert len(counts) == 6 and all(60 < count < 140 for count in counts.values())


@needs_tensorflow
def test_tf_random_shuffle_is_given_back():
    before = tf.random.shuffle
    with pytest.raises(RuntimeError, match="stop"), tf_data._instead_of_shuffle(tf, lambda indices: indices):
        assert tf.random.shuffle is not before
        raise RuntimeError("stop")
    assert tf.random.shuffle is before
