"""Save a model with its optimizer in one file, find it again, and say what it holds, without a callback."""

import datetime
import os

import keras

import tf_tricks
from tf_tricks._checks import check_bool, check_instance, check_integer, check_optional, check_path
from tf_tricks.checkpoints import file_format, keras_files, model_state
from tf_tricks.checkpoints.file_format import DamagedCheckpoint
from tf_tricks.checkpoints.reports import Description

LAYOUT = 1
SUFFIX = ".safetensors"
_POSITION_ONLY = ("iteration", "learning_rate", "step_counter", "dynamic_scale")


def save(path, model, *, optimizer=True, epoch=None, metadata=None):
    """Write the state of `model` to one file: weights, optimizer, random state of its layers.

    The file is a safetensors file with a checksum. It appears under its name only when it is complete and on the disc;
    a file of that name is then replaced. Nothing in it is code. Random state outside the model (Python, NumPy, and
    that of Torch, which its unseeded Dropout uses) is left to `callbacks.TrainingCheckpoint`.

    Args:
        path: str or path-like; any suffix but those of Keras, ".safetensors" by custom.
        model: a built `keras.Model`, also while `fit` runs.
        optimizer: bool, with the optimizer's variables: moments, iterations, learning rate, loss scale.
        epoch: int >= 0 or None, a number to find again in `restore` and `describe`.
        metadata: nested dicts, lists, str, numbers and arrays, given back as they are.
    Raises:
        ValueError: the model is not built, or has no optimizer though `optimizer=True`.
        TypeError: something in `metadata` is of another type.
        OSError: the file cannot be written. What was there before stays.
    Reference:
        Loshchilov and Hutter (2019), arXiv:1711.05101, for what the moments mean to a run that goes on without them.
    Example:
        >>> import tempfile
        >>> _ = model.fit(x, y, verbose=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tf_tricks.checkpoints.save(folder + "/run.safetensors", model, epoch=1)
        ...     print(tf_tricks.checkpoints.restore(folder, model))
        Restored 4 of 4 weights from ...run.safetensors.
        Optimizer: Adam, 10 variables, 1 step.
    """
    path = check_path("path", path)
    check_instance("model", model, keras.Model, "a keras.Model")
    if keras_files.is_keras_file(path):
        raise ValueError(f"`path` must not end in .h5 or .keras, which are formats of Keras. Received: path={path!r}")
    check_bool("optimizer", optimizer)
    check_optional(check_integer, "epoch", epoch, 0)
    if not model.weights:
        raise ValueError(f"The model `{model.name}` has no variables yet. Call it on a batch, or `model.build(...)`.")
    state = model_state.take(model, optimizer=optimizer, seeds=True)
    file_format.write(path, layout(state, {"epoch": epoch, "metadata": metadata}))


def layout(state, run):
    """The tree of a checkpoint file: the state of a model, and what else belongs to the run."""
    return {
        "format": LAYOUT,
        "tf_tricks": tf_tricks.__version__,
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        "model": state,
        "run": run,
    }


def latest(directory):
    """Path of the newest checkpoint in a folder whose checksum is right, or None.

    Args:
        directory: str or path-like, a folder that `save` or `callbacks.TrainingCheckpoint` wrote to.
    Raises:
        NotADirectoryError: it is no folder.
    Example:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tf_tricks.checkpoints.save(folder + "/run.safetensors", model)
        ...     os.path.basename(tf_tricks.checkpoints.latest(folder))
        'run.safetensors'
    """
    for path in reversed(entries(directory)):
        try:
            file_format.check(path)
        except (DamagedCheckpoint, OSError):
            continue
        return path
    return None


def entries(directory):
    """Paths of the files of our format in a folder, oldest first; damaged ones come first of all."""
    directory = check_path("directory", directory)
    if not os.path.isdir(directory):
        raise NotADirectoryError(f"`directory` must be a folder. Received: directory={directory!r}")
    found = []
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if not name.startswith(".") and os.path.isfile(path):
            created = _created(path)
            if created or name.endswith(SUFFIX):
                found.append((created, path))
    return [path for _, path in sorted(found)]


def verify(path):
    """Read a whole file and compare it with its checksum; return nothing if it is as it was written.

    Args:
        path: str or path-like, a file or a folder (then its newest good checkpoint).
    Raises:
        DamagedCheckpoint: the file was cut short or changed; the message says how that was seen.
        FileNotFoundError: there is no such file.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tf_tricks.checkpoints.save(folder + "/run.safetensors", model)
        ...     tf_tricks.checkpoints.verify(folder + "/run.safetensors")
    """
    path = find(path)
    keras_files.check(path) if keras_files.is_keras_file(path) else file_format.check(path)


def describe(path):
    """What a checkpoint holds, without a model: `print` the result.

    Args:
        path: str or path-like, a file of `save` or `callbacks.TrainingCheckpoint`, or a folder of them.
    Returns:
        `Description`, whose `damage` says if the checksum is wrong.
    Raises:
        DamagedCheckpoint: the file is so damaged that nothing can be said about it, or is of another kind.
        FileNotFoundError: there is no such file.
    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tf_tricks.checkpoints.save(folder + "/run.safetensors", model)
        ...     tf_tricks.checkpoints.describe(folder + "/run.safetensors").optimizer
        'Adam'
    """
    path = find(path)
    if keras_files.is_keras_file(path):
        raise DamagedCheckpoint(f"`{path}` is a file of Keras: `restore` and `verify` read it, `describe` does not.")
    tree = load(path, verified=False)
    try:
        file_format.check(path)
        damage = None
    except DamagedCheckpoint as error:
        damage = f"DAMAGED: {error}"
    state, run = tree["model"], tree["run"]
    groups = {name: state.get(name) for name in ("weights", "optimizer", "seeds", "metrics")}
    groups["optimizer"] = (state.get("optimizer") or {}).get("variables")
    return Description(
        path,
        created=tree.get("created"),
        versions={name: tree.get(name) for name in ("tf_tricks", "keras", "backend")},
        model=state.get("name"),
        epoch=run.get("epoch"),
        step=_step(tree),
        optimizer=model_state.optimizer_name(state.get("optimizer")),
        moments=any(not path.endswith(_POSITION_ONLY) for path in groups["optimizer"] or {}),
        variables=[
            (group, name, array.shape, model_state.dtype(array), array.nbytes)
            for group, arrays in groups.items()
            for name, array in (arrays or {}).items()
        ],
        metadata=run.get("metadata"),
        damage=damage,
    )


# --- files --------------------------------------------------------------------------------------------------------


def find(path):
    """The file that `path` means: itself, or the newest good one in it."""
    path = check_path("path", path)
    if os.path.isdir(path):
        newest = latest(path)
        if newest is None:
            raise FileNotFoundError(f"The folder `{path}` holds no checkpoint that verifies.")
        return newest
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"`path` must be an existing file or folder. There is no checkpoint `{path}`. Received: path={path!r}"
        )
    return path


def load(path, verified=True):
    """The tree of a checkpoint file, its layout checked."""
    tree = file_format.read(path, verify=verified)
    number = tree.get("format") if isinstance(tree, dict) else None
    if not isinstance(number, int) or not isinstance(tree.get("model"), dict) or not isinstance(tree.get("run"), dict):
        raise DamagedCheckpoint(f"`{path}` does not hold the state of a model.")
    if number > LAYOUT:
        raise ValueError(
            f"`{path}` has layout {number}, written by tf_tricks {tree.get('tf_tricks')}; this is "
            f"{tf_tricks.__version__}, which reads up to {LAYOUT}. Install a newer tf_tricks."
        )
    return tree


def summary(path):
    """Dict with "created", "epoch" and "step" of a checkpoint file, whose arrays are not checked."""
    tree = load(path, verified=False)
    return {"created": str(tree.get("created")), "epoch": tree["run"].get("epoch"), "step": _step(tree)}


def _created(path):
    try:
        return summary(path)["created"]
    except (ValueError, OSError):
        return ""  # damaged: it sorts before all others


def _step(tree):
    steps = model_state.iterations(tree["model"].get("optimizer"))
    return tree["run"].get("step") if steps is None else steps
