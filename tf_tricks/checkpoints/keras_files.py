"""Read `.weights.h5` and `.keras` files of Keras: weights through Keras, the optimizer's state by ourselves.

Keras only warns when it skips an optimizer, converts dtypes without a word, and leaves a model half loaded when
something does not fit.
"""

import contextlib
import io
import json
import os
import re
import tempfile
import warnings
import zipfile

import keras
import numpy as np

from tf_tricks.checkpoints import matching, model_state
from tf_tricks.checkpoints.file_format import DamagedCheckpoint

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
_OPTIMIZER, _INNER = "optimizer", "optimizer/inner_optimizer"


def is_keras_file(path):
    """Does the name say that Keras wrote the file?"""
    return path.endswith((".keras", ".h5", ".hdf5"))


def check(path):
    """Read the whole file; raise DamagedCheckpoint if that is not possible.

    A `.keras` file holds checksums, so any change is found. In a `.weights.h5` file only damage to its structure is:
    changed numbers cannot be told from good ones.
    """
    with _opened(path) as file:
        _arrays(file, "")


def read(path):
    """What a file of Keras holds beside the weights.

    Returns:
        Dict with "build" (what the model can be built from, or None), "optimizer" (like `model_state.take`, or None)
        and "number" (of the arrays outside the optimizer).
    Raises:
        DamagedCheckpoint: the file cannot be read.
    """
    config = _config(path)
    with _opened(path) as file:
        count = len(_arrays(file, "")) - len(_arrays(file, _OPTIMIZER))
        return {"build": config.get("build_config"), "optimizer": _optimizer(file, config), "number": count}


def load_weights(path, model, strict):
    """Let Keras load the weights; on an error the model keeps those it had.

    Returns:
        `(taken, before)`: paths of the weights that were in the file and fitted; dict from path to `(variable, array)`
        with the values that all weights had before.
    Raises:
        ValueError: the file does not fit and `strict` is set.
    """
    before = model_state.unique((v.path, (v, a)) for v, a in _now(model))
    # Keras does not say which weights it loaded, so none may keep a value that it could have had from before.
    model_state.execute(model, [(variable, _marked(array)) for variable, array in before.values()])
    try:
        with _weights_file(path) as weights, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is found below, weight by weight
            skip = [model.optimizer] if getattr(model, "optimizer", None) is not None else None
            model.load_weights(weights, skip_mismatch=not strict, objects_to_skip=skip)
        missing = [path for path, (v, _) in before.items() if _is_marked(keras.ops.convert_to_numpy(v))]
        if missing and strict:
            raise ValueError(f"Keras found no value for `{missing[0]}` in the file")
    except BaseException as error:
        model_state.execute(model, before.values())
        if isinstance(error, Exception):
            reason = str(error).strip().rstrip(".")
            raise ValueError(f"`{path}` does not fit the model `{model.name}`: {reason}.") from error
        raise
    model_state.execute(model, [before[path] for path in missing])
    return [path for path in before if path not in set(missing)], before


def _now(model):
    return zip(model.weights, model_state.take(model, optimizer=False)["weights"].values(), strict=True)


def _marked(array):
    kind = model_state.dtype(array)
    if keras.backend.is_float_dtype(kind):
        return np.full_like(array, np.nan)
    return np.full_like(array, np.iinfo(array.dtype).min if keras.backend.is_int_dtype(kind) else True)


def _is_marked(array):
    kind = model_state.dtype(array)
    if not array.size or kind == "bool":
        return False
    return bool(np.isnan(array).all() if keras.backend.is_float_dtype(kind) else np.array_equal(array, _marked(array)))


# --- the file -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path):
    """The HDF5 file, or the one inside a `.keras` file."""
    import h5py  # Keras itself depends on it

    try:
        content = io.BytesIO(_member(path, _WEIGHTS)) if path.endswith(".keras") else path
        with h5py.File(content, "r") as file:
            if "layer_names" in file.attrs or "model_weights" in file:
                raise ValueError(
                    f"`{path}` is a file of Keras 2: load it with `keras.models.load_model` or `model.load_weights`, "
                    "and save it anew."
                )
            yield file
    except (OSError, RuntimeError, KeyError, zipfile.BadZipFile) as error:
        raise DamagedCheckpoint(f"`{path}` cannot be read as a file of Keras: {error}") from error


def _member(path, name):
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
        if broken is not None:
            raise DamagedCheckpoint(f"`{path}` was changed after it was written: the checksum of {broken} is wrong.")
        return archive.read(name)


@contextlib.contextmanager
def _weights_file(path):
    """Path of a file that `model.load_weights` reads."""
    if not path.endswith(".keras"):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        inside = os.path.join(folder, _WEIGHTS)
        with open(inside, "wb") as file:
            file.write(_member(path, _WEIGHTS))
        yield inside


def _config(path):
    if not path.endswith(".keras"):
        return {}
    try:
        return json.loads(_member(path, _CONFIG))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DamagedCheckpoint(f"`{path}` cannot be read as a file of Keras: {error}") from error


def _arrays(file, group):
    """Dict from name to array of all data sets in a group, read completely."""
    import h5py

    found = {}

    def collect(name, item):
        if isinstance(item, h5py.Dataset):
            # Keras writes bfloat16 as bytes with a note.
            found[name] = item[()].view("bfloat16") if item.attrs.get("dtype") == "bfloat16" else item[()]

    if not group:
        file.visititems(collect)
    elif group in file:
        file[group].visititems(collect)
    return found


# --- its optimizer ------------------------------------------------------------------------------------------------


def _optimizer(file, config):
    """The optimizer's part of a tree, as `model_state.take` makes it; None if the file has none."""
    numbered, label = _numbered(file, _OPTIMIZER)
    if not numbered:
        return None
    inner, inner_label = _numbered(file, _INNER)
    saved = (config.get("compile_config") or {}).get("optimizer") or {}
    # What was passed to `compile`: Keras wraps it for mixed_float16 without noting it there.
    innermost = (saved.get("config") or {}).get("inner_optimizer") or saved
    name = _class(innermost, inner_label or label)
    own = len(numbered) - len(inner)
    labels = [label] * own + [inner_label] * len(inner)
    # Keras numbers the variables; the first of an optimizer counts its steps.
    paths = [f"{each}/{'iteration' if i in (0, own) else i}" for i, each in enumerate(labels)]
    return {
        "class": "LossScaleOptimizer" if inner else name,
        "inner": {"class": name, "count": len(inner)} if inner else None,
        "variables": model_state.unique(zip(paths, numbered, strict=True)),
    }


def _numbered(file, group):
    found = _arrays(file, f"{group}/vars")
    label = str(file[f"{group}/vars"].attrs.get("name", "optimizer")) if found else None
    return [np.asarray(found[str(i)]) for i in range(len(found))], label


def _class(config, label):
    """Name of the optimizer's class: from the config, or from the name that Keras gave to the instance."""
    if config.get("class_name"):
        return config["class_name"]
    classes = {matching.automatic_name(name): name for name in dir(keras.optimizers) if name[0].isupper()}
    return classes.get(re.sub(r"_\d+$", "", label)) if label else None
