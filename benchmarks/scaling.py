"""What the scaling layers cost and how exact they are, beside Keras, scikit-learn and one read of the data.

    KERAS_BACKEND=tensorflow python benchmarks/scaling.py --output scaling.md
    KERAS_BACKEND=jax python benchmarks/scaling.py --quick
    python benchmarks/scaling.py --picture docs/scaling.png  # the picture only

Tables: rows a second of `adapt`; the memory that it takes beyond the data, in batches; the error of mean and variance
on hard streams; and what `call` adds to a step of training and of evaluation. Within a round everything that is
compared runs once, in an order that rotates from round to round, so that what the machine does meanwhile meets all of
them; ratios are taken within a round, and their medians are printed.
"""

import argparse
import os
import pathlib
import platform
import statistics
import sys
import time
import tracemalloc

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # run from a checkout without installing it

import keras
import numpy as np

import tf_tricks
from tf_tricks.layers import (
    AutoScale,
    MatchCheck,
    MinMaxScale,
    QuantileScale,
    RobustScale,
    SignedLogScale,
    Standardize,
    TanhScale,
    Whiten,
)

BACKEND = keras.backend.backend()
LAYERS = {
    "Standardize": Standardize,
    "MinMaxScale": MinMaxScale,
    "RobustScale": RobustScale,
    "TanhScale": TanhScale,
    "SignedLogScale": SignedLogScale,
    "QuantileScale": QuantileScale,
    "QuantileScale, normal": lambda: QuantileScale("normal"),
    "Whiten": Whiten,
    "AutoScale": AutoScale,
    "MatchCheck": MatchCheck,
}
PICTURED = ("Standardize", "MinMaxScale", "RobustScale", "TanhScale", "SignedLogScale", "QuantileScale, normal")
BATCH = 1024
FLOOR = "floor: read once (x.sum())"
NUMPY = "floor: numpy.mean + numpy.var"
TF_DATA = "floor: tf.data alone"
KERAS = "keras Normalization"


def rounds_of(jobs, rounds):
    """Seconds of each job in each round; the first round warms up and is not counted."""
    names, seconds = list(jobs), {name: [] for name in jobs}
    for turn in range(rounds + 1):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            begin = time.perf_counter()
            jobs[name]()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(one, other):
    """Median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(one, other, strict=True))


def table_of(head, rows):
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)])


# --- adapt --------------------------------------------------------------------------------------------------------


def datasets_of(x):
    """tf.data pipelines over the same rows: two that cut and batch them, and one that costs next to nothing."""
    try:
        import tensorflow as tf
    except ImportError:
        return {}
    whole = x[: len(x) // BATCH * BATCH].reshape(-1, BATCH, x.shape[1])
    return {
        "batched by 64": tf.data.Dataset.from_tensor_slices(x).batch(64),
        f"batched by {BATCH}": tf.data.Dataset.from_tensor_slices(x).batch(BATCH),
        f"ready batches of {BATCH}": tf.data.Dataset.from_tensor_slices(whole),
    }


def partial_fit(make, x):
    scaler = make()
    for start in range(0, len(x), BATCH * 16):
        scaler.partial_fit(x[start : start + BATCH * 16])


def adapt_tables(options):
    from sklearn import decomposition, preprocessing

    rows, features = (20_000, 16) if options.quick else (options.rows, options.features)
    x = np.random.default_rng(0).normal(size=(rows, features)).astype("float32")
    jobs = {
        FLOOR: lambda: x.sum(),
        NUMPY: lambda: (x.mean(axis=0), x.var(axis=0)),
        KERAS: lambda: keras.layers.Normalization().adapt(x),
        "sklearn StandardScaler.partial_fit": lambda: partial_fit(preprocessing.StandardScaler, x),
        "sklearn MinMaxScaler.partial_fit": lambda: partial_fit(preprocessing.MinMaxScaler, x),
        "sklearn IncrementalPCA.partial_fit": lambda: partial_fit(decomposition.IncrementalPCA, x),
    }
    jobs |= {f"**{name}**": lambda make=make: make().adapt(x, verbose=0) for name, make in LAYERS.items()}
    parts = [f"## adapt, an array of {rows} rows and {features} float32 features", adapt_table(jobs, rows, options)]
    part = x[: len(x) // 4]  # Keras is slow there
    for title, dataset in datasets_of(part).items():
        jobs = {
            TF_DATA: lambda dataset=dataset: [None for _ in dataset.as_numpy_iterator()],
            KERAS: lambda dataset=dataset: keras.layers.Normalization().adapt(dataset),
        }
        for name, make in LAYERS.items():
            jobs[f"**{name}**"] = lambda make=make, dataset=dataset: make().adapt(dataset, verbose=0)
        title = f"## adapt, tf.data of {len(part)} rows, {title}"
        parts += [title, adapt_table(jobs, len(part), options)]
    return "\n\n".join(parts)


def adapt_table(jobs, rows, options):
    seconds = rounds_of(jobs, options.rounds)
    others = [name for name in (FLOOR, NUMPY, TF_DATA, KERAS) if name in jobs]
    body = []
    for name, each in seconds.items():
        speeds = [f"{ratio(seconds[other], each):.2f}" for other in others]
        body.append([name, f"{rows / statistics.median(each) / 1e6:.2f}", *speeds])
    return table_of(["", "million rows/s", *(f"speed / {other}" for other in others)], body)


# --- memory -------------------------------------------------------------------------------------------------------


def memory_table(options):
    """The peak of what NumPy allocates in `adapt` over a generator, beyond what the generator alone takes."""
    shape = (BATCH, 256) if options.quick else (64 * BATCH, 64)
    size = np.prod(shape) * 4

    def batches(number=6):
        rng = np.random.default_rng(0)
        for _ in range(number):
            yield rng.standard_normal(shape, "float32")

    def peak(job):
        tracemalloc.start()
        job()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    def alone():
        for _ in batches():
            pass

    Standardize().adapt(batches(1), verbose=0)  # what is imported and cached once
    base = peak(alone)
    body = [["the generator alone", f"{base / size:.2f}", ""]]
    for name, make in LAYERS.items():
        found = peak(lambda make=make: make().adapt(batches(), verbose=0))
        body.append([f"**{name}**", f"{found / size:.2f}", f"{(found - base) / 2**20:.1f}"])
    title = f"## Peak memory of adapt, a generator of batches of {size / 2**20:.0f} MiB {shape}"
    return f"{title}\n\n" + table_of(["", "peak, in batches", "MiB beyond the generator"], body)


# --- accuracy -----------------------------------------------------------------------------------------------------


def streams(rows):
    rng = np.random.default_rng(0)
    yield "mean 1e8, stddev 1, float64", 1e8 + rng.normal(size=(rows, 1))
    yield "mean 1e4, stddev 1, float32", (1e4 + rng.normal(size=(rows, 1))).astype("float32")
    yield "lognormal, sigma 4, float64", rng.lognormal(0, 4, (rows, 1))
    yield "sorted, 0 to 1.4e8, float32", np.linspace(0, 1.4e8, rows, dtype="float32")[:, None]


def accuracy_table(options):
    from sklearn import preprocessing

    rows, body = 100_000 if options.quick else 10_000_000, []
    for title, x in streams(rows):
        wide = x.astype(np.longdouble)
        mean = wide.mean()
        variance = ((wide - mean) ** 2).mean()
        batches = [x[start : start + BATCH * 16] for start in range(0, rows, BATCH * 16)]
        ours, whole, parts = Standardize(), keras.layers.Normalization(), keras.layers.Normalization()
        ours.adapt(iter(batches), verbose=0)
        whole.adapt(x)
        parts.adapt(iter(batches))
        scaler = preprocessing.StandardScaler()
        for batch in batches:
            scaler.partial_fit(batch)
        found = {
            "**Standardize**": (ours.mean, ours.variance),
            "keras Normalization, array": (whole.mean, whole.variance),
            "keras Normalization, batches": (parts.mean, parts.variance),
            "sklearn StandardScaler.partial_fit": (scaler.mean_, scaler.var_),
        }
        for name, pair in found.items():
            pair = [float(np.ravel(keras.ops.convert_to_numpy(each))[0]) for each in pair]
            errors = abs(pair[0] - mean) / np.sqrt(variance), abs(pair[1] - variance) / variance
            body.append([title, name, *(f"{float(each):.1e}" for each in errors)])
    head = ["stream", "", "error of the mean, in stddev", "relative error of the variance"]
    return f"## Accuracy, {rows} values\n\n" + table_of(head, body)


# --- call ---------------------------------------------------------------------------------------------------------


def network(layer, features, width):
    hidden = [keras.layers.Dense(width, activation="relu") for _ in range(4)]
    model = keras.Sequential([keras.Input((features,)), *([layer] if layer else []), *hidden, keras.layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=BACKEND != "torch")
    return model


def call_table(options):
    features, width, batch, steps = (8, 16, 64, 3) if options.quick else (64, 512, 512, 30)
    x = np.random.default_rng(0).normal(size=(batch * steps, features)).astype("float32")
    y = x[:, :1]
    fits, evaluations = {}, {}
    for name, make in {"bare": None, "bare, again": None, KERAS: keras.layers.Normalization, **LAYERS}.items():
        layer = make() if make else None
        if layer is not None:
            layer.adapt(x, **({"verbose": 0} if name in LAYERS else {}))
        model = network(layer, features, width)
        name = f"**{name}**" if name in LAYERS else name
        fits[name] = lambda model=model: model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
        evaluations[name] = lambda model=model: model.evaluate(x, y, batch_size=batch, verbose=0)
    tables = []
    for kind, jobs in {"training": fits, "evaluation": evaluations}.items():
        seconds = rounds_of(jobs, options.rounds)
        body = [
            [name, f"{statistics.median(each) / steps * 1e3:.2f}", f"{ratio(each, seconds['bare']):.3f}"]
            for name, each in seconds.items()
        ]
        title = f"## call, a step of {kind} of an MLP, {features} features, {width} units, batch {batch}"
        tables.append(f"{title}\n\n" + table_of(["", "ms/step", "ratio to bare"], body))
    return "\n\n".join(tables)


# --- the picture --------------------------------------------------------------------------------------------------


def picture(path):
    """One skewed feature of real data, before and after each scaler."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from sklearn import datasets

    data = datasets.load_breast_cancer()
    names = ["area error", "worst area"]
    x = data.data[:, [list(data.feature_names).index(name) for name in names]]
    figure, axes = plt.subplots(2, 4, figsize=(13, 5.5), layout="constrained")
    panels = axes.ravel()
    panels[0].hist(x[:, 0], bins=60, color="0.45")
    panels[0].set_title("before: area error")
    for panel, name in zip(panels[1:], [*PICTURED, "Whiten"], strict=True):
        layer = LAYERS[name]()
        layer.adapt(x)
        y = keras.ops.convert_to_numpy(layer(x))
        if name == "Whiten":
            panel.plot(*y.T, ".", markersize=3, color="tab:blue")
            panel.set_title("Whiten: area error and worst area", fontsize=10)
            continue
        panel.hist(y[:, 0], bins=60, color="tab:blue")
        panel.set_title(f"{name}\nmean {y[:, 0].mean() + 0.0:.2f}, stddev {y[:, 0].std():.2f}", fontsize=10)
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Breast cancer (scikit-learn): the feature 'area error' before and after each scaler")
    figure.savefig(path, dpi=110)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="small data, one round: does it run?")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=pathlib.Path, help="write the tables here, too")
    parser.add_argument("--picture", type=pathlib.Path, help="write the picture here, and nothing else")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds = 1
    return options


PARTS = {"adapt": adapt_tables, "memory": memory_table, "accuracy": accuracy_table, "call": call_table}


def main(arguments=None):
    options = parse(arguments)
    if options.picture:
        return picture(options.picture)
    machine = f"Python {platform.python_version()}, {os.cpu_count()} cores, {platform.machine()}"
    versions = f"tf_tricks {tf_tricks.__version__}, Keras {keras.__version__}, {BACKEND}, NumPy {np.__version__}"
    parts = [f"{versions}, {machine}; {options.rounds} rounds"]
    print(parts[0], end="\n\n")
    for part in options.parts:
        parts.append(PARTS[part](options))
        print(parts[-1], end="\n\n", flush=True)
    if options.output:
        options.output.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
