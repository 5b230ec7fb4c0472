"""The state of a model in host memory: copies of its variables, and the way back into an equal model.

A state is a tree of dicts, strings, numbers and NumPy arrays, which `packing` can write and read.
"""

import contextlib
import json
import warnings

import keras
import numpy as np

from tf_tricks.checkpoints.host_memory import own_copies

ADVICE = {
    "snapshot": "Restore it into the model that it was taken of, or one built and compiled in the same way.",
    "checkpoint": "Restore it into a model built and compiled in the same way; `strict=False` or `partial=[...]` of "
    "`tf_tricks.checkpoints.restore` loads what fits into another one.",
}
_BITS = 2**32  # a seed is a number of 32 bits, whatever the dtype that the backend keeps it in


def take(model, *, optimizer=True, seeds=False, metrics=False, memory=None):
    """Copy the present state of `model` to host memory.

    Args:
        model: `keras.Model`; a built one whose optimizer is not built gets it built.
        optimizer: bool, take the optimizer's variables: moments, iterations, learning rate, loss scale.
        seeds: bool, take the state of every `SeedGenerator` in the model.
        metrics: bool, take the running sums of the metrics.
        memory: `HostMemory` that the copies go to, or None for arrays of their own.
    Returns:
        Dict with "weights", "seeds" and "metrics" (path -> array, in the order of the variables; None for what was
        not asked for), "optimizer" (None, or a dict with "class", "inner" and "variables"), "name" and "build" (what
        an equal model that is not built yet can be built from). A path that comes again ends in "#2", "#3", ...
    Raises:
        ValueError: `optimizer=True` and the model has none.
    """
    synchronise(model)
    if optimizer:
        require_optimizer(model)
        if model.built:
            build_optimizer(model)
    groups = {
        "weights": model.weights,
        "optimizer": model.optimizer.variables if optimizer else None,
        "seeds": seed_variables(model) if seeds else None,
        "metrics": model.metrics_variables if metrics else None,
    }
    copies = _copies(groups, memory.copies if memory else own_copies)
    if optimizer:
        copies["optimizer"] = {**describe_optimizer(model.optimizer), "variables": copies["optimizer"]}
    return {"name": model.name, "build": _build_config(model), **copies}


def assign(model, tree, *, optimizer=True, seeds=True, metrics=True, learning_rate=True, cast=False, **words):
    """Assign a state that `take` made to the variables of `model`, by position; all of it or nothing.

    Args:
        model: a model of the same architecture; it and its optimizer are built if they are not.
        tree: what `take` returned. Groups that it does not hold are left alone.
        optimizer, seeds, metrics: bool, False leaves this group of variables alone.
        learning_rate: bool, False leaves the variable of a constant learning rate alone.
        cast: bool, convert floating dtypes that differ. (Integers are converted always: backends differ in them.)
        words: `source` ("checkpoint" or "snapshot") and `advice`, how the error speaks of the tree and what to do.
    Raises:
        ValueError: a variable does not match in number, shape or dtype, or the optimizer is of another class. The
            message names the first one. No value of a variable is changed then.
    """
    build(model, tree.get("build"))
    pairs = plan(model, tree, "weights", cast=cast, **words)
    if optimizer and tree.get("optimizer") is not None:
        require_optimizer(model)
        build_optimizer(model)
        chosen = plan_optimizer(model.optimizer, tree["optimizer"], cast=cast, **words)
        kept = None if learning_rate else getattr(model.optimizer, "learning_rate", None)
        pairs += [pair for pair in chosen if pair[0] is not kept]
    for group, wanted in (("seeds", seeds), ("metrics", metrics)):
        if wanted and tree.get(group) is not None:
            pairs += plan(model, tree, group, cast=cast, **words)
    execute(model, pairs)


def execute(model, pairs):
    """Assign the arrays of a plan to their variables."""
    synchronise(model)
    for variable, array in pairs:
        # A private copy: JAX goes on using the memory that it is given, be it a snapshot's or a file's.
        variable.assign(np.array(array))


def synchronise(model):
    """On JAX the state lives outside the variables while `fit` runs: bring it back."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def seed_variables(model):
    """The states of all the `SeedGenerator`s in the model, each once."""
    seen = {id(variable) for variable in model.weights}
    found = {id(variable): variable for variable in model.variables if id(variable) not in seen}
    return list(found.values())


# --- building -----------------------------------------------------------------------------------------------------


def build(model, config=None):
    """Build `model` from the shapes that the model of the state was built with, if it is not built yet."""
    if model.built or model.weights:
        return
    reason = "the file does not hold its input shape"
    if config:
        try:
            with _scope(model), warnings.catch_warnings(action="error"):
                model.build_from_config(_tuples(config))
            model.built = bool(model.weights)
        except Exception as error:  # whatever the layers raise
            reason = str(error)
    if not model.weights:
        raise ValueError(
            f"The model `{model.name}` is not built, and building it failed: {reason}. Call it on a batch, or call "
            "`model.build(input_shape)`, first."
        )


def build_optimizer(model):
    """Create the variables of the model's optimizer, where they are not there yet."""
    if not model.optimizer.built:
        with _scope(model):
            model.optimizer.build(model.trainable_variables)


def require_optimizer(model):
    """Raise ValueError if the model has no optimizer."""
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            "The model has no optimizer. Call `model.compile(...)` first, or leave the optimizer's state out "
            '(`optimizer=False` where it is taken, `optimizer="ignore"` in `restore`).'
        )


def _scope(model):
    strategy = getattr(model, "distribute_strategy", None)  # TensorFlow's alone
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def _build_config(model):
    try:
        return json.loads(json.dumps(model.get_build_config()))
    except TypeError:  # a model with a config of its own, which no file can hold
        return None


def _tuples(config):
    """Shapes as tuples again: JSON knows lists only."""
    if isinstance(config, dict):
        return {key: _tuples(value) for key, value in config.items()}
    if isinstance(config, list):
        items = [_tuples(value) for value in config]
        return tuple(items) if all(n is None or isinstance(n, int) for n in items) else items
    return config


# --- what fits where ----------------------------------------------------------------------------------------------


def plan(model, tree, group, **options):
    """List of `(variable, array)` for one group of a tree; see `assign` for what is raised."""
    find = {"weights": lambda: model.weights, "seeds": lambda: seed_variables(model)}
    variables = find.get(group, lambda: model.metrics_variables)()
    return match(group, variables, tree[group], **options)


def describe_optimizer(optimizer):
    """The class of an optimizer, and that of the one inside a LossScaleOptimizer with the number of its variables."""
    inner = getattr(optimizer, "inner_optimizer", None)
    return {
        "class": type(optimizer).__name__,
        "inner": None if inner is None else {"class": type(inner).__name__, "count": len(inner.variables)},
    }


def optimizer_name(saved):
    """ "Adam", or "LossScaleOptimizer(Adam)", of the optimizer's part of a tree; None if there is none."""
    if saved is None or not saved.get("inner"):
        return saved and saved.get("class")
    return f"{saved['class']}({saved['inner']['class']})"


def iterations(saved):
    """How many steps the optimizer of a tree has made, or None."""
    counters = [array for path, array in saved["variables"].items() if path.endswith("iteration")] if saved else []
    return int(counters[-1]) if counters else None  # the last is that of the optimizer inside a LossScaleOptimizer


def plan_optimizer(optimizer, saved, source="checkpoint", **options):
    """Like `plan`, for the optimizer's part of a tree; the loss scale may be there on one side only."""
    ours, theirs = describe_optimizer(optimizer), {"class": None, "inner": None, **saved}
    names = [(each["inner"] or each)["class"] for each in (ours, theirs)]
    if None not in names and names[0] != names[1]:
        advice = options.get("advice") or (
            f'Compile the model with {names[1]}, or leave the optimizer out (optimizer="ignore").'
        )
        raise ValueError(
            f"{source.capitalize()}: the model's optimizer is {names[0]}, the {source} holds the state of {names[1]}. "
            f"{advice}"
        )
    variables, arrays = optimizer.variables, saved["variables"]
    if ours["inner"] and theirs["class"] is not None and not theirs["inner"]:
        variables = optimizer.inner_optimizer.variables  # the scale starts afresh
    if theirs["inner"] and not ours["inner"]:
        arrays = dict(list(arrays.items())[-theirs["inner"]["count"] :])
    return match("optimizer", variables, arrays, source=source, **options)


def match(group, variables, saved, *, cast=False, source="checkpoint", advice=None):
    """List of `(variable, array)` by position; ValueError names the first variable that does not match."""
    who, advice = source.capitalize(), advice or ADVICE[source]
    for variable, (path, array) in zip(variables, saved.items(), strict=False):
        if not fits(variable, array, cast):
            raise ValueError(
                f"{who}: variable `{variable.path}` has shape {tuple(variable.shape)} and dtype {dtype(variable)}, but "
                f"the {source} holds `{path}` with shape {tuple(array.shape)} and dtype {dtype(array)} in its place. "
                f"{advice}"
            )
    if len(variables) != len(saved):
        paths = [variable.path for variable in variables], list(saved)
        more, where = (paths[0], "model") if len(paths[0]) > len(paths[1]) else (paths[1], source)
        raise ValueError(
            f"{who}: the model has {len(paths[0])} variables in `{group}`, the {source} {len(paths[1])}; the first "
            f"that only the {where} has is `{more[min(map(len, paths))]}`. {advice}"
        )
    return [(v, converted(v, array, group == "seeds")) for v, array in zip(variables, saved.values(), strict=True)]


def fits(variable, array, cast=False):
    """Can the variable take the array: same shape, and a dtype that is the same or may be converted?"""
    if tuple(variable.shape) != tuple(array.shape):
        return False
    ours, theirs = dtype(variable), dtype(array)
    integers = keras.backend.is_int_dtype(ours) and keras.backend.is_int_dtype(theirs)
    floats = keras.backend.is_float_dtype(ours) and keras.backend.is_float_dtype(theirs)
    return ours == theirs or integers or (cast and floats)


def converted(variable, array, is_seed=False):
    """The array with the variable's integer dtype; floats are left to `assign`."""
    wanted = dtype(variable)
    if wanted == dtype(array) or not keras.backend.is_int_dtype(wanted):
        return array
    if is_seed:
        unsigned = np.asarray(array).astype("int64") % _BITS
        return (unsigned.astype("uint32").view("int32") if wanted == "int32" else unsigned).astype(wanted)
    result = np.asarray(array).astype(wanted)
    if not np.array_equal(result, array):
        raise ValueError(f"Variable `{variable.path}` is {wanted}, too small for a value of the file: {np.max(array)}.")
    return result


def dtype(value):
    """Name of the dtype of a variable or an array."""
    return keras.backend.standardize_dtype(value.dtype)


def unique(pairs):
    """Dict of `(path, value)` pairs; a path that comes again gets a number."""
    found, counts = {}, {}
    for path, value in pairs:
        counts[path] = counts.get(path, 0) + 1
        found[path if counts[path] == 1 else f"{path}#{counts[path]}"] = value
    return found


def _copies(groups, copies):
    arrays = iter(copies([variable for group in groups.values() for variable in group or ()]))
    return {
        name: None if group is None else unique([(variable.path, next(arrays)) for variable in group])
        for name, group in groups.items()
    }
