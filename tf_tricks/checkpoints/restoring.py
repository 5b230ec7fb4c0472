"""Give a model the state that a file holds, all that was asked for or nothing, and report what was done."""

import keras

from tf_tricks._checks import check_bool, check_instance, check_one_of
from tf_tricks.checkpoints import keras_files, matching, model_state, saving
from tf_tricks.checkpoints.reports import RestoreReport

OPTIMIZER_CHOICES = ("require", "if-present", "ignore")


def restore(path, model, strict=True, *, optimizer="require", partial=None):
    """Give `model` the state that a file holds, whichever backend, dtype policy or number of devices wrote it.

    Variables are matched by position, so that automatic names ("dense_3") do not matter; with `strict=False` or
    `partial` by the names of layer and variable. Model and optimizer are built if they are not. Either everything that
    was asked for is restored, or an error is raised and no variable changes its value.

    Args:
        path: str or path-like: a file of `save` or of `callbacks.TrainingCheckpoint`, a ".weights.h5" or ".keras" file
            of Keras, or a folder, whose newest checkpoint that verifies is taken.
        model: `keras.Model`, compiled unless the optimizer is ignored.
        strict: bool, refuse a file that does not fit in number and shape. False: load what fits, report the rest.
        optimizer: "require": refuse a file without the state of the model's optimizer. "if-present": say in the report
            what became of it. "ignore": leave the model's optimizer alone.
        partial: list of patterns of layer names, such as ["conv*", "backbone"], for fine-tuning: only weights of these
            layers (and of layers inside them) are loaded; optimizer and random state are left alone.
    Returns:
        `RestoreReport`: attributes `loaded`, `skipped`, `unused`, `cast`, `optimizer`; `print` it.
    Raises:
        FileNotFoundError: there is no such file, or no good one in the folder.
        DamagedCheckpoint: the file was cut short or changed.
        ValueError: an argument is out of range; the file does not fit (the first variable that does not match is
            named, with both shapes); the optimizer is required and missing or of another class.
    Reference:
        https://github.com/keras-team/keras/issues/22010, an optimizer that was skipped without an error.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tf_tricks.checkpoints.save(folder + "/run.safetensors", model)
        ...     report = tf_tricks.checkpoints.restore(folder, model, partial=["dense*"])
        >>> len(report.loaded), report.skipped
        (4, {})
    """
    check_instance("model", model, keras.Model, "a keras.Model")
    check_bool("strict", strict)
    check_one_of("optimizer", optimizer, OPTIMIZER_CHOICES)
    partial = check_patterns(partial)
    path = saving.find(path)
    if keras_files.is_keras_file(path):
        return restore_keras_file(path, model, strict, optimizer, partial)
    tree = saving.load(path)
    report = RestoreReport(path, epoch=tree["run"].get("epoch"), metadata=tree["run"].get("metadata"))
    report.step = model_state.iterations(tree["model"].get("optimizer"))
    model_state.synchronise(model)
    model_state.build(model, tree["model"].get("build"))
    pairs = _plan_weights(model, tree["model"], strict, partial, report)
    if partial is not None:
        report.optimizer = "left alone, because of `partial`"
    else:
        pairs += _plan_optimizer(model, tree["model"], optimizer, report)
        pairs += _plan_seeds(model, tree["model"], strict, report)
    note_casts(pairs, report)
    model_state.execute(model, pairs)
    return report


def restore_keras_file(path, model, strict, optimizer, partial):
    """`restore` of a file that Keras wrote."""
    found = keras_files.read(path)
    report = RestoreReport(path, step=model_state.iterations(found["optimizer"]), seeds="not in files of Keras")
    model_state.synchronise(model)
    model_state.build(model, found["build"])
    paths = list(paths_of(model.weights))
    chosen = set(paths if partial is None else matching.select(paths, partial, model.name))
    more = found["number"] - len(paths) - len(model.metrics_variables)
    if more > 0 and partial is None:
        if strict:
            raise ValueError(
                f"`{path}` holds {found['number']} arrays, and the model `{model.name}` has {len(paths)} weights. "
                "Restore it into a model built in the same way, or pass strict=False."
            )
        report.unused = [f"{more} arrays"]
    loaded, before = keras_files.load_weights(path, model, strict and partial is None)
    try:
        report.loaded = [name for name in loaded if name in chosen]
        reasons = {False: "not chosen by `partial`", True: "not in the file, or of another shape there"}
        report.skipped = {name: reasons[name in chosen] for name in paths if name not in set(report.loaded)}
        for name in report.skipped:
            if strict and name in chosen:
                raise ValueError(f"Variable `{name}` is {reasons[True]}. Pass strict=False to load what fits.")
        pairs = [] if partial is not None else _plan_optimizer(model, found, optimizer, report)
    except BaseException:
        model_state.execute(model, before.values())
        raise
    if partial is not None:
        report.optimizer = "left alone, because of `partial`"
    note_casts(pairs, report)
    model_state.execute(model, [*(before[name] for name in report.skipped), *pairs])
    return report


def check_patterns(partial):
    """`partial` as a list of str, or None."""
    if partial is None:
        return None
    patterns = [partial] if isinstance(partial, str) else list(partial)
    if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"`partial` must be None or a list of patterns of layer names. Received: partial={partial!r}")
    return patterns


def _plan_weights(model, state, strict, partial, report):
    if strict and partial is None:
        report.loaded = list(paths_of(model.weights))
        return model_state.plan(model, state, "weights", cast=True)
    variables, saved = paths_of(model.weights), state["weights"]
    partners = matching.pair(list(variables), list(saved), (model.name, state.get("name")), automatic_names())
    chosen = set(variables if partial is None else matching.select(list(variables), partial, model.name))
    pairs = []
    for path, variable in variables.items():
        array = saved.get(partners.get(path))
        reason = "not chosen by `partial`" if path not in chosen else why_not(variable, array)
        if reason is None:
            pairs.append((variable, model_state.converted(variable, array)))
            report.loaded.append(path)
        elif strict and path in chosen:
            raise ValueError(f"Checkpoint: variable `{path}` is {reason}. Pass strict=False to load what fits.")
        else:
            report.skipped[path] = reason
    used = {partners[path] for path in report.loaded}
    report.unused = [path for path in saved if path not in used]
    return pairs


def why_not(variable, array):
    """None if the variable can take the array, else the reason."""
    if array is None:
        return "not in the file"
    if tuple(variable.shape) != tuple(array.shape):
        return f"of shape {tuple(variable.shape)}, and of shape {tuple(array.shape)} in the file"
    if not model_state.fits(variable, array, cast=True):
        return f"of dtype {model_state.dtype(variable)}, and of dtype {model_state.dtype(array)} in the file"
    return None


def _plan_optimizer(model, state, choice, report):
    saved = state.get("optimizer")
    if choice == "ignore":
        report.optimizer = "left alone, as asked for"
        return []
    try:
        return _require_optimizer(model, saved, report)
    except ValueError as error:
        if choice == "require":
            raise
        report.optimizer = f"not restored: {error}"
        return []


def _require_optimizer(model, saved, report):
    if saved is None:
        raise ValueError(
            "The checkpoint holds no optimizer's state, so that training would go on with an empty one. Save with "
            '`optimizer=True`, or pass optimizer="if-present" or "ignore" to go on without.'
        )
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            "The model has no optimizer for the state that the checkpoint holds. Call `model.compile(...)` first, or "
            'pass optimizer="ignore".'
        )
    if report.skipped or report.unused:
        raise ValueError(
            "The optimizer's state fits only the weights that it was saved with, and not all of them were loaded "
            f'(first: `{[*report.skipped, *report.unused][0]}`). Pass optimizer="ignore" or "if-present".'
        )
    model_state.build_optimizer(model)
    pairs = model_state.plan_optimizer(model.optimizer, saved, cast=True)
    steps = model_state.iterations(saved)
    report.optimizer = f"{model_state.optimizer_name(saved)}, {len(pairs)} variables, {steps} step{'s' * (steps != 1)}"
    ours = model_state.describe_optimizer(model.optimizer)
    if bool(ours["inner"]) != bool(saved.get("inner")):
        scale = "its loss scale starts afresh" if ours["inner"] else "without loss scale"
        report.optimizer += f", into {model_state.optimizer_name(ours)}: {scale}"
    report.optimizer_restored = True
    return pairs


def _plan_seeds(model, state, strict, report):
    if state.get("seeds") is None:
        report.seeds = "not in the file"
        return []
    try:
        pairs = model_state.plan(model, state, "seeds")
    except ValueError:
        if strict:
            raise
        report.seeds = "left alone: the file has another number of generators"
        return []
    report.seeds = f"{len(pairs)} generator{'s' * (len(pairs) != 1)}" if pairs else ""
    return pairs


def note_casts(pairs, report):
    """Put into the report which floating variables change their dtype."""
    for variable, array in pairs:
        ours, theirs = model_state.dtype(variable), model_state.dtype(array)
        if ours != theirs:
            report.cast[variable.path] = f"{theirs} -> {ours}"


def paths_of(variables):
    """Dict from path to variable, with the names that `take` gives."""
    return model_state.unique((variable.path, variable) for variable in variables)


def automatic_names():
    """The names that Keras gives to layers of its own, without numbers: "dense", "batch_normalization"."""
    return {matching.automatic_name(name) for name in dir(keras.layers) if name[0].isupper()}
