"""Fit a scaler over files that nobody reads in one place, and put it in front of a model.

    python examples/scale_sharded_files.py                   # with Apache Beam where it is installed
    python examples/scale_sharded_files.py --engine none     # without: one file of statistics a shard, then merge
    python examples/scale_sharded_files.py --backend torch

Writes scikit-learn's breast cancer data as CSV shards, computes mean and variance of each shard where it lies, merges
them, loads the result into a `Standardize` layer and compares it with scikit-learn's `StandardScaler` over all rows.
The exit status is 1 if they differ. What matters is in `with_beam`, `without_engine` and `main`.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PIP_EXTRA = {"tensorflow": "cpu", "jax": "jax", "torch": "torch", "apache_beam": "beam"}
SHARDS = 8
TOLERANCE = 1e-5


def parse_arguments():
    parser = argparse.ArgumentParser(description="Fit a scaler over sharded files and load it into a layer.")
    parser.add_argument("--backend", choices=["tensorflow", "jax", "torch"], default="tensorflow")
    parser.add_argument("--engine", choices=["auto", "beam", "none"], default="auto")
    return parser.parse_args()


def check_installed(*modules):
    """End with one sentence if a package is missing."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            sys.exit(f"The example needs {module}: pip install 'tf-tricks[{PIP_EXTRA.get(module, 'examples')}]'")


def write_shards(folder):
    """Write the data as CSV files of different lengths, some values missing; return their paths."""
    from sklearn.datasets import load_breast_cancer

    x = load_breast_cancer().data
    x[::50, 3] = np.nan
    for number, rows in enumerate(np.array_split(x, SHARDS)):
        np.savetxt(folder / f"part-{number:02}.csv", rows[number:], delimiter=",")
    return sorted(folder.glob("part-*.csv"))


def read_shard(path):
    return np.loadtxt(path, delimiter=",", ndmin=2)


def with_beam(paths, folder):
    """Any runner can do this: on a cluster, the files lie in a bucket and nothing else changes."""
    import apache_beam as beam

    from tf_tricks.beam import FeatureStatistics

    with beam.Pipeline("DirectRunner") as pipeline:
        batches = pipeline | beam.Create([str(path) for path in paths]) | beam.Reshuffle() | beam.Map(read_shard)
        lines = batches | beam.CombineGlobally(FeatureStatistics()) | beam.Map(to_json)
        _ = lines | beam.io.WriteToText(str(folder / "statistics.json"), shard_name_template="")
    return from_json((folder / "statistics.json").read_text())


def without_engine(paths, folder):
    """The same by hand: each shard's statistics are a small file, which whoever holds the shard can write."""
    for path in paths:
        path.with_suffix(".json").write_text(to_json(Statistics().update(read_shard(path))))
    first, *others = (from_json(path.with_suffix(".json").read_text()) for path in paths)
    for other in others:
        first.merge(other)
    return first


def to_json(statistics):
    return json.dumps(statistics.to_dict())


def from_json(text):
    return Statistics.from_dict(json.loads(text))


def main(arguments):
    begin = time.perf_counter()
    import keras
    from sklearn.preprocessing import StandardScaler

    from tf_tricks.layers import Standardize

    engine = arguments.engine
    if engine == "auto":
        engine = "none" if importlib.util.find_spec("apache_beam") is None else "beam"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        paths = write_shards(folder)
        statistics = (with_beam if engine == "beam" else without_engine)(paths, folder)
        everything = np.concatenate([read_shard(path) for path in paths])  # for the comparison only
    moments = statistics.moments
    rows, missing = moments.count.max(), moments.missing.sum()
    print(f"{len(paths)} shards, {rows:.0f} rows, {missing:.0f} values missing (engine: {engine}).")

    layer = Standardize.from_statistics(statistics)
    model = keras.Sequential([keras.Input((moments.features,)), layer, keras.layers.Dense(1)])
    model.predict(everything[:4], verbose=0)
    ours = keras.ops.convert_to_numpy(layer(everything))
    theirs = StandardScaler().fit_transform(everything)
    difference = np.nanmax(np.abs(ours - theirs))
    same = difference <= TOLERANCE and (np.isnan(ours) == np.isnan(theirs)).all()
    seconds = time.perf_counter() - begin
    print(f"Largest difference to StandardScaler over all rows: {difference:.1e} ({seconds:.0f} s).")
    print("The layer equals StandardScaler." if same else "The layer DIFFERS from StandardScaler.")
    return 0 if same else 1


if __name__ == "__main__":
    given = parse_arguments()
    check_installed(given.backend, "sklearn", *(["apache_beam"] if given.engine == "beam" else []))
    os.environ["KERAS_BACKEND"] = given.backend  # Keras reads it once, when it is imported
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from tf_tricks.layers.scaling.statistics import Statistics

    sys.exit(main(given))
