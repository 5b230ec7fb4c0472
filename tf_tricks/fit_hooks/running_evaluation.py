"""The end of the `evaluate` or `predict` that runs, for a layer, which nobody tells of it.

Both keep their `CallbackList` in a local variable. It is read from their frame, and gets one callback more. A step that
is compiled calls no Python of a layer, so the step that the model keeps for later runs is given to `Announced`, for as
long as the model keeps it.
"""

import inspect
import sys

import keras

from tf_tricks._backend import tf

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "Model.evaluate.callbacks": "the CallbackList, in `predict` too: its callbacks are told of the end",
    "Model.predict_function": "the step that is kept for later runs, and looked up in each; `test_function` likewise",
    "CallbackList.callbacks": "its list: one callback more, once for each function, until the end",
    "sys._current_frames": "under MirroredStrategy a layer is called on threads of the replicas",
}
STEPS = {"evaluate": "test_function", "predict": "predict_function"}


class AtEnd(keras.callbacks.Callback):
    """Calls a function at the end of `evaluate` or `predict`, once: the list may be the user's, for many runs."""

    async_safe = True  # there is nothing in it for a batch

    def __init__(self, function, callback_list):
        super().__init__()
        self.function, self.callback_list = function, callback_list

    def on_test_end(self, logs=None):
        # A new list: Keras is on its way through the old one.
        self.callback_list.callbacks = [each for each in self.callback_list.callbacks if each is not self]
        self.function()

    def on_predict_end(self, logs=None):
        self.on_test_end()


class Announced:
    """A compiled step of a model, which announces functions to the run that calls it."""

    def __init__(self, step):
        self.step, self.functions = step, []

    def __call__(self, *arguments):
        for function in self.functions:
            call_at_end(function)
        return self.step(*arguments)

    def __getattr__(self, name):
        if name.startswith("__") or name == "step":
            raise AttributeError(name)
        return getattr(self.step, name)


def call_at_end(function, compiled=False):
    """Have `function` called once at the end of the `evaluate` or `predict` that the caller runs inside of, if any.

    Args:
        function: callable without arguments; equal ones are called once. Not after a run that raises.
        compiled: bool. True: the caller is in a step that is traced now, so do it in all later runs of this step, too.
    """
    method, model, callback_list = _running()
    if callback_list is None:
        return
    if not any(isinstance(each, AtEnd) and each.function == function for each in callback_list.callbacks):
        callback_list.callbacks.append(AtEnd(function, callback_list))
    step = getattr(model, STEPS[method], None)
    if compiled and step is not None:
        if not isinstance(step, Announced):
            step = Announced(step)
            setattr(model, STEPS[method], step)
        if function not in step.functions:
            step.functions.append(function)


def _running():
    """(method, model, CallbackList) of the innermost `evaluate` or `predict` on this thread; three times None if none.

    Of any thread where this one belongs to a replica, whose run waits for it elsewhere.
    """
    frames = [inspect.currentframe()]
    if _is_replica():
        frames += sys._current_frames().values()
    for frame in frames:
        while frame is not None:
            if frame.f_code.co_name in STEPS:
                local = frame.f_locals
                if isinstance(local.get("callbacks"), keras.callbacks.CallbackList):
                    model = local.get("self")
                    if isinstance(model, keras.Model):
                        return frame.f_code.co_name, model, local["callbacks"]
            frame = frame.f_back
    return None, None, None


def _is_replica():
    context = tf.distribute.get_replica_context() if tf else None
    return context is not None and context.num_replicas_in_sync > 1
