"""What does batch normalisation hide? The same model without it, beside the original."""

import dataclasses
import inspect
import math

import keras

from tf_tricks._checks import check_instance, check_integer
from tf_tricks._text_table import text_table
from tf_tricks.debug import _data
from tf_tricks.debug._budget import Budget
from tf_tricks.debug._first_steps import FirstSteps, TrainingStep, is_finite, no_gradient_is_meant
from tf_tricks.debug._layer_signals import bypassed
from tf_tricks.debug._normalisation_advice import advice
from tf_tricks.debug._result import Result
from tf_tricks.debug.signal_propagation import SignalPropagation, signal_propagation
from tf_tricks.fit_hooks.borrowing import borrowed
from tf_tricks.fit_hooks.replay_state import sublayers

ROWS = 8  # of the table of layers


@dataclasses.dataclass
class WithoutBatchNorm(Result):
    """Both models side by side; `print` shows the advice.

    Attributes:
        findings: list of `Finding`s named "batch_norm_hides" (signal or gradient explode or vanish without it, or the
            loss is not finite), "unhealthy" (the original itself), "needs_batch_norm" (a remark: the signal is fine
            without it, but the first steps diverge at this rate).
        layers: list of str, the normalisations that were taken out.
        original, bare: `SignalPropagation` with and without them.
        original_steps, bare_steps: lists of `TrainingStep`s (loss, gradient_norm).
        non_finite_step: int or None, the first step without them whose loss or gradient is not finite.
        report: None, or the `NonFiniteReport` of that step: `report.layer` is where it began.
    Example:
        >>> inputs = keras.Input((4,))
        >>> outputs = keras.layers.Dense(1)(keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs)))
        >>> normalised = keras.Model(inputs, outputs)
        >>> normalised.compile("adam", "mse")
        >>> without_batch_norm(normalised, x, y, verbose=0).passed
        True
    """

    findings: list
    layers: list
    original: SignalPropagation
    bare: SignalPropagation
    original_steps: list
    bare_steps: list
    non_finite_step: int | None = None
    report: object = None

    def heading(self):
        lines = [
            f"without_batch_norm {'passed' if self.passed else 'FAILED'}: {len(self.layers)} normalisations taken out",
            text_table(["layer", "stddev with", "without"], self._signals()),
        ]
        if self.original_steps:
            lines.append(text_table(["step", "loss with", "without", "gradient with", "without"], self._steps()))
        return "\n".join(lines)

    def _signals(self):
        before = {row.layer: row.stddev for row in self.original.rows}
        rows = [row for row in self.bare.rows if row.has_kernel] or list(self.bare.rows)
        count = min(ROWS, len(rows))
        chosen = [round(i * (len(rows) - 1) / max(1, count - 1)) for i in range(count)]
        return [[rows[i].layer[:40], before.get(rows[i].layer), rows[i].stddev] for i in chosen]

    def _steps(self):
        most = max(len(self.original_steps), len(self.bare_steps))
        none = TrainingStep(None, None)
        pairs = [
            tuple(steps[i] if i < len(steps) else none for steps in (self.original_steps, self.bare_steps))
            for i in range(min(most, 5))
        ]
        return [[i, a.loss, b.loss, a.gradient_norm, b.gradient_norm] for i, (a, b) in enumerate(pairs)]

    def draw(self, axes):
        for name, signals in (("with batch normalisation", self.original), ("without", self.bare)):
            rows = [row for row in signals.rows if row.has_kernel]
            stddevs = [row.stddev if math.isfinite(row.stddev) else None for row in rows]
            axes.plot(range(len(rows)), stddevs, ".-", label=name)
        values = [row.stddev for signals in (self.original, self.bare) for row in signals.rows]
        if any(math.isfinite(value) and value > 0 for value in values):
            axes.set_yscale("log")
        axes.set(xlabel="layer with a kernel", ylabel="stddev of its outputs")
        axes.legend()

    def series(self):
        values = [row.stddev for row in self.bare.rows if row.has_kernel]
        logs = [math.log10(value) if value > 0 and math.isfinite(value) else math.nan for value in values]
        return "log10 of the stddev of the layers' outputs, without batch normalisation", logs


def without_batch_norm(
    model,
    x,
    y=None,
    *,
    bypass=keras.layers.BatchNormalization,
    batch_size=32,
    steps=5,
    seconds=10.0,
    seed=0,
    verbose=1,
):
    """Take batch normalisation out and look: forward statistics, gradients, the first steps, the first NaN.

    Normalisation makes any initialisation look healthy. What it hides comes back in the gradients, with small batches,
    in inference, and wherever it is removed; then the variance of the initialisation is at fault (He for ReLU,
    Glorot for tanh, LeCun for SELU), and rates seem to need tuning that do not.

    Each `bypass` layer returns its input, in a model of any kind, and only while this function runs: it trains the
    model for a few steps, with and without, and leaves weights, statistics, optimizer, metrics and random states as
    they were, to the bit. The signal counts as exploding or vanishing as in `signal_propagation`: a factor of 20
    against the first layer, up to the last but one.

    Args:
        model: compiled keras.Model with batch normalisation.
        x: arrays as `model` takes them, preprocessed as in training; or a tf.data.Dataset, PyDataset, DataLoader or
            generator, with `y=None`.
        y: arrays of targets.
        bypass: layer class or tuple of them, what is taken out. They must return what has the shape of their input.
        batch_size: int >= 2; of a dataset the first samples are put together to batches of that size. A model that
            takes batches of one size only gets that.
        steps: int >= 1, training steps of each of the two.
        seconds: float > 0 or None, after which no further step is made.
        seed: int >= 0, of the choice among arrays and of their order.
        verbose: 0: silent; 1: a progress bar.
    Returns:
        A `WithoutBatchNorm`; `print` it, or `.plot()` it.
    Raises:
        TypeError, ValueError: an argument is none of these; `model` is not compiled or has no such layer; there are no
            targets; `x` is not finite.
    Reference:
        Zhang, Dauphin and Ma (2019), Fixup initialization, arXiv:1901.09321, section 2; Yang et al. (2019), A mean
        field theory of batch normalization, arXiv:1902.08129 (gradients explode in spite of it).
    Example:
        >>> inputs = keras.Input((4,))
        >>> outputs = keras.layers.Dense(1)(keras.layers.BatchNormalization()(keras.layers.Dense(8)(inputs)))
        >>> normalised = keras.Model(inputs, outputs)
        >>> normalised.compile("adam", "mse")
        >>> len(without_batch_norm(normalised, x, y, steps=2, verbose=0).bare_steps)
        2
    """
    check_instance("model", model, keras.Model, "a keras.Model")
    if not model.compiled:
        raise ValueError(f"`model` must be compiled. Received: model={model.name!r}, which is not")
    classes = bypass if isinstance(bypass, tuple) else (bypass,)
    if not classes or not all(inspect.isclass(cls) and issubclass(cls, keras.layers.Layer) for cls in classes):
        raise TypeError(f"`bypass` must be a layer class or a tuple of them. Received: bypass={bypass!r}")
    batch_size, steps = check_integer("batch_size", batch_size, 2), check_integer("steps", steps, 1)
    seed = check_integer("seed", seed, 0)
    budget = Budget(seconds, None, verbose, "without_batch_norm")
    batch_size = _data.fixed_batch_size(model) or batch_size
    data = _data.samples(x, y, limit=batch_size * steps, seed=seed)
    _data.check_targets(model, data)
    data = data if data.size >= batch_size else _data.one_batch(model, data)
    first = next(data.batches(batch_size, seed))
    with borrowed(model, *first) as loan:
        normalisations = [layer for layer in sublayers(model) if isinstance(layer, classes)]
        if not normalisations:
            names = ", ".join(cls.__name__ for cls in classes)
            raise ValueError(f"`model` must have a layer to take out ({names}). Received: {model.name!r}, without one")
        original = _signals(model, first, classes)
        run = FirstSteps(loan, data, batch_size, seed, budget)
        original_steps, _ = run.take(steps)
        loan.forget_steps()
        with bypassed(normalisations), no_gradient_is_meant():
            bare_steps, report = run.take(steps)
    budget.close()
    bad = next((i for i, step in enumerate(bare_steps) if not is_finite(step)), None)
    names = [layer.name for layer in normalisations]
    bare = original.without_batch_norm or original  # those that are taken out may take no part
    result = WithoutBatchNorm([], names, original, bare, original_steps, bare_steps, bad, report)
    result.findings += advice(result, trained=int(keras.ops.convert_to_numpy(model.optimizer.iterations)) > 0)
    return result


def _signals(model, batch, classes):
    try:
        return signal_propagation(model, batch.x, batch.y, classes)
    except ValueError as error:
        if "`y` must fit" not in str(error):
            raise
        return signal_propagation(model, batch.x, bypass=classes)  # only a custom `train_step` knows the loss
