"""Updates that hold themselves back, under XLA: the bits of a good step, nothing of a bad one, for each update rule."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tf_tricks.callbacks import NaNGuard
from tf_tricks.fit_hooks import holding, updates

OPTIONS = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "clipvalue": 0.1}],
    "Adam": [{}, {"amsgrad": True, "global_clipnorm": 0.1}],
}
ROWS = 16


@pytest.fixture(autouse=True)
def xla_only(backend):
    if backend == "torch":
        pytest.skip("Torch branches around the update")


def compiled(optimizer, loss="mse", constraint=None):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(37, activation="tanh", kernel_constraint=constraint),
            layers.BatchNormalization(),
            layers.Dense(1),
        ]
    )
    model.compile(optimizer, loss, jit_compile=True)
    return model


def data():
    generator = np.random.default_rng(0)
    return generator.normal(size=(ROWS, 3)).astype("float32"), generator.normal(size=(ROWS, 1)).astype("float32")


def state(model):
    variables = [*model.trainable_variables, *model.optimizer.variables]
    return [ops.convert_to_numpy(variable).copy() for variable in variables]


def fit(model, x, y, *callbacks):
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=list(callbacks))


class Kept(keras.callbacks.Callback):
    """The state after each step."""

    def on_train_begin(self, logs=None):
        self.states = []

    def on_train_batch_end(self, batch, logs=None):
        self.states.append(state(self.model))


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def held(monkeypatch):
    """Names of the variables of each update that held themselves back, as the steps are traced."""
    seen = []
    original = holding.Holder.assign

    def assign(self, assign, variable, new):
        seen.append(variable.name)
        original(self, assign, variable, new)

    monkeypatch.setattr(holding.Holder, "assign", assign)
    return seen


def rules():
    return [
        pytest.param(rule, options, id="-".join([rule.__name__, *options]))
        for rule in holding.UPDATE_RULES
        for options in OPTIONS.get(rule.__name__, [{}])
    ]


@pytest.mark.parametrize(("rule", "options"), rules())
def test_each_rule_trains_as_ever_and_leaves_a_bad_update_out(rule, options, held):
    x, y = data()
    bare, kept = compiled(rule(0.01, **options)), Kept()
    fit(bare, x, y, kept)

    guarded = compiled(rule(0.01, **options))
    fit(guarded, x, y, NaNGuard(verbose=0))
    assert held, f"{rule.__name__} does not assign through Optimizer.assign, assign_add or assign_sub any more"
    assert_same(state(guarded), kept.states[-1])

    bad = y.copy()
    bad[9] = np.nan  # in the third of four batches
    stopped = compiled(rule(0.01, **options))
    fit(stopped, x, bad, NaNGuard(verbose=0))
    assert_same(state(stopped), kept.states[1])


def test_nothing_but_counters_is_left_to_undo(held, monkeypatch, backend):
    """What keeps the copies of weights and moments away: the update holds all of them itself."""
    undone = []
    if backend == "jax":
        original = updates.select

        def select(condition, new, old, done):
            for part in (0, 2):
                undone.extend(tensor for tensor, each in zip(new[part], done[part], strict=True) if not each)
            return original(condition, new, old, done)

        monkeypatch.setattr(updates, "select", select)
    else:
        original = updates.restore_unless

        def restore_unless(condition, variables, kept):
            undone.extend(variables)
            original(condition, variables, kept)

        monkeypatch.setattr(updates, "restore_unless", restore_unless)
    fit(compiled(keras.optimizers.Adam(0.01)), *data(), NaNGuard(verbose=0))
    if backend == "tensorflow":  # where the moving statistics of the batch normalisation are among them
        undone = [each for each in undone if len(each.shape) != 1]
    assert held and undone
    assert all(len(each.shape) == 0 for each in undone), "the weights or moments are copied at every step"


def hidden(y_true, y_pred):
    """Not finite, with finite gradients, where a target is above 100."""
    added = ops.where(ops.max(y_true) > 100.0, float("inf"), 0.0)
    return ops.mean(ops.square(y_pred - ops.minimum(y_true, 1.0)), axis=-1) + ops.stop_gradient(added)


def masked(y_true, y_pred):
    """A mean over what is not masked: 0 / 0 where all is, and `where` lets no NaN of it back to the prediction."""
    mask = y_true < 100.0
    return ops.sum(ops.where(mask, ops.square(y_pred - y_true), 0.0)) / ops.sum(ops.cast(mask, "float32"))


def chosen(y_true, y_pred):
    """`where` between a number and the loss."""
    return ops.where(ops.max(y_true) > 100.0, float("inf"), ops.mean(ops.square(y_pred - y_true)))


@pytest.mark.parametrize("loss", [hidden, masked, chosen])
def test_a_loss_that_is_not_finite_holds_the_update_back_although_its_gradients_are_finite(loss):
    x, y = data()
    kept = Kept()
    fit(compiled(keras.optimizers.Adam(0.01), loss), x, y, kept)
    y[8:12] = 101.0
    model, guard = compiled(keras.optimizers.Adam(0.01), loss), NaNGuard(verbose=0)
    fit(model, x, y, guard)
    assert guard.report.step == 2
    assert_same(state(model), kept.states[1])


def test_a_step_of_one_s_own_with_the_backend_s_variables(backend):
    if backend != "tensorflow":
        pytest.skip("JAX hands the values in")
    import tensorflow as tf

    class Own(keras.Sequential):
        def train_step(self, batch):
            x, y = batch
            native = [variable.value for variable in self.trainable_variables]
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            self.optimizer.apply(tape.gradient(loss, native), native)
            return {"loss": loss}

    keras.utils.set_random_seed(0)
    x, y = data()
    y[9] = np.nan
    model, kept, guard = Own([keras.Input((3,)), layers.Dense(2), layers.Dense(1)]), Kept(), NaNGuard(verbose=0)
    model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=True)
    fit(model, x, y, guard, kept)
    assert guard.report.step == 2
    assert_same(state(model), kept.states[1])


class AssignsItself(keras.optimizers.SGD):
    """A user's rule that does not go through `Optimizer.assign`."""

    def update_step(self, gradient, variable, learning_rate):
        variable.assign(variable - gradient * ops.cast(learning_rate, variable.dtype))


CANNOT_HOLD = {
    "own rule": (AssignsItself, {}, None),
    "moving average": (keras.optimizers.Adam, {"use_ema": True, "ema_overwrite_frequency": 1}, None),
    "accumulation": (keras.optimizers.Adam, {"gradient_accumulation_steps": 2}, None),
    "constraint": (keras.optimizers.Adam, {}, keras.constraints.UnitNorm()),
}


@pytest.mark.parametrize("case", CANNOT_HOLD)
def test_what_assigns_past_the_optimizer_is_undone_afterwards(case, held):
    rule, options, constraint = CANNOT_HOLD[case]
    x, y = data()
    kept = Kept()
    fit(compiled(rule(0.01, **options), constraint=constraint), x, y, kept)
    y[9] = np.nan
    model = compiled(rule(0.01, **options), constraint=constraint)
    fit(model, x, y, NaNGuard(verbose=0))
    assert not held
    assert_same(state(model), kept.states[1])
