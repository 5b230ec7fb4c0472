"""TensorBoard event files without TensorFlow: `tensorboard` writes them itself, on every backend."""

import os
import time

import keras
import numpy as np

from tf_tricks._optional import import_optional


class Writer:
    """Writes scalars and histograms of a run to `log_dir/gradient_norms`."""

    def __init__(self, log_dir):
        events = import_optional("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._protos = import_optional("tensorboard.compat.proto.event_pb2", "tensorboard")
        self._scalar_pb = import_optional("tensorboard.plugins.scalar.summary_v2", "tensorboard").scalar_pb
        self._histogram_pb = import_optional("tensorboard.plugins.histogram.summary_v2", "tensorboard").histogram_pb
        self._file = events.EventFileWriter(os.path.join(log_dir, "gradient_norms"))

    def _write(self, summary, step):
        self._file.add_event(self._protos.Event(wall_time=time.time(), step=int(step), summary=summary))

    def scalars(self, values, step):
        """Write a dict of floats at one step."""
        for key, value in values.items():
            self._write(self._scalar_pb(key, float(value)), step)

    def rows(self, rows):
        """Write a dict of arrays `(k,)`, "step" among them."""
        for i, step in enumerate(rows["step"]):
            self.scalars({key: array[i] for key, array in rows.items() if key != "step"}, step)

    def histograms(self, model, epoch):
        """Write the distribution of each trainable variable."""
        for variable in model.trainable_variables:
            values = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")))
            finite = values[np.isfinite(values)]
            self._write(self._histogram_pb(f"weights/{variable.path}", finite), epoch)

    def close(self):
        """Write what is left and close the file."""
        self._file.close()
