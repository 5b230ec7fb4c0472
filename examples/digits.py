"""scikit-learn's 1,797 scanned digits as a TensorFlow Datasets builder.

Training code sees what it would see with MNIST from `tfds.load`, and nothing is downloaded.

Example:
    >>> builder = Digits()
    >>> builder.download_and_prepare()
    >>> train, test = builder.as_dataset(split=["train", "test"], as_supervised=True)
"""

import os
from pathlib import Path

import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

# The scans come as runs of the digits 0 to 9: every fifth single scan would hold mostly fours and nines.
RUN, TEST_EVERY = 10, 5


def default_data_dir():
    """Folder of the prepared files: the user's cache, because they are rebuilt within a second."""
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tf_tricks")


class Digits(tfds.core.GeneratorBasedBuilder):
    """1,440 training and 357 test images, `(8, 8, 1)` uint8 with values 0 (paper) to 16 (ink), labels 0 to 9.

    Args:
        data_dir: folder of the prepared files; by default `tf_tricks` in the user's cache folder.
    Reference:
        Alpaydin and Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_dir=None, **kwargs):
        super().__init__(data_dir=data_dir or default_data_dir(), **kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 43 people, scanned and reduced to 8x8 pixels.",
            homepage="https://archive.ics.uci.edu/dataset/80",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download: the scans come with scikit-learn
        return {"train": self._generate_examples("train"), "test": self._generate_examples("test")}

    def _generate_examples(self, split):
        images, labels = load_digits(return_X_y=True)
        images = images.reshape(-1, 8, 8, 1).astype("uint8")
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            if (index // RUN % TEST_EVERY == TEST_EVERY - 1) == (split == "test"):
                yield index, {"image": image, "label": int(label)}
