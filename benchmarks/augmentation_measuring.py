"""What `augmentation.py` measures with: times and memory of layers, and of a step of a network with one in it."""

import ctypes
import gc
import pathlib
import statistics
import time

import keras
import numpy as np

BACKEND = keras.backend.backend()
MODES = {"tensorflow": ("graph", "XLA", "tf.data"), "jax": ("jit",), "torch": ("eager",)}[BACKEND]

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


def by_way_of_float32(make):
    """What a user of bytes writes where Keras's layer fails on them."""

    def make_float32(side, dtype):
        layer = make(side, "float32")

        def run(x, training=True):
            if isinstance(x, dict):
                return layer({**x, "images": keras.ops.cast(x["images"], "float32")}, training=training)
            changed = layer(keras.ops.cast(x, "float32"), training=training)
            return keras.ops.cast(keras.ops.clip(keras.ops.round(changed), 0, 255), dtype)

        run.layers = _layers_in(layer)
        return run

    return make_float32


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


PATIENCE = 8.0  # seconds of the first call, above which nothing is run more often than needed


def measure(pair, x, mode, rounds, clock=time.perf_counter, labels=None, transform=None):
    """Dict of who -> {"ms": list, "compile": seconds, "peak": bytes}, or who -> why there is nothing.

    Args:
        pair: two functions `(side, dtype)` that make our layer and Keras's.
        x: the batch of images, a NumPy array.
        mode: one of `MODES`.
        rounds: int, how often each runs.
        clock: what the time is read from.
        labels: None or an array, for layers that mix them.
        transform: None or a transform of albumentations.
    """
    (make_ours, make_keras), side, dtype = pair, x.shape[1], x.dtype.name
    runs = {"floor": lambda: floor_runner(x)}
    runs["tf_tricks"] = lambda: runner(make_ours(side, dtype), x, mode, labels)
    runs["Keras"] = lambda: runner(make_keras(side, dtype), x, mode, labels)
    if transform is not None:
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
            if found[who]["compile"] < PATIENCE:
                alive[who]()  # a slow peer before it has pushed its pages out of the caches, or out of memory
            begin = clock()
            alive[who]()
            found[who]["ms"].append(1e3 * (clock() - begin))
    return found


# --- tables -------------------------------------------------------------------------------------------------------

HEAD = (
    "| operation | floor ms | tf_tricks ms | Keras ms | albumentations ms | times Keras | times albumentations | "
    "first call s | peak memory, batches |"
)


def line(name, found, nbytes):
    def middle(who):
        if not isinstance(found.get(who), dict):
            return "-"
        ms = statistics.median(found[who]["ms"])
        return f"{ms:.1f}" if ms >= 1 else f"{ms:.2g}"

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


def ratio(found, mine, who="Keras"):
    """How many times longer than ours `who` took, or None."""
    if not isinstance(found.get(who), dict):
        return None
    pairs = list(zip(found[who]["ms"], mine["ms"], strict=True))
    # A run faster than the clock's tick counts as a tick.
    return statistics.median(max(a, 1e-3) / max(b, 1e-3) for a, b in pairs) if pairs else None


# --- in a model ---------------------------------------------------------------------------------------------------


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


def in_model(first_layers, rounds, side=64, batch=32, steps=2):
    """Lines of a table of networks that train a few steps in each round.

    `first_layers`: name -> None or a function `(side, dtype)` that makes the first layer. Ratios are to the first one.
    """
    x, y = crops(batch * steps, side)
    models = {name: residual_network(make and make(side, "float32"), side) for name, make in first_layers.items()}
    first, ms, cpu, losses = {}, {name: [] for name in models}, {name: [] for name in models}, {}
    for name, model in models.items():
        begin = time.perf_counter()
        model.fit(x[:batch], y[:batch], batch_size=batch, verbose=0)
        first[name] = time.perf_counter() - begin
    names = list(models)
    for turn in range(rounds):
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
