"""How steady the suggestion of `find_learning_rate` is, and how good: three tasks, five seeds, beside a grid of rates.

    KERAS_BACKEND=tensorflow python benchmarks/learning_rate_finder.py --output learning_rate_finder.md

A seed draws the initial weights, the order of the batches and what the function draws itself. The spread is the largest
suggestion over the smallest. Training at the suggestion is compared with training at each rate of a grid, from the same
weights, with the same batches; what is compared is the training loss, its mean over the last quarter of the steps. From
one order of the batches to the next it jumps by tens of per cent, and the lowest of twelve is lowest by luck, too: some
orders choose the best rate of the grid for all seeds, others compare it with the suggestions (geometric means).
"""

import argparse
import os
import pathlib
import platform
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for models this small, threads cost more than they save
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # run from a checkout without installing it

import keras
import numpy as np
from keras import layers

import tf_tricks
from tf_tricks.debug import find_learning_rate

BACKEND = keras.backend.backend()
BATCH = 32
SPREAD, EXCESS = 3.0, 0.1  # the targets: over the seeds at most; of the best loss at most


# --- tasks ----------------------------------------------------------------------------------------------------------


def digits():
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return (x / 16).reshape(-1, 8, 8).astype("float32"), y


def images():
    x, y = digits()
    stack = [layers.Conv2D(16, 3, activation="relu"), layers.Conv2D(32, 3, strides=2, activation="relu")]
    return (x[..., None], y), [*stack, layers.Flatten(), layers.Dense(10)], CLASSES


def table():
    from sklearn.datasets import load_diabetes

    x, y = (a.astype("float32") for a in load_diabetes(return_X_y=True))
    stack = [layers.Dense(64, "relu"), layers.Dense(64, "relu"), layers.Dense(1)]
    return ((x - x.mean(0)) / x.std(0), (y[:, None] - y.mean()) / y.std()), stack, "mse"


def sequences():
    # Unrolled: TensorFlow's loop takes several times as long for rows this short.
    return digits(), [layers.GRU(32, unroll=True), layers.Dense(10)], CLASSES


CLASSES = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TASKS = {"digits, CNN": images, "diabetes, MLP": table, "digits by rows, GRU": sequences}


def compiled(task, seed, rate=1e-3):
    """(model, x, y), from the seed's weights."""
    keras.utils.set_random_seed(seed)
    (x, y), stack, loss = TASKS[task]()
    model = keras.Sequential([keras.Input(x.shape[1:]), *stack])
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=BACKEND == "jax")
    return model, x, y


# --- what is measured -----------------------------------------------------------------------------------------------


class Shuffled(keras.utils.PyDataset):
    """Batches in another order in each epoch. With a global seed `fit` on TensorFlow has the same order in all."""

    def __init__(self, x, y, seed):
        super().__init__()
        self.x, self.y, self._generator = x, y, np.random.default_rng(seed)
        self.on_epoch_end()

    def __len__(self):
        return -(-len(self.x) // BATCH)

    def __getitem__(self, index):
        chosen = self._order[index * BATCH : (index + 1) * BATCH]
        return self.x[chosen], self.y[chosen]

    def on_epoch_end(self):
        self._order = self._generator.permutation(len(self.x))


class Training:
    """Trains one model again and again, from the same weights, at another rate each time."""

    def __init__(self, task, seed, steps):
        self.model, self.x, self.y = compiled(task, seed)
        self.model.optimizer.build(self.model.trainable_variables)
        self._variables = [*self.model.variables, *self.model.optimizer.variables]
        self._start = [np.array(keras.ops.convert_to_numpy(v)) for v in self._variables]
        self.seed, self.epochs = seed, max(1, round(steps / -(-len(self.x) // BATCH)))

    def loss(self, rate, orders):
        """float, that of the last quarter of the epochs, geometric mean over orders; inf if one is not finite."""
        return geometric_mean([max(self._loss(rate, order), 1e-30) for order in orders])

    def _loss(self, rate, order):
        for variable, value in zip(self._variables, self._start, strict=True):
            variable.assign(value)
        self.model.optimizer.learning_rate = rate
        batches = Shuffled(self.x, self.y, 1000 * (order + 1) + self.seed)  # orders that the search has not seen
        history = self.model.fit(batches, epochs=self.epochs, shuffle=False, verbose=0).history["loss"]
        found = float(np.mean(history[-max(1, self.epochs // 4) :]))
        return found if np.isfinite(found) else float("inf")


def geometric_mean(values, axis=None):
    return np.exp(np.log(values).mean(axis=axis))


def measure(task, grid, options, **limits):
    """(suggestions, NaN for none; seconds of each; the best rate of the grid; losses there and at the suggestions)."""
    suggestions, seconds, trainings = [], [], []
    for seed in range(options.seeds):
        model, x, y = compiled(task, seed)
        begin = time.perf_counter()
        found = find_learning_rate(model, x, y, batch_size=BATCH, seed=seed, verbose=0, **limits).suggestion
        seconds.append(time.perf_counter() - begin)
        suggestions.append(float("nan") if found is None else found)
        trainings.append(Training(task, seed, options.steps))
    orders = range(options.orders)
    best = grid[np.argmin([geometric_mean([each.loss(rate, orders) for each in trainings]) for rate in grid])]
    fresh = range(options.orders, options.orders + options.fresh)  # the lowest of many is lowest by luck, too
    at_best = np.array([each.loss(best, fresh) for each in trainings])
    pairs = zip(trainings, suggestions, strict=True)
    return suggestions, seconds, best, at_best, np.array([each.loss(rate, fresh) for each, rate in pairs])


# --- table and command line -----------------------------------------------------------------------------------------


def row_of(task, suggestions, seconds, best, at_best, losses):
    spread, ratios = max(suggestions) / min(suggestions), losses / at_best
    excess = geometric_mean(ratios)
    return [
        task,
        _listed(suggestions, ".2g"),
        f"{spread:.1f}" + ("" if spread <= SPREAD else " (!)"),
        f"{best:.2g}",
        f"{geometric_mean(at_best):.3g}",
        f"{excess:.2f}" + ("" if excess <= 1 + EXCESS else " (!)"),
        _listed(ratios, ".2f"),
        f"{np.sum(ratios <= 1 + EXCESS)} of {len(ratios)}",
        f"{np.median(seconds):.1f}",
    ]


def _listed(numbers, form):
    return " ".join(format(number, form) for number in numbers)


def heading(grid, options):
    backend = __import__(BACKEND)
    columns = [
        "task",
        "suggestions",
        f"spread, target {SPREAD:g}",
        "best rate of the grid",
        "its loss",
        f"loss at the suggestions / that, target {1 + EXCESS:g}",
        "each seed",
        f"within {100 * EXCESS:.0f} %",
        "s a call",
    ]
    return [
        f"# find_learning_rate: {BACKEND}",
        "",
        f"tf_tricks {tf_tricks.__version__}, keras {keras.__version__}, {BACKEND} {backend.__version__}, numpy "
        f"{np.__version__}, Python {platform.python_version()}, {os.cpu_count()} processor cores, load "
        f"{os.getloadavg()[0]:.1f} at the begin. Adam, batches of {BATCH}, trainings of about {options.steps} steps, a "
        f"grid of {len(grid)} rates from {grid[0]:.2g} to {grid[-1]:.2g} with {options.orders} orders of batches, its "
        f"best rate and the suggestions with {options.fresh} others. A number for each seed. (!): over the target.",
        "",
        "| " + " | ".join(columns) + " |",
        "| --- |" + " --- |" * (len(columns) - 1),
    ]


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400, help="of the trainings at the suggestion and on the grid")
    parser.add_argument("--orders", type=int, default=3, help="of the batches, at each rate of the grid")
    parser.add_argument("--fresh", type=int, default=20, help="other orders, at its best rate and the suggestions")
    parser.add_argument("--points", type=int, default=12, help="rates of the grid")
    parser.add_argument("--seconds", type=float, help="limit of each call of find_learning_rate; none by default")
    parser.add_argument("--quick", action="store_true", help="tiny, to see that it runs")
    parser.add_argument("--output", type=pathlib.Path, help="write the table to this Markdown file, too")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse(argv)
    limits = {"seconds": arguments.seconds}
    if arguments.quick:
        arguments.seeds, arguments.steps, arguments.orders, arguments.fresh, arguments.points = 2, 1, 1, 2, 2
        limits["steps"] = 700
    grid = np.geomspace(1e-4, 0.3, arguments.points)
    lines = heading(grid, arguments)
    print("\n".join(lines), flush=True)
    begin = time.perf_counter()
    for task in arguments.tasks:
        lines.append("| " + " | ".join(row_of(task, *measure(task, grid, arguments, **limits))) + " |")
        print(lines[-1], flush=True)
    lines += ["", f"{time.perf_counter() - begin:.0f} s; load at the end: {os.getloadavg()[0]:.1f}."]
    print("\n".join(lines[-2:]), flush=True)
    if arguments.output:
        arguments.output.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
