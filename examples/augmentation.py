"""Which augmentation helps when there is little data: a small network on 300 images, with and without each family.

    python examples/augmentation.py                           # digits that come with scikit-learn: no download
    python examples/augmentation.py --seeds 5 --families all  # the table of the README; takes minutes
    python examples/augmentation.py --dataset cifar10         # downloaded by TensorFlow Datasets
    python examples/augmentation.py --backend jax --families flip zoom

It prints a table in Markdown: the test accuracy of each family over several seeds, and what it gains over none, seed by
seed. It writes a picture of augmented images, and one of the gains beside it. The strengths of the families are chosen
by common sense and the same for all data sets; whether a family is among those of the last line, "what helped,
together", is decided on images that are neither trained on nor tested on.
"""

import argparse
import importlib.util
import math
import os
import pathlib
import sys
import time

PIP_EXTRA = {"tensorflow": "cpu", "jax": "jax", "torch": "torch"}  # all other packages are in `examples`
QUICK = ("flip", "rotation", "translation", "noise", "erasing", "CutMix")  # one seed of these takes less than a minute


def parse_arguments():
    parser = argparse.ArgumentParser(description="Compare families of augmentation on few images.")
    parser.add_argument("--dataset", choices=["digits", "mnist", "cifar10"], default="digits")
    parser.add_argument("--backend", choices=["tensorflow", "jax", "torch"], default="tensorflow")
    parser.add_argument("--images", type=int, default=300, help="how many to train on; each seed takes others")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--families", nargs="+", default=QUICK, help="`all`, or those with one of these in their names")
    parser.add_argument("--output", default="augmentation.png", help="the pictures: this one, and *_effect.png")
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
from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_images  # noqa: E402

from tf_tricks import layers  # noqa: E402

BATCH_SIZE = 50
VALUES = {"value_range": (0, 1)}
EDGE = {"fill_mode": "constant", "value_range": (0, 1)}  # black beyond the edge, the colour of the digits' paper
TOGETHER = "what helped, together"


def families(height, width, channels):
    """Name -> layers that augment images with values in [0, 1]."""
    colour = [layers.RandomBrightness(0.2, **VALUES), layers.RandomContrast(0.3, **VALUES)]
    if channels == 3:
        colour += [layers.RandomSaturation((0.3, 0.7), **VALUES), layers.RandomHue(0.05, **VALUES)]
    return {
        "none": [],
        "flip": [layers.RandomFlip("horizontal", **VALUES)],
        "rotation": [layers.RandomRotation(0.04, **EDGE)],
        "translation": [layers.RandomTranslation(0.12, 0.12, **EDGE)],
        "zoom": [layers.RandomZoom(0.15, **EDGE)],
        "crop": [layers.RandomResizedCrop(height, width, scale=(0.6, 1.0), ratio=(0.8, 1.25), **VALUES)],
        "colour": colour,
        "noise": [layers.RandomGaussianNoise((0.0, 0.15), **VALUES)],
        "blur": [layers.RandomGaussianBlur(1.0, 3, (0.3, 1.0), **VALUES)],
        "erasing": [layers.RandomErasing(1.0, (0.02, 0.2), **VALUES)],
        "grid mask": [layers.RandomGridMask(ratio=0.6, probability=0.5, **VALUES)],
        "MixUp": [layers.MixUp(0.2, **VALUES)],
        "CutMix": [layers.CutMix(1.0, **VALUES)],
        "RandAugment": [layers.RandAugment(factor=0.3, fill_mode="constant", **VALUES)],
        "TrivialAugment": [layers.TrivialAugment(fill_mode="constant", **VALUES)],
    }


# Beside one another they would do the same thing twice: policies hold other families, and one mixture is enough.
NOT_TOGETHER = ("RandAugment", "TrivialAugment", "CutMix")


def compose(members):
    return layers.Augmentation(members, seed=0, **VALUES) if members else None


def main():
    if ARGUMENTS.backend != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # TensorFlow only reads the data here: leave the GPU to Keras
    pool, test = load_data()
    members = families(*pool[0].shape[1:])
    names = [name for name in members if name == "none" or _wanted(name)]
    trial = Trial(pool, test)
    print(
        f"{ARGUMENTS.dataset}, {ARGUMENTS.images} images, {ARGUMENTS.epochs} epochs, {ARGUMENTS.seeds} seed(s), "
        f"{ARGUMENTS.backend}; mean +- standard error\n\n"
        "| family | test accuracy | gain over none, seed by seed | better in | seconds |\n|" + " --- |" * 5,
        flush=True,
    )
    results = {}
    for name in names:
        results[name] = report(name, members[name], trial, results)
    helped = [name for name in names[1:] if name not in NOT_TOGETHER and helps(results[name])]
    if len(helped) > 1:
        members[TOGETHER] = [layer for name in helped for layer in members[name]]
        results[TOGETHER] = report(TOGETHER, members[TOGETHER], trial, results)
        print(f"\nTogether, because they helped on images set aside: {', '.join(helped)}.")
    best = max(results, key=lambda name: np.mean(results[name]["test"]))
    print(f"\nBest: {best}.")
    draw_images(pool[0][:3], list(results), helped, ARGUMENTS.output)
    path = pathlib.Path(ARGUMENTS.output)
    effect = path.with_name(f"{path.stem}_effect{path.suffix}")
    draw_effect(results, effect)
    print(f"The pictures are in {ARGUMENTS.output} and {effect}")


def _wanted(name):
    return any(each == "all" or each in name for each in ARGUMENTS.families)


def load_data():
    """((images, labels) to choose from, (images, labels) to test on); images float32 in [0, 1], labels one-hot."""
    if ARGUMENTS.dataset == "digits":
        builder = Digits(data_dir=ARGUMENTS.data_dir)
    else:
        builder = tfds.builder(ARGUMENTS.dataset, data_dir=ARGUMENTS.data_dir)
    builder.download_and_prepare()
    white = 16.0 if ARGUMENTS.dataset == "digits" else 255.0
    parts = []
    for split in ("train", "test"):
        dataset = builder.as_dataset(split=split, as_supervised=True)
        images, labels = next(iter(dataset.batch(100_000).as_numpy_iterator()))
        one_hot = np.eye(builder.info.features["label"].num_classes, dtype="float32")[labels]
        parts.append((images.astype("float32") / white, one_hot))
    return parts


# --- training -----------------------------------------------------------------------------------------------------


class Trial:
    """Trains a network on a few images and says how well it does on others.

    The network is compiled once: each run begins with fresh weights and an optimizer that has seen nothing.

    Args:
        pool: images and labels, of which each seed takes its own few to train on; up to 1,000 others say what helps.
        test: images and labels that decide nothing.
    """

    def __init__(self, pool, test):
        self._pool, self._test = pool, test
        self._steps = ARGUMENTS.epochs * (ARGUMENTS.images // BATCH_SIZE)
        self._model = self._build()
        self._model.compile(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, self._steps)),
            keras.losses.CategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=ARGUMENTS.backend != "torch",
            steps_per_execution=1 if ARGUMENTS.backend == "torch" else math.gcd(10, self._steps),
        )
        self._model.optimizer.build(self._model.trainable_variables)

    def _build(self):
        (_, *shape), classes = self._pool[0].shape, self._pool[1].shape[1]
        model, filters = keras.Sequential([keras.Input(shape)]), 16
        for _ in range(int(np.log2(min(shape[:2]) / 4))):  # halve the images down to 4x4
            model.add(keras.layers.Conv2D(filters, 3, padding="same", activation="relu"))
            model.add(keras.layers.MaxPooling2D())
            filters *= 2
        model.add(keras.layers.Conv2D(filters, 3, padding="same", activation="relu"))
        model.add(keras.layers.Flatten())
        model.add(keras.layers.Dense(classes))
        return model

    def run(self, augmentation, seed):
        """The accuracy on the test images and on images set aside."""
        keras.utils.set_random_seed(seed)
        self._model.set_weights(self._build().get_weights())
        for variable in self._model.optimizer.variables:
            variable.assign(keras.ops.zeros(variable.shape, variable.dtype))
        order = np.random.default_rng(seed).permutation(len(self._pool[0]))
        train, aside = np.split(order[: ARGUMENTS.images + 1000], [ARGUMENTS.images])
        images, labels = self._pool
        data = batches(augmentation, images[train], labels[train], seed)
        self._model.fit(data, steps_per_epoch=self._steps, shuffle=False, verbose=0)
        return {"test": self._accuracy(*self._test), "aside": self._accuracy(images[aside], labels[aside])}

    def _accuracy(self, images, labels):
        return self._model.evaluate(images, labels, batch_size=500, verbose=0, return_dict=True)["accuracy"]


def batches(augmentation, images, labels, seed):
    """Shuffled batches; all images of an epoch are augmented in one call."""
    rng = np.random.default_rng(seed)
    for _ in range(ARGUMENTS.epochs):
        order = rng.permutation(len(images))
        data = {"images": images[order], "labels": labels[order]}
        if augmentation is not None:
            data = keras.tree.map_structure(keras.ops.convert_to_numpy, augmentation(data, training=True))
        for end in range(BATCH_SIZE, len(images) + 1, BATCH_SIZE):
            yield data["images"][end - BATCH_SIZE : end], data["labels"][end - BATCH_SIZE : end]


# --- what it says -------------------------------------------------------------------------------------------------


def report(name, members, trial, results):
    """Train with one family, once for each seed, and print its line; name of the images -> accuracies."""
    begin = time.perf_counter()
    augmentation = compose(members)
    runs = [trial.run(augmentation, seed) for seed in range(ARGUMENTS.seeds)]
    found = {part: np.array([run[part] for run in runs]) for part in runs[0]}
    found["gain"] = {part: found[part] - results.get("none", found)[part] for part in runs[0]}
    gain = found["gain"]["test"]
    accuracy = f"{np.mean(found['test']):.2%} +- {standard_error(found['test']):.2%}"
    difference = f"{100 * np.mean(gain):+.2f} +- {100 * standard_error(gain):.2f} points"
    compared = f"{difference} | {np.sum(gain > 0)} of {len(gain)}" if results else "|"
    print(f"| {name} | {accuracy} | {compared} | {time.perf_counter() - begin:.0f} |", flush=True)
    return found


def standard_error(values):
    return np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0.0


def helps(found):
    gain = found["gain"]["aside"]
    return np.mean(gain) > standard_error(gain)


# --- pictures -----------------------------------------------------------------------------------------------------


def draw_images(shown, names, helped, path):
    """The same photographs and images of the data set above augmented ones, a row for each family, in two blocks."""
    photographs = [photograph[::6, ::6][:64, 10:90] / 255.0 for photograph in load_sample_images().images]
    photographs = np.repeat(photographs, 2, axis=0).astype("float32")
    widths = [1.25] * len(photographs) + [1.0] * len(shown)  # photographs are wider than high
    per_block, second = -(-len(names) // 2), len(widths) + 1  # an empty column lies between the blocks
    figure, axes = plt.subplots(
        per_block,
        2 * len(widths) + 1,
        figsize=(14.5, 0.98 * per_block),
        squeeze=False,
        layout="constrained",
        width_ratios=[*widths, 0.3, *widths],
    )
    for axis in axes.ravel():
        axis.set_axis_off()
    for index, name in enumerate(names):
        row = axes[index % per_block, second * (index // per_block) :][: len(widths)]
        changed = [*augmented(name, helped, photographs), *augmented(name, helped, shown)]
        for axis, image in zip(row, changed, strict=True):
            axis.imshow(image.squeeze(), cmap="gray_r", vmin=0, vmax=1, aspect="auto")
        row[0].set_title("original" if name == "none" else name, fontsize=11, loc="left", pad=3)
    figure.savefig(path, dpi=80)
    plt.close(figure)
    with Image.open(path) as picture:
        small = picture.convert("RGB").quantize(256, kmeans=2)
    small.save(path, optimize=True)  # a quarter of the bytes


def augmented(name, helped, images):
    """Images after one family; those of the last line are composed anew, because a crop knows the size it gives."""
    known = families(*images.shape[1:])
    members = [layer for each in helped for layer in known[each]] if name == TOGETHER else known[name]
    if not members:
        return images
    layer, data = compose(members), {"images": images, "labels": np.eye(len(images), dtype="float32")}
    draws = [keras.ops.convert_to_numpy(layer(data, training=True)["images"]) for _ in range(4)]
    return max(draws, key=lambda draw: np.mean(np.abs(draw - images)))  # so that there is something to see


def draw_effect(results, path):
    """How many points each family gains, with its standard error and a dot for each seed."""
    gains = {name: 100 * found["gain"]["test"] for name, found in results.items() if name != "none"}
    names = sorted(gains, key=lambda name: np.mean(gains[name]))
    gains = [gains[name] for name in names]
    means = np.array([np.mean(gain) for gain in gains])
    figure, axis = plt.subplots(figsize=(7.5, 0.32 * len(names) + 1.3), layout="constrained")
    colours = np.where(means > 0, "tab:blue", "tab:red")
    axis.barh(names, means, color=colours, alpha=0.75, height=0.7)
    errors = [standard_error(gain) for gain in gains]
    axis.errorbar(means, names, xerr=errors, fmt="none", color="black", capsize=3)
    for gain, name in zip(gains, names, strict=True):
        axis.plot(gain, [name] * len(gain), ".", color="black", alpha=0.4, markersize=5)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("points of test accuracy gained over no augmentation")
    axis.set_title(
        f"{ARGUMENTS.dataset}: {ARGUMENTS.images} images to train on, none: {np.mean(results['none']['test']):.1%}",
        fontsize=10,
    )
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
