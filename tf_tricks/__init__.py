"""Training tricks as parts that plug into Keras's `model.fit` without touching the model's code."""

from tf_tricks import callbacks, checkpoints
from tf_tricks.callbacks import NonFiniteError, NonFiniteReport

__version__ = "0.1.0"
__all__ = ["NonFiniteError", "NonFiniteReport", "__version__", "callbacks", "checkpoints"]
