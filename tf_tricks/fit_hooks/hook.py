"""Stand in for `model.train_function` while `fit` runs, on behalf of any number of callbacks.

A callback calls `attach(model, owner, ...)` in `on_train_begin` and `hook.detach(owner)` in `on_train_end`. One hook
serves all callbacks of a `fit`; the step is compiled once, with what all of them asked for. Records stay on the device
and are read together, once every few steps, so the host never waits for a step.
"""

import contextlib
import math
import typing
import warnings
import weakref

import keras
import numpy as np

from tf_tricks._backend import BACKEND, tf
from tf_tricks.fit_hooks import gradients, in_step
from tf_tricks.fit_hooks.drivers import build_all, make_driver, to_device
from tf_tricks.fit_hooks.learning_rate import ScaledLearningRate, base_rate, optimizer_rate

FLUSH_EVERY = 32  # steps between two looks of the host at the records
BATCH_BYTES = 256 * 2**20  # how much of the data we may keep alive between two looks

_hooks = weakref.WeakValueDictionary()  # id(model) -> the hook of the `fit` that runs
_NEVER = 2**30


def require_optimizer(model, owner):
    """Raise ValueError in the name of a callback if the model was compiled without an optimizer."""
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            f"{type(owner).__name__}: the model has no optimizer. Pass one to `compile` as `optimizer`, and use it in "
            "`train_step`. Received: optimizer=None"
        )


def attach(model, owner, *, columns=(), on_rows=None, guard=None, rate=None):
    """Ask the running `fit` of `model` for what `owner` needs; call it in `on_train_begin`.

    Args:
        model: the compiled model that is being fitted.
        owner: the callback; used as a key for `detach`.
        columns: names out of `gradients.COLUMNS` to record at every step.
        on_rows: callable `(steps, loss, columns) -> None` that gets NumPy arrays `(k,)`, `(k,)` and a dict of `(k, n)`
            for k applied or bad steps at a time, n trainable variables in the order of `hook.variables`.
        guard: object with `freeze_at` (int, or None for never) and `on_bad(hook, incident) -> action`, see `Incident`.
        rate: callable `Position -> float`, a multiplier of the learning rate for each step; a callback that only calls
            `scale_learning_rate` later passes `lambda position: 1.0`.
    Returns:
        The `FitHook`.
    """
    require_optimizer(model, owner)
    hook = _hooks.get(id(model))
    if hook is None or not hook.is_live(model):
        hook = FitHook(model)
        _hooks[id(model)] = hook
    hook.add(owner, columns=columns, on_rows=on_rows, guard=guard, rate=rate)
    return hook


class Position(typing.NamedTuple):
    """Where `fit` is: 0-based step of this fit, epoch of the run, batch within the epoch."""

    step: int
    epoch: int
    batch: int


class Incident:
    """A step whose update was held back: where it was, on which data, and how the run went before it."""

    def __init__(self, position, data, trajectory):
        self.position = position
        self.data = data
        self.trajectory = trajectory


class FitHook:
    """What stands at `model.train_function` while `fit` runs. Made by `attach` only."""

    def __init__(self, model):
        self._model = weakref.ref(model)
        self._history = getattr(model, "history", None)
        original = model.train_function
        # A `fit` that raised may have left its hook behind: look through it.
        self._original = original._original if isinstance(original, FitHook) else original
        self._owners = {}
        self._driver = None
        self._scale = 1.0
        self._baked = False
        self.step = 0  # steps of this fit that were begun
        self.epoch = 0
        self.batch_index = 0
        self.steps_per_epoch = None
        self._pending = []  # (position, batch or None, record), not yet read
        self._guard_state = None
        self._cache = {}
        self._noted_rate = None
        self._batch_bytes = None
        self._recent = []  # (step, loss, global gradient norm) of the last steps
        self.variables = []
        model.train_function = self

    # --- who takes part -------------------------------------------------------------------------------------------

    @property
    def model(self):
        return self._model()

    def is_live(self, model):
        """Does the `fit` that this hook belongs to still run? Each `fit` gives the model a History of its own."""
        return model.train_function is self and self._history is model.history and model is self.model

    def position(self, ahead=0):
        """The position of the next step, or of one `ahead` of it in the same epoch."""
        return Position(self.step + ahead, self.epoch, self.batch_index + ahead)

    def add(self, owner, **wishes):
        """Take an owner in, with what it asks for; see `attach`."""
        if wishes["guard"] is not None and self._wishes("guard"):
            raise ValueError(f"{type(owner).__name__}: one `fit` takes one guard. Received: two in `callbacks`.")
        if wishes["rate"] is not None and not hasattr(gradients.innermost(self.model.optimizer), "learning_rate"):
            if not self._owners:
                self._uninstall()
            raise ValueError(
                f"{type(owner).__name__}: the learning rate of {type(self.model.optimizer).__name__} cannot be scaled, "
                "because it has several. Compile with one optimizer, or leave this callback out."
            )
        wishes["columns"] = frozenset(wishes["columns"])
        self._owners[id(owner)] = wishes
        self._rates = self._wishes("rate")
        self._driver = None  # build anew, with everybody's wishes

    def detach(self, owner):
        """Take an owner out; with the last one the model gets its own `train_function` back."""
        if id(owner) not in self._owners:
            return
        self.flush()
        wishes = self._owners.pop(id(owner))
        self._rates = self._wishes("rate")
        if wishes["rate"] is not None and not self._wishes("rate"):
            self._bake_rate()
        if not self._owners:
            self._uninstall()

    def begin_epoch(self, epoch, steps=None):
        """Owners call this in `on_epoch_begin` with `params["steps"]`, so that the last step of an epoch is known."""
        if epoch != self.epoch:
            self._noted_rate = None
        if epoch != self.epoch and self.batch_index:
            # A dataset of unknown length is as long as it was the last time.
            self.steps_per_epoch = steps or self.batch_index
            self.batch_index = 0
        self.epoch = epoch
        self.steps_per_epoch = steps or self.steps_per_epoch

    def _give_up(self):
        if self._driver is not None:
            self._driver.rescue()
        self._uninstall()

    def _uninstall(self):
        model = self.model
        if model is not None and model.train_function is self:
            model.train_function = self._original
        _hooks.pop(id(model), None)
        self._pending, self._owners = [], {}

    def _wishes(self, name):
        return [wish[name] for wish in self._owners.values() if wish[name] is not None]

    def _build(self, arguments):
        guards = self._wishes("guard")
        columns = frozenset().union(*self._wishes("columns"))
        self._guard = guards[0] if guards else None
        spec = in_step.Spec(columns | ({"grad_norm"} if guards else set()), bool(guards), bool(self._wishes("rate")))
        self._columns = [column for column in gradients.COLUMNS if column in spec.columns]
        model = self.model
        self.variables = list(model.trainable_variables)
        # The compiled step is kept with Keras's own: a second `fit` need not compile again, `compile` drops both.
        kept = getattr(self._original, "_tf_tricks_driver", None)
        if kept is None or not kept.instrument.fits(model, spec):
            kept = make_driver(model, in_step.Instrument(model, spec), arguments)
            self._original._tf_tricks_driver = kept
        self._driver = kept
        if self._guard_state is None:
            self._guard_state = to_device(np.zeros(2, "int32"), "int32")

    # --- the learning rate ----------------------------------------------------------------------------------------

    def scale_learning_rate(self, factor):
        """Multiply the learning rate by `factor` from the next step on; it stays multiplied after `fit`."""
        self._scale *= factor

    def rate_at(self, position):
        """The multiplier of the user's learning rate at a position."""
        return math.prod((rate(position) for rate in self._rates), start=self._scale)

    def learning_rate(self):
        """The effective learning rate of the next step, as a float; NaN for a `MultiOptimizer`, which has several."""
        return self._base_learning_rate() * self.rate_at(self.position())

    def last_learning_rate(self):
        """The effective learning rate of the last step that was begun, as a float."""
        base = self._base_learning_rate(-1) if self._noted_rate is None else self._noted_rate
        return base * self.rate_at(self.position(-1))

    def _note_rate(self):
        # Before other callbacks set the rate of the next epoch.
        rate = optimizer_rate(gradients.innermost(self.model.optimizer))
        self._noted_rate = None if callable(rate) else float(self._driver.value(rate))

    def _base_learning_rate(self, ahead=0):
        optimizer = gradients.innermost(self.model.optimizer)
        if not hasattr(optimizer, "learning_rate"):
            return math.nan
        rate = base_rate(optimizer, ahead)
        return float(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(rate)))

    def _bake_rate(self):
        """After `fit` the optimizer shall go on with the rate that `scale_learning_rate` left."""
        if self._scale != 1.0:
            optimizer = gradients.innermost(self.model.optimizer)
            if callable(optimizer_rate(optimizer)):
                self._original = None  # a schedule is compiled into the step: the next `fit` has to build a new one
            ScaledLearningRate.apply_to(optimizer, self._scale)
            self._scale = 1.0

    # --- the step -------------------------------------------------------------------------------------------------

    def __call__(self, *arguments):
        model = self.model
        if not self._owners or self._history is not model.history:
            self._uninstall()  # a `fit` that ended with an exception left us here
            return self._original(*arguments)
        try:
            if self._driver is None and not build_all(model, arguments[-1]):
                return self._original(*arguments)  # the first step creates the variables; from the second on we see
            if self._driver is None:
                self._build(arguments)
            return self._run(model, self._driver.open(arguments))
        except (StopIteration, *_END_OF_DATA):
            raise
        except BaseException:  # Ctrl-C, too
            self._give_up()
            raise

    def _run(self, model, source):
        driver = self._driver
        if self._guard and self.step == 0:
            self._guard.on_first_step(self)
        random_state = driver.random_state() if self._guard else None
        batches, logs, records = self._train_on_next(model, source)
        self._remember(batches, records, random_state)
        if self.step == len(batches) and not driver.instrument.sees_gradients:
            self._warn_no_gradients(model)
        last = self.steps_per_epoch is not None and self.batch_index >= self.steps_per_epoch
        due = last or self.step % self._flush_every(batches[0]) < len(batches)
        if last and self._rates:
            self._note_rate()
        if due or (driver.free_look and self._guard and float(records[-1]["row"][0]) != in_step.APPLIED):
            logs = self._look(logs)
        return driver.close(logs)

    def _warn_no_gradients(self, model):
        warnings.warn(
            f"tf_tricks: the train_step of {type(model).__name__} does not call `model.optimizer.apply`, so its "
            "gradients and learning rates cannot be seen, nor a bad update held back. Pass the optimizer to `compile` "
            "as `optimizer`, and use it in `train_step`.",
            stacklevel=2,
        )

    def _train_on_next(self, model, source):
        driver, count = self._driver, 1 if BACKEND == "torch" else model.steps_per_execution
        if BACKEND == "tensorflow" and count == 1 and not model.run_eagerly and hasattr(source, "get_next"):
            with driver.instrument.watch():
                return driver.draw_and_run(source, self._controls(self.position()))
        batches = driver.draw(source, count)
        controls = [self._controls(self.position(ahead)) for ahead in range(len(batches))]
        with driver.instrument.watch():
            return batches, *driver.run(batches, controls)

    def _controls(self, position):
        return {
            "rate": self._cached("rate", self.rate_at(position), "float32"),
            "guard": self._guard_state,
            "freeze_at": self._cached("freeze_at", self._freeze_at(), "int32"),
        }

    def _freeze_at(self):
        freeze_at = self._guard.freeze_at if self._guard else None
        return _NEVER if freeze_at is None else freeze_at

    def _cached(self, name, value, dtype):
        # Most of these never change: one transfer to the device, then the same tensor again and again.
        if self._cache.get(name, (None,))[0] != value:
            self._cache[name] = (value, to_device(value, dtype))
        return self._cache[name][1]

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

    # --- the host's look ------------------------------------------------------------------------------------------

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


_END_OF_DATA = (tf.errors.OutOfRangeError,) if BACKEND == "tensorflow" else ()
