"""Which augmentation helps when there is little data: a small network on 300 images, with and without each family.

    python examples/augmentation.py                       # handwritten digits that come with scikit-learn: no download
    python examples/augmentation.py --dataset cifar10     # downloaded by TensorFlow Datasets
    python examples/augmentation.py --backend jax --seeds 2

It prints the test accuracy of each family over several seeds and writes a picture of the augmented images.
"""

import argparse
import importlib.util
import os
import sys
import time

PIP_EXTRA = {"tensorflow": "cpu", "jax": "jax", "torch": "torch"}  # all other packages are in `examples`


def parse_arguments():
    parser = argparse.ArgumentParser(description="Compare families of augmentation on few images.")
    parser.add_argument("--dataset", choices=["digits", "mnist", "cifar10"], default="digits")
    parser.add_argument("--backend", choices=["tensorflow", "jax", "torch"], default="tensorflow")
    parser.add_argument("--images", type=int, default=300, help="how many to train on")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--families", nargs="+", help="only those whose name contains one of these, and none at all")
    parser.add_argument("--output", default="augmentation.png", help="where the picture goes")
    parser.add_argument("--data-dir", default=None, help="where the data set is kept; by default the usual cache")
    return parser.parse_args()


def check_installed(backend):
    """End with one sentence if a package is missing."""
    for module in (backend, "tensorflow", "tensorflow_datasets", "sklearn", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            sys.exit(f"The example needs {module}: pip install 'tf-tricks[{PIP_EXTRA.get(module, 'examples')}]'")


ARGUMENTS = parse_arguments()
check_installed(ARGUMENTS.backend)
os.environ["KERAS_BACKEND"] = ARGUMENTS.backend  # Keras reads it once, when it is imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no start-up messages between the results

import keras  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402
from digits import Digits  # noqa: E402

from tf_tricks import layers  # noqa: E402

BATCH_SIZE = 50


def families(seed):
    """Name -> layer that augments images with values in [0, 1], or None."""
    fill = {"fill_mode": "constant", "value_range": (0, 1)}
    values = {"value_range": (0, 1)}
    shift = layers.RandomTranslation(0.12, 0.12, **fill)
    turn = layers.RandomRotation(0.04, **fill)
    zoom = layers.RandomZoom(0.12, **fill)
    colour = [layers.RandomBrightness(0.2, **values), layers.RandomContrast(0.3, **values)]
    noise, erasing = layers.RandomGaussianNoise((0.0, 0.15), **values), layers.RandomErasing(0.5, **values)
    members = {
        "none": [],
        "flip": [layers.RandomFlip("horizontal", value_range=(0, 1))],
        "translation": [shift],
        "rotation": [turn],
        "zoom": [zoom],
        "brightness and contrast": colour,
        "noise": [noise],
        "erasing": [erasing],
        "translation, rotation, zoom": [shift, turn, zoom],
        "all but flip": [shift, turn, zoom, *colour, noise, erasing],
    }
    made = {}
    for name, each in members.items():
        made[name] = layers.Augmentation(each, value_range=(0, 1), seed=seed) if each else None
    return made


def main():
    if ARGUMENTS.backend != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # TensorFlow only reads the data here: leave the GPU to Keras
    train, test, num_classes = load_data()
    names = [name for name in families(0) if name == "none" or _wanted(name)]
    print(f"Test accuracy after training on {ARGUMENTS.images} images, {ARGUMENTS.seeds} seeds, {ARGUMENTS.backend}")
    accuracy = {}
    for name in names:
        begin = time.perf_counter()
        accuracy[name] = [run(families(seed)[name], seed, train, test, num_classes) for seed in range(ARGUMENTS.seeds)]
        gain = np.subtract(accuracy[name], accuracy["none"])
        print(
            f"  {name:28} {np.mean(accuracy[name]):.2%} +- {np.std(accuracy[name]):.2%}   "
            f"gain {np.mean(gain):+.2%}, better in {int(np.sum(gain > 0))} of {len(gain)}   "
            f"({time.perf_counter() - begin:.0f} s)",
            flush=True,
        )
    best = max(names, key=lambda name: np.mean(accuracy[name]))
    print(f"Best: {best}.")
    draw(train[0], [name for name in names if name != "none"], ARGUMENTS.output)
    print(f"The picture is in {ARGUMENTS.output}")


def _wanted(name):
    return not ARGUMENTS.families or any(each in name for each in ARGUMENTS.families)


def load_data():
    """((images, labels) to train on, (images, labels) to test on, classes); images float32 in [0, 1]."""
    if ARGUMENTS.dataset == "digits":
        builder = Digits(data_dir=ARGUMENTS.data_dir)
    else:
        builder = tfds.builder(ARGUMENTS.dataset, data_dir=ARGUMENTS.data_dir)
    builder.download_and_prepare()
    parts = []
    for split, count in (("train", ARGUMENTS.images), ("test", -1)):
        dataset = builder.as_dataset(split=split, as_supervised=True).take(count)
        images, labels = next(iter(dataset.batch(100_000).as_numpy_iterator()))
        white = 16.0 if ARGUMENTS.dataset == "digits" else 255.0
        parts.append((images.astype("float32") / white, labels))
    return *parts, builder.info.features["label"].num_classes


def run(augmentation, seed, train, test, num_classes):
    """The test accuracy of a network trained with an augmentation in front."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input(train[0].shape[1:]),
            *([augmentation] if augmentation else []),
            keras.layers.Conv2D(24, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(24, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(48, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes),
        ]
    )
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, ARGUMENTS.epochs * _steps(train))),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=ARGUMENTS.backend != "torch",
    )
    model.fit(*train, batch_size=BATCH_SIZE, epochs=ARGUMENTS.epochs, verbose=0)
    accuracy = model.evaluate(*test, batch_size=500, verbose=0, return_dict=True)["accuracy"]
    keras.backend.clear_session()
    return accuracy


def _steps(train):
    return -(-len(train[0]) // BATCH_SIZE)


def draw(images, names, path):
    """One row a family: the same images, augmented."""
    shown = images[:10]
    figure, axes = plt.subplots(len(names) + 1, len(shown), figsize=(len(shown), len(names) + 1.5), squeeze=False)
    for row, name in zip(axes, ["none", *names], strict=True):
        augmentation = families(1)[name]
        changed = shown if augmentation is None else np.array(keras.ops.convert_to_numpy(augmentation(shown)))
        for axis, image in zip(row, changed, strict=True):
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
            axis.set_axis_off()
        row[0].set_title(name, fontsize=9, loc="left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
