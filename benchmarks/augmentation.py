"""What augmentation costs: milliseconds a batch of our layers, of Keras's and of albumentations, and the floor.

    KERAS_BACKEND=tensorflow python benchmarks/augmentation.py --output augmentation.md
    KERAS_BACKEND=jax python benchmarks/augmentation.py --dtypes float32 --sizes 224
    KERAS_BACKEND=torch python benchmarks/augmentation.py --cases flip
    KERAS_BACKEND=tensorflow python benchmarks/augmentation.py --in-model

A batch of 64 images of 224x224x3, and one of 256 of 32x32x3, on one core unless `--cores` says otherwise. Everything
that is compared in a line runs once in each round, in an order that rotates from round to round; medians are printed,
and ratios are medians of the ratios within a round. TensorFlow: in a graph (`tf.function`), in a graph compiled by XLA,
and in `tf.data`; JAX: in `jax.jit`; Torch: as it is. The floor is one read and one write of the batch. albumentations
works on one uint8 image after the other, as its users do. What cannot run says why; what is not installed is left out.
A summary at the end compares with the targets. `--clock cpu` takes the processor's time in place of the wall's: on one
core the same, but for what other programs take of it.

`--in-model` measures something else: a step of training of a small residual network, with `jit_compile=True` where the
backend has it, with and without the pipeline of six as its first layer.
"""

import argparse
import os
import pathlib
import platform
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path[:0] = [str(pathlib.Path(__file__).parent), str(pathlib.Path(__file__).parents[1])]  # without installing it


def one_core(arguments):
    """Keep this process on few cores; before any backend counts them."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--cores", type=int, default=1)
    cores = parser.parse_known_args(arguments)[0].cores
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


if __name__ == "__main__":
    one_core(sys.argv[1:])

import keras  # noqa: E402
import numpy as np  # noqa: E402
from augmentation_measuring import BACKEND, HEAD, MODES, in_model, line, measure, ratio  # noqa: E402

import tf_tricks  # noqa: E402
from tf_tricks import layers as ours  # noqa: E402

SIZES = {224: 64, 32: 256}  # side -> images in a batch

# --- what is compared ---------------------------------------------------------------------------------------------


def of_ours(name, *args, **kwargs):
    return lambda side, dtype: getattr(ours, name)(*args, **kwargs, dtype=dtype)


def of_keras(name, *args, **kwargs):
    return lambda side, dtype: getattr(keras.layers, name)(*args, **kwargs, dtype=dtype)


def same(name, *args, **kwargs):
    """A layer that both have, with the same arguments."""
    return of_ours(name, *args, **kwargs), of_keras(name, *args, **kwargs)


def our_pipeline(**jitter):
    def make(side, dtype):
        members = [
            ours.RandomFlip("horizontal"),
            ours.RandomRotation(0.08),
            ours.RandomZoom(0.2),
            ours.RandomColorJitter(**JITTER, **jitter),
            ours.RandomGaussianNoise(0.1),
            ours.RandomErasing(0.5),
        ]
        return ours.Augmentation(members, dtype=dtype)

    return make


def keras_pipeline(side, dtype):
    # Keras's noise knows no range of values and refuses a standard deviation above 1: scale the images around it.
    noise = keras.layers.GaussianNoise(0.1)
    members = [
        keras.layers.RandomFlip("horizontal", dtype=dtype),
        keras.layers.RandomRotation(0.08, dtype=dtype),
        keras.layers.RandomZoom(0.2, dtype=dtype),
        keras.layers.RandomColorJitter(**JITTER, dtype=dtype),
        lambda x, training: noise(x / 255.0, training=training) * 255.0,
        keras.layers.RandomErasing(0.5, dtype=dtype),
    ]

    def run(x, training=True):
        for member in members:
            x = member(x, training=training)
        return x

    run.layers = [noise, *(each for each in members if isinstance(each, keras.layers.Layer))]
    return run


JITTER = {"brightness_factor": 0.2, "contrast_factor": 0.2, "saturation_factor": (0.3, 0.7), "hue_factor": 0.05}
CASES = {
    "flip": same("RandomFlip", "horizontal"),
    "rotation": same("RandomRotation", 0.08),
    "translation": same("RandomTranslation", 0.1, 0.1),
    "zoom": same("RandomZoom", 0.2),
    "shear": same("RandomShear", 0.1, 0.1),
    "perspective": same("RandomPerspective"),
    "crop": tuple(
        lambda side, dtype, layers=layers: layers.RandomCrop(side * 7 // 8, side * 7 // 8, dtype=dtype)
        for layers in (ours, keras.layers)
    ),
    "brightness": same("RandomBrightness", 0.2),
    "contrast": same("RandomContrast", 0.2),
    "saturation": same("RandomSaturation", (0.3, 0.7)),
    "hue": same("RandomHue", 0.05),
    "colour jitter, Keras's HSV": same("RandomColorJitter", **JITTER),
    "colour jitter, one matrix": (
        of_ours("RandomColorJitter", **JITTER, mode="matrix"),
        of_keras("RandomColorJitter", **JITTER),
    ),
    "grayscale": same("RandomGrayscale", 0.5),
    "gaussian noise": (of_ours("RandomGaussianNoise", 0.1), lambda side, dtype: keras.layers.GaussianNoise(0.1)),
    "gaussian blur": same("RandomGaussianBlur", 1.0, kernel_size=3),
    "erasing": same("RandomErasing", 1.0),
    "mixup": same("MixUp"),
    "cutmix": same("CutMix"),
    "RandAugment, 2 operations": same("RandAugment"),
    "pipeline of six, Keras's HSV": (our_pipeline(), keras_pipeline),
    "pipeline of six, one matrix": (our_pipeline(mode="matrix"), keras_pipeline),
}


MIXING = ("mixup", "cutmix")  # given labels
IN_MODEL = {  # name -> the first layer
    "no augmentation": None,
    "no augmentation, again": None,
    "pipeline of six, Keras's HSV": our_pipeline(),
    "pipeline of six, one matrix": our_pipeline(mode="matrix"),
}


def albumentations_cases():
    """Name of a case -> transform of one uint8 image; empty where albumentations is not installed."""
    try:
        import albumentations
        import cv2
    except ImportError:
        return {}
    cv2.setNumThreads(1)
    a = albumentations
    jitter = a.ColorJitter((0.8, 1.2), (0.8, 1.2), (0.6, 1.4), (-0.05, 0.05), p=1.0)
    steps = {
        "flip": a.HorizontalFlip(p=0.5),
        "rotation": a.Rotate((-29, 29), border_mode=cv2.BORDER_REFLECT, p=1.0),
        "translation": a.Affine(translate_percent=(-0.1, 0.1), border_mode=cv2.BORDER_REFLECT, p=1.0),
        "zoom": a.Affine(scale=(0.8, 1.2), border_mode=cv2.BORDER_REFLECT, p=1.0),
        "shear": a.Affine(shear=(-6, 6), border_mode=cv2.BORDER_REFLECT, p=1.0),
        "perspective": a.Perspective(p=1.0),
        "brightness": a.RandomBrightnessContrast(0.2, 0.0, p=1.0),
        "contrast": a.RandomBrightnessContrast(0.0, 0.2, p=1.0),
        "colour jitter, Keras's HSV": jitter,
        "gaussian noise": a.GaussNoise((0.1, 0.1), p=1.0),
        "gaussian blur": a.GaussianBlur((3, 3), p=1.0),
        "erasing": a.Erasing(p=1.0),
    }
    steps["colour jitter, one matrix"] = jitter
    names = ("flip", "rotation", "zoom", "colour jitter, Keras's HSV", "gaussian noise", "erasing")
    pipeline = a.Compose([steps[name] for name in names])
    steps |= {f"pipeline of six, {how}": pipeline for how in ("Keras's HSV", "one matrix")}
    one_of = a.OneOf(
        [
            *(steps[name] for name in ("rotation", "translation", "shear", "brightness", "contrast")),
            *(a.Equalize(p=1.0), a.Posterize(4, p=1.0), a.Solarize(p=1.0), a.AutoContrast(p=1.0)),
            a.ToGray(p=1.0),
        ],
        p=1.0,
    )
    steps["RandAugment, 2 operations"] = a.Compose([one_of, one_of])
    return steps


# --- the summary --------------------------------------------------------------------------------------------------

# Case -> (mode, dtype) -> how many times faster than Keras, for images of 224 pixels a side.
TARGETS = {
    "pipeline of six, Keras's HSV": {
        ("graph", "float32"): 15,
        ("graph", "uint8"): 18,
        ("XLA", "float32"): 15,
        ("jit", "float32"): 35,
        ("jit", "uint8"): 50,
    },
    "pipeline of six, one matrix": {
        ("graph", "float32"): 15,
        ("graph", "uint8"): 22,
        ("XLA", "float32"): 15,
        ("jit", "float32"): 50,
        ("jit", "uint8"): 90,
    },
    "RandAugment, 2 operations": {("graph", "float32"): 30, ("jit", "float32"): 150},
    "colour jitter, Keras's HSV": {(mode, "float32"): 10 for mode in ("graph", "jit")},
    "colour jitter, one matrix": {(mode, "float32"): 30 for mode in ("graph", "jit")},
    "gaussian noise": {(mode, "float32"): 15 for mode in ("graph", "XLA", "jit")},
}
LEAST_MEDIAN, MOST_SECONDS, MOST_BATCHES = 5, 5, 3


def summary(rows):
    """Lines that compare rows, `(side, dtype, mode, case) -> (found, bytes of the batch)`, with the targets."""
    lines = ["", "## targets", "", "| what | target | found | |", "| --- | --- | --- | --- |"]

    def add(what, target, found, met):
        lines.append(f"| {what} | {target} | {found} | {'met' if met else 'missed'} |")

    for side, dtype, mode in dict.fromkeys(key[:3] for key in rows):
        mine = {key[3]: each for key, each in rows.items() if key[:3] == (side, dtype, mode)}
        where = f"{mode}, {dtype}, {side}"
        times = {name: ratio(found, found["tf_tricks"]) for name, (found, _) in mine.items()}
        for name, targets in TARGETS.items():
            if name in mine and side == 224 and (target := targets.get((mode, dtype))):
                value, beside = times[name], ""
                if value is None and (graph := rows.get((side, dtype, "graph", name))):  # does not compile
                    value, beside = ratio(graph[0], mine[name][0]["tf_tricks"]), " Keras's graph"
                if value is not None:
                    add(f"{where}: {name}", f">= {target} x{beside}", f"{value:.1f}", value >= target)
        if times := {name: each for name, each in times.items() if each is not None}:
            middle, slowest = statistics.median(times.values()), min(times, key=times.get)
            add(f"{where}: median over the layers", f">= {LEAST_MEDIAN} x", f"{middle:.1f}", middle >= LEAST_MEDIAN)
            least = times[slowest]
            add(f"{where}: slowest beside Keras's, {slowest}", ">= 1 x, within 5 %", f"{least:.2f}", least >= 0.95)
        longest = max(mine, key=lambda name: mine[name][0]["tf_tricks"]["compile"])
        seconds = mine[longest][0]["tf_tricks"]["compile"]
        add(f"{where}: longest first call, {longest}", f"< {MOST_SECONDS} s", f"{seconds:.1f}", seconds < MOST_SECONDS)
        peaks = {name: (found["tf_tricks"]["peak"], nbytes) for name, (found, nbytes) in mine.items()}
        if peaks := {name: peak / nbytes for name, (peak, nbytes) in peaks.items() if peak is not None}:
            most = max(peaks, key=peaks.get)
            value = peaks[most]
            add(f"{where}: most memory, {most}", f"<= {MOST_BATCHES} batches", f"{value:.1f}", value <= MOST_BATCHES)
    return lines


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", help="only those whose name contains one of these")
    parser.add_argument("--sizes", nargs="+", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "uint8"], default=["float32", "uint8"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a machine shared by others")
    parser.add_argument("--in-model", action="store_true", help="only a step of a network with the pipeline in it")
    parser.add_argument("--output", type=pathlib.Path, help="write the tables to this Markdown file, too")
    return parser.parse_args(argv)


def main(argv=None):
    options = parse(argv)
    lines = [
        f"# Augmentation: {BACKEND}",
        "",
        f"tf_tricks {tf_tricks.__version__}, keras {keras.__version__}, Python {platform.python_version()}; "
        f"{options.cores} core(s); medians of {options.rounds} rounds; {options.clock} time.",
    ]
    if options.in_model:
        lines += ["", *in_model(IN_MODEL, options.rounds)]
        print("\n".join(lines), flush=True)
        if options.output:
            options.output.write_text("\n".join([*lines, ""]), encoding="utf-8")
        return
    if not albumentations_cases():
        lines.append("albumentations is not installed: left out.")
    print("\n".join(lines), flush=True)
    clock, rows = time.process_time if options.clock == "cpu" else time.perf_counter, {}
    for side in options.sizes:
        for dtype in options.dtypes:
            for mode in options.modes:
                title = f"## {mode}, {dtype}, {SIZES[side]} images of {side}x{side}x3"
                part = ["", title, "", HEAD, "|" + " --- |" * 9]
                print("\n".join(part), flush=True)
                x = np.random.default_rng(0).uniform(0, 255, (SIZES[side], side, side, 3)).astype(dtype)
                labels = np.random.default_rng(1).uniform(size=(len(x), 10)).astype("float32")
                for name, pair in CASES.items():
                    if not options.cases or any(each in name for each in options.cases):
                        more = {"labels": labels if name in MIXING else None}
                        if dtype == "uint8":
                            more["transform"] = albumentations_cases().get(name)
                        found = measure(pair, x, mode, options.rounds, clock, **more)
                        rows[side, dtype, mode, name] = found, x.nbytes
                        part.append(line(name, found, x.nbytes))
                        print(part[-1], flush=True)
                lines += part
    lines += (end := summary(rows))
    print("\n".join(end), flush=True)
    if options.output:
        options.output.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
