"""What `fit_hooks/running_evaluation.py` takes for granted about `evaluate` and `predict`, checked on Keras alone."""

import inspect

import keras
import pytest
from keras import layers

from tests.fit_hooks.assumptions import JIT, assumes, data


class Spy(layers.Layer):
    """Notes what the `evaluate` or `predict` keeps in `callbacks` that it is called in."""

    def __init__(self, seen):
        super().__init__()
        self.note = seen.append  # no list: Keras would look for layers in it

    def call(self, inputs):
        frame = inspect.currentframe()
        while frame is not None:
            if frame.f_code.co_name in ("evaluate", "predict"):
                self.note((frame.f_locals.get("self"), frame.f_locals.get("callbacks")))
            frame = frame.f_back
        return inputs


class Ends(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_test_end(self, logs=None):
        self.seen.append("evaluate")

    def on_predict_end(self, logs=None):
        self.seen.append("predict")


def spied():
    seen = []
    model = keras.Sequential([keras.Input((3,)), Spy(seen), layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=JIT)
    return model, seen


def run(model, method, **arguments):
    x, y = data()
    return getattr(model, method)(*((x, y) if method == "evaluate" else (x,)), batch_size=4, verbose=0, **arguments)


@pytest.mark.parametrize("method", ["evaluate", "predict"])
@assumes("Model.evaluate.callbacks")
def test_a_run_keeps_its_callbacks_in_a_local_variable(method):
    model, seen = spied()
    run(model, method)
    assert any(owner is model and isinstance(found, keras.callbacks.CallbackList) for owner, found in seen), (
        f"fit_hooks/running_evaluation.py: `callbacks` is no longer a local variable of `Model.{method}` while its "
        "steps run: MatchCheck no longer warns at its end"
    )


@pytest.mark.parametrize("method", ["evaluate", "predict"])
@assumes("Model.predict_function")
def test_a_run_looks_up_its_step_and_a_callback_that_comes_then_is_told_of_the_end(method):
    model, _ = spied()
    run(model, method)
    name = {"evaluate": "test_function", "predict": "predict_function"}[method]
    original, ends, calls = getattr(model, name), Ends(), []

    def step(*arguments):
        calls.append(arguments)
        callbacks = keras.callbacks.CallbackList
        frame = inspect.currentframe()
        while not isinstance(frame.f_locals.get("callbacks"), callbacks) or frame.f_code.co_name != method:
            frame = frame.f_back
        if ends not in frame.f_locals["callbacks"].callbacks:
            frame.f_locals["callbacks"].callbacks.append(ends)
        return original(*arguments)

    setattr(model, name, step)
    run(model, method)
    run(model, method)
    assert len(calls) == 8 and ends.seen == [method, method], (
        f"fit_hooks/running_evaluation.py: `Model.{method}` no longer looks up and calls `{name}` at each step, or no "
        "longer tells a callback that comes in a step of its end: MatchCheck warns after the first run only"
    )
