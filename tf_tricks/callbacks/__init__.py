"""One file per callback: what to do with what `fit` shows."""

from tf_tricks.callbacks.early_stopping import EarlyStopping
from tf_tricks.callbacks.final_learning_rate_drop import FinalLearningRateDrop
from tf_tricks.callbacks.gradient_norm_logger import GradientNormLogger
from tf_tricks.callbacks.gradual_unfreezing import GradualUnfreezing
from tf_tricks.callbacks.nan_guard import NaNGuard
from tf_tricks.callbacks.non_finite_report import NonFiniteError, NonFiniteReport
from tf_tricks.callbacks.training_checkpoint import TrainingCheckpoint

__all__ = [
    "EarlyStopping",
    "FinalLearningRateDrop",
    "GradientNormLogger",
    "GradualUnfreezing",
    "NaNGuard",
    "NonFiniteError",
    "NonFiniteReport",
    "TrainingCheckpoint",
]
