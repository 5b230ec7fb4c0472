"""What reaches the last of 10, 50 and 200 dense layers, and which 50-layer networks train at all.

    KERAS_BACKEND=torch python benchmarks/initializers.py --output initializers.md --picture docs/initializers.png

The second moment of the pre-activations of plain networks, whose input has the second moment 1, for Keras's
initializers and ours; and the training curves of 50-layer networks without normalisation or shortcuts on scikit-learn's
digits. Every network is drawn from the same list of seeds; the table shows medians.
"""

import argparse
import os
import pathlib
import platform
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for matrices this small, threads cost more than they save
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # run from a checkout without installing it

import keras
import numpy as np

import tf_tricks
from tf_tricks.initializers import ActivationScaling

BACKEND = keras.backend.backend()
DEPTHS = (10, 50, 200)
ACTIVATIONS = ("relu", "tanh", "gelu", "selu", "silu")


def keras_s(name):
    """Layer number, number of layers, activation, seed -> one of Keras's initializers."""
    return lambda layer, layers, activation, seed: getattr(keras.initializers, name)(seed=seed)


def ours(mirrored, distribution="truncated_normal"):
    def make(layer, layers, activation, seed):
        source = "linear" if layer == 0 else activation
        where = ("outputs" if layer == 0 else "inputs" if layer == layers - 1 else "both") if mirrored else None
        return ActivationScaling(source, distribution=distribution, mirrored=where, seed=seed)

    return make


VARIANTS = {
    "HeNormal": keras_s("HeNormal"),
    "GlorotUniform": keras_s("GlorotUniform"),
    "Orthogonal": keras_s("Orthogonal"),
    "ActivationScaling": ours(False),
    "ActivationScaling, mirrored orthogonal": ours(True, "orthogonal"),
}


# --- the signal ---------------------------------------------------------------------------------------------------


def second_moments(make, activation, depth, width, seed, rows=64):
    """The second moment of the pre-activations of each layer of one network."""
    seeds, f = keras.random.SeedGenerator(seed), keras.activations.get(activation)
    x = np.random.default_rng(seed).normal(size=(rows, width)).astype("float32")
    signal = keras.ops.convert_to_tensor(x / np.sqrt(np.mean(x**2)))
    found = []
    for layer in range(depth):
        # One more layer than there are: the last one of these is in the middle, as far as the table goes.
        kernel = make(layer, depth + 1, activation, seeds)((width, width), dtype="float32")
        signal = keras.ops.matmul(signal if layer == 0 else f(signal), kernel)
        found.append(keras.ops.mean(keras.ops.square(signal)))
    return keras.ops.convert_to_numpy(keras.ops.stack(found)).astype("float64")


def measure_signal(width, seeds, depths):
    """(variant, activation) -> second moments over layers, the median of the networks."""
    found = {}
    for name, make in VARIANTS.items():
        for activation in ACTIVATIONS:
            with np.errstate(all="ignore"):
                networks = [second_moments(make, activation, max(depths), width, seed) for seed in range(seeds)]
            found[name, activation] = np.median(networks, axis=0)
    return found


def signal_table(found, depths):
    heads = [f"{activation} {depth}" for activation in ACTIVATIONS for depth in depths]
    lines = ["| initializer | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    for name in VARIANTS:
        cells = [_number(found[name, activation][depth - 1]) for activation in ACTIVATIONS for depth in depths]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _number(value):
    if not np.isfinite(value):
        return "overflow"
    return f"{value:.2f}" if 0.005 < value < 100 else f"{value:.0e}" if value else "0"


# --- training -----------------------------------------------------------------------------------------------------


def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x = ((x - x.mean()) / x.std()).astype("float32")[order]
    return (x[:1400], y[order][:1400]), (x[1400:], y[order][1400:])


def plain_network(make, activation, depth, width, seed):
    seeds, layers = keras.random.SeedGenerator(seed), keras.layers
    body = [
        layers.Dense(width, activation=activation, kernel_initializer=make(i, depth, activation, seeds))
        for i in range(depth - 1)
    ]
    last = layers.Dense(10, kernel_initializer=make(depth - 1, depth, activation, seeds))
    return keras.Sequential([keras.Input((64,)), *body, last])


def measure_training(depth, width, epochs, seconds):
    """(variant, activation) -> accuracy on held-out digits after each epoch; what does not fit in `seconds` is left."""
    (x, y), test = digits()
    found, begin = {}, time.perf_counter()
    for activation in ACTIVATIONS:
        for name, make in VARIANTS.items():
            if time.perf_counter() - begin > seconds:
                return found
            keras.utils.set_random_seed(0)
            model = plain_network(make, activation, depth, width, 0)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            optimizer = keras.optimizers.SGD(0.01, momentum=0.9, clipnorm=1.0)
            model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=BACKEND == "jax")
            history = model.fit(x, y, batch_size=100, epochs=epochs, validation_data=test, verbose=0).history
            found[name, activation] = np.array(history["val_accuracy"])
    return found


def training_table(found):
    lines = ["| initializer | " + " | ".join(ACTIVATIONS) + " |", "| --- |" + " --- |" * len(ACTIVATIONS)]
    for name in VARIANTS:
        cells = [f"{100 * found[name, a][-1]:.1f} %" if (name, a) in found else "" for a in ACTIVATIONS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


# --- picture and command line -------------------------------------------------------------------------------------


def draw(signal, training, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(ACTIVATIONS), figsize=(14, 5.6), sharey="row", layout="constrained")
    for column, activation in enumerate(ACTIVATIONS):
        for name in VARIANTS:
            moments = np.clip(np.nan_to_num(signal[name, activation], nan=1e12, posinf=1e12), 1e-12, 1e12)
            axes[0, column].plot(np.arange(1, len(moments) + 1), moments, label=name, linewidth=1.4)
            if (name, activation) in training:
                accuracy = training[name, activation]
                axes[1, column].plot(np.arange(1, len(accuracy) + 1), accuracy, linewidth=1.4)
        axes[0, column].set(yscale="log", ylim=(1e-8, 1e8), title=activation, xlabel="layer")
        axes[1, column].set(ylim=(0, 1), xlabel="epoch")
    axes[0, 0].set_ylabel("second moment")
    axes[1, 0].set_ylabel("accuracy, held-out digits")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize="small", frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def heading(arguments):
    backend = __import__(BACKEND)
    return [
        f"# Initializers: {BACKEND}",
        "",
        f"tf_tricks {tf_tricks.__version__}, keras {keras.__version__}, {BACKEND} {backend.__version__}, numpy "
        f"{np.__version__}, Python {platform.python_version()}.",
    ]


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=96, help="units of each layer in the measurement of the signal")
    parser.add_argument("--seeds", type=int, default=3, help="networks of which the median is shown")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--training-seconds", type=float, default=200, help="begin no further training after these")
    parser.add_argument("--quick", action="store_true", help="tiny networks, to see that everything runs")
    parser.add_argument("--output", type=pathlib.Path, help="write the tables to this Markdown file, too")
    parser.add_argument("--picture", type=pathlib.Path, help="write the picture to this PNG file")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse(argv)
    width, seeds, epochs, depths, deep = arguments.width, arguments.seeds, arguments.epochs, DEPTHS, 50
    if arguments.quick:
        width, seeds, epochs, depths, deep = 16, 1, 1, (2, 3, 4), 4
    lines = heading(arguments)
    print("\n".join(lines), flush=True)
    signal = measure_signal(width, seeds, depths)
    what = f"Second moment of the pre-activations at depth {', '.join(map(str, depths))}; {width} units, 1 is right"
    part = ["", f"## {what} (medians of {seeds} networks)", "", *signal_table(signal, depths)]
    print("\n".join(part), flush=True)
    lines += part
    training = measure_training(deep, 64, epochs, arguments.training_seconds)
    what = f"Accuracy on held-out digits of {deep} plain layers of 64 units after {epochs} epochs"
    part = ["", f"## {what} (SGD 0.01, momentum 0.9, clipnorm 1)", "", *training_table(training)]
    print("\n".join(part), flush=True)
    lines += part
    if arguments.output:
        arguments.output.write_text("\n".join([*lines, ""]), encoding="utf-8")
    if arguments.picture:
        draw(signal, training, arguments.picture)


if __name__ == "__main__":
    main()
