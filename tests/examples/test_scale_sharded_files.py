import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(backend, *arguments, **environment):
    """Run the script as a user does."""
    command = [sys.executable, str(EXAMPLES / "scale_sharded_files.py"), "--backend", backend, *arguments]
    paths = [str(EXAMPLES.parent), *filter(None, [environment.pop("PYTHONPATH", None), os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("engine", ["none", pytest.param("beam", marks=pytest.mark.any_backend)])
def test_the_layer_equals_standard_scaler(backend, engine):
    if engine == "beam" and importlib.util.find_spec("apache_beam") is None:
        pytest.skip("pip install 'tf-tricks[beam]'")
    result = run_example(backend, "--engine", engine)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert f"8 shards, 541 rows, 11 values missing (engine: {engine})." in result.stdout
    assert float(re.search(r"over all rows: (\S+) ", result.stdout)[1]) < 1e-5
    assert "The layer equals StandardScaler." in result.stdout


@pytest.mark.any_backend
def test_the_comparison_can_fail(backend, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "from tf_tricks.layers.scaling.moments import Moments\nMoments.merge, merge = None, Moments.merge\n"
        "Moments.merge = lambda self, other: merge(self, other) if self.features is None else self\n"
    )
    result = run_example(backend, "--engine", "none", PYTHONPATH=str(tmp_path), KERAS_BACKEND=backend)
    assert result.returncode == 1, result.stdout + result.stderr[-3000:]
    assert "The layer DIFFERS from StandardScaler." in result.stdout


def test_a_missing_package_is_named_in_one_sentence(backend, tmp_path):
    hide = "import importlib.util as u\nf = u.find_spec\nu.find_spec = lambda n: None if n == 'sklearn' else f(n)"
    (tmp_path / "sitecustomize.py").write_text(hide)
    result = run_example(backend, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.strip() == "The example needs sklearn: pip install 'tf-tricks[examples]'"
