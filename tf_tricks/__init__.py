"""Training tricks as parts that plug into Keras's `model.fit` without touching the model's code."""

from tf_tricks import _backend, callbacks, checkpoints, debug, initializers, layers  # _backend says what is missing
from tf_tricks.callbacks import NonFiniteError, NonFiniteReport

del _backend
__version__ = "0.1.0"
__all__ = [
    "NonFiniteError",
    "NonFiniteReport",
    "__version__",
    "callbacks",
    "checkpoints",
    "debug",
    "initializers",
    "layers",
]
