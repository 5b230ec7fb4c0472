"""One row per debugging function (`contract/debug_rows.py`), the contracts that each of them keeps."""

import inspect
import math
import pathlib
import random
import signal

import keras
import numpy as np
import pytest

import tf_tricks
from tests.contract import refusals
from tests.contract.debug_rows import DEBUG
from tf_tricks._backend import BACKEND
from tf_tricks.debug._budget import Budget
from tf_tricks.debug._result import Result
from tf_tricks.fit_hooks.functional import UnknownLossError

layers = keras.layers
FUNCTIONS = {name: getattr(tf_tricks.debug, name) for name in DEBUG}
WITH_MODEL = sorted(name for name, row in DEBUG.items() if row.takes == "model")
X = np.random.default_rng(0).normal(size=(48, 4)).astype("float32")
Y = (X @ np.array([[1.0], [-2.0], [0.5], [0.0]]) + 0.1).astype("float32")
HISTORY = {"loss": [1.0, 0.6, 0.4, 0.3, 0.25], "val_loss": [1.1, 0.7, 0.5, 0.42, 0.4]}


class Subclassed(keras.Model):
    """Neither functional nor built, with a train_step of its own."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(8, activation="tanh")
        self.drop = layers.Dropout(0.2)
        self.out = layers.Dense(1)

    def call(self, inputs, training=False):
        return self.out(self.drop(self.hidden(inputs), training=training))

    def train_step(self, *arguments):
        return super().train_step(*arguments)


class Adding(layers.Layer):
    """Has a loss of its own."""

    def call(self, inputs):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


class KnownToItsStep(keras.Sequential):
    """Compiled without a loss, trained on `x` alone."""

    def train_step(self, *arguments):
        vars(self)["compute_loss"] = lambda x, y, y_pred, *_, **__: keras.ops.mean(keras.ops.square(y_pred - x))
        try:
            return super().train_step(*arguments)
        finally:
            del vars(self)["compute_loss"]


def functional():
    inputs = keras.Input((4,))
    hidden = layers.BatchNormalization()(layers.Dense(8, activation="tanh", kernel_regularizer="l2")(inputs))
    return keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.2)(hidden)))


def several():
    inputs = {"a": keras.Input((4,), name="a"), "b": keras.Input((4,), name="b")}
    hidden = layers.Dense(8, activation="tanh")(layers.Concatenate()(list(inputs.values())))
    return keras.Model(inputs, {"one": layers.Dense(1, name="one")(hidden), "two": layers.Dense(1, name="two")(hidden)})


def compiled(model, **options):
    keras.utils.set_random_seed(3)
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=options.pop("metrics", ["mae"]), **options)
    model.jit_compile = BACKEND == "jax"
    return model


def call(name, model, x=X, y=Y, **arguments):
    row = DEBUG[name]
    arguments = {**row.quick, **arguments}
    if row.takes == "history":
        return FUNCTIONS[name](HISTORY, **arguments)
    return FUNCTIONS[name](*([model] if row.takes == "model" else []), x, y, **arguments)


def state(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [(v.path, np.array(keras.ops.convert_to_numpy(v))) for v in variables]


def random_numbers():
    drawn = keras.ops.convert_to_numpy(keras.random.uniform((3,)))
    return random.random(), np.random.rand(), drawn.tolist()


def assert_untouched(model, before, attributes, numbers):
    after = state(model)
    assert [path for path, _ in after] == [path for path, _ in before]
    for (path, a), (_, b) in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)
    assert {key: value for key, value in vars(model).items() if key in attributes} == attributes
    assert random_numbers() == numbers


def noted(model):
    keys = ("stop_training", "history", "train_function", "_jit_compile", "_run_eagerly", "_steps_per_execution")
    attributes = {key: vars(model)[key] for key in keys if key in vars(model)}
    keras.utils.set_random_seed(11)
    numbers = random_numbers()
    keras.utils.set_random_seed(11)
    return state(model), attributes, numbers


def test_every_function_has_a_row():
    functions = {name for name in tf_tricks.debug.__all__ if inspect.isfunction(getattr(tf_tricks.debug, name))}
    assert functions == {*DEBUG, "signal_propagation"}


def test_no_function_sets_the_seeds_of_the_process():
    """`set_random_seed` changes what nothing can read and put back: TensorFlow's and Keras's global seeds."""
    folder = pathlib.Path(tf_tricks.debug.__file__).parent
    assert [path.name for path in folder.glob("*.py") if ".set_random_seed(" in path.read_text("utf-8")] == []


@pytest.mark.parametrize("name", sorted(DEBUG))
def test_it_works_in_silence_and_returns_a_result_on_one_screen(name, capsys, tmp_path):
    model = compiled(functional())
    model.fit(X, Y, verbose=0)
    before = noted(model)
    result = call(name, model)
    assert_untouched(model, *before)
    assert capsys.readouterr() == ("", "")
    assert isinstance(result, Result) and isinstance(result.passed, bool)
    lines = str(result).splitlines()
    assert 0 < len(lines) <= 40 and max(map(len, lines)) <= 110
    result.plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000
    title, values = result.series()
    assert isinstance(title, str) and all(isinstance(float(value), float) for value in values)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", WITH_MODEL)
def test_ctrl_c_leaves_the_model_as_it_was(name, monkeypatch):
    """In the middle of the experiment, at a look at the budget: a clock would strike anywhere, in `__del__` as well."""
    model = compiled(functional())
    model.fit(X, Y, verbose=0)
    looks, strike, share = [], [math.inf], Budget.share

    def interrupting_share(budget):
        looks.append(1)
        if len(looks) == strike[0]:
            signal.raise_signal(signal.SIGINT)
        return share(budget)

    monkeypatch.setattr(Budget, "share", interrupting_share)
    call(name, model)
    strike[0] = max(1, len(looks) // 2)
    looks.clear()
    before = noted(model)
    with pytest.raises(KeyboardInterrupt):
        call(name, model)
    assert len(looks) == strike[0]
    assert_untouched(model, *before)


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_subclassed_model_that_is_not_built_and_a_dataset(name):
    model = compiled(Subclassed())

    class Data(keras.utils.PyDataset):
        num_batches = 3

        def __getitem__(self, index):
            return X[16 * index : 16 * index + 16], Y[16 * index : 16 * index + 16]

    result = call(name, model, Data(), None)
    assert isinstance(result, Result)
    assert model.optimizer.iterations == 0 and model.train_function is None
    model.fit(Data(), verbose=0)


@pytest.mark.parametrize("name", WITH_MODEL)
def test_several_inputs_and_outputs(name):
    model = compiled(several(), metrics=None)
    before = noted(model)
    assert isinstance(call(name, model, {"a": X, "b": -X}, {"one": Y, "two": 2 * Y}), Result)
    assert_untouched(model, *before)


def mixed():
    keras.config.set_dtype_policy("mixed_float16")
    return compiled(functional())


def under_xla():
    model = compiled(functional())
    model.jit_compile = BACKEND != "torch"
    return model


def of_one_size():
    inputs = keras.Input(batch_shape=(8, 4))
    return compiled(keras.Model(inputs, layers.Dense(1)(layers.Dense(8, activation="tanh")(inputs))))


UNUSUAL = {
    "mixed precision": mixed,
    "run_eagerly": lambda: compiled(functional(), run_eagerly=True),
    "XLA": under_xla,
    "a fixed batch size": of_one_size,
    "add_loss": lambda: compiled(keras.Sequential([keras.Input((4,)), layers.Dense(8), Adding(), layers.Dense(1)])),
}


@pytest.mark.parametrize("name", ["batch_size_advice", "overfit_one_batch"])  # one looks at gradients, one trains
@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_models(kind, name):
    model = UNUSUAL[kind]()
    before = noted(model)
    result = call(name, model, seconds=None, **({"steps": 10} if name == "overfit_one_batch" else {}))
    assert result.passed and np.isfinite([float(value) for value in result.series()[1]]).all()
    assert_untouched(model, *before)


def test_a_fixed_batch_size_is_kept_to_or_refused():
    model = of_one_size()
    assert tf_tricks.debug.check_inputs(X, Y, model, seconds=None, verbose=0).named("does_not_fit") is None
    assert call("check_gradients", model, seconds=None).passed
    assert len(call("without_batch_norm", model, seconds=None).bare_steps) == 2
    with pytest.raises(ValueError, match="`model` must take any number of samples. Received: .* hold 8"):
        call("loss_outliers", model)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras distributes on TensorFlow and JAX only")
@pytest.mark.parametrize("name", ["batch_size_advice", "find_learning_rate"])
def test_a_model_on_several_devices(name, request):
    strategy = request.getfixturevalue("mirrored_strategy" if BACKEND == "tensorflow" else "data_parallel")
    with strategy.scope():
        model = compiled(functional())
        model.fit(X, Y, batch_size=16, verbose=0)
        before = [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables]
        assert call(name, model, batch_size=16, seconds=None).passed
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, keras.ops.convert_to_numpy(b))


def test_a_loss_that_only_the_train_step_knows_is_trained_on_and_not_looked_into():
    model = KnownToItsStep([keras.Input((4,)), layers.Dense(4)])
    model.compile("sgd", jit_compile=BACKEND == "jax")
    before = noted(model)
    for name in ("find_learning_rate", "overfit_one_batch"):
        assert call(name, model, X, None, seconds=None).passed
    for name in ("batch_size_advice", "check_gradients", "loss_outliers"):
        with pytest.raises(UnknownLossError, match="`model` must be compiled with a loss"):
            call(name, model, X, None)
    assert_untouched(model, *before)


@pytest.mark.parametrize("name", WITH_MODEL)
def test_it_is_deterministic(name):
    model = compiled(functional())
    model.fit(X, Y, verbose=0)
    first, second = (str(call(name, model)) for _ in range(2))
    if "seconds" not in DEBUG[name].quick:  # what the clock ends is not repeatable
        assert first == second


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_model_that_is_not_compiled_is_refused(name):
    with pytest.raises(ValueError, match="`model` must be compiled"):
        call(name, functional())


@pytest.mark.parametrize("name", WITH_MODEL)
def test_targets_that_the_loss_needs_are_asked_for(name):
    with pytest.raises(ValueError, match="`y` must hold the targets"):
        call(name, compiled(functional()), X, None)


@pytest.mark.parametrize("name", sorted(DEBUG))
def test_every_argument_refuses_something(name):
    tested = {bad[0] for bad in DEBUG[name].bad} | set(DEBUG[name].any_value)
    assert tested == set(inspect.signature(FUNCTIONS[name]).parameters)


@pytest.mark.parametrize(("name", "argument", "value", "error", "accepted", "others"), refusals.cases(DEBUG))
def test_a_bad_argument_is_refused(name, argument, value, error, accepted, others):
    row = DEBUG[name]
    model = {"model": compiled(functional())} if row.takes == "model" else {}
    data = {"history": HISTORY} if row.takes == "history" else {"x": X, "y": Y}
    refusals.check(FUNCTIONS[name], argument, value, error, accepted, {**model, **data, **row.quick, **others})


@pytest.mark.parametrize("name", sorted(DEBUG))
def test_the_docstring_has_its_sections(name):
    sections = ("Args:", "Returns:", "Raises:", "Example:", *(["Reference:"] if DEBUG[name].reference else []))
    assert [section for section in sections if section not in FUNCTIONS[name].__doc__] == []
