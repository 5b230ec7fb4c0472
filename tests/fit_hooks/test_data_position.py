"""Where a `fit` is in its data, seen from between two steps; whole resumed runs are in `test_training_checkpoint`."""

import keras
import pytest

from tests.callbacks.resume_cases import CASES, STEPS, Dataset, Remembering, model, tf_data
from tests.fit_hooks.assumptions import AtBegin
from tf_tricks._backend import BACKEND
from tf_tricks.checkpoints.packing import pack, unpack
from tf_tricks.fit_hooks.data_kinds import kind_of
from tf_tricks.fit_hooks.data_position import DataPosition
from tf_tricks.fit_hooks.running_fit import running_fit

pytestmark = pytest.mark.filterwarnings("ignore:Your input ran out of data")
KINDS = {name: name.partition(",")[0].replace("tensors", "arrays") for name in CASES}


class Batches(keras.callbacks.Callback):
    """Notes the steps that `fit` takes."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(batch)


def follow(data, epochs=2, saved=None, resumed=None, after_step=None):
    """Fit with a `DataPosition`; returns it, and what `Batches` saw."""
    found, batches = [], Batches()

    def begin(model):
        found.append(
            DataPosition(running_fit(model, batches).epoch_iterator, model, lambda: after_step and after_step(found[0]))
        )
        if saved is not None:
            found[0].resume(saved, resumed or (lambda: None))

    keras.utils.set_random_seed(7)
    built = model()
    built.fit(**data, epochs=epochs, verbose=0, callbacks=[AtBegin(begin), batches])
    return found[0], batches.steps


# `fit` itself runs over all of them in tests/callbacks/test_training_checkpoint.py.
ONE_OF_EACH = ["arrays", "arrays, steps_per_epoch", "PyDataset, workers", "tf.data, unknown length", "generator"]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_is_known_between_any_two_steps(name):
    seen, epochs = [], 1 if "steps_per_epoch" in name else 2
    position, steps = follow(CASES[name](), epochs, after_step=lambda position: seen.append(position.get_state(True)))
    assert position.kind == KINDS[name]
    assert (position.remedy() is None) == (name != "generator")
    per_epoch = len(steps) // epochs
    assert steps == list(range(per_epoch)) * epochs
    between = list(range(1, per_epoch))
    taken = [state["step"] for state in seen]
    if name == "tf.data, unknown length":  # then nobody knows either whether a step was the last one
        assert [step for step in taken if step < per_epoch] == between * epochs
    else:
        assert taken == between * epochs
        assert position.steps_per_epoch == per_epoch
        assert position.is_last(per_epoch) and not position.is_last(per_epoch - 1)
    for state in [*seen, position.get_state(in_epoch=False)]:
        again = unpack(*pack(state))
        assert again.keys() == state.keys()
        assert (again["step"], again["kind"]) == (state["step"], position.kind)
    assert position.get_state(in_epoch=False)["step"] == 0


@pytest.mark.parametrize("name", ["arrays", "PyDataset", "tf.data, repeat", "generator"])
def test_resuming_leaves_out_the_steps_that_were_taken(name):
    states, resumed = [], []
    _, whole = follow(CASES[name](), epochs=1, after_step=lambda position: states.append(position.get_state(True)))
    saved = unpack(*pack(states[2]))  # after the third step
    _, steps = follow(CASES[name](), epochs=1, saved=saved, resumed=lambda: resumed.append(1))
    assert (steps, resumed) == (whole[3:], [1])


def test_other_data_than_before_keeps_the_step_and_says_so():
    states = []
    follow(CASES["arrays"](), epochs=1, after_step=lambda position: states.append(position.get_state(in_epoch=True)))
    with pytest.warns(UserWarning, match="saved over arrays and goes on over PyDataset"):
        _, steps = follow({"x": Dataset()}, epochs=1, saved=states[1])
    assert steps == list(range(2, STEPS))


def remedy(data):
    found = []
    built = model()
    begin = AtBegin(lambda model: found.append(DataPosition(running_fit(model, None).epoch_iterator, model).remedy()))
    built.fit(**data, epochs=1, verbose=0, callbacks=[begin])
    return found[0]


def test_data_that_cannot_be_repeated_comes_with_a_remedy():
    assert "PyDataset" in remedy(CASES["generator"]())
    tf = pytest.importorskip("tensorflow")
    tf.random.set_seed(None)
    dataset = tf_data()["x"].shuffle(2)
    said = remedy({"x": dataset, "shuffle": False})
    assert "(shuffle)" in said and "keras.utils.set_random_seed" in said and "`seed=`" in said
    said = remedy(tf_data(augment="tf"))
    assert "(RandomStandardNormal)" in said


def test_one_warning_a_fit():
    position, _ = follow(CASES["arrays"](), epochs=1)
    with pytest.warns(UserWarning, match="cannot be kept: a reason") as caught:
        position.warn("a reason")
        position.warn("another")
    assert len(caught) == 1


def test_a_dataset_that_remembers_itself_is_asked():
    states = []
    follow({"x": Remembering()}, epochs=1, after_step=lambda position: states.append(position.get_state(True)))
    assert sorted(states[0]["dataset"]) == ["order", "random"]


def test_the_random_state_of_python_is_the_user_s_where_threads_draw_from_it():
    assert follow(CASES["arrays"](), epochs=1)[0].python_state_is_ours
    assert not follow(CASES["PyDataset, workers"](), epochs=1)[0].python_state_is_ours
    assert follow(CASES["PyDataset"](), epochs=1)[0].python_state_is_ours == (BACKEND != "tensorflow")


def test_something_unknown_is_other():
    assert kind_of(object()) == "other"
