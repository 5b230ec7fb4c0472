"""benchmarks/scaling.py runs and prints what it promises; how fast anything is, no test asks."""

import importlib.util
import pathlib
import sys

import keras
import pytest

import tf_tricks.layers.scaling

pytestmark = pytest.mark.any_backend

SCRIPT = pathlib.Path(__file__).parents[3] / "benchmarks" / "scaling.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds its own
    spec = importlib.util.spec_from_file_location("scaling_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_measures_every_layer(benchmark, tmp_path, capsys):
    output = tmp_path / "scaling.md"
    benchmark.main(["--quick", "--output", str(output)])
    text = output.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    assert keras.__version__ in text
    assert set(benchmark.LAYERS) >= set(tf_tricks.layers.scaling.__all__)
    for name in benchmark.LAYERS:
        rows = [line.split(" | ") for line in text.splitlines() if line.startswith(f"| **{name}** |")]
        assert len(rows) >= 4  # adapt, memory, call in training and in evaluation
        assert all(float(row[1]) > 0 for row in rows)
    accuracy = [line.split(" | ") for line in text.splitlines() if " | **Standardize** | " in line]
    assert len(accuracy) == 4 and all(float(row[3].strip(" |")) < 1e-6 for row in accuracy)


def test_the_picture(benchmark, tmp_path):
    pytest.importorskip("matplotlib")
    benchmark.main(["--picture", str(tmp_path / "scaling.png")])
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
