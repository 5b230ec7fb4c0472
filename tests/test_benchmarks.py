"""The benchmarks run and print what they promise; how fast anything is, no test asks."""

import importlib.util
import pathlib
import sys

import keras
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


def tiny():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(10)]), (8, "float")


@pytest.fixture
def callbacks_overhead(monkeypatch):
    spec = importlib.util.spec_from_file_location("callbacks_overhead", FOLDER / "callbacks_overhead.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds its own
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MODELS", {"tiny": tiny})
    monkeypatch.setattr(module, "deep", tiny)
    return module


def test_callbacks_overhead_measures_every_variant(callbacks_overhead, backend, tmp_path, capsys):
    output = tmp_path / "overhead.md"
    jit = "on" if backend == "jax" else "off"
    callbacks_overhead.main(["--jit", jit, "--repeats", "1", "--steps", "3", "--output", str(output)])
    text = output.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    names = ["bare", "bare, again", *callbacks_overhead.ours(), "all four", "keras TerminateOnNaN"]
    for name in [*names, "second gradient pass"]:
        cells = next(line for line in text.splitlines() if line.startswith(f"| {name} |")).split(" | ")
        assert float(cells[1]) > 0, cells
        assert float(cells[2]) > 0, cells
    assert "Device memory of all four callbacks" in text
    assert keras.__version__ in text


def test_every_benchmark_model_builds_and_its_data_fits(callbacks_overhead):
    for build in (callbacks_overhead.mlp, callbacks_overhead.cnn, callbacks_overhead.transformer):
        model, (_, kind) = build()
        x, y = callbacks_overhead.data(model, kind, 2)
        assert x.shape[1:] == model.input_shape[1:]
        assert (y.shape, model.output_shape) == ((2,), (None, 10))
