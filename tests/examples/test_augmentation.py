import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBER = r"[+-]?\d+\.\d+"


def run_example(backend, folder, *arguments):
    """Run the script as a user does: it picks its backend before it imports Keras, so it needs its own process."""
    command = [sys.executable, str(EXAMPLES / "augmentation.py"), "--backend", backend, "--data-dir", str(folder)]
    command += ["--images", "100", "--output", str(folder / "augmented.png"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    environment.pop("XLA_FLAGS", None)  # the virtual devices of our tests are not a user's
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in ("augmented.png", "augmented_effect.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    return result.stdout


def check_table(text, *names):
    assert re.search(rf"^\| none \| {NUMBER}% \+- {NUMBER}% \| \| \| \d+ \|$", text, re.MULTILINE), text
    for name in names:
        row = rf"^\| {name} \| {NUMBER}% \+- {NUMBER}% \| {NUMBER} \+- {NUMBER} points \| \d of \d \| \d+ \|$"
        assert re.search(row, text, re.MULTILINE), text


def test_augmentation_compares_families_and_writes_two_pictures(backend, tmp_path):
    text = run_example(backend, tmp_path, "--seeds", "2", "--epochs", "2", "--families", "noise", "MixUp")
    check_table(text, "noise", "MixUp")
    assert "flip" not in text


@pytest.mark.any_backend
def test_augmentation_reads_cifar10_and_compares_every_family(backend, tmp_path):
    prepare_cifar10(tmp_path)
    text = run_example(backend, tmp_path, "--dataset", "cifar10", "--epochs", "1", "--families", "all")
    families = ("flip", "rotation", "translation", "zoom", "crop", "colour", "noise", "blur", "erasing", "grid mask")
    check_table(text, *families, "MixUp", "CutMix", "RandAugment", "TrivialAugment")


def prepare_cifar10(folder):
    """Write crops of scikit-learn's photographs as TensorFlow Datasets would write CIFAR-10: nothing is downloaded."""
    import tensorflow_datasets as tfds
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images

    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = "cifar10"
        VERSION = tfds.builder_cls("cifar10").VERSION

        def _info(self):
            image, label = tfds.features.Image(shape=(32, 32, 3)), tfds.features.ClassLabel(num_classes=10)
            features = tfds.features.FeaturesDict({"id": tfds.features.Text(), "image": image, "label": label})
            return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(200), "test": self._generate_examples(40)}

        def _generate_examples(self, count):
            rng = np.random.default_rng(count)
            for key in range(count):
                row, column = rng.integers(0, (427 - 32, 640 - 32))
                image = photographs[key % 2][row : row + 32, column : column + 32]
                yield key, {"id": f"{key:05d}", "image": image, "label": key % 2}

    Cifar10(data_dir=str(folder)).download_and_prepare()
