"""Are there more wrong answers than a model gives by itself? The rate of wrong labels, from the losses of samples.

An overconfident model is sure of wrong answers, too, and classes that overlap have correct labels that no model
expects: an improbable label need not be wrong. But the answers of a model become more reliable the surer it is, at a
pace that its temperature sets (Guo et al., 2017), while labels that somebody mixed up contradict answers of every
sureness alike. So two explanations of the contradictions are compared: a temperature alone, and a temperature and a
rate of wrong labels (Bootkrajang and Kaban, 2012).
"""

import dataclasses

import keras
import numpy as np

from tf_tricks.debug._sample_losses import losses_of
from tf_tricks.debug._target_checks import is_one_hot, loss_kind

_RATES = np.append(0.0, np.geomspace(0.002, 0.4, 24))
_PACES = np.geomspace(0.03, 4, 40)  # inverse temperatures
_BINS = 60
# Nats by which wrong labels have to explain the losses better. Were models exactly as reliable as a temperature says,
# 5 would be a lot. They are not: on correct labels (13 kinds of data and models, 4 seeds each) up to 12 were seen, and
# with 2 % of the labels of digits mixed up 65 to 131.
_CLEAR = 20.0
_PROBABLY = 0.95
_DOUBTED = 3.0  # crossentropy of a label to which a model gives 5 %: more is no accusation
_SUREST = 1e-7  # a probability that Keras clips to; beyond it a loss near 0 has no digits left to compare with
_PLAIN = ("sparsecategoricalcrossentropy", "categoricalcrossentropy", "binarycrossentropy")


@dataclasses.dataclass
class LabelNoise:
    """What the crossentropies of labels say about wrong ones among them.

    Attributes:
        evidence: float >= 0, nats (differences of the log-likelihood) in favour of wrong labels.
        rate: float, the share of the labels that contradict sure and unsure answers alike.
        wrong: bool array, those that are wrong with a probability of 95 % or more; none if `evidence` is not clear.
    """

    evidence: float
    rate: float
    wrong: np.ndarray


def label_noise(crossentropies):
    """A `LabelNoise` of the crossentropies of labels that the models have not seen.

    Reference:
        Guo, Pleiss, Sun and Weinberger (2017), On calibration of modern neural networks, arXiv:1706.04599, section 4.2;
        Bootkrajang and Kaban (2012), Label-noise robust logistic regression and its applications, section 2.
    """
    losses = np.clip(crossentropies, _SUREST, -np.log(_SUREST))
    odds = -np.log(np.expm1(losses))  # the logarithm of p / (1 - p)
    sure, wrong = np.abs(odds), odds < 0
    edges = np.unique(np.quantile(sure, np.linspace(0, 1, _BINS + 1)))
    numbers = np.clip(np.searchsorted(edges, sure, side="right") - 1, 0, max(0, len(edges) - 2))
    total = np.maximum(np.bincount(numbers), 1)
    bad, middle = np.bincount(numbers, weights=wrong), np.bincount(numbers, weights=sure) / total
    own = 1 / (1 + np.exp(_PACES[:, None] * middle))  # (pace, bin): how often the model is wrong by itself
    rates = _RATES[:, None, None]
    chance = np.clip(rates * (1 - own) + (1 - rates) * own, 1e-9, 1 - 1e-9)
    likelihood = np.sum(bad * np.log(chance) + (total - bad) * np.log1p(-chance), axis=-1)
    best, pace = np.unravel_index(np.argmax(likelihood), likelihood.shape)
    evidence, rate = float(likelihood[best, pace] - likelihood[0].max()), float(_RATES[best])
    own = 1 / (1 + np.exp(_PACES[pace] * sure))
    by_label = rate * (1 - own)
    suspected = wrong & (losses > _DOUBTED) & (by_label >= _PROBABLY * (by_label + (1 - rate) * own))
    return LabelNoise(evidence, rate, suspected & (evidence >= _CLEAR))


def crossentropies(model, data, losses):
    """The crossentropy of the one label of each sample, from the samples' losses; None if these are something else."""
    cls, found = type(model), losses_of(model)
    own = cls.compute_loss is not keras.Model.compute_loss or cls.train_step is not keras.Model.train_step
    leaves = [leaf for leaf in keras.tree.flatten(data.y) if leaf is not None]
    if own or len(found) != 1 or len(leaves) != 1:
        return None
    kind, y = loss_kind(found[0]) or loss_kind(getattr(found[0], "fn", None)), leaves[0]
    hard = y.ndim == 2 and is_one_hot(y) if kind == "categoricalcrossentropy" else y.size == data.size
    if kind == "binarycrossentropy":
        hard = hard and bool(np.all((y == 0) | (y == 1)))
    if kind not in _PLAIN or not hard or found[0].get_config().get("label_smoothing"):
        return None
    if data.sample_weight is None:
        return losses
    weights = [leaf for leaf in keras.tree.flatten(data.sample_weight) if leaf is not None]
    if len(weights) != 1 or weights[0].size != data.size:
        return None
    weights = weights[0].reshape(-1)
    return np.where(weights > 0, losses / np.where(weights > 0, weights, 1), 0.0)
