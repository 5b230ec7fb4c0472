"""The one file that asks which backend runs. `tf`, `jax` and `torch` are modules or None.

Only the backend that Keras already runs is imported: the other two stay out of the process.
"""

try:
    import keras
except ImportError as error:  # Keras is there, the backend that it is set to is not
    raise ImportError(
        "tf_tricks needs a Keras backend: pip install 'tf-tricks[cpu]' (or [tensorflow], or [jax] or [torch] with "
        f"KERAS_BACKEND set to it). Keras says: {error}"
    ) from error

BACKEND = keras.backend.backend()

tf = jax = torch = None
if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax
elif BACKEND == "torch":
    import torch
else:
    raise ImportError(
        f"tf_tricks runs on the Keras backends tensorflow, jax and torch. Received: KERAS_BACKEND={BACKEND!r}"
    )
__all__ = ["BACKEND", "jax", "tf", "torch"]
