"""What a compiled loss asks of the outputs: the kind of each output, its best predictions, its accuracy."""

import dataclasses

import keras
import numpy as np

from tf_tricks.debug._target_checks import BINARY, CATEGORICAL, DISTANCES, SPARSE, loss_kind

SURE = 0.01  # how far the predictions that count as right are from the best ones: probability, or share of the spread

_KINDS = {"sparse": SPARSE, "categorical": CATEGORICAL, "binary": BINARY, "regression": DISTANCES}


@dataclasses.dataclass
class Target:
    """One output and what its loss wants there.

    Attributes:
        kind: "sparse", "categorical", "binary", "regression", or None for a loss that says nothing about it.
        y: array, the targets in the shape of the predictions (integer labels without the axis of the classes).
        shape: tuple, of the predictions, samples first.
        from_logits: bool. smoothing: float, the loss's `label_smoothing`.
        counts: array of bool, which samples (and positions) the loss does not leave out; None for all.
        among: list of arrays, the targets whose spread is the measure of an error: of the first that have one.
    """

    kind: str | None
    y: np.ndarray
    shape: tuple
    from_logits: bool = False
    smoothing: float = 0.0
    counts: np.ndarray | None = None
    among: list = dataclasses.field(default_factory=list)

    @property
    def classifies(self):
        """bool."""
        return self.kind in ("sparse", "categorical", "binary")

    def probabilities(self):
        """The targets as the probabilities that the loss wants: smoothed, one-hot where they are integers."""
        units = self.shape[-1]
        if self.kind == "binary":
            return self.y * (1 - self.smoothing) + 0.5 * self.smoothing
        hot = np.eye(units)[self.y.astype("int64").clip(0, units - 1)] if self.kind == "sparse" else self.y
        return hot * (1 - self.smoothing) + self.smoothing / units

    def spread(self):
        """float, the standard deviation of the targets `among`; where all are equal, their magnitude."""
        among = [np.asarray(each, "float64") for each in self.among or [self.y]]
        among = [each[np.isfinite(each)] for each in among]
        deviations = [float(np.std(each)) for each in among if each.size]
        return next(
            (each for each in deviations if each > 0), float(np.sqrt(np.mean(np.square(self.y, dtype="float64"))))
        )

    def best(self):
        """The predictions with the lowest loss."""
        return self.y.astype("float32") if self.kind in ("regression", None) else self._outputs(self.probabilities())

    def nearly_best(self):
        """The predictions that the bound of the loss belongs to."""
        if self.kind in ("regression", None):
            return (self.y + SURE * self.spread()).astype("float32")
        other = 0.5 if self.kind == "binary" else 1 / self.shape[-1]
        return self._outputs((1 - SURE) * self.probabilities() + SURE * other)

    def mean(self):
        """The predictions that know the targets' mean and nothing about the samples."""
        wanted = self.y if self.kind in ("regression", None) else self.probabilities()
        mean = np.broadcast_to(np.mean(wanted, axis=0, keepdims=True, dtype="float64"), wanted.shape)
        return mean.astype("float32") if self.kind in ("regression", None) else self._outputs(mean)

    def clipped(self, low, high):
        """The best predictions of an output that cannot leave [low, high]; None is no limit."""
        return np.clip(self.y, low, high).astype("float32")

    def accuracy(self, predictions):
        """float in [0, 1], or None for a regression, and where no sample counts."""
        if not self.classifies:
            return None
        if self.kind == "binary":
            right = (predictions > (0.0 if self.from_logits else 0.5)) == (self.y > 0.5)
        else:
            labels = self.y if self.kind == "sparse" else np.argmax(self.y, -1)
            right = np.argmax(predictions, -1) == labels
        if self.counts is not None:
            counts = self.counts.reshape(self.counts.shape + (1,) * (right.ndim - self.counts.ndim))
            right = right[np.broadcast_to(counts, right.shape)]
        return float(np.mean(right)) if right.size else None

    def _outputs(self, probabilities):
        p = np.clip(probabilities, 1e-7, 1 - 1e-7)
        if self.from_logits:
            p = np.log(p) - np.log1p(-p) if self.kind == "binary" else np.log(p)
        return p.astype("float32")


def targets(model, y, predictions, sample_weight=None, among=()):
    """A `Target` for each output; None if the targets do not match the outputs one by one.

    Args:
        model: a compiled keras.Model. y: its targets. predictions: its outputs as arrays.
        sample_weight: None, or the weights of the samples, one array or one per output.
        among: list of targets of more samples, as `y`, for `Target.among`.
    """
    outputs, wanted = keras.tree.flatten(predictions), _as_outputs(model, y, predictions)
    losses = losses_of_outputs(model, predictions)
    if wanted is None or len(wanted) != len(outputs) or any(each is None for each in wanted):
        return None
    weights = _as_outputs(model, sample_weight, predictions) or [None]
    weights = weights * len(outputs) if len(weights) == 1 else weights
    if len(weights) != len(outputs):
        weights = [None] * len(outputs)
    found = [_target(*each) for each in zip(losses, wanted, outputs, weights, strict=True)]
    if any(each is None for each in found):
        return None
    for others in among:
        for target, each in zip(found, _as_outputs(model, others, predictions), strict=True):
            target.among.append(each)
    return found


def _target(loss, y, output, weights):
    kind, config = _kind_and_config(loss)
    y = np.asarray(y)
    if kind == "sparse":
        y = y.reshape(output.shape[:-1]) if y.size * output.shape[-1] == output.size else None
    else:
        y = y.astype("float64").reshape(output.shape) if y.size == output.size else None
    if y is None:
        return None
    smoothing = float(config.get("label_smoothing") or 0.0)
    counts = _counts(y, output.shape if kind == "binary" else output.shape[:-1], weights, config.get("ignore_class"))
    return Target(kind, y, output.shape, bool(config.get("from_logits", False)), smoothing, counts)


def _counts(y, shape, weights, ignored):
    """Which of the positions (`shape`, or less axes) a loss takes into account; None for all."""
    counts = None if ignored is None else y != ignored
    if weights is None:
        return counts
    weighed = np.asarray(weights) != 0
    if weighed.ndim > len(shape) and weighed.shape[-1] == 1:
        weighed = weighed[..., 0]
    if weighed.shape != shape[: weighed.ndim]:
        return counts
    return weighed if counts is None else counts & weighed.reshape(weighed.shape + (1,) * (y.ndim - weighed.ndim))


def _kind_and_config(loss):
    """(`Target.kind`, configuration) of a loss as `compile` takes it; (None, {}) for one that is not Keras's."""
    word = loss_kind(loss)
    kind = next((kind for kind, words in _KINDS.items() if word in words), None)
    return kind, loss.get_config() if kind and isinstance(loss, keras.losses.Loss) else {}


def output_names(model, outputs):
    """The names of the flat outputs, in their order; None for outputs without."""
    names = sorted(outputs) if isinstance(outputs, dict) else list(getattr(model, "output_names", None) or [])
    count = len(keras.tree.flatten(outputs))
    return names if len(names) == count else [None] * count


def losses_of_outputs(model, outputs):
    """What `compile` was given for each of the flat outputs: a loss, its name, or None."""
    loss, names = getattr(model, "loss", None), output_names(model, outputs)
    if isinstance(loss, dict):
        return [loss.get(name) for name in names]
    found = keras.tree.flatten(loss) if isinstance(loss, (list, tuple)) else [loss] * len(names)
    return found if len(found) == len(names) else [None] * len(names)


def _as_outputs(model, y, outputs):
    """The targets in the order of the flat outputs."""
    if y is None:
        return None
    return [y.get(name) for name in output_names(model, outputs)] if isinstance(y, dict) else keras.tree.flatten(y)


def accuracy(found, predictions):
    """The mean accuracy of the outputs that classify, or None."""
    pairs = zip(found or [], keras.tree.flatten(predictions), strict=False)
    shares = [share for target, output in pairs if (share := target.accuracy(output)) is not None]
    return float(np.mean(shares)) if shares else None
