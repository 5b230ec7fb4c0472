"""What runs inside the compiled train step: see the gradients, leave a bad update out, scale the learning rate.

`instrument` wraps a model's `train_step`. The wrapped step takes `(batch, controls)` instead of `batch` and returns
`(logs, record)` instead of `logs`. Everything goes in and out as arguments and results, so there is no hidden variable
that a checkpoint could pick up. The optimizer is watched only while the step runs (or is traced): between two steps,
when other callbacks save or read it, it is exactly the user's object.
"""

import contextlib
import dataclasses
import threading

import keras
from keras import ops

from tf_tricks._backend import BACKEND, torch
from tf_tricks.fit_hooks import freezing, holding, updates
from tf_tricks.fit_hooks import gradients as g

APPLIED, BAD, FROZEN = 0, 1, 2  # the status of a step

xp = torch or ops  # what is called alike in both: `keras.ops` takes some 10 us a call on Torch, at every step

# What we reach into beyond Keras's documentation. A test reads this list; it may only shrink.
PRIVATE_ATTRIBUTES = {
    "Optimizer._get_current_learning_rate": "the one place that every optimizer asks for its rate, schedules included",
    "Optimizer._accumulated_gradients": "gradient accumulation keeps the sum that reaches the update rule here",
    "Optimizer._iterations": "counts the calls of `apply` also while gradients accumulate, unlike `iterations`",
}


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a step shall do beside training. Two fits with equal specs share one compiled step."""

    columns: frozenset = frozenset()
    guard: bool = False
    rate: bool = False
    freeze: freezing.Freeze | None = None


@dataclasses.dataclass
class _View:
    """What one step has shown so far."""

    frozen: object = None
    loss: object = None
    scale: object = None
    finite: object = None
    norms: object = None  # of the gradients that exist
    columns: dict = dataclasses.field(default_factory=dict)
    before: list | None = None
    holder: object = None  # while an update holds itself back, if it was bad
    loss_in_gradients: bool = False  # JAX: do the gradients tell that the loss was not finite?
    held: list | None = None  # JAX: the tensors that came out of an update that held itself back


class Instrument:
    """The instrumented train step of one model."""

    def __init__(self, model, spec):
        self.model = model
        self.spec = spec
        self.variables = list(model.trainable_variables)
        self.under_xla = BACKEND == "jax" or bool(model.jit_compile)
        self._train_step = model.train_step
        self._update_rule = type(model.optimizer)
        self._watched = self._watching_classes()
        self._built_for = _identity(model)
        self._rate = None
        self.kept = []  # memory for a copy of the weights, while a `fit` runs
        self.sees_gradients = True  # known after the first step
        self._local = threading.local()  # MirroredStrategy runs each replica's step in a thread of its own

    def fits(self, model, spec):
        """Can this step serve another `fit`? Not if something that it was built from has changed."""
        return (
            self.spec == spec
            and self._built_for == _identity(model)
            and [id(v) for v in self.variables] == [id(v) for v in model.trainable_variables]
        )

    # --- the step -------------------------------------------------------------------------------------------------

    def stateful_step(self, payload):
        """TensorFlow and Torch: variables change in place."""
        data, controls = payload
        view = self._begin(controls)
        restorable = [*self.model.non_trainable_variables, *self.model.metrics_variables] if self.spec.guard else []
        kept = updates.read(restorable)
        logs = self._train_step(data)
        if self.spec.guard:
            loss_finite = xp.isfinite(self._loss(view, logs))
            # A custom `train_step` may compute its loss where only the logs show it: too late to hold the update
            # back (its gradients were finite), but not too late to report it.
            view.finite = loss_finite if view.finite is None else xp.logical_and(view.finite, loss_finite)
            updates.restore_unless(self._applied(view), restorable, kept)
        return logs, self._record(view, logs, controls)

    def stateless_step(self, state, payload):
        """JAX: the state goes in and out, so a bad step simply returns the state that it was given."""
        data, controls = payload
        view = self._begin(controls)
        view.before = state[0]
        with self._told_by_gradients(view):
            logs, new_state = self._train_step(state, data)
        view.loss = self._jax_loss(state, new_state, logs)
        self._see_update(view, new_state[0])
        if self.spec.guard:
            if not view.held:  # else the gradients knew
                loss_finite = ops.isfinite(view.loss)
                view.finite = loss_finite if view.finite is None else ops.logical_and(view.finite, loss_finite)
            held = {id(tensor) for tensor in view.held or ()}
            done = [[id(each) in held and part in (0, 2) for each in values] for part, values in enumerate(new_state)]
            new_state = updates.select(self._applied(view), new_state, state, done)
        return (logs, self._record(view, logs, controls)), new_state

    def _begin(self, controls):
        view = _View()
        self._rate = controls["rate"]  # the same for every replica, so not one a thread
        if self.spec.guard:
            view.frozen = controls["guard"][1] > 0
        self._local.view = view
        return view

    def _applied(self, view):
        return xp.logical_and(view.finite, xp.logical_not(view.frozen))

    # --- the optimizer, watched -----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def watch(self):
        """While this context lasts, the optimizer's class is a subclass of its own that tells us what it is given."""
        originals = [(optimizer, type(optimizer)) for optimizer, _ in self._watched]
        for optimizer, cls in self._watched:
            object.__setattr__(optimizer, "__class__", cls)
        try:
            with freezing.in_force(self.spec.freeze, self.variables):
                yield
        finally:
            for optimizer, cls in originals:
                object.__setattr__(optimizer, "__class__", cls)

    def _watching_classes(self):
        optimizer = self.model.optimizer
        inner = g.innermost(optimizer)
        watched = [(optimizer, self._watching_class(type(optimizer), optimizer is inner))]
        return watched if inner is optimizer else [*watched, (inner, self._rate_class(type(inner)))]

    def _rate_class(self, cls):
        cls = freezing.freezing_class(cls, self.spec.freeze, self.variables, g.innermost(self.model.optimizer))
        if not self.spec.rate:
            return cls
        instrument = self

        class Watched(cls):
            def _get_current_learning_rate(self):
                rate = ops.convert_to_tensor(super()._get_current_learning_rate())
                return rate * ops.cast(instrument._rate, rate.dtype)

        return Watched

    def _watching_class(self, cls, is_innermost):
        instrument = self
        base = self._rate_class(cls) if is_innermost else cls

        class Watched(base):
            def scale_loss(self, loss):
                if BACKEND != "jax":  # there it is traced inside the gradient, from which no value may leak
                    instrument._local.view.loss = g.float32(updates.sum_over_replicas([loss])[0])
                return super().scale_loss(loss)

            def apply(self, grads, trainable_variables=None):
                if BACKEND == "jax":
                    return super().apply(grads, trainable_variables)
                variables = list(trainable_variables or instrument.variables)
                if BACKEND == "tensorflow":  # a `train_step` of one's own may hand in TensorFlow's own variables
                    known = {id(v.value): v for v in instrument.variables}
                    variables = [known.get(id(v), v) for v in variables]
                grads = freezing.without_frozen(instrument.spec.freeze, instrument.variables, grads, variables)
                view = instrument._local.view
                instrument._see_gradients(view, self, grads, variables, read=ops.convert_to_tensor)
                if "update_norm" in instrument.spec.columns and view.before is None:
                    view.before = updates.copies(instrument.variables, instrument.kept)
                if not instrument.spec.guard:
                    super().apply(grads, variables)
                    instrument._see_update(view, instrument.variables)
                elif instrument.under_xla:
                    # Undo afterwards: a branch around the update would make XLA fuse and so round it otherwise.
                    instrument._judge(view)
                    state = [*variables, *self.variables]
                    kept = updates.read(state)
                    with instrument._holding(view, self, variables, state, kept) as holder:
                        super().apply(grads, variables)
                    instrument._see_update(view, instrument.variables)
                    rest = [i for i, variable in enumerate(state) if not holder.holds(variable)]
                    updates.restore_unless(instrument._applied(view), [state[i] for i in rest], [kept[i] for i in rest])
                else:
                    instrument._judge(view)
                    updates.run_if(instrument._applied(view), super().apply, grads, variables, self)
                    instrument._see_update(view, instrument.variables)

            def stateless_apply(self, optimizer_variables, grads, trainable_variables):
                values = {id(v): value for v, value in zip(self.variables, optimizer_variables, strict=True)}
                view, known = instrument._local.view, instrument.variables
                grads = freezing.without_frozen(instrument.spec.freeze, known, grads, known)
                instrument._see_gradients(view, self, grads, known, read=lambda v: values[id(v)])
                instrument._judge(view)
                if not instrument.spec.guard or not view.loss_in_gradients:
                    return super().stateless_apply(optimizer_variables, grads, trainable_variables)
                state = [*instrument.variables, *self.variables]
                kept = [*trainable_variables, *optimizer_variables]
                with instrument._holding(view, self, instrument.variables, state, kept) as holder:
                    new = super().stateless_apply(optimizer_variables, grads, trainable_variables)
                held = [v for variable, v in zip(state, [*new[0], *new[1]], strict=True) if holder.holds(variable)]
                # After a second update in one step the state before the first one has to come back.
                view.held = held if view.held is None else []
                return new

        if self.spec.guard and self.under_xla:
            # TensorFlow's strategies may update on another thread than the step's, where there is no view.
            return holding.holding_class(
                Watched, lambda: getattr(getattr(instrument._local, "view", None), "holder", None)
            )
        return Watched

    def _told_by_gradients(self, view):
        """JAX: a context in which the gradients tell of the loss, if this is a step whose gradients we know."""
        own = getattr(self._train_step, "__func__", None) is not keras.Model.train_step
        if own or not self.spec.guard:
            return contextlib.nullcontext()
        return holding.loss_in_gradients(self.model, view, self.spec.freeze.frozen if self.spec.freeze else ())

    @contextlib.contextmanager
    def _holding(self, view, optimizer, variables, state, kept):
        """Within this context the optimizer's assignments choose between new and old, where they can."""
        can = updates.one_replica() and holding.can_hold(optimizer, self._update_rule, variables)
        holder = holding.Holder(self._applied(view), state if can else [], kept if can else [])
        view.holder = holder if can else None
        try:
            yield holder
        finally:
            view.holder = None

    # --- what is recorded -----------------------------------------------------------------------------------------

    def _see_gradients(self, view, optimizer, grads, variables, read):
        index = {id(v): i for i, v in enumerate(variables)}
        by_variable = [grads[index[id(v)]] if id(v) in index else None for v in self.variables]
        present = [grad is not None for grad in by_variable]
        tensors = updates.sum_over_replicas([g.dense(grad) for grad in by_variable if grad is not None])
        norms = g.norms(tensors, under_xla=self.under_xla)
        view.scale = g.loss_scale(optimizer, read)
        if view.scale is not None:
            norms = norms / ops.cast(view.scale, norms.dtype)
        view.norms = norms
        self._put(view, "grad_norm", _spread(norms, present), present)
        if "applied_grad_norm" in self.spec.columns:
            applied = self._applied_gradients(g.innermost(optimizer), tensors, by_variable, read, view.scale)
            self._put(view, "applied_grad_norm", _spread(applied, present), present)

    def _put(self, view, column, norms, present):
        # A `train_step` may apply the gradients of some variables first and of others later.
        if column in view.columns:
            norms = ops.where(ops.convert_to_tensor(present), norms, view.columns[column])
        view.columns[column] = norms

    def _applied_gradients(self, optimizer, tensors, by_variable, read, scale):
        """Norms of what reaches the update rule, before clipping by norm (the host adds that; it is arithmetic)."""
        if scale is not None:
            tensors = [tensor / ops.cast(scale, tensor.dtype) for tensor in tensors]
        steps = optimizer.gradient_accumulation_steps
        if steps:
            kept = zip(optimizer._accumulated_gradients, by_variable, strict=True)
            sums = [ops.cast(read(sum_), "float32") for sum_, gradient in kept if gradient is not None]
            tensors = [(tensor + sum_) / steps for tensor, sum_ in zip(tensors, sums, strict=True)]
        if optimizer.clipvalue is not None:
            tensors = [ops.clip(tensor, -optimizer.clipvalue, optimizer.clipvalue) for tensor in tensors]
        norms = g.norms(tensors, under_xla=self.under_xla)
        if steps:
            updates_now = ops.equal((read(optimizer._iterations) + 1) % steps, 0)
            norms = ops.where(updates_now, norms, ops.full_like(norms, float("nan")))
        return norms

    def _judge(self, view):
        acceptable = self._acceptable(view)
        view.finite = acceptable if view.finite is None else xp.logical_and(view.finite, acceptable)

    def _acceptable(self, view):
        """Is this update fit to be applied? An overflow that dynamic loss scaling caused itself is its own affair."""
        finite = xp.all(xp.isfinite(view.norms))
        if isinstance(self.model.optimizer, keras.optimizers.LossScaleOptimizer):
            finite = ops.logical_or(finite, view.scale > 1.0)
        if view.loss is not None:
            finite = xp.logical_and(finite, xp.isfinite(g.float32(view.loss)))
        return finite

    def _see_update(self, view, after):
        columns = self.spec.columns & {"weight_norm", "update_norm"}
        if not columns:
            return
        after = updates.values(after)
        if "weight_norm" in columns:
            view.columns["weight_norm"] = g.plain_norms(after, under_xla=self.under_xla)
        if "update_norm" in columns:
            changes = updates.differences(after, view.before)
            view.columns["update_norm"] = g.plain_norms(changes, under_xla=self.under_xla)

    def _loss(self, view, logs):
        if view.loss is None:
            view.loss = logs.get("loss", 0.0) if isinstance(logs, dict) else 0.0
        return g.float32(view.loss)

    def _jax_loss(self, state, new_state, logs):
        """The loss of this batch from the running mean's change: JAX lets no value out of the gradient's trace."""
        tracker = next((metric for metric in self.model.metrics if metric.name == "loss"), None)
        if not isinstance(tracker, keras.metrics.Mean):
            return ops.cast(logs.get("loss", 0.0), "float32")
        positions = {id(v): i for i, v in enumerate(self.model.metrics_variables)}
        total, count = positions[id(tracker.total)], positions[id(tracker.count)]
        added = new_state[3][count] - state[3][count]
        mean = (new_state[3][total] - state[3][total]) / ops.maximum(added, 1e-30)
        return ops.cast(ops.where(added > 0, mean, logs.get("loss", 0.0)), "float32")

    def _record(self, view, logs, controls):
        """One float32 row `[status, loss, column, column, ...]`, and the guard's two counters."""
        self.sees_gradients = view.norms is not None
        loss = self._loss(view, logs)
        status = xp.zeros_like(loss)
        guard = controls["guard"]
        if self.spec.guard:
            bad = xp.logical_not(view.finite)
            in_a_row = xp.where(view.frozen, guard[0], xp.where(bad, guard[0] + 1, 0))
            frozen = xp.logical_or(view.frozen, in_a_row >= controls["freeze_at"])
            status = g.float32(xp.where(view.frozen, float(FROZEN), xp.where(bad, float(BAD), float(APPLIED))))
            guard = xp.stack([in_a_row, xp.where(frozen, xp.ones_like(in_a_row), 0)])
        columns = [self._column(view, name) for name in g.COLUMNS if name in self.spec.columns]
        self._local.view = None  # keeps no tensor alive until the next step
        row = xp.concatenate([xp.reshape(status, (1,)), xp.reshape(loss, (1,)), *columns])
        return {"row": row, "guard": guard}

    def _column(self, view, name):
        if name not in view.columns:  # the step applied no gradients
            return ops.full((len(self.variables),), float("nan"), "float32")
        return view.columns[name]


def _identity(model):
    step = getattr(model.train_step, "__func__", model.train_step)
    return id(model.optimizer), id(step), model.jit_compile, model.run_eagerly


def _spread(vector, present):
    """Put the norms of the variables that have a gradient at their places; the others have none, which is norm 0."""
    if all(present):
        return vector
    places, missing = [], len(present)
    position = 0
    for each in present:
        places.append(position if each else missing)
        position += each
    padded = ops.concatenate([vector, ops.zeros((missing - position + 1,), "float32")])
    places = [min(place, position) for place in places]
    return padded[places] if torch else ops.take(padded, places)  # Torch's compiler warns of what Keras does there
