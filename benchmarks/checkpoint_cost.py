"""What a checkpoint of the whole run costs `fit`: the stall of the training thread, the time of the steps, the write.

    KERAS_BACKEND=tensorflow python benchmarks/checkpoint_cost.py --output cost.md
    KERAS_BACKEND=jax python benchmarks/checkpoint_cost.py --rounds 1 --saves 1 --width 64 --no-memory  # a quick look

A network of 10 million parameters with Adam (120 MB of state) saves every 50 steps. Every variant has a model of its
own with the same weights; a first `fit` compiles it and is not counted. Then each round fits every variant once, in an
order that rotates from round to round, and measures the floors: a copy of the state, a plain write and fsync of its
bytes. Ratios are taken within a round, so that what the machine does meanwhile meets both sides; medians are printed.

The stall of a save is the time from the step before it to the step after it, less the median of the other steps. What
is written in the background competes with the steps for the processor: the step ratio holds that, too. Measured is
from half an interval after the begin to half an interval after the last save.
"""

import argparse
import contextlib
import gc
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # run from a checkout without installing it

import keras
import numpy as np

import tf_tricks
from tf_tricks.callbacks import TrainingCheckpoint
from tf_tricks.checkpoints import file_format, model_state
from tf_tricks.checkpoints.store import Store

BACKEND = keras.backend.backend()
OURS, RAW = "TrainingCheckpoint", "floor: copy, then a thread that writes"


def network(width, layers=9):
    """10 million parameters at a width of 1024."""
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(width, activation="relu") for _ in range(layers)]
    tail = [keras.layers.Dense(width // 2, activation="relu"), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((width,)), *hidden, *tail])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss, jit_compile=BACKEND != "torch")
    return model


def state_of(model):
    """The variables of weights and optimizer."""
    model_state.build_optimizer(model)
    return [*model.weights, *model.optimizer.variables]


# --- what is compared ---------------------------------------------------------------------------------------------


class PlainWriter(keras.callbacks.Callback):
    """The least that any checkpoint in the background costs: one copy, and a thread that writes it. No file format."""

    def __init__(self, directory, every):
        super().__init__()
        self._directory, self._every, self._thread, self.seconds = directory, every, None, []

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % self._every == 0:
            self._join()
            model_state.synchronise(self.model)
            arrays = [keras.ops.convert_to_numpy(each) for each in state_of(self.model)]
            self._thread = threading.Thread(target=self._write, args=[arrays])
            self._thread.start()

    def on_train_end(self, logs=None):
        self._join()

    def _write(self, arrays):
        self.seconds.append(raw_write(self._directory, arrays))

    def _join(self):
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def variants():
    """Name -> callable that makes the callback for a folder and a number of steps, or None."""
    keep = keras.callbacks.ModelCheckpoint
    return {
        "bare": None,
        "bare, again": None,
        OURS: lambda folder, every: TrainingCheckpoint(folder, every=every, verbose=0),
        "BackupAndRestore": lambda folder, every: keras.callbacks.BackupAndRestore(folder, save_freq=every),
        "ModelCheckpoint .weights.h5": lambda folder, every: keep(
            os.path.join(folder, "run.weights.h5"), save_freq=every, save_weights_only=True
        ),
        "ModelCheckpoint .keras": lambda folder, every: keep(os.path.join(folder, "run.keras"), save_freq=every),
        "OrbaxCheckpoint": lambda folder, every: keras.callbacks.OrbaxCheckpoint(
            folder, save_freq=every, max_to_keep=3
        ),
        RAW: PlainWriter,
    }


# --- measuring ----------------------------------------------------------------------------------------------------


class Steps(keras.callbacks.Callback):
    """When each step began; it reads the result of every step, so that none is still at work when the next begins."""

    def __init__(self):
        super().__init__()
        self.wall, self.cpu = [], []

    def on_train_batch_begin(self, batch, logs=None):
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])  # a callback with this hook, and not `async_safe`, has `fit` call all of them in its thread


class Variant:
    """One variant with a model of its own."""

    def __init__(self, make, arguments):
        self.make, self.directory = make, arguments.directory
        self.every, self.saves = arguments.every, arguments.saves
        self.model, batch = network(arguments.width), arguments.batch
        rng = np.random.default_rng(0)
        self.x = rng.normal(size=(batch, arguments.width)).astype("float32")
        self.y = rng.integers(0, 10, batch, "int32")

    def fit(self, *others, warm_up=False):
        """Dict of what one `fit` took: seconds a step, of the processor too, of each stall, of each write."""
        every, saves = (2, 1) if warm_up else (self.every, self.saves)
        gc.collect()
        folder = tempfile.mkdtemp(dir=self.directory)
        clock, batch = Steps(), len(self.x)
        rows = np.arange((saves * every + every // 2 + 1) * batch) % batch  # one batch, again and again
        callback = [] if self.make is None else [self.make(folder, every)]
        try:
            with timed(Store, "save") as writes:
                self.model.fit(
                    self.x[rows], self.y[rows], batch_size=batch, verbose=0, shuffle=False,
                    callbacks=[*others, *callback, clock],
                )  # fmt: skip
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if warm_up:
            return None
        writes = getattr(callback[0], "seconds", writes) if callback else []
        return {**self._times(clock), "write": writes[: self.saves]}  # without that of the end of the run

    def _times(self, clock):
        first, count = self.every // 2, len(clock.wall) - 1
        lengths = np.diff(clock.wall)
        is_save = [(step + 1) % self.every == 0 for step in range(count)]
        usual = statistics.median(x for step, x in enumerate(lengths) if step >= first and not is_save[step])
        return {
            "wall": (clock.wall[-1] - clock.wall[first]) / (count - first),
            "cpu": (clock.cpu[-1] - clock.cpu[first]) / (count - first),
            "stall": [x - usual for x, save in zip(lengths, is_save, strict=True) if save],
        }


@contextlib.contextmanager
def timed(owner, name):
    """List of the seconds of every call of a method."""
    seconds, method = [], getattr(owner, name)

    def wrapped(*args, **kwargs):
        begin = time.perf_counter()
        result = method(*args, **kwargs)
        seconds.append(time.perf_counter() - begin)
        return result

    setattr(owner, name, wrapped)
    try:
        yield seconds
    finally:
        setattr(owner, name, method)


def seconds_of(call):
    begin = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - begin
    del result  # giving memory back is no part of a copy
    return seconds


def raw_write(directory, arrays):
    """Seconds to write the arrays one after the other, and to have them on the disc."""
    path = os.path.join(directory, f"raw-{threading.get_ident()}")
    begin = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for array in arrays:
            file.write(array)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    os.remove(path)
    return seconds


class Floors:
    """Copies and writes of one state, outside of `fit`."""

    def __init__(self, model, directory):
        self._directory = directory
        self._arrays = [np.array(keras.ops.convert_to_numpy(each)) for each in state_of(model)]
        self.nbytes = sum(array.nbytes for array in self._arrays)
        self._whole = np.ones(self.nbytes, np.uint8)

    def measure(self):
        """Dict of seconds, each the median of three."""
        tree = {"state": {str(k): array for k, array in enumerate(self._arrays)}}
        path = os.path.join(self._directory, "alone.safetensors")
        rounds = []
        for _ in range(3):
            rounds.append(
                {
                    "copy": seconds_of(lambda: np.copy(self._whole)),
                    "copies": seconds_of(lambda: [np.copy(each) for each in self._arrays]),
                    "raw": raw_write(self._directory, [self._whole]),
                    "ours": seconds_of(lambda: file_format.write(path, tree)),
                }
            )
            os.remove(path)
        return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def measure(arguments):
    """`(results, floors, nbytes)`: name -> list of one dict a round, or why there is none; the floors of each round."""
    alive, results = {}, {}
    for name, make in variants().items():
        if arguments.variants and name != "bare" and not any(each in name for each in arguments.variants):
            continue
        variant = Variant(make, arguments)
        try:
            variant.fit(warm_up=True)
        except Exception as error:
            if name in ("bare", OURS):
                raise
            # Some of them do not run everywhere, or are not installed: that is a result too.
            results[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:70]}"
        else:
            alive[name], results[name] = variant, []
    names, floors = list(alive), Floors(alive["bare"].model, arguments.directory)
    measured = []
    for turn in range(arguments.rounds):
        measured.append(floors.measure())
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            results[name].append(alive[name].fit())
    return results, measured, floors.nbytes


# --- memory: a process for each variant, because memory that was used once is there for the next one ----------------


class PeakFrom(keras.callbacks.Callback):
    """Forgets the peak of the process's memory after the first steps, where the system can."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 2:
            with contextlib.suppress(OSError):
                pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_of(name, arguments):
    variant = Variant(variants()[name], arguments)
    variant.fit(warm_up=True)
    variant.fit(PeakFrom())
    return peak_bytes()


def peak_bytes():
    status = pathlib.Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def memory(names, arguments):
    """Name -> bytes that the peak of the memory is above that of a bare `fit`; empty where the system has no /proc."""
    if arguments.no_memory or not os.path.exists("/proc/self/clear_refs"):
        return {}
    options = {"--every": 4, "--saves": 3, "--batch": arguments.batch, "--width": arguments.width}
    words = [str(word) for pair in options.items() for word in pair]
    peaks = {}
    for name in names:
        command = [sys.executable, __file__, *words, "--directory", arguments.directory, "--peak-of", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            peaks[name] = json.loads(done.stdout.splitlines()[-1])
    return {name: peak - peaks["bare"] for name, peak in peaks.items() if "bare" in peaks}


# --- tables -------------------------------------------------------------------------------------------------------


def quartiles(values):
    return statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3


def table(results, floors, peaks):
    """Markdown lines: one row a variant."""
    lines = [
        "| variant | ms/step | step ratio (wall) | 25-75 % | (CPU time) | stall ms | stall / copy | peak MB added |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, rounds in results.items():
        if isinstance(rounds, str):
            lines.append(f"| {name} | not usable: {rounds} | | | | | | |")
            continue
        wall, cpu = ([a[k] / b[k] for a, b in zip(rounds, results["bare"], strict=True)] for k in ("wall", "cpu"))
        low, middle, high = quartiles(wall)
        stalls = [statistics.median(each["stall"]) for each in rounds]
        copies = statistics.median(stall / floor["copy"] for stall, floor in zip(stalls, floors, strict=True))
        stall = f"{1e3 * statistics.median(stalls):.0f} | {copies:.2f}" if not name.startswith("bare") else "|"
        peak = f"{peaks[name] / 1e6:.0f}" if name in peaks and not name.startswith("bare") else ""
        milliseconds = 1e3 * statistics.median(each["wall"] for each in rounds)
        ratios = f"{middle:.3f} | {low:.3f}-{high:.3f} | {statistics.median(cpu):.3f}"
        lines.append(f"| {name} | {milliseconds:.1f} | {ratios} | {stall} | {peak} |")
    return lines


def floor_lines(results, floors, nbytes):
    """What the floors are, and how near to them the writing is."""
    middle = {name: statistics.median(each[name] for each in floors) for name in floors[0]}
    alone = statistics.median(each["raw"] / each["ours"] for each in floors)
    lines = [
        f"Floors, {nbytes / 1e6:.0f} MB of state: np.copy in one piece {1e3 * middle['copy']:.1f} ms (the copy of the "
        f"ratios above), array by array {1e3 * middle['copies']:.1f} ms; write and fsync {1e3 * middle['raw']:.0f} ms "
        f"({nbytes / 1e6 / middle['raw']:.0f} MB/s).",
        f"Our file, with its checksum, while nothing trains: {1e3 * middle['ours']:.0f} ms; throughput "
        f"{alone:.2f} of write and fsync.",
    ]
    written = {n: [s for r in results.get(n, []) for s in r["write"]] for n in (OURS, RAW) if n in results}
    if all(written.get(name) for name in (OURS, RAW)):
        ours, raw = (statistics.median(written[name]) for name in (OURS, RAW))
        lines.append(
            f"Beside the steps: our write {1e3 * ours:.0f} ms, write and fsync {1e3 * raw:.0f} ms; throughput "
            f"{raw / ours:.2f}."
        )
    return lines


def machine():
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores{load()}"


def load():
    return f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""


def heading(arguments):
    versions = (
        f"tf_tricks {tf_tricks.__version__}, keras {keras.__version__}, {BACKEND} {__import__(BACKEND).__version__}"
    )
    return [
        f"# Cost of checkpoints: {BACKEND}",
        "",
        f"{versions}, numpy {np.__version__}, Python {platform.python_version()}; {machine()}.",
        f"{network(arguments.width).count_params() / 1e6:.1f} million parameters, Adam, {arguments.batch} rows a step, "
        f"a save every {arguments.every} steps, {arguments.saves} in a `fit`; medians of {arguments.rounds} rounds.",
    ]


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", help="only those whose name contains one of these, and bare")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--saves", type=int, default=2, help="in each `fit`")
    parser.add_argument("--every", type=int, default=50, help="steps between two saves")
    parser.add_argument("--batch", type=int, default=64, help="rows a step")
    parser.add_argument("--width", type=int, default=1024, help="of the layers; 1024 makes 10 million parameters")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--directory", help="a folder on the disc to write to; by default the system's for such files")
    parser.add_argument("--output", type=pathlib.Path, help="write the tables to this Markdown file, too")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse(argv)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        arguments.directory = directory
        if arguments.peak_of:
            print(json.dumps(peak_of(arguments.peak_of, arguments)))
            return
        lines = heading(arguments)
        print("\n".join(lines), flush=True)
        results, floors, nbytes = measure(arguments)
        usable = [name for name, rounds in results.items() if not isinstance(rounds, str)]
        peaks = memory([name for name in usable if name != "bare, again"], arguments)
        part = ["", *table(results, floors, peaks), "", *floor_lines(results, floors, nbytes), f"At the end{load()}."]
        print("\n".join(part))
        if arguments.output:
            arguments.output.write_text("\n".join([*lines, *part, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
