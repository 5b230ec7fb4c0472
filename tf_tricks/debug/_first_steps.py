"""The first training steps of a borrowed model, and why they end in NaN."""

import contextlib
import math
import typing
import warnings

import keras

from tf_tricks._backend import BACKEND
from tf_tricks.callbacks.non_finite_diagnosis import diagnose
from tf_tricks.fit_hooks.functional import LossFunction

FEWEST = 2  # steps that are made however little time there is: a bad initialisation shows in the second one
DIVERGED = 10  # times its first value: a loss that came to this went the wrong way


class TrainingStep(typing.NamedTuple):
    """One of the first steps.

    Attributes:
        loss: float, before the update; NaN or Inf as it came.
        gradient_norm: float or None, the global norm of the gradients; None where they cannot be had (a loss that
            only a custom `train_step` knows).
    """

    loss: float
    gradient_norm: float | None


class FirstSteps:
    """The first steps of a borrowed model as it is now, always from the same weights, batches and random numbers."""

    def __init__(self, loan, data, batch_size, seed, budget):
        self.loan, self.data, self.batch_size, self.seed, self.budget = loan, data, batch_size, seed, budget

    def take(self, most):
        """(list of `TrainingStep`s, None or the `NonFiniteReport` of the last one)."""
        # Only JAX takes longer for a few eager gradients than for compiling one.
        compiled = "quickly" if BACKEND == "jax" else False
        gradient, done = LossFunction(self.loan.model, training=True, compiled=compiled), []
        batches = self._begin()
        for number in range(most):
            if number >= FEWEST and self.budget.over():
                break
            batch = next(batches)
            norm = _norm(gradient, batch)
            done.append(TrainingStep(self.loan.step(*batch), norm))
            for _ in self.budget.steps(1):
                pass  # counts, and moves the bar
            if not is_finite(done[-1]):
                return done, self._report(done)
        return done, None

    def _begin(self):
        self.loan.reset()
        return self.data.batches(self.batch_size, self.seed)

    def _report(self, done):
        batches, last = self._begin(), len(done) - 1
        for _ in range(last):
            self.loan.step(*next(batches))
        norms = [math.nan if step.gradient_norm is None else step.gradient_norm for step in done]
        trajectory = {"step": list(range(len(done))), "loss": [step.loss for step in done], "grad_norm": norms}
        batch = tuple(keras.tree.map_structure(_tensor, part) for part in next(batches) if part is not None)
        rate = self.loan.learning_rate
        return diagnose(
            self.loan.model, batch, step=last, epoch=0, batch=last, learning_rate=rate, trajectory=trajectory
        )


def _tensor(array):
    return None if array is None else keras.ops.convert_to_tensor(array)


def _norm(gradient, batch):
    try:
        _, gradients = gradient.gradient(*batch)
    except Exception:  # a loss that only a custom `train_step` knows
        return None
    return math.sqrt(sum(float((g.astype("float64") ** 2).sum()) for g in gradients if g is not None))


@contextlib.contextmanager
def no_gradient_is_meant():
    """Keras warns of variables without a gradient: those of the layers that are taken out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Gradients do not exist for variables")
        yield


def is_finite(step):
    """Are loss and gradient?"""
    return math.isfinite(step.loss) and (step.gradient_norm is None or math.isfinite(step.gradient_norm))


def diverges(steps):
    """Did the loss go up by far?"""
    return len(steps) > 1 and steps[-1].loss > DIVERGED * abs(steps[0].loss)
