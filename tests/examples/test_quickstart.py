import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def run_quickstart(backend, *arguments, **environment):
    """Run the script as a user does: it picks its backend before it imports Keras, so it needs its own process."""
    command = [sys.executable, str(EXAMPLES / "quickstart.py"), "--backend", backend, *map(str, arguments)]
    paths = [str(EXAMPLES.parent), *filter(None, [environment.pop("PYTHONPATH", None), os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    environment.pop("XLA_FLAGS", None)  # the virtual devices of our tests are not a user's
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_quickstart_prints_what_each_trick_did_and_writes_a_picture(backend, data_dir, tmp_path):
    picture = tmp_path / "curves.png"
    result = run_quickstart(backend, "--epochs", 4, "--data-dir", data_dir, "--output", picture)
    assert result.returncode == 0, result.stderr[-3000:]
    for line in (
        r"FinalLearningRateDrop: learning rate 0.002 -> 0.0002 after epoch 3\.",
        r"val_accuracy: \d+\.\d+% -> \d+\.\d+%",
        r"GradientNormLogger: 152 steps",
        r"conv_1 +\d\.\d+e[+-]\d+ -> \d\.\d+e[+-]\d+ +\d",
        r"EarlyStopping: training ended because all 4 epochs are done",
        r"NaNGuard: the loss and all gradients were finite in 152 steps\.",
        r"The weights are bit for bit what they were\.",
    ):
        assert re.search(line, result.stdout), f"{line!r} is not in\n{result.stdout}"
    after_the_break = result.stdout.partition("NaNGuard says:")[2]
    assert "NaN" in after_the_break and "None" not in after_the_break.partition("The weights")[0]
    accuracy = float(re.search(r"Test accuracy (\d+\.\d+)% on 357 images", result.stdout)[1])
    assert accuracy > 80  # it learns; the full run, in .ci/run, reaches 98.5
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


def test_quickstart_names_a_missing_package_in_one_sentence(backend, tmp_path):
    hide = "import importlib.util as u\nf = u.find_spec\nu.find_spec = lambda n: None if n == 'sklearn' else f(n)"
    (tmp_path / "sitecustomize.py").write_text(hide)
    result = run_quickstart(backend, PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.strip() == "The quickstart needs sklearn: pip install 'tf-tricks[examples]'"


@pytest.fixture(scope="module")
def builder(data_dir):
    digits = pytest.importorskip("examples.digits")
    builder = digits.Digits(data_dir=str(data_dir))
    builder.download_and_prepare()
    return builder


def test_the_builder_serves_every_scan_of_scikit_learn_once(builder):
    from sklearn.datasets import load_digits

    expected, labels = load_digits(return_X_y=True)
    got = [row for split in ("train", "test") for row in builder.as_dataset(split=split).as_numpy_iterator()]
    assert len(got) == 1797
    assert {row["image"].shape for row in got} == {(8, 8, 1)} and got[0]["image"].dtype == np.uint8

    def rows(images, labels):  # tfds shuffles: compare as sorted tables
        return sorted((*map(int, np.ravel(image)), int(label)) for image, label in zip(images, labels, strict=True))

    assert rows([row["image"] for row in got], [row["label"] for row in got]) == rows(expected, labels)


def test_the_splits_are_disjoint_sized_as_documented_and_hold_every_digit(builder):
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 1440, "test": 357}
    labels = [row["label"] for row in builder.as_dataset(split="test").as_numpy_iterator()]
    assert np.bincount(labels, minlength=10).min() >= 30
    train, test = (
        {row["image"].tobytes() for row in builder.as_dataset(split=split).as_numpy_iterator()}
        for split in ("train", "test")
    )
    assert not train & test
