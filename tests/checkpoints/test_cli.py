import os
import subprocess
import sys

import pytest

from tests.checkpoints.models import fill, make_model
from tf_tricks._cli import main
from tf_tricks.checkpoints import save


@pytest.fixture
def folder(tmp_path):
    model = make_model(dropout=None)
    for epoch in (1, 2):
        fill(model, 4 * epoch)
        save(tmp_path / f"epoch-{epoch}.safetensors", model, epoch=epoch)
    return tmp_path


def damage(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def test_list(folder, capsys):
    (folder / "cut.safetensors").write_bytes((folder / "epoch-1.safetensors").read_bytes()[:1000])
    assert main(["checkpoints", "list", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "file",
        "cut.safetensors",
        "epoch-1.safetensors",
        "epoch-2.safetensors",
    ]
    assert "DAMAGED" in lines[1] and "epoch 2, step 8" in lines[3]
    assert lines[2].index("epoch 1,") == lines[3].index("epoch 2,") == lines[0].index("position")


def test_verify(folder, capsys):
    assert main(["checkpoints", "verify", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == ["epoch-1.safetensors  ok", "epoch-2.safetensors  ok"]
    damage(folder / "epoch-2.safetensors")
    assert main(["checkpoints", "verify", str(folder)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("ok") and "DAMAGED: " in lines[1]
    assert main(["checkpoints", "verify", str(folder / "epoch-1.safetensors")]) == 0
    assert main(["checkpoints", "verify", str(folder / "epoch-2.safetensors")]) == 1


def test_describe(folder, capsys):
    assert main(["checkpoints", "describe", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "epoch 2, step 8" in text and "Adam, with its moments" in text
    damage(folder / "epoch-1.safetensors")
    assert main(["checkpoints", "describe", str(folder / "epoch-1.safetensors")]) == 1
    assert "checksum   DAMAGED" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["list", "verify", "describe"])
def test_nothing_there(tmp_path, capsys, command):
    for path, message in ((tmp_path, "holds no checkpoint"), (tmp_path / "missing", "There is no checkpoint")):
        assert main(["checkpoints", command, str(path)]) == 1
        output = capsys.readouterr()
        assert message in output.err and output.out == ""


def test_wrong_arguments(capsys):
    for arguments in ([], ["checkpoints"], ["checkpoints", "list"], ["checkpoints", "mend", "."]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
    assert "usage: tf_tricks" in capsys.readouterr().err


def test_as_a_module(folder):
    damage(folder / "epoch-2.safetensors")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "tf_tricks", "checkpoints", "verify", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == "epoch-1.safetensors  ok" and "DAMAGED" in done.stdout
