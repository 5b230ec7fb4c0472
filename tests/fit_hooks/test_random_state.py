"""Random numbers drawn, the state put back, the same numbers drawn again: from every source, in every order."""

import random

import keras
import numpy as np
import pytest

from tests.fit_hooks.assumptions import array, build
from tf_tricks._backend import BACKEND
from tf_tricks.checkpoints.packing import pack, unpack
from tf_tricks.fit_hooks import random_state

# Seeds that no other test uses: layers of other tests may still be alive, and their generators are found, too.
INSIDE, OUTSIDE = 860_001, 860_101


def draw():
    """Numbers from all sources: name -> list of floats."""
    np_state = np.random.normal(size=3)  # an odd number leaves half a pair of normals in the state
    found = {
        "python": [random.random(), random.gauss(0, 1)],
        "numpy": list(np_state),
        "keras": array(keras.random.normal((2,))).tolist(),
    }
    if BACKEND == "tensorflow":
        import tensorflow as tf

        found["tensorflow"] = tf.random.uniform((2,), seed=None).numpy().tolist()
        found["tensorflow generator"] = tf.random.get_global_generator().normal((2,)).numpy().tolist()
    if BACKEND == "torch":
        import torch

        found["torch"] = torch.randn(2).tolist()
    return found


def seed_all(seed):
    keras.utils.set_random_seed(seed)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.random.set_global_generator(tf.random.Generator.from_seed(seed))


def through_a_file(state):
    """The state as a checkpoint gives it back."""
    return unpack(*pack(state))


@pytest.mark.parametrize("way", [lambda state: state, through_a_file], ids=["as it is", "through a file"])
def test_all_sources_go_on_from_where_they_were(way):
    keras.utils.set_random_seed(3)
    draw()
    state = random_state.take()
    wanted = [draw(), draw()]
    keras.utils.set_random_seed(99)
    other = draw()
    random_state.put_back(way(state))
    assert [draw(), draw()] == wanted
    assert all(other[name] != wanted[0][name] for name in wanted[0])


def test_taking_the_state_draws_nothing():
    seed_all(3)
    wanted = [draw(), draw()]
    seed_all(3)
    first = draw()
    random_state.take(), random_state.host()
    assert [first, draw()] == wanted


def test_a_state_does_not_change_when_numbers_are_drawn():
    state = random_state.take()
    before = str(state)
    draw()
    assert str(state) == before


def test_python_and_numpy_can_be_left_alone():
    draw()
    state = random_state.take()
    wanted = draw()
    random.seed(5), np.random.seed(5)
    host = [random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()]
    random_state.put_back(state, python=False)
    assert [random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()] == host
    assert draw()["keras"] == wanted["keras"]


def test_a_state_without_a_global_generator_of_keras_gives_it_none():
    keras.utils.set_random_seed(3)  # forgets it
    state = random_state.take()
    assert state["keras"] is None
    wanted = draw()
    keras.utils.set_random_seed(3)
    random_state.put_back(state)
    assert draw() == wanted


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's global seed")
@pytest.mark.parametrize("present", [None, 8])
def test_the_global_seed_of_tensorflow_is_put_back(present):
    import tensorflow as tf

    tf.random.set_seed(7)
    state = random_state.take()
    tf.random.set_seed(present)
    random_state.put_back(state)
    # An operation in a graph is seeded from the global seed alone: this is what pipelines and `tf.function` get.
    dataset = tf.data.Dataset.range(1).map(lambda _: tf.random.uniform(()))
    got = [float(value) for value in dataset]
    tf.random.set_seed(7)
    wanted = [float(value) for value in tf.data.Dataset.range(1).map(lambda _: tf.random.uniform(()))]
    assert got == wanted


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's global seed")
def test_a_run_without_a_global_seed_changes_none():
    import tensorflow as tf
    from tensorflow.python.eager import context

    tf.random.set_seed(None)
    state = random_state.take()
    assert state["tensorflow_seed"] is None
    tf.random.set_seed(8)
    random_state.put_back(state)
    assert context.context()._seed == 8


@pytest.mark.skipif(BACKEND == "tensorflow", reason="the other backends")
def test_a_state_of_another_backend_is_put_back_as_far_as_it_goes():
    draw()
    state = {key: value for key, value in random_state.take().items() if key not in ("torch", "cuda")}
    wanted = draw()
    random_state.put_back({**state, "tensorflow": np.zeros(3, "int64"), "tensorflow_seed": 3, "tensorflow_seeds": None})
    got = draw()
    assert [got[name] for name in ("python", "numpy", "keras")] == [
        wanted[name] for name in ("python", "numpy", "keras")
    ]


@pytest.mark.parametrize("change", [random.random, np.random.rand, lambda: np.random.normal(size=1)])
def test_states_of_the_host_are_compared_in_full(change):
    before = random_state.host()
    assert random_state.same_host(before, random_state.host())
    change()
    assert not random_state.same_host(before, random_state.host())
    random_state.set_host(before)
    assert random_state.same_host(before, random_state.host())


def test_a_normal_that_waits_in_numpy_s_state_counts():
    np.random.normal(size=1)
    before = random_state.host()
    np.random.normal(size=1)  # takes the second of the pair: key and position stay
    assert not random_state.same_host(before, random_state.host())


def test_generators_of_the_data_are_those_outside_of_the_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5, seed=INSIDE)])
    layer = keras.layers.GaussianNoise(0.5, seed=OUTSIDE)
    keras.random.normal((1,))  # makes Keras's global generator, which is kept elsewhere
    seeds = random_state.DataSeeds(model)
    own = array(layer.seed_generator.state)
    assert any(np.array_equal(state, own) for state in seeds.take()["seeds"])
    assert all(len(states) == 2 for states in seeds.take()["seeds"])
    inside = array(model.layers[0].seed_generator.state)
    assert not any(np.array_equal(state, inside) for state in seeds.take()["seeds"])
    saved = seeds.take()
    x = np.ones((2, 3), "float32")
    wanted = [array(layer(x, training=True)) for _ in range(2)]
    seeds.put_back(saved)
    np.testing.assert_array_equal([array(layer(x, training=True)) for _ in range(2)], wanted)


def test_arrays_have_no_generators():
    keras.random.SeedGenerator(3)
    assert random_state.DataSeeds(build(), handles=[]).take()["seeds"] == []


def test_generators_are_in_the_order_in_which_a_script_makes_them():
    made = [keras.random.SeedGenerator(OUTSIDE + each) for each in range(12)]
    wanted = [array(each.state).tolist() for each in made]
    got = [state.tolist() for state in random_state.DataSeeds(build()).take()["seeds"]]
    positions = [got.index(each) for each in wanted]
    assert positions == sorted(positions)  # as strings, "seed_generator_10" would come before "seed_generator_2"


@pytest.mark.skipif(BACKEND != "torch", reason="Torch's DataLoader")
def test_a_data_loader_s_generators_are_taken_once():
    import torch

    generator = torch.Generator().manual_seed(2)
    data = torch.utils.data.TensorDataset(torch.arange(9))
    loader = torch.utils.data.DataLoader(data, shuffle=True, generator=generator)
    seeds = random_state.LoaderSeeds(loader)
    saved = seeds.take()
    assert len(saved["seeds"]) == 1
    wanted = [int(batch[0]) for batch in loader]
    assert [int(batch[0]) for batch in loader] != wanted
    seeds.put_back(through_a_file({"seeds": saved})["seeds"])
    assert [int(batch[0]) for batch in loader] == wanted


def test_generators_in_the_attributes_of_a_dataset_go_on():
    class Data:
        pass

    data = Data()
    data.values, data.module = np.arange(3), np.random
    data.numpy, data.old, data.python = np.random.default_rng(1), np.random.RandomState(2), random.Random(3)

    def draw():
        return [data.numpy.random(), data.old.normal(), data.python.random()]

    draw()
    own = random_state.OwnGenerators(data)
    saved = through_a_file(own.take())
    assert list(saved) == ["numpy", "old", "python"]
    wanted = draw()
    assert draw() != wanted
    own.put_back(saved)
    assert draw() == wanted
