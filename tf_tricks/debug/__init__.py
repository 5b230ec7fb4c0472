"""Functions that run an experiment on a model and return a result that prints and plots itself."""

from tf_tricks.debug.batch_size_advice import BatchSizeAdvice, batch_size_advice
from tf_tricks.debug.check_gradients import GradientCheck, check_gradients
from tf_tricks.debug.check_inputs import InputCheck, check_inputs
from tf_tricks.debug.diagnose_learning_curve import LearningCurve, diagnose_learning_curve
from tf_tricks.debug.find_learning_rate import LearningRates, find_learning_rate
from tf_tricks.debug.loss_outliers import LossOutliers, loss_outliers
from tf_tricks.debug.overfit_one_batch import OverfitOneBatch, overfit_one_batch
from tf_tricks.debug.signal_propagation import SignalPropagation, signal_propagation
from tf_tricks.debug.without_batch_norm import WithoutBatchNorm, without_batch_norm

__all__ = [
    "BatchSizeAdvice",
    "GradientCheck",
    "InputCheck",
    "LearningCurve",
    "LearningRates",
    "LossOutliers",
    "OverfitOneBatch",
    "SignalPropagation",
    "WithoutBatchNorm",
    "batch_size_advice",
    "check_gradients",
    "check_inputs",
    "diagnose_learning_curve",
    "find_learning_rate",
    "loss_outliers",
    "overfit_one_batch",
    "signal_propagation",
    "without_batch_norm",
]
