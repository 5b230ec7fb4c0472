import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_resume(backend, *arguments, **environment):
    """Run the script as a user does."""
    command = [sys.executable, str(EXAMPLES / "resume.py"), "--backend", backend, *map(str, arguments)]
    paths = [str(EXAMPLES.parent), *filter(None, [environment.pop("PYTHONPATH", None), os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    environment.pop("XLA_FLAGS", None)  # the virtual devices of our tests are not a user's
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def test_a_run_that_was_killed_ends_like_one_left_alone(backend, data_dir):
    result = run_resume(backend, "--epochs", 2, "--kills", 1, "--data-dir", data_dir)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    assert re.search(r"Killed at step \d+ of 76\.", result.stdout)
    assert "The runs are equal, bit for bit" in result.stdout
    for name in ("weights", "Adam's state", "History"):
        row = re.search(rf"{name} +([0-9a-f]{{16}}) +([0-9a-f]{{16}})\s", result.stdout)
        assert row and row[1] == row[2], result.stdout


@pytest.mark.any_backend
def test_the_comparison_can_fail(backend, data_dir, tmp_path):
    without_moments = (
        "import sys\n"
        "if '--train' in sys.orig_argv:\n"
        "    from tf_tricks.checkpoints import model_state, run_files\n"
        "    run_files.assign = lambda model, tree: model_state.assign(model, tree['model'], optimizer=False)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(without_moments)
    arguments = ("--epochs", 2, "--kills", 1, "--data-dir", data_dir)
    result = run_resume(backend, *arguments, PYTHONPATH=str(tmp_path), KERAS_BACKEND=backend)
    assert result.returncode == 1, result.stdout + result.stderr[-3000:]
    assert re.search(r"Adam's state .*DIFFER\n", result.stdout)
    assert "The runs DIFFER" in result.stdout


def test_a_missing_package_is_named_in_one_sentence(backend, tmp_path):
    hide = "import importlib.util as u\nf = u.find_spec\nu.find_spec = lambda n: None if n == 'sklearn' else f(n)"
    (tmp_path / "sitecustomize.py").write_text(hide)
    result = run_resume(backend, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.strip() == "The example needs sklearn: pip install 'tf-tricks[examples]'"
