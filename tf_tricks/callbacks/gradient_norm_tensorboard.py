"""TensorBoard event files without TensorFlow, on every backend, and without the thread of TensorBoard's own writer."""

import io
import os
import pathlib
import socket
import time

import keras
import numpy as np

from tf_tricks._optional import import_optional

_PURPOSE = "GradientNormLogger with `log_dir`"


def check_installed():
    """Raise ImportError, with the pip command, if tensorboard is missing."""
    import_optional("tensorboard", "tensorboard", purpose=_PURPOSE)


class Writer:
    """Appends scalars and histograms to one event file; between two calls no file is open."""

    def __init__(self, log_dir):
        def load(name):
            return import_optional(f"tensorboard.{name}", "tensorboard", purpose=_PURPOSE)

        self._event = load("compat.proto.event_pb2").Event
        self._scalar = load("plugins.scalar.summary_v2").scalar_pb
        self._histogram = load("plugins.histogram.summary_v2").histogram_pb
        self._records = load("summary.writer.record_writer").RecordWriter
        folder = pathlib.Path(log_dir) / "gradient_norms"
        folder.mkdir(parents=True, exist_ok=True)
        # Two fits within a second in one process must not share a file: hence nanoseconds.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._path = folder / name
        self._append([self._event(wall_time=time.time(), file_version="brain.Event:2")])

    def _append(self, events):
        buffer = io.BytesIO()
        writer = self._records(buffer)
        for event in events:
            writer.write(event.SerializeToString())
        with open(self._path, "ab") as file:
            file.write(buffer.getvalue())

    def _events(self, summaries, step):
        return [self._event(wall_time=time.time(), step=int(step), summary=summary) for summary in summaries]

    def scalars(self, values, step):
        """Write a dict of floats at one step."""
        self._append(self._events([self._scalar(key, float(value)) for key, value in values.items()], step))

    def rows(self, steps, values):
        """Write a dict of arrays `(k,)` at k steps."""
        events = []
        for i, step in enumerate(steps):
            events += self._events([self._scalar(key, float(array[i])) for key, array in values.items()], step)
        self._append(events)

    def histograms(self, values, step):
        """Write a dict of arrays of any shape as distributions; what is not finite has no place in one."""
        finite = {key: array[np.isfinite(array)] for key, array in values.items()}
        self._append(self._events([self._histogram(key, array) for key, array in finite.items()], step))


def weights(model):
    """Dict of the model's trainable variables as arrays, by name in TensorBoard."""
    return {
        f"weights/{variable.path}": np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")))
        for variable in model.trainable_variables
    }
