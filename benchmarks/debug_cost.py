"""What the debugging functions cost: seconds and memory on three small models, beside plain training.

    KERAS_BACKEND=tensorflow python benchmarks/debug_cost.py --output debug_cost.md

Every function is called once, as a user calls it, on a fresh model, and compiles what it needs: that is counted. Plain
training is the second of two epochs of 100 steps; what its first epoch takes longer is compilation.
"""

import argparse
import gc
import os
import pathlib
import platform
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # run from a checkout without installing it

import keras
import numpy as np

import tf_tricks
from tf_tricks import debug

BACKEND = keras.backend.backend()
BATCH, STEPS = 32, 100

# Seconds on two processor cores, for a model of up to a million parameters.
TARGETS = {
    "overfit_one_batch": 10,
    "check_gradients": 10,
    "find_learning_rate": 20,
    "without_batch_norm": 10,
    "check_inputs": 10,
    "batch_size_advice": 10,
    "diagnose_learning_curve": 10,
    "loss_outliers": 10,
}

# --- models: up to a million parameters ---------------------------------------------------------------------------


def mlp():
    layers = [keras.Input((256,))]
    for _ in range(4):
        layers += [keras.layers.Dense(512), keras.layers.BatchNormalization(), keras.layers.ReLU()]
    return keras.Sequential([*layers, keras.layers.Dense(10)])


def cnn():
    layers = [keras.Input((16, 16, 3))]
    for filters, strides in ((32, 1), (64, 2), (128, 1), (128, 2), (256, 1)):
        layers.append(keras.layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False))
        layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)])


def transformer(length=32, width=128, blocks=4):
    tokens = keras.Input((length,), dtype="int32")
    x = keras.layers.Embedding(1000, width)(tokens)
    for _ in range(blocks):
        y = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(4, width // 4, dropout=0.1)(y, y)
        y = keras.layers.Dense(4 * width, activation="gelu")(keras.layers.LayerNormalization()(x))
        x = x + keras.layers.Dense(width)(y)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.Model(tokens, keras.layers.Dense(10)(x))


MODELS = {"mlp": mlp, "cnn": cnn, "transformer": transformer}


def compiled(build):
    keras.utils.set_random_seed(0)
    model = build()
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def data(model, rows):
    """Ten classes that can be told apart: each has a centre of its own, or its own favourite tokens."""
    rng = np.random.default_rng(0)
    shape, y = model.input_shape[1:], rng.integers(0, 10, rows, "int32")
    if isinstance(model.layers[1], keras.layers.Embedding):
        favourites = rng.integers(0, 1000, (10, *shape))
        x = np.where(rng.random((rows, *shape)) < 0.3, favourites[y], rng.integers(0, 1000, (rows, *shape)))
        return x.astype("int32"), y
    x = rng.normal(size=(10, *shape))[y] + 2 * rng.normal(size=(rows, *shape))
    return x.astype("float32"), y


# --- what is measured ---------------------------------------------------------------------------------------------


def call(name, model, x, y, history, **options):
    """One call of a debugging function; `options` are `seconds`, or none for the function's own limit."""
    function = getattr(debug, name)
    if name == "diagnose_learning_curve":
        return function(history)
    if name == "check_inputs":
        held_out = len(x) // 4
        return function(x[held_out:], y[held_out:], model, (x[:held_out], y[:held_out]), verbose=0, **options)
    if name == "without_batch_norm":
        # The transformer has another normalisation, which can be taken out just as well.
        options["bypass"] = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)
    return function(model, x, y, verbose=0, **options)


def measured(function):
    """(what it returns, seconds, bytes at the peak above those before; None where the system does not tell)."""
    gc.collect()
    before = _start_peak()
    begin = time.perf_counter()
    result = function()
    seconds = time.perf_counter() - begin
    return result, seconds, None if before is None else max(0, _status("VmHWM") - before)


def _start_peak():
    """Have Linux note the peak of the memory from here on; the bytes now."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _status("VmRSS")
    except (OSError, StopIteration):
        return None


def _status(key):
    lines = pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


class Epochs(keras.callbacks.Callback):
    """The seconds of each epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = [*getattr(self, "seconds", []), time.perf_counter() - self._begin]


def train(build, steps):
    """(History's dict, seconds of the first epoch and of the second one, bytes at the peak)."""
    model, clock = compiled(build), Epochs()
    x, y = data(model, BATCH * steps)
    fit = {"batch_size": BATCH, "epochs": 2, "verbose": 0, "callbacks": [clock]}
    history, _, peak = measured(lambda: model.fit(x, y, **fit).history)
    return history, *clock.seconds, peak


# --- table and command line ---------------------------------------------------------------------------------------


def rows_of(name, build, functions, steps, options):
    """Yield the rows of one model's table, training first."""
    history, first, second, peak = train(build, steps)
    yield [name, f"compilation of `fit`, and {steps} steps", "", f"{first:.1f}", _times(first, second), _mebi(peak), ""]
    yield [name, f"{steps} steps of `fit`", "", f"{second:.1f}", "1.0", "", ""]
    curve = {"loss": list(np.geomspace(2, 0.1, 50)), "val_loss": list(np.geomspace(2, 0.2, 50))}
    for function in functions:
        model = compiled(build)
        x, y = data(model, BATCH * steps)
        try:
            result, seconds, peak = measured(lambda: call(function, model, x, y, curve, **options))  # noqa: B023
        except Exception as error:  # one that fails must not cost the others their rows
            yield [name, function, f"{TARGETS[function]}", "", "", "", f"{type(error).__name__}: {error}"[:80]]
            continue
        outcome = ", ".join(finding.name for finding in result.findings) or "nothing found"
        within = f"{seconds:.1f}" + ("" if seconds <= 1.05 * TARGETS[function] else " (!)")
        yield [name, function, f"{TARGETS[function]}", within, _times(seconds, second), _mebi(peak), outcome]


def _times(seconds, unit):
    return f"{seconds / unit:.1f}"


def _mebi(peak):
    return "" if peak is None else f"{peak / 2**20:.0f}"


def heading(steps):
    backend = __import__(BACKEND)
    sizes = ", ".join(f"{name} {build().count_params():,}" for name, build in MODELS.items())
    columns = ["model", "function", "target, s", "s", f"in {steps} steps", "peak MiB", "findings"]
    return [
        f"# Debugging functions: {BACKEND}",
        "",
        f"tf_tricks {tf_tricks.__version__}, keras {keras.__version__}, {BACKEND} {backend.__version__}, numpy "
        f"{np.__version__}, Python {platform.python_version()}, {os.cpu_count()} processor cores, load "
        f"{os.getloadavg()[0]:.1f} at the begin. Parameters: {sizes}. Batches of {BATCH}. (!): over the target.",
        "",
        "| " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * (len(columns) - 1),
    ]


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--functions", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--steps", type=int, default=STEPS, help="of plain training; samples are 32 times as many")
    parser.add_argument("--quick", action="store_true", help="10 steps and half a second each, to see that it runs")
    parser.add_argument("--output", type=pathlib.Path, help="write the table to this Markdown file, too")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse(argv)
    steps, options = (10, {"seconds": 0.5}) if arguments.quick else (arguments.steps, {})
    lines = heading(steps)
    print("\n".join(lines), flush=True)
    for name in arguments.models:
        for row in rows_of(name, MODELS[name], arguments.functions, steps, options):
            lines.append("| " + " | ".join(row) + " |")
            print(lines[-1], flush=True)
    lines += ["", f"Load at the end: {os.getloadavg()[0]:.1f}."]
    print("\n".join(lines[-2:]), flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
