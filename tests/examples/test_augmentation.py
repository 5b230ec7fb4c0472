import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_augmentation_compares_families_and_writes_a_picture(backend, tmp_path):
    command = [sys.executable, str(EXAMPLES / "augmentation.py"), "--backend", backend, "--data-dir", str(tmp_path)]
    command += ["--seeds", "1", "--epochs", "2", "--images", "100", "--families", "noise", "all but flip"]
    command += ["--output", str(tmp_path / "augmented.png")]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    environment.pop("XLA_FLAGS", None)  # the virtual devices of our tests are not a user's
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in ("none", "noise", "all but flip"):
        assert re.search(rf"^  {name} +\d+\.\d+% \+- \d+\.\d+%   gain [+-]\d+\.\d+%", result.stdout, re.MULTILINE)
    assert (tmp_path / "augmented.png").read_bytes().startswith(b"\x89PNG")
