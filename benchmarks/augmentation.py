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
import ctypes
import gc
import os
import pathlib
import platform
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # run from a checkout without installing it


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

import tf_tricks  # noqa: E402
from tf_tricks import layers as ours  # noqa: E402

BACKEND = keras.backend.backend()
SIZES = {224: 64, 32: 256}  # side -> images in a batch
MODES = {"tensorflow": ("graph", "XLA", "tf.data"), "jax": ("jit",), "torch": ("eager",)}[BACKEND]

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


def by_way_of_float32(make):
    """What a user of bytes writes where Keras's layer fails on them."""

    def make_float32(side, dtype):
        layer = make(side, "float32")

        def run(x, training=True):
            if isinstance(x, dict):
                return layer(x, training=training)
            return keras.ops.cast(keras.ops.clip(keras.ops.round(layer(x, training=training)), 0, 255), dtype)

        run.layers = _layers_in(layer)
        return run

    return make_float32


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


# --- how each is run ----------------------------------------------------------------------------------------------


def runner(layer, x, mode, labels):
    """A callable that augments the batch once and waits for it."""
    data = {"images": x, "labels": labels} if labels is not None else x
    if mode == "tf.data":
        import tensorflow as tf

        dataset = tf.data.Dataset.from_tensors(data).repeat().map(lambda batch: layer(batch, training=True))
        options = tf.data.Options()  # nothing in the background: a step would find its batch made before
        options.autotune.enabled = options.experimental_optimization.inject_prefetch = False
        options.threading.private_threadpool_size = 1
        iterator = iter(dataset.with_options(options))
        return lambda: next(iterator)
    data = keras.tree.map_structure(keras.ops.convert_to_tensor, data)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        step = tf.function(lambda data: layer(dict(data) if isinstance(data, dict) else data, training=True))
        if mode == "XLA":
            step = tf.function(step.python_function, jit_compile=True)
        return lambda: step(data)
    if BACKEND == "jax":
        import jax

        stateful = [v for each in _layers_in(layer) for v in each.variables]

        @jax.jit
        def step(values, data):
            with keras.StatelessScope(zip(stateful, values, strict=True)) as scope:
                result = layer(dict(data) if isinstance(data, dict) else data, training=True)
            return result, [scope.get_current_value(v) if scope.get_current_value(v) is not None else v for v in values]

        values = [variable.value for variable in stateful]

        def run():
            nonlocal values
            result, new = step(values, data)
            jax.block_until_ready(result)
            del new
            return result

        return run
    return lambda: layer(dict(data) if isinstance(data, dict) else data, training=True)


def _layers_in(layer):
    return [layer] if isinstance(layer, keras.layers.Layer) else layer.layers


def albumentations_runner(transform, x):
    def run():
        return np.stack([transform(image=image)["image"] for image in x])

    return run


def floor_runner(x):
    out = np.empty_like(x)
    return lambda: np.copyto(out, x)


def peak_of(run):
    """Bytes above what is in use that one call needs, its result among them; None where the system does not say."""
    if BACKEND == "tensorflow":  # with oneDNN it keeps what it has had: its own count, rounded up to powers of two
        import tensorflow as tf

        try:
            tf.config.experimental.reset_memory_stats("CPU:0")
            before = tf.config.experimental.get_memory_info("CPU:0")["current"]
            result = run()
            peak = tf.config.experimental.get_memory_info("CPU:0")["peak"] - before
            del result
            return peak
        except ValueError:
            pass  # without oneDNN there is no such count, and what the system says is right
    try:
        trim = ctypes.CDLL(None).malloc_trim
        peaks = []
        for _ in range(3):
            gc.collect()
            trim(0)  # what was freed, and is kept for the next time, would count as in use
            pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            before = _status("VmRSS")
            result = run()
            peaks.append(_status("VmHWM") - before)
            del result
    except (AttributeError, OSError, TypeError):
        return None
    return max(0, statistics.median(peaks))


def _status(name):
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


# --- measuring ----------------------------------------------------------------------------------------------------


def measure(name, side, dtype, mode, rounds, clock=time.perf_counter):
    """Dict of who -> {"ms": list, "compile": seconds, "peak": bytes}, or who -> why there is nothing."""
    make_ours, make_keras = CASES[name]
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, (SIZES[side], side, side, 3)).astype(dtype)
    labels = rng.uniform(size=(len(x), 10)).astype("float32") if name in ("mixup", "cutmix") else None
    runs = {"floor": lambda: floor_runner(x)}
    runs["tf_tricks"] = lambda: runner(make_ours(side, dtype), x, mode, labels)
    runs["Keras"] = lambda: runner(make_keras(side, dtype), x, mode, labels)
    if dtype == "uint8" and (transform := albumentations_cases().get(name)):
        runs["albumentations"] = lambda: albumentations_runner(transform, x)
    found, alive, waiting = {}, {}, list(runs.items())
    while waiting:
        who, make = waiting.pop(0)
        begin = clock()
        try:
            run = make()
            run()
        except Exception as error:
            if who == "tf_tricks":
                raise
            if who == "Keras" and dtype == "uint8" and "Keras, in float32" not in runs:
                waiting.append(("Keras", lambda: runner(by_way_of_float32(make_keras)(side, dtype), x, mode, labels)))
                runs["Keras, in float32"] = None
            found[who] = f"{type(error).__name__}: {' '.join(str(error).split())[:60]}"
            continue
        seconds = clock() - begin
        run()
        alive[who], found[who] = run, {"ms": [], "compile": seconds, "peak": peak_of(run)}
    names = list(alive)
    for turn in range(rounds):
        for who in names[turn % len(names) :] + names[: turn % len(names)]:
            begin = clock()
            alive[who]()
            found[who]["ms"].append(1e3 * (clock() - begin))
    return found, x.nbytes


def line(name, found, nbytes):
    def middle(who):
        return f"{statistics.median(found[who]['ms']):.1f}" if isinstance(found.get(who), dict) else "-"

    def times(who):
        if not isinstance(found.get(who), dict):
            return found.get(who, "")
        pairs = zip(found[who]["ms"], found["tf_tricks"]["ms"], strict=True)
        return f"{statistics.median(a / b for a, b in pairs):.1f}"

    mine = found["tf_tricks"]
    peak = f"{mine['peak'] / nbytes:.1f}" if mine["peak"] is not None else ""
    whos = ("Keras", "albumentations")
    cells = [name, middle("floor"), middle("tf_tricks"), *(middle(who) for who in whos), *(times(who) for who in whos)]
    return f"| {' | '.join(cells)} | {mine['compile']:.1f} | {peak} |"


# --- in a model ---------------------------------------------------------------------------------------------------

IN_MODEL = {  # name -> the first layer
    "no augmentation": None,
    "no augmentation, again": None,
    "pipeline of six, Keras's HSV": our_pipeline(),
    "pipeline of six, one matrix": our_pipeline(mode="matrix"),
}


def residual_network(first, side, classes=2, filters=(32, 64, 128)):
    """Two blocks for each number of filters: 0.7 million parameters. Takes values in [0, 255]."""
    layers = keras.layers
    inputs = keras.Input((side, side, 3))
    x = inputs if first is None else first(inputs)
    x = layers.Rescaling(1 / 127.5, -1.0)(x)
    x = layers.Conv2D(filters[0], 3, strides=2, padding="same", use_bias=False)(x)
    for width in filters:
        for stride in (1 if width == filters[0] else 2, 1):
            shortcut, y = x, x
            for each in (stride, 1):
                y = layers.Activation("relu")(layers.BatchNormalization()(y))
                y = layers.Conv2D(width, 3, strides=each, padding="same", use_bias=False)(y)
            if shortcut.shape != y.shape:
                shortcut = layers.Conv2D(width, 1, strides=stride, use_bias=False)(shortcut)
            x = layers.Add()([shortcut, y])
    x = layers.GlobalAveragePooling2D()(layers.Activation("relu")(layers.BatchNormalization()(x)))
    model = keras.Model(inputs, layers.Dense(classes)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, jit_compile=BACKEND != "torch")
    return model


def crops(count, side):
    """Windows out of scikit-learn's two photographs, and which of them each is from; noise if it is not installed."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    try:
        from sklearn.datasets import load_sample_images

        photographs = load_sample_images().images
    except ImportError:
        photographs = [rng.integers(0, top, (427, 640, 3)) for top in (128, 256)]
    corners = rng.integers(0, (427 - side, 640 - side), (count, 2))
    cut = [photographs[k][i : i + side, j : j + side] for k, (i, j) in zip(labels, corners, strict=True)]
    return np.stack(cut).astype("float32"), labels.astype("int32")


def in_model(options, side=64, batch=32, steps=2):
    """The table of `--in-model`; every network trains a few steps in each round."""
    x, y = crops(batch * steps, side)
    models = {name: residual_network(make and make(side, "float32"), side) for name, make in IN_MODEL.items()}
    first, ms, cpu, losses = {}, {name: [] for name in models}, {name: [] for name in models}, {}
    for name, model in models.items():
        begin = time.perf_counter()
        model.fit(x[:batch], y[:batch], batch_size=batch, verbose=0)
        first[name] = time.perf_counter() - begin
    names = list(models)
    for turn in range(options.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begin, busy = time.perf_counter(), time.process_time()
            losses[name] = models[name].fit(x, y, batch_size=batch, verbose=0).history["loss"][0]
            ms[name].append(1e3 * (time.perf_counter() - begin) / steps)
            cpu[name].append(1e3 * (time.process_time() - busy) / steps)
    bare = names[0]
    lines = [
        f"## a step of a residual network of {models[bare].count_params() / 1e6:.2f} million parameters, "
        f"{batch} images of {side}x{side}x3, jit_compile={models[bare].jit_compile}",
        "",
        "| first layer | ms a step | ratio to none | CPU ms a step | ratio to none | first step s | last loss |",
        "|" + " --- |" * 7,
    ]
    for name in names:
        cells = [name]
        for times in (ms, cpu):
            ratio = statistics.median(a / b for a, b in zip(times[name], times[bare], strict=True))
            cells += [f"{statistics.median(times[name]):.1f}", f"{ratio:.3f}"]
        lines.append(f"| {' | '.join(cells)} | {first[name]:.1f} | {losses[name]:.3f} |")
    return lines


# --- tables -------------------------------------------------------------------------------------------------------

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


def ratio(found, mine, who="Keras"):
    """How many times longer than ours `who` took, or None."""
    if not isinstance(found.get(who), dict):
        return None
    pairs = list(zip(found[who]["ms"], mine["ms"], strict=True))
    # A run faster than the clock's tick counts as a tick.
    return statistics.median(max(a, 1e-3) / max(b, 1e-3) for a, b in pairs) if pairs else None


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
            add(f"{where}: slowest beside Keras's, {slowest}", ">= 1 x", f"{least:.2f}", least >= 0.95)
        longest = max(mine, key=lambda name: mine[name][0]["tf_tricks"]["compile"])
        seconds = mine[longest][0]["tf_tricks"]["compile"]
        add(f"{where}: longest first call, {longest}", f"< {MOST_SECONDS} s", f"{seconds:.1f}", seconds < MOST_SECONDS)
        peaks = {name: (found["tf_tricks"]["peak"], nbytes) for name, (found, nbytes) in mine.items()}
        if peaks := {name: peak / nbytes for name, (peak, nbytes) in peaks.items() if peak is not None}:
            most = max(peaks, key=peaks.get)
            value = peaks[most]
            add(f"{where}: most memory, {most}", f"<= {MOST_BATCHES} batches", f"{value:.1f}", value <= MOST_BATCHES)
    return lines


HEAD = (
    "| operation | floor ms | tf_tricks ms | Keras ms | albumentations ms | times Keras | times albumentations | "
    "first call s | peak memory, batches |"
)


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
        lines += ["", *in_model(options)]
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
                for name in CASES:
                    if not options.cases or any(each in name for each in options.cases):
                        rows[side, dtype, mode, name] = measure(name, side, dtype, mode, options.rounds, clock)
                        part.append(line(name, *rows[side, dtype, mode, name]))
                        print(part[-1], flush=True)
                lines += part
    lines += (end := summary(rows))
    print("\n".join(end), flush=True)
    if options.output:
        options.output.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
