"""Layer-sequential unit variance: let the data set the scale of each kernel."""

import dataclasses
import functools
import math
import typing

import keras
import numpy as np

from tf_tricks import _layer_calls
from tf_tricks._checks import check_bool, check_instance, check_integer, check_number
from tf_tricks._text_table import text_table
from tf_tricks.initializers._random import as_seed
from tf_tricks.initializers.activation_scaling import ActivationScaling

TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)


class LSUVRow(typing.NamedTuple):
    """One kernel: its variable's path, the stddev of its outputs before and after, and how often it was divided.

    A kernel that did not converge has its old value again.
    """

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
        skipped: list of str, paths of the weights with two axes or more that were left alone: frozen, not used in this
            run, or not a kernel in the sense of `lsuv`.
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
    forward pass gets to it, so that it sees what the layers before it have become: one pass does them all. A kernel
    that does not get there is given its old value back, and all are if the run ends in an exception.

    Works for any model that can run eagerly: functional, sequential, subclassed, with shared layers (the first call of
    a shared layer counts). A model that is not built is built by this call. It runs as in training (dropout is on,
    batch normalisation takes the statistics of the batch). Biases, statistics, the model's random generators and the
    optimizer stay as they are, and nothing is left attached to the model. Call `zero_init_residual` after it, not
    before: it would make a kernel of zeros orthonormal again.

    Which kernels: the trainable attribute `kernel` or `pointwise_kernel` of dense layers, convolutions, `EinsumDense`
    (attention) and layers of your own. Frozen ones, embeddings, recurrent cells and all other weights are left alone.

    Args:
        model: keras.Model.
        x: one batch as `model` takes it; some hundred samples, preprocessed as in training.
        tolerance: float > 0, how far from 1 the standard deviation may stay.
        max_divisions: int >= 1, how often a kernel is divided at most (one is enough where outputs are linear in it).
        orthonormal: bool. True: as matrices of inputs times outputs, as in `ActivationScaling`: one per channel of a
            depthwise convolution, of the summed and the kept axes in `EinsumDense`. False: keep the directions that
            the kernels have, set their scale only.
        seed: None, int or `keras.random.SeedGenerator` of the orthonormal kernels. None draws an int from Python's
            `random`, as Keras's initializers do.
    Returns:
        An `LSUVReport`; `print` it.
    Raises:
        TypeError, ValueError: an argument is out of range; `x` is not finite; the model has no kernel that runs
            eagerly.
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
    x = _as_tensors(x)
    _layer_calls.check_finite("x", x)
    with _layer_calls.without_gradients():
        if not all(layer.built for layer in [model, *model.layers]):
            _layer_calls.inference_or_training(model, x, False)
        return _one_pass(model, x, tolerance, max_divisions, orthonormal, seed)


def _as_tensors(x):
    accepted = "`x` must be a batch as `model` takes it: an array or a tensor of numbers, or a structure of them"
    leaves = keras.tree.flatten(x)
    if not leaves:
        raise ValueError(f"{accepted}. Received: x={x!r}")
    for leaf in leaves:
        if not keras.ops.is_tensor(leaf) and np.asarray(leaf).dtype.kind not in "biufV":  # V: bfloat16
            raise TypeError(f"{accepted}. Received: x={x!r}")
        if 0 in tuple(leaf.shape if hasattr(leaf, "shape") else ()):
            raise ValueError(f"`x` must have a sample at least. Received: x with a part of shape {tuple(leaf.shape)}")
    return keras.tree.map_structure(keras.ops.convert_to_tensor, x)


def _one_pass(model, x, tolerance, max_divisions, orthonormal, seed):
    rows, kept = [], {}

    def answer(layer, call):
        while isinstance(layer, keras.layers.TimeDistributed):  # it calls `layer.call`, which nobody sees
            layer = layer.layer
        kernel = kernel_of(layer)
        if kernel is None or id(kernel) in kept:
            return call()
        old = _in_full_precision(lambda: keras.ops.copy(kernel.value))
        kept[id(kernel)] = kernel, old
        start = _orthonormal(layer, kernel, seed) if orthonormal else old
        activation = getattr(layer, "activation", None)
        if activation is not None:
            layer.activation = keras.activations.linear
        try:
            row = _unit_variance(kernel, start, call, tolerance, max_divisions)
        finally:
            if activation is not None:
                layer.activation = activation
        if not row.converged:
            _in_full_precision(lambda: kernel.assign(old))
            row = row._replace(stddev=row.stddev_before)
        rows.append(row)
        return call()

    # What the run itself changes: statistics of batch normalisation, counters of random generators.
    states = [(v, keras.ops.copy(v.value)) for v in model.non_trainable_variables]
    try:
        with _layer_calls.answered_by(answer):
            _layer_calls.inference_or_training(model, x, True)
    except BaseException:  # also Ctrl-C
        states += kept.values()
        raise
    finally:
        for variable, value in states:
            variable.assign(value)
    if not rows:
        raise ValueError(
            "`model` must have a kernel in a layer that runs eagerly, and a trainable one. "
            f"Received: model={model!r} with weights {[v.path for v in model.weights]}"
        )
    others = [v for v in model.weights if len(v.shape) > 1 and v.name != "bias" and id(v) not in kept]
    return LSUVReport(rows, [v.path for v in others])


def kernel_of(layer):
    """The trainable variable that the outputs of `layer` are linear in, or None."""
    for name in ("pointwise_kernel", "kernel"):
        kernel = getattr(layer, name, None)
        if isinstance(kernel, keras.Variable) and not hasattr(layer, "recurrent_kernel"):
            # A wrapper may hold the kernel of the layer inside, which is the one to look at.
            own = kernel.path.rpartition("/")[0] == layer.path
            return kernel if own and kernel.trainable and len(kernel.shape) > 1 else None
    return None


def _unit_variance(kernel, start, call, tolerance, max_divisions):
    before = _stddev(call())
    _in_full_precision(lambda: kernel.assign(start))
    stddev, scale, divisions = _stddev(call()), 1.0, 0
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


def _orthonormal(layer, kernel, seed):
    arguments = {}
    if isinstance(layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        arguments["kind"] = "depthwise"
    elif isinstance(layer, TRANSPOSED):
        arguments["kind"] = "transposed"
    elif isinstance(layer, keras.layers.EinsumDense):
        inputs, letters, outputs = layer.equation.replace(" ", "").replace("->", ",").split(",")
        axes = list(enumerate(letters))
        arguments["input_axes"] = [i for i, letter in axes if letter in inputs and letter not in outputs]
        arguments["output_axes"] = [i for i, letter in axes if letter in outputs and letter not in inputs]
    draw = ActivationScaling("linear", distribution="orthogonal", seed=seed, **arguments)
    return draw(kernel.shape, dtype="float32")


def _stddev(outputs):
    values = [_layer_calls.to_numpy(x).ravel() for x in keras.tree.flatten(outputs) if x is not None]
    return float(np.std(np.concatenate(values), dtype="float64"))
