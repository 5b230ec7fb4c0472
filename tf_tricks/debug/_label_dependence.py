"""Do the labels depend on the features at all? A permutation test of four quick learners."""

import typing

import numpy as np

NEIGHBOURS = 5
PERMUTATIONS, PLANTED = 199, 99
SAMPLES, COLUMNS, CODES = 1500, 2048, 12  # that are looked at
PAIRED = 64  # columns, up to which all products of two are looked at
FEWEST = 50
WEAK = 0.05  # share of the labels' variance that a relation worth a training explains
INDEPENDENT = 0.01  # p-value, above which the labels look independent of the features
TOO_WEAK = 0.02  # p-value, up to which a relation would be weaker than the planted ones


class Dependence(typing.NamedTuple):
    """What the permutation test found.

    Attributes:
        p_value: float, share of the permutations of the labels (and the labels themselves) that fit at least as well.
        learner: str, the one of "neighbours", "ridge", "columns" and "pairs" that is furthest from chance.
        score: float, its correlation with the labels: of predictions for samples left out, or of the best column, or
            of the best product of two columns.
        chance: float, the mean of the score over permuted labels.
        chance_stddev: float, its stddev.
        planted_p_value: float, share of planted relations that explain 5 % of the labels (and the labels themselves)
            that a ridge regression fits no better; NaN where `p_value` is 0.01 or less, so that there is a relation.
    """

    p_value: float
    learner: str
    score: float
    chance: float
    chance_stddev: float
    planted_p_value: float = np.nan

    @property
    def looks_independent(self):
        """bool, do permuted labels fit as well?"""
        return self.p_value > INDEPENDENT

    @property
    def is_independent(self):
        """bool, is any linear relation weaker than one that explains 5 %?"""
        return self.looks_independent and self.planted_p_value <= TOO_WEAK


def dependence(features, labels, seed=0):
    """A `Dependence`.

    The neighbours' score is the correlation of a sample's labels with the mean over its 5 nearest neighbours; ridge's
    that with the prediction of a ridge regression that leaves the sample out, from the hat matrix; the columns' and the
    pairs' are the largest correlation with a single feature and with a product of two (an exclusive or). Each is
    expressed as the surprise of permuted labels, and the largest of the four is compared with what permutations give,
    so four chances do not make a discovery (Good, 2005, chapter 3).

    That no relation is found is no proof that there is none: few samples of many features hide a weak one. So the same
    ridge regression also looks at labels of the same kind with a planted relation, along random directions of the
    features, that explains 5 % of their variance. Only labels that fit worse than 98 % of these have been shown to be
    as good as independent: a test of equivalence (Wellek, 2010, Testing statistical hypotheses of equivalence and
    noninferiority, section 1.2).

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
    learners = _Learners(x)
    scores = learners.scores(np.hstack([y, *(y[generator.permutation(n)] for _ in range(PERMUTATIONS))]), k)
    far = np.stack([_surprise(name, score) for name, score in scores.items()])
    most = far.max(axis=0)
    name = list(scores)[int(far[:, 0].argmax())]
    score, chance = scores[name][0], scores[name][1:]
    p_value = float(1 + np.sum(most[1:] >= most[0])) / (PERMUTATIONS + 1)
    found = Dependence(p_value, name, float(score), float(chance.mean()), float(chance.std()))
    if not found.looks_independent:
        return found
    planted = _correlation(learners.left_out(_planted(x, y, generator)), k)
    return found._replace(planted_p_value=float(1 + np.sum(planted <= scores["ridge"][0])) / (PLANTED + 1))


class _Learners:
    """What four learners make of many sets of k columns of labels at once.

    Args:
        x: (n, d) array, standardised.
    """

    def __init__(self, x):
        gram = (x @ x.T / x.shape[1]).astype("float32")
        self._mean, self._hat = _mean_of_neighbours(gram), _ridge(gram)
        self._columns = x.T.astype("float32")
        first, second = np.triu_indices(x.shape[1] if x.shape[1] <= PAIRED else 0, 1)
        self._pairs = _standardized(x[:, first] * x[:, second]).T.astype("float32")

    def scores(self, labels, k):
        """dict, learner -> array of its score for each set, the mean over the set's columns."""
        labels = labels.astype("float32")
        found = {"neighbours": _correlation((self._mean @ labels, labels), k)}
        found["ridge"] = _correlation(self.left_out(labels), k)
        for name, features in (("columns", self._columns), ("pairs", self._pairs)):
            if len(features):
                found[name] = _mean_of_sets(np.abs(features @ labels).max(axis=0) / len(labels), k)
        return found

    def left_out(self, labels):
        """(predictions of a ridge regression on all samples but the one that is predicted, labels)."""
        labels = labels.astype("float32")
        own = np.minimum(np.diag(self._hat), 0.999)[:, None]
        return (self._hat @ labels - own * labels) / (1 - own), labels


def _surprise(name, scores):
    """Minus the logarithm of the chance of such a score or a higher one; the first is left out of what chance gives.

    A correlation is about normal, the largest of many has the longer tail of a Gumbel distribution: compared by their
    stddevs, every third discovery of the ridge regression would drown in the columns' tail.
    """
    z = (scores - scores[1:].mean()) / (scores[1:].std() + 1e-12)
    if name in ("columns", "pairs"):
        return z * np.pi / np.sqrt(6) + np.euler_gamma
    return z * np.abs(z) / 2 + np.log1p(2.5 * np.maximum(z, 0))  # the logarithm of Mills' ratio, within 0.1 for z > 1


def _planted(x, y, generator):
    """(n, k * PLANTED): labels as correlated with each other as the columns of `y`, of which 5 % depend on `x`."""
    values, vectors = np.linalg.eigh(y.T @ y / len(y))
    as_in_y = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    sets = []
    for _ in range(PLANTED):
        signal = _standardized(x @ generator.normal(size=(x.shape[1], y.shape[1])))
        noise = generator.normal(size=y.shape)
        sets.append((np.sqrt(WEAK) * signal + np.sqrt(1 - WEAK) * noise) @ as_in_y)
    planted = np.hstack(sets)
    return planted - planted.mean(axis=0)


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


def _ridge(gram):
    """The hat matrix: what it makes of labels is what the regression predicts."""
    n = len(gram)
    penalty = 0.1 * np.trace(gram) / n
    return np.linalg.solve(gram + penalty * np.eye(n, dtype="float32"), gram).T


def _correlation(predicted_and_labels, k):
    """The correlation of predictions with centred labels, column by column, and its mean over each k columns."""
    predicted, labels = predicted_and_labels
    predicted = predicted - predicted.mean(axis=0)
    scale = np.sqrt(np.sum(predicted**2, axis=0) * np.sum(labels**2, axis=0)) + 1e-12
    return _mean_of_sets(np.sum(predicted * labels, axis=0) / scale, k)


def _mean_of_sets(scores, k):
    return scores.reshape(-1, k).mean(axis=1)
