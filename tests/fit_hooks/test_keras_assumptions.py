"""What `fit_hooks` takes for granted about the inside of Keras, each checked on Keras alone.

When Keras changes, the test that fails names the file of ours that breaks and what the user loses. What is assumed
for resuming a run is in `test_resume_assumptions.py` and `test_data_assumptions.py`.
"""

import ast
import importlib
import pathlib
import pkgutil

import keras
import numpy as np
import pytest
from keras import layers, ops

import tests.fit_hooks.test_data_assumptions
import tests.fit_hooks.test_evaluation_assumptions
import tests.fit_hooks.test_freezing_assumptions
import tests.fit_hooks.test_precision_assumptions
import tests.fit_hooks.test_resume_assumptions  # noqa: F401  (all five fill COVERED)
import tf_tricks
from tests.fit_hooks.assumptions import COVERED, AtBegin, array, assumes, build, data, fit
from tf_tricks import fit_hooks
from tf_tricks._backend import BACKEND

PACKAGE = pathlib.Path(tf_tricks.__file__).parent


# --- fit_hooks/hook.py and fit_hooks/drivers.py ---------------------------------------------------------------------
@assumes("Model.train_function")
def test_fit_calls_the_present_train_function_at_every_step():
    seen = []

    def install(model):
        original = model.train_function
        seen.append(("built", callable(original)))

        def second(*arguments):
            seen.append(("second", arguments))
            return original(*arguments)

        def first(*arguments):
            seen.append(("first", arguments))
            model.train_function = second
            return original(*arguments)

        model.train_function = first

    fit(build(), AtBegin(install))
    assert seen[0] == ("built", True), (
        "fit_hooks/hook.py: `fit` no longer builds `model.train_function` before `on_train_begin`: no hook finds a step"
    )
    assert [name for name, _ in seen[1:]] == ["first", "second", "second", "second"], (
        "fit_hooks/drivers.py: `fit` no longer looks up and calls `model.train_function` at each step: NaNGuard, "
        "GradientNormLogger and FinalLearningRateDrop see no step"
    )
    lengths = {"tensorflow": 1, "jax": 2, "torch": 1}
    assert len(seen[1][1]) == lengths[BACKEND], (
        "fit_hooks/drivers.py: `train_function` no longer takes (iterator) on TensorFlow, (state, iterator) on JAX and "
        "(data) on Torch: the drivers find no batch"
    )
    source = seen[1][1][-1]
    assert hasattr(source, "get_next" if BACKEND == "tensorflow" else "__next__" if BACKEND == "jax" else "__len__"), (
        "fit_hooks/drivers.py: `fit` hands `train_function` another source of batches: the drivers find no batch"
    )


def test_fit_gives_the_model_a_new_history_before_on_train_begin():
    seen = []
    model = build()
    for _ in range(2):
        fit(model, AtBegin(lambda model: seen.append(model.history)))
    assert seen[0] is not None and seen[0] is not seen[1], (
        "fit_hooks/hook.py: `model.history` no longer tells one `fit` from the next: after a `fit` that raised, a hook "
        "that was left behind takes part in the next one"
    )


def replaced_step(model, step):
    """The train function that Keras makes of `step`, set on the instance."""
    object.__setattr__(model, "train_step", step)
    model.make_train_function(force=True)
    return model.train_function


@assumes("Model.train_step", "Model.make_train_function")
def test_make_train_function_uses_the_step_of_the_instance():
    model = build()
    fit(model)
    before = model.train_function
    if BACKEND == "jax":

        def step(state, payload):
            return ({"loss": payload[0]}, payload[1]), state
    else:

        def step(payload):
            return {"loss": payload[0]}, payload[1]

    object.__setattr__(model, "steps_per_execution", 1)
    function = replaced_step(model, step)
    assert function is not before, (
        "fit_hooks/drivers.py: `make_train_function(force=True)` no longer builds a new step: nothing can be recorded"
    )
    payload = (ops.ones((2,)), ops.zeros((3,)))
    state = ([ops.ones(1)],)
    result = function(state, iter([payload]))[0] if BACKEND == "jax" else function([payload])
    logs, record = result
    sentence = (
        "fit_hooks/drivers.py: `make_train_function` no longer calls the instance's `train_step` with the batch and "
        "returns what it returns: the instrumented step does not run"
    )
    np.testing.assert_array_equal(array(logs["loss"]), [1, 1], err_msg=sentence)
    np.testing.assert_array_equal(array(record), [0, 0, 0], err_msg=sentence)


@pytest.mark.skipif(BACKEND == "torch", reason="Torch takes one step a call")
@assumes("Model.make_train_function")
def test_make_train_function_reads_steps_per_execution():
    calls = []
    for steps in (1, 3):
        model, count = build(), []

        def step(*arguments, count=count):
            count.append(1)
            return ({"loss": ops.zeros(())}, arguments[0]) if BACKEND == "jax" else {"loss": ops.zeros(())}

        object.__setattr__(model, "run_eagerly", True)
        object.__setattr__(model, "steps_per_execution", steps)
        function = replaced_step(model, step)
        batches = [ops.ones((2,))] * 3
        function(*([(), iter(batches)] if BACKEND == "jax" else [batches]))
        calls.append(len(count))
    assert calls == [1, 3], (
        "fit_hooks/drivers.py: `make_train_function` no longer reads `steps_per_execution`: with it above 1, only the "
        "last step of each call would be recorded and guarded"
    )


@assumes("Model._symbolic_build")
def test_symbolic_build_creates_all_variables_and_changes_none():
    model = keras.Sequential([layers.Dense(2), layers.BatchNormalization()])
    model.compile(keras.optimizers.Adam(), "mse", metrics=["mae"])
    batch = tuple(keras.KerasTensor((None, size), "float32") for size in (3, 2))
    model._symbolic_build(data_batch=batch)
    assert model.built and model.optimizer.built and model.metrics_variables, (
        "fit_hooks/drivers.py: `model._symbolic_build(data_batch=...)` no longer creates all variables: NaNGuard "
        "cannot give back what a bad first step of a subclassed model destroys on TensorFlow"
    )
    values = [array(v) for v in model.variables]
    model._symbolic_build(data_batch=batch)
    for value, variable in zip(values, model.variables, strict=True):
        np.testing.assert_array_equal(
            value,
            array(variable),
            err_msg="fit_hooks/drivers.py: `_symbolic_build` of a built model changes its weights",
        )


@pytest.mark.skipif(BACKEND != "jax", reason="state outside of variables is JAX's")
@assumes("Model._jax_state_synced")
def test_fit_on_jax_reads_the_variables_again_when_they_are_marked_as_synced():
    seen = []

    def install(model):
        original = model.train_function

        def function(state, iterator):
            seen.append(float(np.sum(array(state[0][0]))))
            logs, state = original(state, iterator)
            if len(seen) == 2:
                for variables, values in zip(variables_of(model), state, strict=True):
                    for variable, value in zip(variables, values, strict=True):
                        variable.assign(value)
                model.trainable_variables[0].assign(np.full((3, 1), 5.0, "float32"))
                model._jax_state_synced = True
            return logs, state

        model.train_function = function

    fit(build(), AtBegin(install))
    assert seen[2] == 15.0, (
        "fit_hooks/drivers.py: setting `model._jax_state_synced` no longer makes `fit` on JAX take its state from the "
        "variables: a rollback of NaNGuard and a ModelCheckpoint beside it see old weights"
    )


def variables_of(model):
    optimizer = model.optimizer.variables
    return model.trainable_variables, model.non_trainable_variables, optimizer, model.metrics_variables


@pytest.mark.skipif(BACKEND != "jax", reason="state outside of variables is JAX's")
def test_the_state_on_jax_has_four_parts_in_this_order():
    shapes = []

    def install(model):
        original = model.train_function

        def function(state, iterator):
            shapes.append([[tuple(value.shape) for value in part] for part in state])
            return original(state, iterator)

        model.train_function = function

    model = build(keras.optimizers.Adam(0.1))
    fit(model, AtBegin(install))
    expected = [[tuple(v.shape) for v in part] for part in variables_of(model)]
    assert shapes[0] == expected, (
        "fit_hooks/drivers.py: the state of a step on JAX is no longer (trainable, non-trainable, optimizer, metrics): "
        "publishing it would put values into the wrong variables"
    )


# --- fit_hooks/holding.py -------------------------------------------------------------------------------------------
@pytest.mark.skipif(BACKEND != "jax", reason="elsewhere the loss is known before the update")
@assumes("Model.compute_loss_and_updates")
def test_the_step_on_jax_differentiates_what_the_instance_s_method_returns():
    model = build()
    fit(model)
    still = [array(v) for v in model.trainable_variables]
    original = model.compute_loss_and_updates

    def without_a_slope(*args, **kwargs):
        loss, others = original(*args, **kwargs)
        return 0.0 * loss, others

    object.__setattr__(model, "compute_loss_and_updates", without_a_slope)
    model.make_train_function(force=True)
    fit(model)
    for variable, value in zip(model.trainable_variables, still, strict=True):
        np.testing.assert_array_equal(
            array(variable),
            value,
            "fit_hooks/holding.py: Keras's step on JAX no longer takes the gradient of what the model's "
            "`compute_loss_and_updates` returns: NaNGuard applies an update whose loss is not finite",
        )


# --- fit_hooks/in_step.py -------------------------------------------------------------------------------------------
def test_gradients_pass_through_the_optimizer_s_class():
    model, seen = build(), []
    optimizer = model.optimizer

    class Watched(type(optimizer)):
        def scale_loss(self, loss):
            seen.append("scale_loss")
            return super().scale_loss(loss)

        def apply(self, grads, trainable_variables=None):
            seen.append(("apply", len(grads)))
            return super().apply(grads, trainable_variables)

        def stateless_apply(self, optimizer_variables, grads, trainable_variables):
            seen.append(("stateless_apply", len(grads)))
            return super().stateless_apply(optimizer_variables, grads, trainable_variables)

    object.__setattr__(optimizer, "__class__", Watched)
    fit(model)
    name = "stateless_apply" if BACKEND == "jax" else "apply"
    assert seen[0] == "scale_loss", (
        "fit_hooks/in_step.py: `train_step` no longer passes the loss through `optimizer.scale_loss` before the "
        "gradients: NaNGuard does not see a non-finite loss whose gradients are finite"
    )
    assert (name, 2) in seen, (
        f"fit_hooks/in_step.py: `train_step` no longer passes the gradients through `optimizer.{name}`: NaNGuard and "
        "GradientNormLogger see no gradient"
    )


def optimizers():
    found = [getattr(keras.optimizers, name) for name in dir(keras.optimizers)]
    classes = [c for c in found if isinstance(c, type) and issubclass(c, keras.optimizers.Optimizer)]
    # These two pass the gradients on to others, which have the rates.
    wrappers = [getattr(keras.optimizers, name, None) for name in ("LossScaleOptimizer", "MultiOptimizer")]
    return [c for c in classes if c not in (keras.optimizers.Optimizer, *wrappers)]


@pytest.mark.parametrize("cls", optimizers(), ids=lambda cls: cls.__name__)
@assumes("Optimizer._get_current_learning_rate")
def test_every_optimizer_asks_one_method_for_its_rate(cls):
    asked = []
    optimizer = cls(learning_rate=0.1)

    class Watched(type(optimizer)):
        def _get_current_learning_rate(self):
            asked.append(1)
            return super()._get_current_learning_rate()

    variable = keras.Variable(np.ones((3, 2), "float32"))
    optimizer.build([variable])
    object.__setattr__(optimizer, "__class__", Watched)
    optimizer.apply([ops.ones((3, 2))], [variable])
    assert asked, (
        f"fit_hooks/in_step.py: {cls.__name__} no longer gets its rate from `_get_current_learning_rate`: "
        "FinalLearningRateDrop and NaNGuard's rollback do not lower it"
    )


@assumes("Optimizer._accumulated_gradients", "Optimizer._iterations")
def test_gradient_accumulation_keeps_its_sum_and_counts_calls():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    variables = [keras.Variable(np.zeros(2, "float32"), name=name) for name in "ab"]
    optimizer.build(variables)
    for factor in (1.0, 2.0, 3.0):
        optimizer.apply([factor * ops.ones(2), factor * ops.ones(2)], variables)
    for kept in optimizer._accumulated_gradients:
        np.testing.assert_array_equal(
            array(kept),
            [3, 3],
            err_msg="fit_hooks/in_step.py: `_accumulated_gradients` no longer holds the waiting sum of each variable: "
            "GradientNormLogger gives wrong norms after clipping under gradient accumulation",
        )
    assert (int(optimizer._iterations), int(optimizer.iterations)) == (3, 1), (
        "fit_hooks/in_step.py: `_iterations` no longer counts the calls of `apply` while gradients accumulate: "
        "GradientNormLogger takes the wrong steps for updates"
    )


# --- fit_hooks/learning_rate.py -------------------------------------------------------------------------------------
@assumes("Optimizer._learning_rate")
def test_the_optimizer_keeps_what_the_user_gave_as_rate():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)

    def rate():
        return 0.1

    for given in (schedule, rate):
        assert keras.optimizers.SGD(given)._learning_rate is given, (
            "fit_hooks/learning_rate.py: `optimizer._learning_rate` is no longer the user's schedule or callable: it "
            "cannot be wrapped, and FinalLearningRateDrop loses it"
        )
    assert isinstance(keras.optimizers.SGD(0.1)._learning_rate, keras.Variable), (
        "fit_hooks/learning_rate.py: a constant rate is no longer a variable: it cannot be multiplied for good"
    )


# --- callbacks ------------------------------------------------------------------------------------------------------
def test_validation_tells_the_callbacks_before_it_begins():
    order = []

    class Order(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            order.append("test")

        def on_epoch_end(self, epoch, logs=None):
            order.append("epoch")

    fit(build(), Order(), validation_data=data())
    assert order == ["test", "epoch"], (
        "callbacks/nan_guard.py: `fit` no longer calls `on_test_begin` before the validation of an epoch: it would run "
        "while steps after a bad one wait to be made up for"
    )


# --- the allow lists ------------------------------------------------------------------------------------------------
@assumes("Layer._tracker")
def test_the_tracker_of_a_layer_notes_ids_of_variables():
    layer = layers.Layer()
    layer.extra = keras.Variable(np.zeros(3))
    stored = [ids for ids in layer._tracker.stored_ids.values() if id(layer.extra) in ids]
    assert len(stored) == 1, (
        "fit_hooks/replay_state.py: `Layer._tracker.stored_ids` no longer holds the ids of what a layer tracks: see "
        "whether an experiment on a borrowed model still leaves nothing behind (test_borrowing.py)"
    )


def allow_lists():
    """{entry: file} of every PRIVATE_ATTRIBUTES in fit_hooks."""
    found = {}
    for module in pkgutil.iter_modules(fit_hooks.__path__):
        loaded = importlib.import_module(f"tf_tricks.fit_hooks.{module.name}")
        for entry in getattr(loaded, "PRIVATE_ATTRIBUTES", {}):
            found.setdefault(entry, f"fit_hooks/{module.name}.py")
    return found


def test_every_entry_of_an_allow_list_has_a_test_and_may_only_go():
    assert sorted(allow_lists()) == sorted(COVERED), "give each entry of PRIVATE_ATTRIBUTES a test marked by `assumes`"
    assert set(allow_lists()) <= {
        "ArrayDataAdapter._shuffle",
        "BackupAndRestore._batches_seen_since_last_saving",
        "BackupAndRestore._current_epoch",
        "BackupAndRestore._last_batch_seen",
        "CallbackList._async_train",
        "CallbackList._flush_futures",
        "CallbackList.callbacks",
        "DataAdapter.get_tf_dataset",
        "DataAdapter.on_epoch_begin",
        "DataAdapter.on_epoch_end",
        "DistributedDataset._original_dataset",
        "EarlyStopping.best",
        "EarlyStopping.best_epoch",
        "EarlyStopping.best_weights",
        "EarlyStopping.stopped_epoch",
        "EarlyStopping.wait",
        "EpochIterator._current_iterator",
        "EpochIterator._distribute_strategy",
        "EpochIterator._distributed_dataset",
        "EpochIterator._enumerate_iterator",
        "EpochIterator._get_iterator",
        "EpochIterator._num_batches",
        "EpochIterator._steps_seen",
        "EpochIterator.data_adapter",
        "EpochIterator.steps_per_epoch",
        "GeneratorDataAdapter.generator",
        "Layer._tracker",
        "Layer._trainable",
        "Model._initial_epoch",
        "Model._jax_state_synced",
        "Model._symbolic_build",
        "Model.compute_loss_and_updates",
        "Model.evaluate.callbacks",
        "Model.fit.callbacks",
        "Model.fit.epoch_iterator",
        "Model.make_train_function",
        "Model.predict_function",
        "Model.train_function",
        "Model.train_step",
        "ModelCheckpoint._batches_seen_since_last_saving",
        "ModelCheckpoint._current_epoch",
        "ModelCheckpoint._last_batch_seen",
        "ModelCheckpoint.best",
        "Model._eval_epoch_iterator",
        "Model.fit.val_x",
        "Optimizer._accumulated_gradients",
        "Optimizer._backend_update_step",
        "Optimizer._get_current_learning_rate",
        "Optimizer._get_variable_index",
        "Optimizer._iterations",
        "Optimizer._learning_rate",
        "PyDatasetAdapter.enqueuer",
        "PyDatasetAdapter.py_dataset",
        "PyDatasetEnqueuer.ready_queue",
        "ReduceLROnPlateau.best",
        "ReduceLROnPlateau.cooldown_counter",
        "ReduceLROnPlateau.wait",
        "SeedGenerator.state",
        "Strategy.extended.should_checkpoint",
        "SwapEMAWeights._ema_weights_in_model",
        "TFDatasetAdapter._dataset",
        "TorchDataLoaderAdapter._dataloader",
        "global_state.get_global_attribute",
        "global_state.set_global_attribute",
        "keras.backend.result_type.BIT64_TO_BIT32_DTYPE",
        "keras.utils.set_random_seed.global_state",
        "sys._current_frames",
        "tensorflow.context._rng",
        "tensorflow.context._seed",
        "tf.data.Dataset._functions",
        "tf.data.Dataset._inputs",
        "tf.data.Dataset._seed",
        "tf.data.Dataset._seed2",
    }, "this list may only shrink: find a public way"


# Torch's fused operations on lists of tensors have no other name; its own optimizers are written with them.
FUSED = {"_foreach_norm", "_foreach_mul", "_foreach_sub_"}


def sources():
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def own_names(trees):
    """Private names that tf_tricks itself defines: functions, classes, attributes set on `self`, globals, fields."""
    names = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                names.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
    return names


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


NAMED_TUPLES = {"_asdict", "_fields", "_replace"}  # documented; the underscore keeps the names of fields free


def private_accesses(tree):
    """(name, line) of each `x._name` and `getattr(x, "_name")` where `x` is not `self`."""
    for node in ast.walk(tree):
        name = None
        if isinstance(node, ast.Attribute) and not is_self(node.value):
            name = node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            if node.func.id in ("getattr", "setattr", "hasattr", "delattr") and not is_self(node.args[0]):
                name = getattr(node.args[1], "value", None)
        if isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLES:
            yield name, node.lineno


def test_private_attributes_are_touched_in_fit_hooks_only_and_as_listed():
    trees = sources()
    allowed = {entry.rpartition(".")[2] for entry in allow_lists()}
    own = own_names(trees.values()) - allowed
    used, wrong = set(), []
    hooks = [tree for path, tree in trees.items() if path.parent.name == "fit_hooks"]
    for path, tree in trees.items():
        in_hooks = tree in hooks
        for name, line in private_accesses(tree):
            used.add(name)
            if name in own or name.startswith("_tf_tricks") or (in_hooks and name in allowed | FUSED):
                continue
            wrong.append(f"{path.relative_to(PACKAGE)}:{line}: `{name}` is private, and no allow list has it")
    assert not wrong, "\n".join(wrong)
    used |= {node.value for node in ast.walk(ast.Module(hooks, [])) if isinstance(node, ast.Constant)}  # for `getattr`
    assert {name for name in allowed if name.startswith("_")} <= used, "an allow list names what nobody touches"


def test_nobody_imports_keras_src():
    wrong = []
    for path, tree in sources().items():
        for node in ast.walk(tree):
            names = [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            if isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            if any(name == "keras.src" or name.startswith("keras.src.") for name in names):
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: keras.src is no public interface")
    assert not wrong, "\n".join(wrong)
