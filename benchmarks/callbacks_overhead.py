"""What the callbacks cost: time per step of `fit` with them, as a ratio to a bare `fit` in the same run.

    KERAS_BACKEND=tensorflow python benchmarks/callbacks_overhead.py --jit on --output overhead.md

Every variant has a model of its own with the same weights. A first `fit` compiles everything and is not counted. Then
each round fits every variant once, for the same number of steps, in an order that rotates from round to round. A ratio
is taken within a round, so that what the machine does meanwhile meets both sides. There are two bare variants: the
ratio of the second to the first is the noise of this machine.
"""

import argparse
import contextlib
import gc
import os
import pathlib
import platform
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # run from a checkout without installing it

import keras
import numpy as np

import tf_tricks
from tf_tricks import callbacks
from tf_tricks.fit_hooks import gradients

BACKEND = keras.backend.backend()

# --- models: a step takes 5-60 ms on two cores --------------------------------------------------------------------


def mlp():
    return keras.Sequential(
        [keras.Input((256,)), *(keras.layers.Dense(512, activation="relu") for _ in range(4)), keras.layers.Dense(10)]
    ), (256, "float")


def cnn():
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Conv2D(16, 3, padding="same", activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10),
        ]
    ), (64, "float")


def transformer(length=32, width=64, blocks=2):
    tokens = keras.Input((length,), dtype="int32")
    x = keras.layers.Embedding(1000, width)(tokens)
    for _ in range(blocks):
        y = keras.layers.LayerNormalization()(x)
        x = x + keras.layers.MultiHeadAttention(4, width // 4)(y, y)
        y = keras.layers.Dense(4 * width, activation="gelu")(keras.layers.LayerNormalization()(x))
        x = x + keras.layers.Dense(width)(y)
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.LayerNormalization()(x))
    return keras.Model(tokens, keras.layers.Dense(10)(x)), (32, "tokens")


def deep(layers=100):
    """The model of the memory measurement."""
    body = [keras.layers.Dense(8, activation="relu") for _ in range(layers - 1)]
    return keras.Sequential([keras.Input((8,)), *body, keras.layers.Dense(10)]), (8, "float")


MODELS = {"mlp": mlp, "cnn": cnn, "transformer": transformer}


def compiled(build, jit, batch=None, optimizer=keras.optimizers.Adam):
    keras.utils.set_random_seed(0)
    model, (batch_size, kind) = build()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(1e-4), loss, jit_compile=jit)
    return model, batch or batch_size, kind


def data(model, kind, rows):
    rng = np.random.default_rng(0)
    shape = (rows, *model.input_shape[1:])
    x = rng.normal(size=shape).astype("float32") if kind == "float" else rng.integers(0, 1000, shape, "int32")
    return x, rng.integers(0, 10, rows, "int32")


# --- what is compared ---------------------------------------------------------------------------------------------


class SecondPass(keras.callbacks.Callback):
    """What users write today: the gradient once more after every batch, for its norms."""

    def __init__(self, x, y, jit):
        super().__init__()
        self._batch, self._jit, self._norms, self._kept = (x, y), jit, None, []

    def on_train_batch_end(self, batch, logs=None):
        model = self.model  # on JAX this property puts the present weights into the variables, so at every batch
        if self._norms is None:
            self._batch = tuple(map(keras.ops.convert_to_tensor, self._batch))
            self._norms = _second_pass(model, self._jit)
        self._kept.append(self._norms(*self._batch))

    def on_epoch_end(self, epoch, logs=None):
        kept, self._kept = self._kept, []
        np.mean([keras.ops.convert_to_numpy(each) for each in kept], axis=0)


def _second_pass(model, jit):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(jit_compile=jit)
        def norms(x, y):
            with tf.GradientTape() as tape:
                loss = model.compute_loss(x, y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            return tf.stack([tf.norm(tf.convert_to_tensor(each)) for each in gradients])

        return norms
    return _jax_second_pass(model) if BACKEND == "jax" else _torch_second_pass(model)


def _jax_second_pass(model):
    import jax
    import jax.numpy as jnp

    def loss(trainable, others, x, y):
        y_pred, _ = model.stateless_call(trainable, others, x, training=True)
        return model.compute_loss(x, y, y_pred)

    @jax.jit
    def norms(*state_and_batch):
        return jnp.stack([jnp.linalg.norm(each) for each in jax.grad(loss)(*state_and_batch)])

    def read_and_run(x, y):
        trainable, others = ([v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables))
        return norms(trainable, others, x, y)

    return read_and_run


def _torch_second_pass(model):
    import torch

    def norms(x, y):
        loss = model.compute_loss(x, y, model(x, training=True))
        gradients = torch.autograd.grad(loss, [v.value for v in model.trainable_variables])
        return torch.stack([torch.linalg.vector_norm(each) for each in gradients])

    return norms


class ReadsGradients(keras.optimizers.Adam):
    """The floor of a check of every gradient: read each of them once within the step, and keep one number."""

    under_xla = True

    def build(self, variables):
        super().build(variables)
        if BACKEND != "torch":
            self.largest = self.add_variable((), name="largest")

    def apply(self, grads, trainable_variables=None):
        norms = gradients.plain_norms([gradients.dense(each) for each in grads], under_xla=self.under_xla)
        super().apply(grads, trainable_variables)  # the first call builds
        if BACKEND == "torch":
            self.largest = norms.max()
        else:
            self.largest.assign(keras.ops.max(norms))


@contextlib.contextmanager
def check_numerics():
    """TensorFlow's own search for NaN. It is global, so it is on only while its variant runs."""
    import tensorflow as tf

    tf.debugging.enable_check_numerics()
    try:
        yield
    finally:
        tf.debugging.disable_check_numerics()


def ours():
    return {
        "NaNGuard": lambda: [callbacks.NaNGuard(verbose=0)],
        'GradientNormLogger(per="layer")': lambda: [callbacks.GradientNormLogger(per="layer", verbose=0)],
        "FinalLearningRateDrop": lambda: [callbacks.FinalLearningRateDrop()],
        "EarlyStopping": lambda: [callbacks.EarlyStopping("loss", patience=1000)],
    }


FLOOR = "floor: one read of the gradients"
PEERS = ("keras TerminateOnNaN", "second gradient pass", "tf.debugging.enable_check_numerics")


def variants(x, y, jit):
    """Name -> (callable that makes the callbacks, context that each `fit` runs in, class of the optimizer)."""
    alone = ours()
    makers = {
        "bare": list,
        "bare, again": list,
        **alone,
        "all four": lambda: [callback for make in alone.values() for callback in make()],
        "keras TerminateOnNaN": lambda: [keras.callbacks.TerminateOnNaN()],
        "second gradient pass": lambda: [SecondPass(x, y, jit)],
    }
    adam = keras.optimizers.Adam
    ReadsGradients.under_xla = jit
    found = {name: (make, contextlib.nullcontext, adam) for name, make in makers.items()}
    found[FLOOR] = (list, contextlib.nullcontext, ReadsGradients)
    if BACKEND == "tensorflow":
        found["tf.debugging.enable_check_numerics"] = (list, check_numerics, adam)
    return found


# --- measuring ----------------------------------------------------------------------------------------------------


class Clock(keras.callbacks.Callback):
    """Wall and processor time of the last epoch; the last callback of the list, so that it sees the others' work."""

    async_safe = True

    def on_epoch_begin(self, epoch, logs=None):
        self._begin = time.perf_counter(), time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        now = time.perf_counter(), time.process_time()
        self.seconds = [end - begin for end, begin in zip(now, self._begin, strict=True)]


class Variant:
    """One variant with a model of its own."""

    def __init__(self, make, context, optimizer, build, jit, steps, batch=None):
        self.model, self.batch_size, kind = compiled(build, jit, batch, optimizer)
        self.x, self.y = data(self.model, kind, steps * self.batch_size)
        self.callbacks, self.context, self.clock = make(), context, Clock()

    def fit(self, epochs=2):
        """Seconds (wall, processor) of the last epoch; the one before it takes the costs of beginning a `fit`."""
        gc.collect()
        arguments = {"batch_size": self.batch_size, "epochs": epochs, "verbose": 0, "shuffle": False}
        with self.context():
            self.model.fit(self.x, self.y, callbacks=[*self.callbacks, self.clock], **arguments)
        return self.clock.seconds


def measure(build, jit, steps, repeats, only, batch=None):
    """Name -> list of (wall, processor) seconds a step, one a round; or the reason why there is none."""
    model, batch_size, kind = compiled(build, jit, batch)
    x, y = data(model, kind, batch_size)
    results, alive = {}, {}
    for name, how in variants(x, y, jit).items():
        if only and name != "bare" and not any(each in name for each in only):
            continue
        variant = Variant(*how, build, jit, steps, batch)
        try:
            variant.fit()
        except Exception as error:
            if name not in PEERS:
                raise
            # Some of them do not run everywhere: that is a result too.
            results[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:70]}"
        else:
            alive[name], results[name] = variant, []
    names = list(alive)
    for turn in range(repeats):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            results[name].append([seconds / steps for seconds in alive[name].fit()])
    return results


def quartiles(values):
    return statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3


def table(results):
    """Markdown lines: one row a variant."""
    lines = ["| variant | ms/step | ratio (wall) | 25-75 % | ratio (CPU time) |", "| --- | --- | --- | --- | --- |"]
    bare = results["bare"]
    for name, rounds in results.items():
        if isinstance(rounds, str):
            lines.append(f"| {name} | not usable: {rounds} | | | |")
            continue
        milliseconds = 1e3 * statistics.median(wall for wall, _ in rounds)
        wall, cpu = ([a[i] / b[i] for a, b in zip(rounds, bare, strict=True)] for i in range(2))
        low, middle, high = quartiles(wall)
        ratios = f"{middle:.3f} | {low:.3f}-{high:.3f} | {statistics.median(cpu):.3f}"
        lines.append(f"| {name} | {milliseconds:.2f} | {ratios} |")
    return lines


# --- memory -------------------------------------------------------------------------------------------------------


class PendingBytes(keras.callbacks.Callback):
    """The most bytes that our records and batches held on the device."""

    async_safe = True
    records = batches = 0

    def __init__(self, guard):
        super().__init__()
        self._guard = guard

    def on_train_batch_end(self, batch, logs=None):
        hook = self._guard._hook
        records = sum(_bytes(row) for _, _, row in hook._pending) + _bytes(hook._guard_state)
        kept = sum(_bytes(leaf) for _, data, _ in hook._pending for leaf in keras.tree.flatten(data[0]))
        self.records, self.batches = max(self.records, records), max(self.batches, kept)


def _bytes(tensor):
    return int(np.prod(tensor.shape)) * keras.ops.convert_to_numpy(tensor).dtype.itemsize


def memory(jit):
    """One line: what all four callbacks add on the device for a model of 100 layers."""
    model, batch_size, kind = compiled(deep, jit)
    x, y = data(model, kind, 64 * batch_size)
    together = [callback for make in ours().values() for callback in make()]
    probe = PendingBytes(next(each for each in together if isinstance(each, callbacks.NaNGuard)))
    model.fit(x, y, batch_size=batch_size, verbose=0, callbacks=[*together, probe])
    return (
        f"Device memory of all four callbacks for a model of 100 layers ({len(model.trainable_variables)} variables): "
        f"{probe.records / 1e6:.3f} MB of records and flags; batches kept by reference until the host looks: "
        f"{probe.batches / 1e6:.3f} MB of {64 * batch_size} rows."
    )


# --- command line -------------------------------------------------------------------------------------------------


def machine():
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name}, {cores} cores{load}"


def heading(arguments):
    backend = __import__({"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}[BACKEND])
    versions = f"tf_tricks {tf_tricks.__version__}, keras {keras.__version__}, {BACKEND} {backend.__version__}"
    return [
        f"# Overhead of the callbacks: {BACKEND}, jit {arguments.jit}",
        "",
        f"{versions}, numpy {np.__version__}, Python {platform.python_version()}; {machine()}.",
        f"Medians of {arguments.repeats} rounds of {arguments.steps} steps; ratios are taken within a round.",
    ]


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jit", choices=["on", "off"], default="off" if BACKEND == "torch" else "on")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--variants", nargs="+", help="only those whose name contains one of these, and bare")
    parser.add_argument("--batch", type=int, help="rows a step, instead of each model's own number")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", type=pathlib.Path, help="write the tables to this Markdown file, too")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse(argv)
    jit = arguments.jit == "on"
    lines = heading(arguments)
    print("\n".join(lines), flush=True)
    for name in arguments.models:
        results = measure(MODELS[name], jit, arguments.steps, arguments.repeats, arguments.variants, arguments.batch)
        title = f"## {name}" + (f", {arguments.batch} rows a step" if arguments.batch else "")
        part = ["", title, "", *table(results)]
        print("\n".join(part), flush=True)
        lines += part
    part = ["", memory(jit)]
    print("\n".join(part))
    if arguments.output:
        arguments.output.write_text("\n".join([*lines, *part, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
