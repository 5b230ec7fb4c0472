"""What the tests of augmentation share."""

import keras
import pytest


@pytest.fixture
def uncompiled(request):
    """TensorFlow's functions run as they are: to compile for each of many small shapes takes a second each."""
    if keras.backend.backend() != "tensorflow" or "compiled" in request.node.name:
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
