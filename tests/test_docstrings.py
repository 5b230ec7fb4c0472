"""Every example in a docstring of the package, and every Python block of the README, runs."""

import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re

import keras
import numpy as np
import pytest

import tf_tricks

README = pathlib.Path(__file__).parents[1] / "README.md"


def modules():
    names = [found.name for found in pkgutil.walk_packages(tf_tricks.__path__, "tf_tricks.")]
    return [tf_tricks, *map(importlib.import_module, sorted(names))]


def examples():
    """One `DocTest` per docstring that holds an example."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for module in modules() for test in finder.find(module, globs={})]
    return [pytest.param(test, id=test.name.removeprefix("tf_tricks.")) for test in tests if test.examples]


def public_names():
    return {
        name: getattr(module, name)
        for module in modules()
        if "fit_hooks" not in module.__name__ and "_backend" not in module.__name__
        for name in getattr(module, "__all__", ())
    }


def namespace():
    """What an example may use: `np`, `keras`, a compiled tiny `model`, arrays `x` and `y`, and all public names."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 4)).astype("float32")
    y = (x.sum(axis=1, keepdims=True) + 0.1 * rng.normal(size=(32, 1))).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=False)  # quicker to build than the default
    return {"np": np, "keras": keras, "model": model, "x": x, "y": y, "tf_tricks": tf_tricks, **public_names()}


@pytest.mark.parametrize("test", examples())
def test_docstring_example_runs(test):
    module, name = importlib.import_module(_module_of(test.name)), test.name.rpartition(".")[2]
    test.globs = {**namespace(), **({name: vars(module)[name]} if name in vars(module) else {})}
    output = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)


def _module_of(name):
    return max((module.__name__ for module in modules() if f"{name}.".startswith(f"{module.__name__}.")), key=len)


def test_every_public_class_has_an_example():
    classes = {name for name, each in public_names().items() if inspect.isclass(each)}
    assert {"EarlyStopping", "GradientNormLogger", "NaNGuard", "Snapshot", "TrainingCheckpoint"} <= classes
    assert {name for name in classes if ">>> " not in (public_names()[name].__doc__ or "")} == set()


def python_blocks():
    text = README.read_text(encoding="utf-8") if README.exists() else ""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")
def test_readme_has_a_snippet_for_every_callback():
    text = "".join(python_blocks())
    assert [name for name in tf_tricks.callbacks.__all__ if name not in text and "NonFinite" not in name] == []


@pytest.mark.parametrize("block", [pytest.param(code, id=f"block_{i}") for i, code in enumerate(python_blocks())])
def test_readme_snippet_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a snippet may write a picture
    exec(compile(block, str(README), "exec"), namespace())
