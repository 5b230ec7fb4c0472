"""Layer-sequential unit variance: let the data set the scale of each kernel."""

import dataclasses
import functools
import math
import typing

import keras
import numpy as np

from tf_tricks._checks import check_bool, check_instance, check_integer, check_number
from tf_tricks.initializers import _layer_calls
from tf_tricks.initializers._random import as_seed, orthogonal
from tf_tricks.initializers._table import text_table


class LSUVRow(typing.NamedTuple):
    """One kernel: its variable's path, the stddev of its outputs before and after, and how often it was divided."""

    kernel: str
    stddev_before: float
    stddev: float
    divisions: int
    converged: bool


@dataclasses.dataclass
class LSUVReport:
    """What `lsuv` did; `print` shows it as a table.

    Attributes:
        rows: list of `LSUVRow`s in the order of the forward pass.
        skipped: list of str, paths of kernels that no layer call in this run used or that nothing could be done for.
    """

    rows: list
    skipped: list

    def __str__(self):
        text = text_table(("kernel", "stddev before", "after", "divisions", "converged"), self.rows)
        return text + (f"\nleft as they were: {', '.join(self.skipped)}" if self.skipped else "")


def lsuv(model, x, tolerance=0.05, max_divisions=10, orthonormal=True, seed=None):
    """Give each layer's pre-activations unit standard deviation on the batch `x`, from the first layer to the last.

    Kernels become orthonormal, and are then divided by the standard deviation of their layer's outputs (over samples,
    positions and units, before the layer's own activation and with the bias in place). Each layer is done when the
    forward pass gets to it, so that it sees what the layers before it have become: one pass does them all.

    Works for any model that can run eagerly: functional, sequential, subclassed, with shared layers (the first call of
    a shared layer counts). A model that is not built is built by this call. It runs as in training (dropout is on,
    batch normalisation takes the statistics of the batch). Biases, statistics, states of random generators and
    optimizer stay as they are, and nothing is left attached to the model. Call `zero_init_residual` after it, not
    before: it would make a kernel of zeros orthonormal again.

    Which kernels: `kernel` and `pointwise_kernel` of dense layers, convolutions and `EinsumDense` (attention), and the
    one trainable weight with two axes or more of a layer of your own. Embeddings and recurrent cells are left alone.

    Args:
        model: keras.Model.
        x: one batch as `model` takes it; some hundred samples, preprocessed as in training.
        tolerance: float > 0, how far from 1 the standard deviation may stay.
        max_divisions: int >= 1, how often a kernel is divided at most (one is enough where outputs are linear in it).
        orthonormal: bool. False: keep the directions that the kernels have, set their scale only.
        seed: None, int or `keras.random.SeedGenerator` of the orthonormal kernels.
    Returns:
        An `LSUVReport`; `print` it.
    Raises:
        TypeError, ValueError: an argument is out of range; the model has no kernel that runs eagerly.
    Reference:
        Mishkin and Matas (2016), All you need is a good init, arXiv:1511.06422, algorithm 1.
    Example:
        >>> report = lsuv(model, x)
        >>> [round(row.stddev, 1) for row in report.rows]
        [1.0, 1.0]
    """
    check_instance("model", model, keras.Model, "a keras.Model")
    tolerance = check_number("tolerance", tolerance, above=0, below=math.inf)
    max_divisions = check_integer("max_divisions", max_divisions, 1)
    check_bool("orthonormal", orthonormal)
    seed = as_seed(seed)
    if isinstance(seed, int):  # one stream for all kernels: with an int, equal shapes would get equal kernels
        seed = keras.random.SeedGenerator(seed)
    x = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    with _layer_calls.without_gradients():
        if not all(layer.built for layer in [model, *model.layers]):
            _layer_calls.inference_or_training(model, x, False)
        return _one_pass(model, x, tolerance, max_divisions, orthonormal, seed)


def _one_pass(model, x, tolerance, max_divisions, orthonormal, seed):
    rows, done = {}, set()

    def answer(layer, call):
        kernel = kernel_of(layer)
        if kernel is None or id(kernel) in done:
            return call()
        done.add(id(kernel))
        activation, linear = getattr(layer, "activation", None), keras.activations.linear
        if activation is None:
            rows[kernel.path] = _unit_variance(kernel, call, tolerance, max_divisions, orthonormal, seed)
        else:
            layer.activation = linear
            try:
                rows[kernel.path] = _unit_variance(kernel, call, tolerance, max_divisions, orthonormal, seed)
            finally:
                layer.activation = activation
        return call()

    # What the run itself changes: statistics of batch normalisation, counters of random generators.
    states = [(v, keras.ops.copy(v.value)) for v in model.non_trainable_variables]
    try:
        with _layer_calls.answered_by(answer):
            _layer_calls.inference_or_training(model, x, True)
    finally:
        changed = [(v, value) for v, value in states if id(v) not in done]
        for variable, value in changed:
            variable.assign(value)
    if not rows:
        raise ValueError(
            f"`model` must have a kernel in a layer that runs eagerly. Received: model={model!r} with weights "
            f"{[v.path for v in model.weights]}"
        )
    kernels = [v for v in model.trainable_variables if len(v.shape) > 1 and v.name != "bias"]
    return LSUVReport(list(rows.values()), [v.path for v in kernels if v.path not in rows])


def kernel_of(layer):
    """The variable that the outputs of `layer` are linear in, or None."""
    if isinstance(layer, (keras.Model, keras.layers.Embedding, keras.layers.RNN)):
        return None
    for name in ("pointwise_kernel", "kernel"):
        kernel = getattr(layer, name, None)
        if isinstance(kernel, keras.Variable):
            return None if hasattr(layer, "recurrent_kernel") else kernel
    matrices = [v for v in layer.trainable_variables if len(v.shape) > 1]
    return matrices[0] if len(matrices) == 1 and len(layer.trainable_variables) <= 2 else None


def _unit_variance(kernel, call, tolerance, max_divisions, orthonormal, seed):
    before = stddev = _stddev(call())
    if orthonormal:
        start = _orthonormal(kernel.shape, seed)
        _in_full_precision(lambda: kernel.assign(start))
        stddev = _stddev(call())
    else:
        start = _in_full_precision(lambda: keras.ops.copy(kernel.value))
    scale, divisions = 1.0, 0
    # A constant or non-finite output has no scale to set: the table shows it.
    while abs(stddev - 1) > tolerance and divisions < max_divisions and 0 < stddev < math.inf:
        scale, divisions = scale * stddev, divisions + 1
        _in_full_precision(functools.partial(kernel.assign, start / scale))
        stddev = _stddev(call())
    return LSUVRow(kernel.path, before, stddev, divisions, bool(abs(stddev - 1) <= tolerance))


class _FullPrecision(keras.layers.Layer):
    """Calls a function outside of the scope that casts variables under mixed precision."""

    def __init__(self):
        super().__init__(autocast=False)

    def call(self, inputs, function):
        self.result = function()
        return inputs


def _in_full_precision(function):
    # In that scope a variable's value is a half-precision copy, and Torch assigns to the copy.
    layer = _FullPrecision()
    layer(keras.ops.zeros(()), function=function)
    return layer.result


def _orthonormal(shape, seed):
    matrix = orthogonal((math.prod(shape[:-1]), shape[-1]), seed, "float32")
    return keras.ops.reshape(matrix, shape)


def _stddev(outputs):
    values = [_layer_calls.to_numpy(x).ravel() for x in keras.tree.flatten(outputs) if x is not None]
    return float(np.std(np.concatenate(values), dtype="float64"))
