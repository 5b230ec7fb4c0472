"""Does the signal reach the last layer, and the gradient the first one?"""

import dataclasses
import inspect
import math

import keras

from tf_tricks import _layer_calls
from tf_tricks._checks import check_instance
from tf_tricks._text_table import text_table
from tf_tricks.debug._layer_signals import bypassed, inner_layer, layer_signals
from tf_tricks.fit_hooks.replay_state import sublayers

FACTOR = 20  # by how much the stddev of a layer has to differ from that of the first one after a normalisation
ALIKE = 0.02  # share of the stddev that the samples make, below which they all look the same


@dataclasses.dataclass
class SignalPropagation:
    """What goes through each layer; `print` shows the table and the verdict.

    Attributes:
        rows: list of `LayerSignal`s (layer, mean, stddev, sample_stddev, zeros, saturated, gradient_stddev,
            has_kernel, normalizes), one for each call of an innermost layer, in the order of the forward pass.
        verdict: str, "healthy" or what is wrong and from which layer on.
        without_batch_norm: None, or the `SignalPropagation` of the same model with its batch normalisation (or what
            `bypass` names) left out.
    Example:
        >>> print(signal_propagation(model, x).verdict)
        healthy: the stddev of the layers' outputs stays within a factor of 20
    """

    rows: list
    verdict: str
    without_batch_norm: "SignalPropagation | None" = None

    def __str__(self):
        headings = ["layer", "mean", "stddev", "over samples", "zeros", "saturated", "gradient stddev"]
        cells = [row[:4] + (_percent(row.zeros), _percent(row.saturated), row.gradient_stddev) for row in self.rows]
        if all(row.gradient_stddev is None for row in self.rows):
            headings, cells = headings[:-1], [row[:-1] for row in cells]
        return f"{text_table(headings, cells)}\n{self.verdict}"

    def plot(self, path=None):
        """Draw stddev, gradient and zeros over the layers, also without batch normalisation.

        Args:
            path: None or the file to write the picture to.
        Returns:
            A `matplotlib.figure.Figure`.
        """
        from tf_tricks.debug.signal_propagation_plot import draw

        return draw(self, path)


def signal_propagation(model, x, y=None, bypass=keras.layers.BatchNormalization):
    """Mean, stddev, zeros and saturation of each layer's output, the gradient that arrives there, and what it means.

    Runs one batch as training would (dropout on, batch statistics), at initialisation or at any time later, and once
    more with every batch normalisation bypassed: normalisation makes any initialisation look healthy, and what it hides
    shows in the gradients, in inference, and when it is removed. Weights, statistics, optimizer, metrics and random
    states stay as they are, to the bit. Eager, on every backend; a model that is not built is built.

    The gradient is that of the compiled loss with respect to the layer's *output*: unlike the one of the kernel it
    has the same meaning for each kind of layer. The verdict looks at the layers with kernels (embeddings are none): the
    signal vanishes or explodes where the stddev of the outputs leaves that of the first layer by a factor of 20 and
    does not come back, the last layer not counted; the gradient likewise, on its way back from the last layer but one.
    A normalisation (a layer with "norm" in the name of its class) sets both scales anew: the count begins again after
    it. The samples are alike where they make less than 2 % of the stddev.

    Args:
        model: keras.Model; compiled if `y` is given.
        x: one batch as `model` takes it, preprocessed as in training.
        y: None, or the targets of the batch: adds the gradients.
        bypass: layer class or tuple of them, the normalisations that the second run leaves out. They must return
            what has the shape of their input.
    Returns:
        A `SignalPropagation`; `print` it, or `.plot()` it.
    Raises:
        TypeError, ValueError: an argument is no model or class; `x` is not finite; `y` is given and the model is not
            compiled, or the loss cannot be computed.
    Reference:
        Glorot and Bengio (2010), section 4.2 (stddev of activations and gradients per layer); Schoenholz et al. (2017),
        Deep Information Propagation, arXiv:1611.01232, sections 3 and 4; Zhang, Dauphin and Ma (2019), Fixup,
        arXiv:1901.09321, section 2 (what normalisation hides).
    Example:
        >>> result = signal_propagation(model, x, y)
        >>> [row.layer.partition("_")[0] for row in result.rows], result.without_batch_norm
        (['dense', 'dense'], None)
    """
    check_instance("model", model, keras.Model, "a keras.Model")
    classes = bypass if isinstance(bypass, tuple) else (bypass,)
    if not classes or not all(inspect.isclass(cls) and issubclass(cls, keras.layers.Layer) for cls in classes):
        raise TypeError(f"`bypass` must be a layer class or a tuple of them. Received: bypass={bypass!r}")
    if y is not None and not model.compiled:
        raise ValueError("`y` must be None for a model that is not compiled. Received: y=" + type(y).__name__)
    x, y = (data if data is None else keras.tree.map_structure(keras.ops.convert_to_tensor, data) for data in (x, y))
    _layer_calls.check_finite("x", x)
    if not all(layer.built for layer in [model, *model.layers]):
        model(x)
    rows, layers = layer_signals(model, x, y)
    # Also those whose `call` a wrapper calls by itself.
    parts = {id(part): part for layer in layers for part in sublayers(layer)}.values()
    normalisations = [part for part in parts if isinstance(part, classes)]
    verdict, without = judge(rows), None
    if normalisations:
        with bypassed(normalisations):
            others, layers = layer_signals(model, x, y)
        kept = [row for row, layer in zip(others, layers, strict=True) if not isinstance(inner_layer(layer), classes)]
        without = SignalPropagation(kept, judge(kept))
        if "the signal" not in verdict and not is_healthy(without.verdict):
            verdict += f". Normalisation hides a bad initialisation: without it {without.verdict}"
    return SignalPropagation(rows, verdict, without)


def is_healthy(verdict):
    return verdict.startswith("healthy")


def judge(rows):
    """The verdict on a list of `LayerSignal`s."""
    layers = _counted(rows)
    faults = []
    signal, gradient = signal_drift(rows), gradient_drift(rows)
    if signal is not None:
        faults.append(f"the signal {signal[0]} from `{signal[1]}` on")
    if gradient is not None:
        faults.append(f"the gradient {gradient[0]} on its way back, from `{gradient[1]}` on")
    alike = _first_of_the_rest([row.sample_stddev < ALIKE * row.stddev for row in layers])
    if alike is not None and signal is None:
        faults.append(f"all samples look alike from `{layers[alike].layer}` on")
    if faults:
        return "; ".join(faults)
    quantities = "outputs and of their gradients" if _backwards(layers) else "outputs"
    return f"healthy: the stddev of the layers' {quantities} stays within a factor of {FACTOR}"


def signal_drift(rows):
    """("vanishes" | "explodes", name of the layer from which on) of the outputs of `LayerSignal`s, or None."""
    layers = _counted(rows)
    found = _drift([row.stddev for row in layers], _references(rows, layers))
    return None if found is None else (found[0], layers[found[1]].layer)


def gradient_drift(rows):
    """The same of the gradients, on their way back."""
    for stretch in _stretches_on_the_way_back(rows, _backwards(_counted(rows))):
        gradients = [row.gradient_stddev for row in stretch]
        found = _drift(gradients, gradients[:1] * len(gradients), count_last=True)
        if found is not None:
            return found[0], stretch[found[1]].layer
    return None


def _counted(rows):
    return [row for row in rows if row.has_kernel] or list(rows)


def _backwards(layers):
    # The output layer comes first on the way back, and its gradient is that of the loss: not counted.
    return [row for row in layers if row.gradient_stddev is not None][:-1]


def _references(rows, layers):
    """The stddev that each of the `layers` is compared with: of the first of them since the last normalisation."""
    references, reference, chosen = [], None, {id(row) for row in layers}
    for row in rows:
        if row.normalizes:
            reference = None
        if id(row) in chosen:
            reference = row.stddev if reference is None else reference
            references.append(reference)
    return references


def _stretches_on_the_way_back(rows, layers):
    """Lists of those of the `layers` that no normalisation parts, each up to the output of the one it comes to."""
    # That output is where the branches of an attention meet again: a small gradient of its queries alone is no fault.
    stretches, chosen = [[]], {id(row) for row in layers}
    for row in reversed(rows):
        if row.gradient_stddev is not None and (row.normalizes or id(row) in chosen):
            stretches[-1].append(row)
        if row.normalizes:
            stretches.append([])
    return [stretch for stretch in stretches if stretch]


def _drift(stddevs, references, count_last=False):
    """("vanishes" | "explodes", position from which on) of a list of stddevs, or None."""
    pairs = list(zip(stddevs, references, strict=True))
    broken = next((i for i, value in enumerate(stddevs) if not math.isfinite(value)), None)
    if broken is not None:
        start = _first_of_the_rest([value > FACTOR * reference for value, reference in pairs[:broken]])
        return "explodes", broken if start is None else start
    counted = pairs if count_last or len(pairs) < 3 else pairs[:-1]
    small = _first_of_the_rest([value * FACTOR < reference or value == 0 for value, reference in counted])
    large = _first_of_the_rest([value > FACTOR * reference for value, reference in counted])
    if small is not None:
        return "vanishes", small
    return None if large is None else ("explodes", large)


def _first_of_the_rest(flags):
    """Where the run of True begins that lasts until the end; None if the last one is not True."""
    start = None
    for i, flag in enumerate(flags):
        start = None if not flag else i if start is None else start
    return start


def _percent(share):
    return None if share is None else f"{100 * share:.3g} %"
