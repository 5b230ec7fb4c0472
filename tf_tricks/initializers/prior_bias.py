"""Output biases with which the network begins at the frequencies of the classes."""

import keras
import numpy as np

from tf_tricks._checks import check_numbers


def log_odds(probability):
    """log(p / (1 - p)) in float64: the logit that a sigmoid maps to p."""
    probability = np.asarray(probability, "float64")
    return np.log(probability) - np.log1p(-probability)


@keras.saving.register_keras_serializable(package="tf_tricks")
class PriorBias(keras.initializers.Initializer):
    """Bias of the last layer, so that training does not begin by learning how frequent the classes are.

    With inputs that say nothing yet, the best prediction is the frequency, and its loss is the entropy of the labels.
    From a bias of zero the first epochs go there; with rare positives their gradients are huge (RetinaNet diverged).

    Args:
        probability: None, float in (0, 1) or sequence of one per unit: how often the label of a sigmoid unit is 1.
        class_counts: None, or a sequence of numbers > 0, one per class: how many samples each class of a softmax has.
    Raises:
        TypeError, ValueError: not exactly one argument is given, or it is out of range; in a call: the number of
            units is another.
    Reference:
        Lin et al. (2017), Focal Loss for Dense Object Detection, arXiv:1708.02002, section 3.3 (initialization).
    Example:
        >>> bias = PriorBias(class_counts=[70, 20, 10])((3,))
        >>> [round(float(p), 4) for p in keras.ops.softmax(bias)]
        [0.7, 0.2, 0.1]
    """

    def __init__(self, probability=None, class_counts=None):
        if probability is None and class_counts is None:
            raise ValueError("`probability` must be given, or `class_counts`. Received: probability=None")
        if probability is not None and class_counts is not None:
            raise ValueError(
                "`class_counts` must be None where `probability` is given. "
                f"Received: class_counts={class_counts!r}, probability={probability!r}"
            )
        self.probability = self.class_counts = None
        if class_counts is None:
            accepted = "a number or a sequence of numbers in (0, 1)"
            self.probability = _numbers("probability", probability, accepted, below=1, ranks=(0, 1))
        else:
            self.class_counts = _numbers("class_counts", class_counts, "a sequence of numbers > 0", ranks=(1,))

    def __call__(self, shape, dtype=None):
        if self.class_counts is None:
            bias = log_odds(self.probability)
        else:
            bias = np.log(np.asarray(self.class_counts) / np.sum(self.class_counts))
        if bias.ndim and tuple(shape)[-1:] != bias.shape:
            name = "class_counts" if self.probability is None else "probability"
            raise ValueError(
                f"PriorBias: `{name}` has {len(bias)} entries, and the layer a bias of shape {tuple(shape)}"
            )
        bias = np.broadcast_to(bias, shape).copy()
        return keras.ops.convert_to_tensor(bias, dtype=keras.backend.standardize_dtype(dtype))

    def get_config(self):
        return {"probability": self.probability, "class_counts": self.class_counts}


def _numbers(name, value, accepted, ranks, below=np.inf):
    """`value` as a float or a list of floats in (0, below)."""
    array = check_numbers(name, value, accepted)
    if array.ndim not in ranks:
        raise TypeError(f"`{name}` must be {accepted}. Received: {name}={value!r}")
    if not ((array > 0) & (array < below)).all():
        raise ValueError(f"`{name}` must be {accepted}. Received: {name}={value!r}")
    return array.tolist()
