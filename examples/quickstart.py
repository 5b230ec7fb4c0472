"""Train a small convolutional network with four tricks, and see with numbers what each of them did.

    python examples/quickstart.py                       # handwritten digits that come with scikit-learn: no download
    python examples/quickstart.py --dataset cifar10     # mnist or cifar10, downloaded by TensorFlow Datasets
    python examples/quickstart.py --backend jax         # or torch; TensorFlow is still needed, for the tf.data pipeline

It prints what happened and writes one picture, quickstart.png.
"""

import argparse
import importlib.util
import os
import sys
import time

PIP_EXTRA = {"tensorflow": "cpu", "jax": "jax", "torch": "torch"}  # all other packages are in `examples`


def parse_arguments():
    parser = argparse.ArgumentParser(description="Train a small network with four tricks and see what each one did.")
    parser.add_argument("--dataset", choices=["digits", "mnist", "cifar10"], default="digits")
    parser.add_argument("--backend", choices=["tensorflow", "jax", "torch"], default="tensorflow")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--output", default="quickstart.png", help="where the picture goes")
    parser.add_argument("--data-dir", default=None, help="where the data set is kept; by default the usual cache")
    return parser.parse_args()


def check_installed(backend):
    """End with one sentence if a package is missing."""
    for module in (backend, "tensorflow", "tensorflow_datasets", "sklearn", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            extra = PIP_EXTRA.get(module, "examples")
            sys.exit(f"The quickstart needs {module}: pip install 'tf-tricks[{extra}]'")


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

from tf_tricks.callbacks import EarlyStopping, FinalLearningRateDrop, GradientNormLogger, NaNGuard  # noqa: E402

SEED = 0
BATCH_SIZE = 32
LEARNING_RATE = 2e-3
DROP_LAST = 0.2  # the learning rate drops for this last part of the run


def main():
    keras.utils.set_random_seed(SEED)
    if ARGUMENTS.backend != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # TensorFlow only reads the data here: leave the GPU to Keras
    train, validation, test, info = load_data(ARGUMENTS.dataset, ARGUMENTS.data_dir)
    model = build_model(info.features["image"].shape, info.features["label"].num_classes)

    guard = NaNGuard()
    norms = GradientNormLogger(every="epoch", per="layer")
    drop = FinalLearningRateDrop(factor=0.1, last=DROP_LAST)
    stopping = EarlyStopping(monitor="val_loss", patience=10)  # the last weights stay: the drop makes them the best bet

    start = time.perf_counter()
    history = model.fit(
        train,
        validation_data=validation,
        epochs=ARGUMENTS.epochs,
        callbacks=[guard, norms, drop, stopping, keras.callbacks.LambdaCallback(on_epoch_end=print_epoch)],
        shuffle=False,  # the tf.data pipeline shuffles
        verbose=0,  # the bar would show every layer's norm: `print_epoch` picks what fits on a line
    ).history
    seconds = time.perf_counter() - start

    print("\nWhat each trick did")
    report_drop(history)
    report_norms(model, norms)
    report_stopping(stopping, history)
    report_guard(guard, norms)
    accuracy = model.evaluate(test, verbose=0, return_dict=True)["accuracy"]
    count = info.splits["test"].num_examples
    print(f"\nTest accuracy {accuracy:.2%} on {count} images, after {seconds:.0f} s on {ARGUMENTS.backend}.")

    break_on_purpose(model, train)
    draw(model, history, norms, ARGUMENTS.output)
    print(f"\nThe picture is in {ARGUMENTS.output}")


def print_epoch(epoch, logs):
    shown = ("loss", "val_loss", "val_accuracy", "learning_rate", "grad_norm/global")
    print(f"epoch {epoch + 1:2}:", "  ".join(f"{key} {logs[key]:.4f}" for key in shown), flush=True)


def load_data(name, data_dir):
    """Return the training, validation and test pipelines, and the description of the data set."""
    if name == "digits":
        builder = Digits(data_dir=data_dir)
    else:
        builder = tfds.builder(name, data_dir=data_dir)
    builder.download_and_prepare()
    splits = ["train[:85%]", "train[85%:]", "test"]
    train, validation, test = builder.as_dataset(split=splits, as_supervised=True)
    train = train.cache().shuffle(10_000, seed=SEED).batch(BATCH_SIZE, drop_remainder=True)
    augment = build_augmentation()
    train = train.map(lambda image, label: (augment(image), label))
    return train.prefetch(2), validation.batch(256).cache(), test.batch(256), builder.info


def build_augmentation():
    """Small shifts and rotations; inside the tf.data pipeline they run beside the training step, on every backend."""
    options = {"fill_mode": "constant", "seed": SEED}
    layers = [keras.layers.RandomTranslation(0.08, 0.08, **options), keras.layers.RandomRotation(0.02, **options)]
    return keras.layers.Pipeline(layers)


def build_model(image_shape, num_classes):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input(image_shape),
            layers.Rescaling(1 / 16 if ARGUMENTS.dataset == "digits" else 1 / 255),
            layers.Conv2D(32, 3, padding="same", activation="relu", name="conv_1"),
            layers.Conv2D(64, 3, padding="same", activation="relu", name="conv_2"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, padding="same", activation="relu", name="conv_3"),
            layers.Flatten(),
            layers.Dropout(0.3),
            layers.Dense(num_classes, name="classes"),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def report_drop(history):
    """Compare the epochs after the drop with as many before it."""
    rates, dropped = history["learning_rate"], first_dropped(history)
    count = min(dropped, len(rates) - dropped)
    if count == 0:
        print("  FinalLearningRateDrop: training ended before the drop, or was too short for one.")
        return
    print(f"  FinalLearningRateDrop: learning rate {rates[0]:.1g} -> {rates[-1]:.1g} after epoch {dropped}.")
    for key, form in (("val_loss", ".4f"), ("val_accuracy", ".2%")):
        before = np.mean(history[key][dropped - count : dropped])
        after = np.mean(history[key][-count:])
        print(f"    {key}: {before:{form}} -> {after:{form}} (means of the {count} epochs before and after)")


def first_dropped(history):
    """Index of the first epoch with the lower learning rate; the number of epochs if there is none."""
    rates = np.array(history["learning_rate"])
    return int(np.argmax(rates < rates[0])) if np.any(rates < rates[0]) else len(rates)


def report_norms(model, norms):
    """Show the gradients' size at both ends of the network, and how far a step moves the weights."""
    steps = len(norms.history["grad_norm/global"])
    tenth = max(1, steps // 10)
    print(f"  GradientNormLogger: {steps} steps; medians over the first and the last tenth of them.")
    print(f"    {'':12} {'gradient norm':>22}    update / weight (about 1e-3 is healthy)")
    for name in layer_names(model):
        norm, ratio = (norms.history[f"{kind}/{name}"] for kind in ("grad_norm", "update_ratio"))
        norm, ratio = ([np.median(x[:tenth]), np.median(x[-tenth:])] for x in (norm, ratio))
        print(f"    {name:12} {norm[0]:9.2e} -> {norm[1]:.2e}    {ratio[0]:.1e} -> {ratio[1]:.1e}")


def layer_names(model):
    return [layer.name for layer in model.layers if layer.trainable_variables]


def report_stopping(stopping, history):
    epochs = len(history["loss"])
    never = f"val_loss never went {stopping.patience} epochs without improving"
    reason = stopping.stopped_reason or f"all {epochs} epochs are done ({never})"
    print(f"  EarlyStopping: training ended because {reason}.")
    print(f"    Its best epoch was {stopping.best_epoch + 1}, with val_loss {stopping.best:.4f}.")


def report_guard(guard, norms):
    if guard.report is None:
        print(f"  NaNGuard: the loss and all gradients were finite in {len(norms.history['grad_norm/global'])} steps.")
    else:
        print(f"  NaNGuard: {guard.report}")


def break_on_purpose(model, train):
    """Feed one batch with a single NaN pixel: the guard names it, and the weights stay as they were."""
    images, labels = (np.array(part) for part in next(iter(train.take(1))))
    images[3, 4, 4, 0] = np.nan
    before = model.get_weights()
    guard = NaNGuard(verbose=0)
    print("\nNow a broken batch: one pixel of image 3 becomes NaN. NaNGuard says:\n")
    model.fit(images, labels, batch_size=BATCH_SIZE, shuffle=False, verbose=0, callbacks=[guard])
    print("\n".join(f"    {line}" for line in str(guard.report).splitlines()))
    same = all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True))
    print(f"\nThe weights are {'bit for bit what they were' if same else 'DAMAGED'}.")


def draw(model, history, norms, path):
    """Draw the learning curve, the learning rate and the gradient norms of every layer, one above the other."""
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25})
    figure, (loss, rate, gradient) = plt.subplots(
        3, 1, figsize=(8, 8.5), sharex=True, layout="constrained", height_ratios=[3, 1.2, 3]
    )
    epochs = np.arange(1, len(history["loss"]) + 1)
    draw_loss(loss, epochs, history)
    draw_learning_rate(rate, epochs, history)
    draw_norms(gradient, epochs, model, norms)
    for axes in (loss, rate, gradient):
        axes.axvspan(first_dropped(history) + 0.5, len(epochs) + 0.5, color="tab:green", alpha=0.08, linewidth=0)
        axes.xaxis.get_major_locator().set_params(integer=True)
    gradient.set(xlabel="epoch", xlim=(0.5, len(epochs) + 0.5))
    figure.suptitle(f"tf_tricks quickstart: {ARGUMENTS.dataset}, {ARGUMENTS.backend} (shaded: the final drop)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_loss(axes, epochs, history):
    axes.plot(epochs, history["loss"], label="training (augmented, with dropout)", color="tab:blue")
    axes.plot(epochs, history["val_loss"], label="validation", color="tab:orange")
    best = int(np.argmin(history["val_loss"]))
    axes.plot(epochs[best], history["val_loss"][best], "o", color="tab:orange", label="best epoch")
    axes.set(yscale="log", ylabel="loss")
    axes.legend(frameon=False)


def draw_learning_rate(axes, epochs, history):
    rates = np.array(history["learning_rate"])
    axes.step([*(epochs - 0.5), epochs[-1] + 0.5], [*rates, rates[-1]], where="post", color="tab:green")
    axes.set(yscale="log", ylabel="learning rate", ylim=(rates.min() / 2, rates.max() * 2))
    levels = sorted({float(f"{rate:.2g}") for rate in rates})
    axes.set_yticks(levels, [f"{level:g}" for level in levels])
    axes.minorticks_off()


def draw_norms(axes, epochs, model, norms):
    """Draw every step faintly, and each epoch's median on top: single steps are too noisy to show the trend."""
    names = layer_names(model)
    for name, colour in zip(names, plt.cm.viridis(np.linspace(0, 0.85, len(names))), strict=True):
        steps = norms.history[f"grad_norm/{name}"]
        position = 0.5 + (np.arange(len(steps)) + 0.5) * len(epochs) / len(steps)
        axes.plot(position, steps, color=colour, alpha=0.15, linewidth=0.6)
        medians = [np.median(part) for part in np.array_split(steps, len(epochs))]
        axes.plot(epochs, medians, color=colour, label=name)
    axes.set(yscale="log", ylabel="gradient norm (median of the epoch)")
    axes.legend(frameon=False, ncols=len(names), loc="lower left")


if __name__ == "__main__":
    main()
