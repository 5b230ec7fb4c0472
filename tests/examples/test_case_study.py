import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURES = (
    "1_inputs.png",
    "2_divergence.png",
    "3_clipping.png",
    "4_one_sample.png",
    "5_without_batch_norm.png",
    "6_one_sample.png",
    "6_signals.png",
    "7_frozen.png",
    "case_study.png",
)


def run_case_study(backend, *arguments, **environment):
    """Run the script as a user does: it picks its backend before it imports Keras, so it needs its own process."""
    command = [sys.executable, str(EXAMPLES / "case_study.py"), "--backend", backend, *map(str, arguments)]
    paths = [str(EXAMPLES.parent), *filter(None, [environment.pop("PYTHONPATH", None), os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    # The virtual devices of our tests are not a user's; compiling takes JAX longer than all the steps here.
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def story(backend, tmp_path_factory):
    """What one run printed, its numbers, and the folder of its pictures."""
    folder = tmp_path_factory.mktemp("case_study")
    result = run_case_study(backend, "--quick", "--seeds", 1, "--output", folder)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    return result.stdout, json.loads((folder / "numbers.json").read_text()), folder


def test_the_network_does_not_converge_and_clipping_only_hides_it(story):
    _, numbers, _ = story
    assert "target_scale" in numbers["input_findings"]
    assert numbers["broken_nan_step"] is not None or numbers["broken_loss"] > 1
    assert numbers["clipped_losses_finite"]
    assert numbers["clipped_share"] > 0.9
    assert numbers["repaired_loss"] < numbers["clipped_loss"]
    assert numbers["repaired_val_loss"] < numbers["clipped_val_loss"]


def test_one_sample_is_not_learnt_until_inputs_and_weights_are_scaled(story):
    _, numbers, _ = story
    assert not numbers["broken_one_passed"]
    assert numbers["repaired_one_passed"]
    assert numbers["repaired_verdict"].startswith("healthy")
    assert numbers["one_sample_ratio"] < 1e-4


def test_batch_normalisation_hid_what_is_nan_at_the_second_iteration(story):
    _, numbers, _ = story
    assert "batch_norm_hides" in numbers["hidden_findings"]
    assert numbers["non_finite_step"] == 1


def test_a_rate_that_decays_too_fast_freezes_and_a_drop_at_the_end_helps(story):
    _, numbers, _ = story
    assert numbers["frozen_ratio"] < 1e-2
    assert numbers["frozen_loss"] > numbers["repaired_loss"]
    without, drop = (numbers["schedules"][name] for name in ("no decay", "x 0.1 at the end"))
    assert drop["val_loss"][0] < without["val_loss"][0]


def test_it_prints_a_table_and_writes_a_picture_for_each_step(story):
    text, _, folder = story
    rows = re.findall(r"^\| .+ \| .+ \| (yes|NO) \|$", text, re.MULTILINE)
    assert len(rows) == 9
    for name in PICTURES:
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name


def test_a_missing_package_is_named_in_one_sentence(backend, tmp_path):
    hide = "import importlib.util as u\nf = u.find_spec\nu.find_spec = lambda n: None if n == 'sklearn' else f(n)"
    (tmp_path / "sitecustomize.py").write_text(hide)
    result = run_case_study(backend, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.strip() == "The example needs sklearn: pip install 'tf-tricks[examples]'"
