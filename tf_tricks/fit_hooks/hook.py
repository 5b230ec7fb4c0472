"""Stand in for `model.train_function` while `fit` runs, on behalf of any number of callbacks.

A callback calls `attach(model, owner, ...)` in `on_train_begin` and `hook.detach(owner)` in `on_train_end`. One hook
serves all callbacks of a `fit`; the step is compiled once, with what all of them asked for. Records stay on the device
and are read together, once every few steps, so the host never waits for a step.
"""

import typing
import warnings
import weakref

import numpy as np

from tf_tricks._backend import BACKEND, tf
from tf_tricks.fit_hooks import gradients, in_step
from tf_tricks.fit_hooks.drivers import build_all, make_driver, to_device
from tf_tricks.fit_hooks.hook_look import Incident, LookPart
from tf_tricks.fit_hooks.hook_rate import RatePart

__all__ = ["FitHook", "Incident", "Position", "attach", "require_optimizer"]

_hooks = weakref.WeakValueDictionary()  # id(model) -> the hook of the `fit` that runs
_NEVER = 2**30


def require_optimizer(model, owner):
    """Raise ValueError in the name of a callback if the model was compiled without an optimizer."""
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            f"{type(owner).__name__}: the model has no optimizer. Pass one to `compile` as `optimizer`, and use it in "
            "`train_step`. Received: optimizer=None"
        )


def attach(model, owner, *, columns=(), on_rows=None, guard=None, rate=None, freeze=None):
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
        freeze: a `freezing.Freeze`, the weights that no step changes; `hook.freeze` sets another one later.
    Returns:
        The `FitHook`.
    """
    require_optimizer(model, owner)
    hook = _hooks.get(id(model))
    if hook is None or not hook.is_live(model):
        hook = FitHook(model)
        _hooks[id(model)] = hook
    hook.add(owner, columns=columns, on_rows=on_rows, guard=guard, rate=rate, freeze=freeze)
    return hook


class Position(typing.NamedTuple):
    """Where `fit` is: 0-based step of this fit, epoch of the run, batch within the epoch."""

    step: int
    epoch: int
    batch: int


class FitHook(RatePart, LookPart):
    """What stands at `model.train_function` while `fit` runs. Made by `attach` only."""

    def __init__(self, model):
        RatePart.__init__(self)
        LookPart.__init__(self)
        self._model = weakref.ref(model)
        self._history = getattr(model, "history", None)
        original = model.train_function
        # A `fit` that raised may have left its hook behind: look through it.
        self._original = original._original if isinstance(original, FitHook) else original
        self._owners = {}
        self._driver = None
        self.step = 0  # steps of this fit that were begun
        self.epoch = 0
        self.batch_index = 0
        self.steps_per_epoch = None
        self._cache = {}
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
        if wishes["freeze"] is not None and self._wishes("freeze"):
            raise ValueError(f"{type(owner).__name__}: one `fit` takes one plan of freezing. Received: two callbacks.")
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

    def freeze(self, owner, freeze):
        """Let the steps from the next one on leave other weights alone; call it in `on_epoch_begin`."""
        wishes = self._owners.get(id(owner))
        if wishes is not None and wishes["freeze"] != freeze:
            self.flush()
            wishes["freeze"] = freeze
            self._driver = None  # build anew

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
        if self._driver is not None:
            self._driver.instrument.kept.clear()

    def _wishes(self, name):
        return [wish[name] for wish in self._owners.values() if wish[name] is not None]

    def _build(self, arguments):
        guards = self._wishes("guard")
        columns = frozenset().union(*self._wishes("columns"))
        self._guard = guards[0] if guards else None
        columns |= {"grad_norm"} if guards else set()
        freeze = next(iter(self._wishes("freeze")), None)
        spec = in_step.Spec(columns, bool(guards), bool(self._wishes("rate")), freeze)
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


_END_OF_DATA = (tf.errors.OutOfRangeError,) if BACKEND == "tensorflow" else ()
