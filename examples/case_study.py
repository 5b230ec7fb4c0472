"""A network that does not converge, and how one call after the other finds out why, until it learns.

    python examples/case_study.py                       # about a minute on two cores; no download
    python examples/case_study.py --backend jax         # or torch
    python examples/case_study.py --seeds 5             # of the comparison of learning rates

The data are the handwritten digits that come with scikit-learn, made as unfriendly as measurements are: the pixels are
counts from 0 to 140 million, the target 10 ** digit spans nine orders of magnitude, and a convolutional network with
normally distributed weights has to learn it as a regression. Each step prints what one call of tf_tricks says and
draws its picture into the folder of `--output`; at the end come a table of what was claimed and what was measured, the
numbers as JSON, and one picture of the whole story, case_study.png.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys
import time

PIP_EXTRA = {"tensorflow": "cpu", "jax": "jax", "torch": "torch"}  # all other packages are in `examples`


def parse_arguments():
    parser = argparse.ArgumentParser(description="Repair a network that does not converge, call by call.")
    parser.add_argument("--backend", choices=["tensorflow", "jax", "torch"], default="tensorflow")
    parser.add_argument("--seeds", type=int, default=3, help="networks that each learning rate schedule trains")
    parser.add_argument("--output", default="case_study", help="the folder of the pictures and the numbers")
    parser.add_argument("--quick", action="store_true", help="shorter runs, to see that everything runs")
    return parser.parse_args()


def check_installed(backend):
    """End with one sentence if a package is missing."""
    for module in (backend, "sklearn", "matplotlib"):
        if importlib.util.find_spec(module) is None:
            sys.exit(f"The example needs {module}: pip install 'tf-tricks[{PIP_EXTRA.get(module, 'examples')}]'")


ARGUMENTS = parse_arguments()
check_installed(ARGUMENTS.backend)
os.environ["KERAS_BACKEND"] = ARGUMENTS.backend  # Keras reads it once, when it is imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # no start-up messages between the results
os.environ.setdefault("MPLBACKEND", "Agg")

import keras  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402

from tf_tricks import debug  # noqa: E402
from tf_tricks.callbacks import FinalLearningRateDrop, GradientNormLogger, NaNGuard  # noqa: E402
from tf_tricks.initializers import ActivationScaling  # noqa: E402
from tf_tricks.layers import TanhScale  # noqa: E402

LARGEST = 140_000_000  # counts of a white pixel
FILTERS = (16, 16, 32, 32, 64)
BATCH_SIZE = 32
RATE = 0.03
IMAGES, EPOCHS, FROZEN_EPOCHS, ONE_SAMPLE_STEPS = (320, 6, 12, 200) if ARGUMENTS.quick else (1440, 8, 12, 400)
# Small batches make noise: it is what a lower rate at the end takes away.
SCHEDULE_EPOCHS, SCHEDULE_BATCH_SIZE, SCHEDULE_RATE = 2 if ARGUMENTS.quick else 6, 8, 0.02
TOO_FAST = 0.93 if ARGUMENTS.quick else 0.985  # of the rate that a step leaves: half of it in an epoch
SCHEDULES = {"no decay": None, "x 0.999995 a step": 0.999995, "x 0.9995 a step": 0.9995, "x 0.1 at the end": "drop"}
if ARGUMENTS.quick:
    del SCHEDULES["x 0.999995 a step"], SCHEDULES["x 0.9995 a step"]  # hardly a decay in a few hundred steps


def main():
    begin = time.perf_counter()
    folder = pathlib.Path(ARGUMENTS.output)
    folder.mkdir(parents=True, exist_ok=True)
    data = load_data()
    story = Story(folder, data)
    for chapter in (inputs, divergence, clipping, one_sample, hidden, repaired, frozen, schedules):
        keras.utils.set_random_seed(0)
        chapter(story)
    story.table()
    (folder / "numbers.json").write_text(json.dumps(story.numbers, indent=1), encoding="utf-8")
    draw(story, folder / "case_study.png")
    print(f"\nThe pictures are in {folder}; {time.perf_counter() - begin:.0f} s on {ARGUMENTS.backend}.")


# --- data and network ---------------------------------------------------------------------------------------------


class Data:
    """Arrays of the digits: `x` (n, 8, 8, 1) counts, `raw` (n, 1) targets, `y` (n, 1) their standardised logarithm."""

    def __init__(self, images, raw):
        self.x = (images[..., None] / 16 * LARGEST).astype("float32")
        self.raw = raw[:, None].astype("float32")
        logarithm = np.log10(self.raw)
        self.y = ((logarithm - 4.5) / 2.87).astype("float32")  # mean 0 and stddev 1 for ten equally frequent digits


def load_data():
    """(training, validation) `Data`."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, targets = digits.images[order], 10.0 ** digits.target[order]
    return Data(images[:1440], targets[:1440]), Data(images[1440:], targets[1440:])


def broken_network():
    """As many begin: raw inputs, weights from a normal distribution, batch normalisation against the consequences."""
    layers = [keras.Input((8, 8, 1))]
    for number, filters in enumerate(FILTERS, 1):
        normal = keras.initializers.RandomNormal(stddev=1.0, seed=number)
        layers += [convolution(number, filters, normal), keras.layers.BatchNormalization(name=f"norm_{number}")]
        layers.append(keras.layers.ReLU(name=f"relu_{number}"))
    return keras.Sequential([*layers, *output(keras.initializers.RandomNormal(stddev=1.0, seed=0))])


def repaired_network(seed=0):
    """The same layers: inputs through tanh(x / C), weights of the right variance, and no batch normalisation."""
    layers = [keras.Input((8, 8, 1)), TanhScale(C=LARGEST, name="scale")]
    for number, filters in enumerate(FILTERS, 1):
        scaled = ActivationScaling("linear" if number == 1 else "relu", seed=100 * seed + number)
        layers += [convolution(number, filters, scaled), keras.layers.ReLU(name=f"relu_{number}")]
    return keras.Sequential([*layers, *output(ActivationScaling("relu", seed=100 * seed))])


def convolution(number, filters, initializer):
    strides = 2 if number in (2, 4) else 1
    return keras.layers.Conv2D(
        filters, 3, strides=strides, padding="same", kernel_initializer=initializer, name=f"conv_{number}"
    )


def output(initializer):
    return [keras.layers.Flatten(), keras.layers.Dense(1, kernel_initializer=initializer, name="out")]


def compiled(model, rate=RATE, **options):
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, **options), "mean_squared_error")
    return model


# --- the story ----------------------------------------------------------------------------------------------------


class Story:
    """What the chapters find: numbers, lines of the table, and what the last picture draws."""

    def __init__(self, folder, data):
        self.folder, (self.train, self.validation) = folder, data
        self.numbers, self.claims, self.kept = {}, [], {}

    def fit(self, model, callbacks=(), epochs=EPOCHS, images=IMAGES, batch_size=BATCH_SIZE):
        return model.fit(
            self.train.x[:images],
            self.train.y[:images],
            batch_size=batch_size,
            epochs=epochs,
            validation_data=(self.validation.x, self.validation.y),
            callbacks=list(callbacks),
            verbose=0,
        ).history

    def chapter(self, title, text, result, picture):
        """Print what a call says, and draw its picture."""
        print(f"\n=== {title}\n{text}", flush=True)
        result.plot(self.folder / picture)

    def claim(self, text, measured, reproduced, **numbers):
        self.claims.append((text, measured, "yes" if reproduced else "NO"))
        self.numbers.update(numbers)

    def table(self):
        print("\n| claim | measured | reproduced |\n| --- | --- | --- |")
        for row in self.claims:
            print("| " + " | ".join(row) + " |")


def inputs(story):
    result = debug.check_inputs(story.train.x, story.train.raw, compiled(broken_network()), verbose=0)
    story.chapter("1 The data, before anything else: check_inputs", result, result, "1_inputs.png")
    print("From here on the network learns log10 of the target, standardised; the inputs stay as they are.")
    names = [finding.name for finding in result.findings]
    inputs_seen = "not_scaled" in names or "images_not_scaled" in names
    story.claim(
        "the scales of inputs and targets are found before training",
        f"inputs: {'found' if inputs_seen else 'not found'}; targets: "
        f"{'found' if 'target_scale' in names else 'not found'}",
        inputs_seen and "target_scale" in names,
        input_findings=names,
    )


def divergence(story):
    guard, norms = NaNGuard(verbose=0), GradientNormLogger(verbose=0)
    story.fit(compiled(broken_network()), [guard, norms], epochs=EPOCHS)
    title = "2 The network does not converge: fit with NaNGuard and GradientNormLogger"
    story.chapter(title, guard.report or "The loss stayed finite.", norms, "2_divergence.png")
    story.kept["broken"] = norms.history
    first, last = (float(norms.history["loss"][i]) for i in (0, -1))
    step = None if guard.report is None else guard.report.step
    story.claim(
        "the network does not converge",
        f"loss {first:.3g}, " + (f"at the end {last:.3g}" if step is None else f"not finite at step {step}"),
        guard.report is not None or last > 1,
        broken_nan_step=step,
        broken_loss=last,
    )


def clipping(story):
    norms = GradientNormLogger(verbose=0)
    history = story.fit(compiled(broken_network(), clipnorm=1.0), [norms])
    losses, sizes = norms.history["loss"], norms.history["grad_norm/global"]
    clipped = float(np.mean(sizes > 1))
    text = (
        f"loss {losses[0]:.3g} -> {history['loss'][-1]:.3g}, validation {history['val_loss'][-1]:.3g} (predicting the "
        f"mean: 1); {clipped:.0%} of the steps were clipped, the norm's median is {np.median(sizes):.3g}"
    )
    story.chapter("3 Clipping hides it: fit with clipnorm=1 and GradientNormLogger", text, norms, "3_clipping.png")
    story.kept["clipped"] = norms.history
    finite = bool(np.isfinite(losses).all())
    story.claim(
        "clipping only hides it: the loss is finite, but nearly every step is cut short",
        f"{'all finite' if finite else 'NOT finite'}, {clipped:.0%} of the steps clipped; loss "
        f"{history['loss'][-1]:.3g} after {EPOCHS} epochs, validation {history['val_loss'][-1]:.3g}",
        finite and clipped > 0.9,
        clipped_losses_finite=finite,
        clipped_share=clipped,
        clipped_loss=history["loss"][-1],
        clipped_val_loss=history["val_loss"][-1],
    )


def one_sample(story):
    model = compiled(broken_network())
    result = debug.overfit_one_batch(model, *sample(story), samples=1, verbose=0)
    story.chapter("4 It cannot even learn one image: overfit_one_batch", result, result, "4_one_sample.png")
    story.kept["broken_one"] = result.losses
    story.claim(
        "it cannot learn a single image by heart",
        f"loss {result.start_loss:.3g} -> {result.final_loss:.3g} ({', '.join(f.name for f in result.findings)})",
        not result.passed,
        broken_one_passed=result.passed,
        broken_one_findings=[finding.name for finding in result.findings],
    )


def sample(story):
    """One image: a zero, as far from the mean of the targets as there is."""
    chosen = int(np.argmin(story.train.raw[:, 0]))
    return story.train.x[chosen : chosen + 1], story.train.y[chosen : chosen + 1]


def hidden(story):
    result = debug.without_batch_norm(compiled(broken_network()), story.train.x, story.train.y, verbose=0)
    story.chapter("5 What batch normalisation hides: without_batch_norm", result, result, "5_without_batch_norm.png")
    story.kept["hidden"] = result
    names, step = [finding.name for finding in result.findings], result.non_finite_step
    story.claim(
        "batch normalisation hid an exploding initialisation; without it NaN at the second iteration",
        f"{', '.join(names)}; stddev at the end {last_stddev(result.original):.3g} with it, "
        f"{last_stddev(result.bare):.3g} without; not finite at step {step} (from 0)",
        "batch_norm_hides" in names and step == 1,
        hidden_findings=names,
        non_finite_step=step,
    )


def last_stddev(signals):
    return [row.stddev for row in signals.rows if row.has_kernel][-1]


def repaired(story):
    model = compiled(repaired_network())
    signals = debug.signal_propagation(model, story.train.x[:BATCH_SIZE], story.train.y[:BATCH_SIZE])
    story.chapter("6 Variance scaling and TanhScale: signal_propagation", signals, signals, "6_signals.png")
    result = debug.overfit_one_batch(model, *sample(story), samples=1, verbose=0)
    story.chapter("6 ... and overfit_one_batch", result, result, "6_one_sample.png")
    norms = GradientNormLogger(verbose=0)
    often = [np.repeat(each, ONE_SAMPLE_STEPS, axis=0) for each in sample(story)]
    model.fit(*often, batch_size=1, verbose=0, callbacks=[norms])
    squared = norms.history["loss"]
    ratio = float(np.sqrt(squared[-1] / squared[0]))
    story.kept.update(repaired_one=squared, signals=signals)
    story.claim(
        "variance scaling and TanhScale: one image is learnt to four orders of magnitude below the start",
        f"error {squared[0] ** 0.5:.3g} -> {squared[-1] ** 0.5:.1e} in {len(squared)} steps, {ratio:.0e} of the start",
        result.passed and ratio < 1e-4,
        repaired_one_passed=result.passed,
        repaired_verdict=signals.verdict,
        one_sample_ratio=ratio,
    )
    norms = GradientNormLogger(verbose=0)
    history = story.fit(compiled(repaired_network()), [norms])
    story.kept["repaired"] = norms.history
    ends = {key: history[key][-1] for key in ("loss", "val_loss")}
    clipped = {key: story.numbers[f"clipped_{key}"] for key in ends}
    story.claim(
        "the repaired network learns, without clipping and without batch normalisation",
        f"loss {ends['loss']:.3g}, validation {ends['val_loss']:.3g} after {EPOCHS} epochs; clipped, with batch "
        f"normalisation: {clipped['loss']:.3g}, {clipped['val_loss']:.3g}",
        all(ends[key] < clipped[key] for key in ends),
        repaired_loss=ends["loss"],
        repaired_val_loss=ends["val_loss"],
    )


def frozen(story):
    """The repaired network, so that the rate alone is to blame."""
    rate = keras.optimizers.schedules.ExponentialDecay(RATE, decay_steps=1, decay_rate=TOO_FAST)
    norms = GradientNormLogger(verbose=0)
    history = story.fit(compiled(repaired_network(), rate), [norms], FROZEN_EPOCHS)
    ratios = norms.history["update_ratio/global"]
    steps = len(ratios) // FROZEN_EPOCHS
    curve = {key: history[key] for key in ("loss", "val_loss")}
    curve["learning_rate"] = [RATE * TOO_FAST ** (steps * epoch) for epoch in range(FROZEN_EPOCHS)]
    result = debug.diagnose_learning_curve(curve)
    title = f"7 A rate that decays too fast, x {TOO_FAST} a step: GradientNormLogger and diagnose_learning_curve"
    story.chapter(title, result, norms, "7_frozen.png")
    story.kept["frozen"] = norms.history
    loss, free = history["loss"][-1], story.numbers["repaired_loss"]
    names = [finding.name for finding in result.findings]
    story.claim(
        "a rate that decays too fast freezes the network",
        f"update / weight {np.max(ratios[:10]):.0e} -> {ratios[-1]:.0e}; loss {loss:.3g} after {FROZEN_EPOCHS} epochs, "
        f"without decay {free:.3g} after {EPOCHS}; diagnose_learning_curve: {', '.join(names) or 'nothing'}",
        loss > free and ratios[-1] < 0.01 * np.max(ratios[:10]),
        frozen_loss=loss,
        frozen_ratio=float(ratios[-1] / np.max(ratios[:10])),
        frozen_findings=names,
    )


def schedules(story):
    found = {name: [] for name in SCHEDULES}
    print("\n=== 8 The rate at the end: FinalLearningRateDrop beside geometric decay", flush=True)
    for name, factor in SCHEDULES.items():
        decays = isinstance(factor, float)
        rate = SCHEDULE_RATE
        rate = keras.optimizers.schedules.ExponentialDecay(rate, 1, factor) if decays else rate
        model = compiled(repaired_network(), rate)
        model.optimizer.build(model.trainable_variables)
        fresh = [keras.ops.convert_to_numpy(variable.value) for variable in model.optimizer.variables]
        for seed in range(ARGUMENTS.seeds):
            keras.utils.set_random_seed(seed)
            model.set_weights(repaired_network(seed).get_weights())
            for variable, value in zip(model.optimizer.variables, fresh, strict=True):
                variable.assign(value)
            callbacks = [FinalLearningRateDrop(0.1, last=0.2, restore=True)] if factor == "drop" else []
            found[name].append(story.fit(model, callbacks, SCHEDULE_EPOCHS, 1440, SCHEDULE_BATCH_SIZE))
        ends = {key: [history[key][-1] for history in found[name]] for key in ("loss", "val_loss")}
        print(f"  {name:18} " + "   ".join(f"{key} {spread(ends[key])}" for key in ends), flush=True)
        story.numbers.setdefault("schedules", {})[name] = ends
    story.kept["schedules"] = found
    drop = story.numbers["schedules"]["x 0.1 at the end"]
    for name in [each for each in SCHEDULES if SCHEDULES[each] != "drop"]:
        other = story.numbers["schedules"][name]
        wins = {key: sum(a < b for a, b in zip(drop[key], other[key], strict=True)) for key in drop}
        story.claim(
            f"dropping the rate tenfold at the end beats {name}",
            f"loss {spread(drop['loss'])} against {spread(other['loss'])}, validation {spread(drop['val_loss'])} "
            f"against {spread(other['val_loss'])}; lower in {wins['loss']} and {wins['val_loss']} of {ARGUMENTS.seeds} "
            "seeds",
            # A single bad run can move a mean: most seeds have to agree.
            all(np.mean(drop[key]) < np.mean(other[key]) and wins[key] > ARGUMENTS.seeds / 2 for key in drop),
        )


def spread(values):
    """Mean and standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
    return f"{np.mean(values):.4f} +- {error:.4f}"


# --- the picture --------------------------------------------------------------------------------------------------


def draw(story, path):
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25})
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.2), layout="constrained")
    draw_convergence(axes[0, 0], story)
    draw_norms(axes[0, 1], story)
    draw_one_sample(axes[0, 2], story)
    draw_signals(axes[1, 0], story)
    draw_frozen(axes[1, 1], story)
    draw_schedules(axes[1, 2], story)
    figure.suptitle(f"A network that did not converge, {ARGUMENTS.backend}")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_convergence(axes, story):
    for name, color in (("clipped", "tab:orange"), ("repaired", "tab:green"), ("broken", "tab:red")):
        losses = np.asarray(story.kept[name]["loss"])
        axes.plot(losses, color=color, linewidth=1, label=name)
        if name == "broken":
            end = int(np.sum(np.isfinite(losses))) - 1
            axes.plot(end, losses[end], "x", color=color, label="... then NaN")
    axes.axhline(1, color="gray", linestyle=":", linewidth=1, label="predicting the mean")
    axes.set(yscale="log", xlabel="step", ylabel="loss", title="2, 3: NaN; clipping hides it")
    axes.legend(fontsize="small", frameon=False)


def draw_norms(axes, story):
    for name, color in (("clipped", "tab:orange"), ("repaired", "tab:green")):
        axes.plot(story.kept[name]["grad_norm/global"], color=color, linewidth=1, label=name)
    axes.axhline(1, color="black", linestyle=":", linewidth=1, label="clipped to")
    axes.set(yscale="log", xlabel="step", ylabel="gradient norm before clipping", title="3: what clipping hides")
    axes.legend(fontsize="small", frameon=False)


def draw_one_sample(axes, story):
    start = np.sqrt(story.kept["broken_one"][0])
    axes.plot(0, start, "x", color="tab:red", label="broken, then NaN")
    errors = np.sqrt(np.asarray(story.kept["repaired_one"], "float64"))
    axes.plot(np.maximum(errors, 1e-9), color="tab:green", linewidth=1, label="repaired")
    axes.set(yscale="log", xlabel="step", ylabel="error of one image", title="4, 6: learning one image by heart")
    axes.legend(fontsize="small", frameon=False)


def draw_signals(axes, story):
    hidden = story.kept["hidden"]
    runs = (("batch normalisation", hidden.original), ("without it", hidden.bare), ("repaired", story.kept["signals"]))
    for (label, signals), color in zip(runs, ("tab:orange", "tab:red", "tab:green"), strict=True):
        rows = [row for row in signals.rows if row.layer.startswith("conv") or row.layer == "out"]
        axes.plot([row.layer for row in rows], [row.stddev for row in rows], ".-", color=color, label=label)
    axes.set(yscale="log", ylabel="stddev of the outputs", title="5, 6: the signal, layer by layer")
    axes.legend(fontsize="small", frameon=False)


def draw_frozen(axes, story):
    for name, color in (("frozen", "tab:blue"), ("repaired", "tab:green")):
        label = f"x {TOO_FAST} a step" if name == "frozen" else "constant rate"
        axes.plot(story.kept[name]["loss"], color=color, linewidth=1, label=f"loss, {label}")
        ratios = story.kept[name]["update_ratio/global"]
        axes.plot(ratios, color=color, linestyle=":", linewidth=1, label=f"update / weight, {label}")
    axes.set(yscale="log", xlabel="step", title="7: a rate that decays too fast")
    axes.set_ylim(bottom=1e-7)
    axes.legend(fontsize="small", frameon=False)


def draw_schedules(axes, story):
    colors = dict(zip(SCHEDULES, ("tab:red", "tab:orange", "tab:blue", "tab:green"), strict=False))
    for name, runs in story.kept["schedules"].items():
        losses = np.exp(np.mean([np.log(run["val_loss"]) for run in runs], axis=0))
        axes.plot(np.arange(1, len(losses) + 1), losses, color=colors[name], linewidth=1.2, label=name)
    axes.set(yscale="log", xlabel="epoch", ylabel="validation loss (mean of the seeds)", title="8: the rate at the end")
    axes.legend(fontsize="small", frameon=False)


if __name__ == "__main__":
    main()
