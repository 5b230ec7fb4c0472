"""Every source of random numbers in this process that lies outside of the model, to be noted and put back.

States are plain trees of ints, strings and NumPy arrays, as `checkpoints.packing` takes them.
"""

import contextlib
import gc
import random
import sys

import keras
import numpy as np

from tf_tricks._backend import BACKEND, tf, torch

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "keras.utils.set_random_seed.global_state": "holds the SeedGenerator that unseeded calls of keras.random share",
    "global_state.get_global_attribute": "reads that SeedGenerator, under its name `global_seed_generator`",
    "global_state.set_global_attribute": "puts one there, where a run that is resumed had one",
    "SeedGenerator.state": "the variable with the state; no public method reads or sets it",
    "tensorflow.context._seed": "the global seed of TensorFlow; there is only a function to set it",
    "tensorflow.context._rng": "gives eager TensorFlow operations their seeds, one after the other",
}

_GLOBAL_SEED_GENERATOR = "global_seed_generator"


def take():
    """The states of Python's, NumPy's, the backend's and Keras's own global generators."""
    state = {**host(), "keras": _keras_global()}
    if BACKEND == "tensorflow":
        state["tensorflow"] = tf.random.get_global_generator().state.numpy()
        # A run that set no seed draws the seeds of its operations from the system: nothing to put back.
        context = _tensorflow_context()
        state["tensorflow_seed"] = context._seed
        state["tensorflow_seeds"] = None if context._seed is None else context._rng.getstate()
    return state


def put_back(state, python=True):
    """Set all generators to what `take` returned, on this backend or another; Python's and NumPy's if `python`."""
    set_host(state, python)
    _set_keras_global(state["keras"])
    if BACKEND == "tensorflow" and "tensorflow" in state:
        tf.random.get_global_generator().reset(state["tensorflow"])
        if state["tensorflow_seed"] is not None:
            context = _tensorflow_context()
            if context._seed != state["tensorflow_seed"]:
                tf.random.set_seed(state["tensorflow_seed"])
            context._rng.setstate(_tuples(state["tensorflow_seeds"]))


class Snapshot:
    """All of them as they are now, to be put back as often as needed."""

    def __init__(self):
        self._state, self._legacy = take(), np.random.get_state()
        torch = sys.modules.get("torch")  # whatever the backend: a DataLoader shuffles with it
        self._torch = None if torch is None else torch.get_rng_state()

    def put_back(self):
        put_back(self._state)
        if self._state["keras"] is None:
            forget_keras_global()
        np.random.set_state(self._legacy)
        if self._torch is not None:
            sys.modules["torch"].set_rng_state(self._torch)


@contextlib.contextmanager
def unchanged(owner=None):
    """Draw what you like; afterwards all generators are where they were, also after an exception.

    Args:
        owner: an object with generators of its own, among its attributes or, of a DataLoader, its samplers; or None.
    """
    before = Snapshot()
    own = LoaderSeeds(owner) if hasattr(owner, "batch_sampler") else OwnGenerators(owner)
    seeds = own.take()
    try:
        yield
    finally:
        own.put_back(seeds)
        before.put_back()


def host():
    """The generators that data pipelines in Python draw from: Python's, NumPy's and Torch's. Takes microseconds."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False)}
    if BACKEND == "torch":
        state["torch"] = torch.get_rng_state().numpy()
        state["cuda"] = [each.numpy() for each in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return state


def set_host(state, python=True):
    """Set the generators of `host`; those of Python and NumPy only if `python`."""
    if python:
        random.setstate(_tuples(state["python"]))
        np.random.set_state(state["numpy"])
    if BACKEND == "torch" and "torch" in state:
        torch.set_rng_state(torch.from_numpy(np.array(state["torch"])))
        for device, value in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(torch.from_numpy(np.array(value)), device)


def same_host(a, b):
    """Are two states of `host` equal?"""
    return (
        a["python"] == b["python"]
        and a["numpy"]["state"]["pos"] == b["numpy"]["state"]["pos"]
        and np.array_equal(a["numpy"]["state"]["key"], b["numpy"]["state"]["key"])
        and a["numpy"]["gauss"] == b["numpy"]["gauss"]
        and all(np.array_equal(a[name], b[name]) for name in ("torch", "cuda") if name in a)
    )


class DataSeeds:
    """What a data pipeline draws from: `keras.random.SeedGenerator`s, mostly of layers, and `tf.random.Generator`s.

    Args:
        model: its own generators are left out.
        owner: an object whose attributes are looked through for generators of Python, NumPy and Torch, or None.
        handles: the variables that a tf.data pipeline has captured, or None for a pipeline in Python, of which nobody
            knows what it holds: then all generators outside of the model count.
    """

    def __init__(self, model, handles=None, owner=None):
        self.own = OwnGenerators(owner)
        if handles == []:
            self._generators = []
            return
        if handles is not None:
            by_handle = {id(_handle(each)): each for each in _living_generators()}
            # In the order in which the pipeline uses them, which the same script gives again.
            self._generators = list({id(h): by_handle[id(h)] for h in handles if id(h) in by_handle}.values())
            return
        inside = {id(variable) for variable in model.variables}
        found = _outside(inside)
        if found:
            del found
            gc.collect()  # takes long; those of an earlier `fit` that raised shall not count
            found = _outside(inside)
        self._generators = sorted(found, key=_order)

    def take(self):
        """The states, in an order that the same script gives again."""
        seeds = [np.array(_value(each.state)) for each in self._generators]
        return {"seeds": seeds, "own": self.own.take()}

    def put_back(self, states):
        """Set the states; those of generators that this process does not have are left out."""
        for each, state in zip(self._generators, states["seeds"], strict=False):
            each.state.assign(state)
        self.own.put_back(states["own"])


class OwnGenerators:
    """The generators of Python, NumPy and Torch among the attributes of an object, such as `self.rng` of a dataset."""

    def __init__(self, owner):
        found = sorted(getattr(owner, "__dict__", {}).items())
        self._found = {name: value for name, value in found if _accessors(value) is not None}

    def take(self):
        """Name -> state."""
        return {name: _accessors(value)[0]() for name, value in self._found.items()}

    def put_back(self, states):
        """Set the states of those that are there."""
        for name, value in self._found.items():
            if name in states:
                _accessors(value)[1](states[name])


def _accessors(value):
    """How to read and how to set the state of a generator; None for anything else, and for the global ones."""
    torch = sys.modules.get("torch")
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    if isinstance(value, np.random.RandomState):
        return lambda: value.get_state(legacy=False), value.set_state
    if isinstance(value, random.Random):
        return value.getstate, lambda state: value.setstate(_tuples(state))
    if torch is not None and isinstance(value, torch.Generator):
        return lambda: value.get_state().numpy(), lambda state: value.set_state(torch.from_numpy(np.array(state)))
    return None


class LoaderSeeds:
    """The generators that a `torch.utils.data.DataLoader` and its samplers were given; in place of `DataSeeds`."""

    def __init__(self, loader):
        samplers = [loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
        found = [getattr(each, "generator", None) for each in (loader, *samplers)]
        self._generators = list({id(each): each for each in found if each is not None}.values())
        self.own = OwnGenerators(loader.dataset)

    def take(self):
        """The states, in the order of the arguments."""
        return {"seeds": [each.get_state().numpy() for each in self._generators], "own": self.own.take()}

    def put_back(self, states):
        """Set the states."""
        self.own.put_back(states["own"])
        for each, state in zip(self._generators, states["seeds"], strict=False):
            each.set_state(sys.modules["torch"].from_numpy(np.array(state)))


def _living_generators():
    # No registry lists them; one walk over the living objects at the begin of a `fit` does.
    kinds = {keras.random.SeedGenerator}
    tensorflow_s = getattr(getattr(sys.modules.get("tensorflow"), "random", None), "Generator", None)
    if tensorflow_s is not None:
        kinds.add(tensorflow_s)
    return [each for each in gc.get_objects() if type(each) in kinds]


def _outside(inside):
    """Keras's generators that are neither the model's, whose variables' ids are `inside`, nor the global one."""
    found = [each for each in _living_generators() if type(each) is keras.random.SeedGenerator]
    return [each for each in found if id(each.state) not in inside and each is not _global_generator()]


def _value(state):
    return keras.ops.convert_to_numpy(state.value) if isinstance(state, keras.Variable) else state.numpy()


def _handle(generator):
    """What a tf.data pipeline captures of a generator, on any backend; None if it cannot."""
    state = generator.state
    return getattr(state.value if isinstance(state, keras.Variable) else state, "handle", None)


def _order(generator):
    # Automatic names count up: `seed_generator_2` comes before `seed_generator_10`.
    head, _, number = generator.name.rpartition("_")
    return (head, int(number)) if number.isdigit() else (generator.name, 0)


def _tuples(state):
    return tuple(_tuples(each) if isinstance(each, (list, tuple)) else each for each in state)


def _global_state():
    return keras.utils.set_random_seed.__globals__["global_state"]


def _global_generator():
    return _global_state().get_global_attribute(_GLOBAL_SEED_GENERATOR)


def _keras_global():
    generator = _global_generator()
    return None if generator is None else np.array(keras.ops.convert_to_numpy(generator.state))


def _set_keras_global(state):
    if state is None:
        return
    generator = _global_generator()
    if generator is None:
        generator = keras.random.SeedGenerator(0)
        _global_state().set_global_attribute(_GLOBAL_SEED_GENERATOR, generator)
    generator.state.assign(state)


def forget_keras_global():
    """Take away the SeedGenerator that unseeded calls of keras.random share: the next one makes it, as at first."""
    _global_state().set_global_attribute(_GLOBAL_SEED_GENERATOR, None)


def _tensorflow_context():
    from tensorflow.python.eager import context

    return context.context()
