"""The part of a `FitHook` that remembers steps, reads their records together, and deals with the bad ones."""

import contextlib

import keras
import numpy as np

from tf_tricks.fit_hooks import in_step
from tf_tricks.fit_hooks.drivers import to_device

FLUSH_EVERY = 32  # steps between two looks of the host at the records
BATCH_BYTES = 256 * 2**20  # how much of the data we may keep alive between two looks


class Incident:
    """A step whose update was held back: where it was, on which data, and how the run went before it."""

    def __init__(self, position, data, trajectory):
        self.position = position
        self.data = data
        self.trajectory = trajectory


class LookPart:
    """Methods of `FitHook`. Records wait on the device in `_pending`; a look hands them to the owners and the guard."""

    def __init__(self):
        self._guard = None
        self._guard_state = None
        self._pending = []  # (position, batch or None, record), not yet read
        self._recent = []  # (step, loss, global gradient norm) of the last steps
        self._batch_bytes = None

    def _remember(self, batches, records, random_state):
        for batch, record in zip(batches, records, strict=True):
            self._pending.append((self.position(), (batch, random_state) if self._guard else None, record["row"]))
            self.step += 1
            self.batch_index += 1
        self._guard_state = records[-1]["guard"]

    def _flush_every(self, batch):
        """How many steps may pass until the host looks: fewer where the batches between two looks are large."""
        if self._guard is None:
            return FLUSH_EVERY
        if self._batch_bytes is None:
            self._batch_bytes = sum(_nbytes(leaf) for leaf in keras.tree.flatten(batch))
        steps = max(1, min(FLUSH_EVERY, BATCH_BYTES // max(1, self._batch_bytes)))
        return min(steps, self._guard.look_every)

    def flush(self):
        """Read all records that wait on the device and hand them to the owners. Between steps only."""
        if not self._pending:
            return
        self._driver.collect()
        try:
            self._look(None)
        except BaseException:
            self._give_up()
            raise
        self._driver.publish()
        self._driver.release()

    @contextlib.contextmanager
    def published(self):
        """The model, with the present state in its variables to be read and assigned. For a guard, inside its calls."""
        self._driver.publish()
        yield self.model
        self._driver.collect()

    def _take_pending(self):
        pending, self._pending = self._pending, []
        rows = np.stack([keras.ops.convert_to_numpy(row) for _, _, row in pending]).astype("float64")
        return pending, rows

    def _deliver(self, taken):
        pending, rows = taken
        seen = rows[:, 0] != in_step.FROZEN
        if not seen.any():
            return
        steps = np.array([position.step for position, _, _ in pending])[seen]
        rows = rows[seen]
        n = len(self.variables)
        columns = {name: rows[:, 2 + i * n : 2 + (i + 1) * n] for i, name in enumerate(self._columns)}
        if "grad_norm" in columns:
            total = np.sqrt(np.nansum(columns["grad_norm"] ** 2, axis=1))
            total[~np.isfinite(columns["grad_norm"]).all(axis=1) & (rows[:, 0] == in_step.BAD)] = np.nan
            self._recent = [*self._recent, *zip(steps.tolist(), rows[:, 1].tolist(), total.tolist(), strict=True)][-10:]
        for on_rows in self._wishes("on_rows"):
            on_rows(steps, rows[:, 1], columns)

    def _look(self, logs):
        """Read the records; where a step went bad, let the guard decide, then train on the batches after it."""
        pending, rows = self._take_pending()
        frozen_from = np.flatnonzero(rows[:, 0] == in_step.FROZEN)
        end = frozen_from[0] if len(frozen_from) else len(rows)
        self._deliver((pending[:end], rows[:end]))
        if self._guard is None:
            return logs
        self._guard.on_checked(self, rows[:end, 0] == in_step.BAD)
        bad = np.flatnonzero(rows[:end, 0] == in_step.BAD)
        if len(bad) and bad[-1] == len(pending) - 1:  # no step has drawn random numbers since
            self._driver.set_random_state(pending[-1][1][1])
        if not len(bad) or not int(keras.ops.convert_to_numpy(self._guard_state)[1]):
            return logs
        # The device is frozen: nothing changed since the last bad step, so everything is as it was before it.
        position, (batch, random_state), _ = pending[bad[-1]]
        self._driver.set_random_state(random_state)
        with self.published():
            go_on = self._guard.on_bad(self, Incident(position, self._driver.data(batch), self._trajectory()))
        if not go_on:
            self.model.stop_training = True
            return logs
        self._guard_state = to_device(np.array([self._guard.bad_in_a_row, 0], "int32"), "int32")
        return self._run_again(pending[end:], logs)

    def _run_again(self, waiting, logs):
        """Train on the batches that came while the device was frozen, looking after each."""
        for position, (batch, _), _ in waiting:
            if self.model.stop_training:
                break
            now = self.position()
            self.step, self.epoch, self.batch_index = position
            random_state = self._driver.random_state()
            with self._driver.instrument.watch():
                logs, records = self._driver.run([batch], [self._controls(position)])
            self._remember([batch], records, random_state)
            self.step, self.epoch, self.batch_index = now
            logs = self._look(logs)
        return logs

    def _trajectory(self):
        steps, losses, norms = zip(*self._recent, strict=True) if self._recent else ((), (), ())
        return {"step": list(steps), "loss": list(losses), "grad_norm": list(norms)}


def _nbytes(leaf):
    values = getattr(leaf, "values", None)
    if isinstance(values, (tuple, list)):  # one tensor a replica
        return sum(_nbytes(value) for value in values)
    shape = getattr(leaf, "shape", ())
    return int(np.prod([size or 1 for size in shape])) * 4
