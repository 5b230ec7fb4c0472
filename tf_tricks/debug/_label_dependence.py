"""Do the labels depend on the features at all? A permutation test of three quick learners."""

import typing

import numpy as np

NEIGHBOURS = 5
PERMUTATIONS = 199
SAMPLES, COLUMNS, CODES = 1000, 2048, 12  # that are looked at
FEWEST = 50


class Dependence(typing.NamedTuple):
    """What the permutation test found.

    Attributes:
        p_value: float, share of the permutations of the labels (and the labels themselves) that fit at least as well.
        learner: str, the one of "neighbours", "ridge" and "columns" that is furthest from chance.
        score: float, its correlation with the labels: of predictions for samples left out, or of the best column.
        chance: float, the mean of the score over permuted labels.
        chance_stddev: float, its stddev.
    """

    p_value: float
    learner: str
    score: float
    chance: float
    chance_stddev: float


def dependence(features, labels, seed=0):
    """A `Dependence`.

    The neighbours' score is the correlation of a sample's labels with the mean over its 5 nearest neighbours; ridge's
    that with the prediction of a ridge regression that leaves the sample out, from the hat matrix; the columns' is the
    largest correlation with a single feature. Each is expressed in stddevs above its mean for permuted labels, and the
    largest of the three is compared with what permutations give, so three chances do not make a discovery.

    Args:
        features: (n, d) array, any scale.
        labels: (n, k) array: classes one-hot, or numbers.
        seed: int.
    """
    generator = np.random.default_rng(seed)
    chosen = np.sort(generator.choice(len(features), min(SAMPLES, len(features)), replace=False))
    x, y = _standardized(_some(features[chosen], COLUMNS, generator)), labels[chosen]
    y = _standardized(_some(y, CODES, generator))
    if not x.shape[1] or not y.shape[1]:
        return None
    n, k = y.shape
    together = np.concatenate([y, *(y[generator.permutation(n)] for _ in range(PERMUTATIONS))], axis=1)
    together = together.astype("float32")
    gram = (x @ x.T / x.shape[1]).astype("float32")
    scores = {
        "neighbours": _correlation(_mean_of_neighbours(gram) @ together, together),
        "ridge": _correlation(_left_out(gram, together), together),
        "columns": np.abs(x.T.astype("float32") @ together).max(axis=0) / n,
    }
    scores = {name: score.reshape(PERMUTATIONS + 1, k).mean(axis=1) for name, score in scores.items()}
    far = np.stack([(s - s[1:].mean()) / (s[1:].std() + 1e-12) for s in scores.values()])
    most = far.max(axis=0)
    name = list(scores)[int(far[:, 0].argmax())]
    score = scores[name]
    p_value = float(1 + np.sum(most[1:] >= most[0])) / (PERMUTATIONS + 1)
    return Dependence(p_value, name, float(score[0]), float(score[1:].mean()), float(score[1:].std()))


def _some(columns, most, generator):
    if columns.shape[1] <= most:
        return columns
    return columns[:, np.sort(generator.choice(columns.shape[1], most, replace=False))]


def _standardized(columns):
    columns = columns.astype("float64")
    columns = columns - columns.mean(axis=0)
    stddev = columns.std(axis=0)
    kept = stddev > 1e-12
    return columns[:, kept] / stddev[kept]


def _mean_of_neighbours(gram):
    squares = np.diag(gram)
    distance = squares[:, None] + squares[None] - 2 * gram
    np.fill_diagonal(distance, np.inf)
    n = len(gram)
    nearest = np.argpartition(distance, min(NEIGHBOURS, n - 1), axis=1)[:, :NEIGHBOURS]
    weights = np.zeros((n, n), "float32")
    np.put_along_axis(weights, nearest, 1 / NEIGHBOURS, axis=1)
    return weights


def _left_out(gram, labels):
    """Predictions of a ridge regression on all samples but the one that is predicted."""
    n = len(gram)
    penalty = 0.1 * np.trace(gram) / n
    hat = np.linalg.solve(gram + penalty * np.eye(n, dtype="float32"), gram).T
    own = np.minimum(np.diag(hat), 0.999)[:, None]
    return (hat @ labels - own * labels) / (1 - own)


def _correlation(predicted, labels):
    predicted = predicted - predicted.mean(axis=0)
    scale = np.sqrt(np.sum(predicted**2, axis=0) * np.sum(labels**2, axis=0)) + 1e-12
    return np.sum(predicted * labels, axis=0) / scale
