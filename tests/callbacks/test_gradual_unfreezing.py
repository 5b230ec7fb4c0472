"""Against Adam in NumPy with a counter for each weight, and against freezing, compiling and fitting by hand."""

import keras
import numpy as np
import pytest
from keras import layers

from tf_tricks.callbacks import GradientNormLogger, GradualUnfreezing, NaNGuard, _layer_groups
from tf_tricks.callbacks._layer_order import Traces
from tf_tricks.callbacks.gradual_unfreezing import begins, stage_at

BACKEND = keras.backend.backend()
JIT = BACKEND == "jax"
ROWS = 32


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, size=(ROWS, 4)).astype("float32")
    return x, (x @ [[1.0], [-2.0], [0.5], [0.0]] + 0.1 * rng.normal(size=(ROWS, 1))).astype("float32")


def linear_model(optimizer, **kwargs):
    """Two layers whose gradients are quickly written down."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="below"), layers.Dense(1, name="top")])
    model.compile(optimizer, "mse", **{"jit_compile": JIT, **kwargs})
    return model


class StillNorm(layers.BatchNormalization):
    """Never looks at the batch; scale and offset are trained."""

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)


def fine_tuned_model(optimizer="adam", norm=layers.BatchNormalization, trainable=True):
    """A base with batch normalisation, a head above it."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((4,))
    stack = [layers.Dense(6, activation="tanh", name="first"), norm(name="norm")]
    base = keras.Sequential([keras.Input((4,)), *stack, layers.Dense(5, activation="tanh", name="last")], name="base")
    model = keras.Model(inputs, layers.Dense(1, name="top")(layers.BatchNormalization(name="above")(base(inputs))))
    base.trainable = trainable
    model.compile(optimizer, "mse", jit_compile=JIT)
    return model


def values(model):
    prefix = f"{model.name}/"
    return {v.path.removeprefix(prefix): np.array(keras.ops.convert_to_numpy(v)) for v in model.weights}


def changed(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


def fit(model, data, *callbacks, epochs=3, **kwargs):
    """One step an epoch, unless told otherwise."""
    arguments = {"batch_size": ROWS, "shuffle": False, "verbose": 0, **kwargs}
    return model.fit(*data, epochs=epochs, callbacks=list(callbacks), **arguments).history


# --- the update -------------------------------------------------------------------------------------------------------


def adam_by_hand(model, data, rates, frozen, decay, clip):
    """AdamW in float64: each weight has moments and a step counter of its own, which begin when it does."""
    x, y = (a.astype("float64") for a in data)
    w = [np.array(keras.ops.convert_to_numpy(v), "float64") for v in model.trainable_variables]
    m, v, steps = [0.0] * 4, [0.0] * 4, [0] * 4
    for rate, still in zip(rates, frozen, strict=True):
        hidden = x @ w[0] + w[1]
        slope = 2 * (hidden @ w[2] + w[3] - y) / y.size
        grads = [x.T @ slope @ w[2].T, (slope @ w[2].T).sum(0), hidden.T @ slope, slope.sum(0)]
        norm = np.sqrt(sum((grads[i] ** 2).sum() for i in range(4) if i not in still))
        for i in set(range(4)) - set(still):
            g = grads[i] * min(1.0, clip / norm)
            steps[i] += 1
            m[i], v[i] = 0.9 * m[i] + 0.1 * g, 0.999 * v[i] + 0.001 * g**2
            w[i] = w[i] - rate * decay * w[i]
            w[i] = w[i] - rate * (m[i] / (1 - 0.9 ** steps[i])) / (np.sqrt(v[i] / (1 - 0.999 ** steps[i])) + 1e-7)
    return w


@pytest.mark.parametrize("mode", ["graph", "xla", "eager"])
def test_moments_go_on_and_those_of_new_weights_begin(data, mode):
    if BACKEND != "tensorflow" and mode != "graph":
        pytest.skip("one way to run a step is enough here")
    optimizer = keras.optimizers.AdamW(0.05, weight_decay=0.1, global_clipnorm=0.5)
    jit = JIT or mode == "xla"
    model = linear_model(optimizer, jit_compile=jit, run_eagerly=mode == "eager")
    rates, frozen = [0.05] * 6 + [0.01] * 6, [(0, 1)] * 6 + [()] * 6
    expected = adam_by_hand(model, data, rates, frozen, decay=0.1, clip=0.5)
    unfreezing = GradualUnfreezing([["top"], ["below"]], learning_rates=[0.05, 0.01], epochs=6)
    fit(model, data, unfreezing, epochs=12)
    for variable, wanted in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), wanted, atol=2e-4)  # a wrong correction: 0.05
    assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 12


def test_the_same_as_freezing_compiling_and_fitting_by_hand(data):
    # SGD has no bias correction, so its momentum can be carried over; nothing but the rate is lost by `compile`.
    by_hand = fine_tuned_model(keras.optimizers.SGD(0.05, momentum=0.9), StillNorm, trainable=False)
    start = values(by_hand)
    fit(by_hand, data, epochs=4)
    after_first = values(by_hand)
    momenta = {v.path.partition("/")[2]: keras.ops.convert_to_numpy(v) for v in by_hand.optimizer.variables}
    by_hand.get_layer("base").trainable = True
    by_hand.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", jit_compile=JIT)
    by_hand.optimizer.build(by_hand.trainable_variables)
    for variable in by_hand.optimizer.variables:
        if "top" in variable.path or "above" in variable.path:
            variable.assign(momenta[variable.path.partition("/")[2]])
    fit(by_hand, data, epochs=4)

    model, seen = fine_tuned_model(keras.optimizers.SGD(0.05, momentum=0.9)), []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(values(model)))
    assert changed(start, values(model)) == set()
    history = fit(model, data, GradualUnfreezing("large", [0.05, 0.01], epochs=4), look, epochs=8)
    np.testing.assert_allclose(history["learning_rate"], [0.05] * 4 + [0.01] * 4, rtol=1e-6)
    for path, wanted in after_first.items():
        np.testing.assert_allclose(seen[3][path], wanted, rtol=1e-5, atol=1e-6, err_msg=path)
    for path, wanted in values(by_hand).items():
        np.testing.assert_allclose(values(model)[path], wanted, rtol=1e-4, atol=1e-5, err_msg=path)
    # To the bit: what is frozen, and the statistics of the base throughout. Those of the head move.
    assert {path for path in changed(start, seen[3]) if path.startswith("base/")} == set()
    assert changed(start, seen[3]) >= {"top/kernel", "above/gamma", "above/moving_mean"}
    statistics = {"base/norm/moving_mean", "base/norm/moving_variance"}
    assert changed(start, values(model)) == set(start) - statistics


def test_batch_norm_goes_back_to_the_batch_with_its_stage(data):
    model, seen = fine_tuned_model(), []
    start = values(model)
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(changed(start, values(model))))
    fit(model, data, GradualUnfreezing("large", freeze_batch_norm=False), look, epochs=2)
    assert [{"base/norm/moving_mean", "base/norm/moving_variance"} <= each for each in seen] == [False, True]


def test_nothing_that_the_user_sees_changes(data, monkeypatch, tmp_path):
    model = fine_tuned_model()
    optimizer, seen = model.optimizer, []

    def look(*_):
        seen.append(
            (type(model.optimizer), [layer.trainable for layer in model.layers], len(model.trainable_variables))
        )
        seen.append([layer.trainable for layer in model.get_layer("base").layers])

    monkeypatch.setattr(type(model), "compile", lambda *args, **kwargs: pytest.fail("compiled"))
    look()
    begin, end = keras.callbacks.LambdaCallback(on_epoch_begin=look), keras.callbacks.LambdaCallback(on_epoch_end=look)
    file = keras.callbacks.ModelCheckpoint(tmp_path / "during{epoch}.keras")
    fit(model, data, GradualUnfreezing("medium"), begin, end, file)
    monkeypatch.undo()
    look()
    assert model.optimizer is optimizer
    assert all(each == seen[0] for each in seen[::2]) and all(each == seen[1] for each in seen[1::2])
    for epoch in (1, 3):
        loaded = keras.saving.load_model(tmp_path / f"during{epoch}.keras")
        assert len(loaded.optimizer.variables) == len(optimizer.variables) and loaded.get_layer("base").trainable


def test_a_fit_that_raises_leaves_layers_and_optimizer_as_they_were(data):
    model = fine_tuned_model("sgd")
    cls = type(model.optimizer)

    def fail(epoch, logs):
        raise KeyError("planted")

    with pytest.raises(KeyError, match="planted"):
        fit(model, data, GradualUnfreezing("large"), keras.callbacks.LambdaCallback(on_epoch_end=fail))
    assert type(model.optimizer) is cls and all(layer.trainable for layer in model.get_layer("base").layers)
    assert all(v.value.requires_grad for v in model.trainable_variables if BACKEND == "torch")
    before = values(model)
    fit(model, data, epochs=1)
    assert changed(before, values(model)) == set(before)


# --- the rate, the stages ---------------------------------------------------------------------------------------------


def test_schedules_keep_their_shape(data):
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=1, decay_rate=0.5)
    model = linear_model(keras.optimizers.SGD(decay))
    history = fit(model, data, GradualUnfreezing("large", [1.0, 0.2], relative=True, epochs=2), epochs=4)
    np.testing.assert_allclose(history["learning_rate"], [0.1, 0.05, 0.2 * 0.025, 0.2 * 0.0125], rtol=1e-5)
    assert history["unfreezing/stage"] == [0.0, 0.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="GradualUnfreezing: .* is a schedule. Pass `relative=True`"):
        fit(model, data, GradualUnfreezing("large", [0.1, 0.01]))
    assert "FitHook" not in type(model.train_function).__name__


def test_the_default_is_a_tenth_of_the_rate_after_the_first_stage(data):
    model = linear_model(keras.optimizers.SGD(0.1))
    history = fit(model, data, GradualUnfreezing([0.5, 1.0]), epochs=2)
    np.testing.assert_allclose(history["learning_rate"], [0.1, 0.01], rtol=1e-6)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(0.1)


def test_stages_by_epoch():
    assert begins(1, 3) == [0, 1, 2] and begins([2, 5], 3) == [0, 2, 7] and begins(4, 1) == [0]
    assert [stage_at(epoch, [0, 2, 7]) for epoch in range(9)] == [0, 0, 1, 1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("stages", "trained"),
    [
        ("small", ["top above"]),
        ("medium", ["top above", "top above last"]),
        ("large", ["top above", "top above last norm first"]),
        ([["top"], ["base"]], ["top", "top last norm first"]),
        ([["t?p", "base/last"], "base/*"], ["top last", "top last norm first"]),
        ([0.2, 0.6, 1.0], ["top", "top above last", "top above last norm first"]),
    ],
    ids=str,
)
def test_what_each_stage_trains(data, stages, trained):
    model = fine_tuned_model("sgd")
    unfreezing = GradualUnfreezing(stages)
    unfreezing.set_model(model)
    all_positions = set(range(len(model.trainable_variables)))
    names = [v.path.split("/")[-2] for v in model.trainable_variables]
    plans = unfreezing._stage_plans(model)
    assert [{names[i] for i in all_positions - frozen} for frozen, _ in plans] == [
        set(each.split()) for each in trained
    ]


def test_layers_themselves_are_a_stage(data):
    model = linear_model("sgd")
    before = values(model)
    fit(model, data, GradualUnfreezing([model.get_layer("below")]), epochs=1)
    assert changed(before, values(model)) == {"below/kernel", "below/bias"}


def test_the_head_is_what_makes_the_outputs():
    inputs = keras.Input((4,))
    below = layers.Dense(4, name="below")(inputs)
    first = layers.Activation("sigmoid")(layers.Dense(1, name="first")(below))
    second = layers.Dense(1, name="second")(layers.Dropout(0.1)(layers.Dense(3, name="own")(below)))
    model = keras.Model(inputs, [first, second])
    head = _layer_groups.head(model, _layer_groups.units(model))
    assert sorted(unit.path for unit in head) == ["first", "second"]
    # A small model in front, without weights, is no base; one without anything above it is all there is.
    augmented = keras.Sequential([keras.Input((4,)), keras.Sequential([layers.GaussianNoise(0.1)]), layers.Dense(1)])
    assert len(_layer_groups.head(augmented, _layer_groups.units(augmented))) == 1
    wrapped = keras.Sequential([keras.Input((4,)), keras.Sequential([layers.Dense(2), layers.Dense(1, name="end")])])
    assert [unit.path.split("/")[-1] for unit in _layer_groups.head(wrapped, _layer_groups.units(wrapped))] == ["end"]


def base_and(*above):
    base = [layers.Dense(4, name="b1"), layers.BatchNormalization(name="norm"), layers.Dense(4, name="b2")]
    return keras.Sequential(base, name="base"), keras.Sequential(list(above), name="head")


class Subclassed(keras.Model):
    """Calls its layers in the order of `steps`; declares them in another one."""

    def __init__(self, declared, steps, ends=(), function=lambda x: x):
        super().__init__(name="subclassed")
        self.mine, self.steps, self.ends, self.function = list(declared), steps, ends, function

    def call(self, x, training=None):
        by_name = {layer.name: layer for layer in self.mine}
        for name in self.steps:
            x = by_name[name](x)
        return [self.function(by_name[name](x)) for name in self.ends] if self.ends else self.function(x)


def head_of(model):
    traces = Traces()
    return [unit.path for unit in _layer_groups.head(model, _layer_groups.units(model, traces), traces)]


def test_a_model_that_makes_the_output_is_the_head():
    base, top = base_and(layers.Dense(3, name="h1"), layers.Dense(1, name="h2"))
    model = keras.Sequential([keras.Input((4,)), base, layers.LayerNormalization(name="between"), top])
    assert head_of(model) == ["between", "head/h1", "head/h2"]
    inputs = keras.Input((4,))
    plain = layers.Dense(4, name="p3")(layers.Dense(4, name="p2")(layers.Dense(4, name="p1")(inputs)))
    _, top = base_and(layers.Dense(3, name="h1"), layers.Dense(1, name="h2"))
    assert head_of(keras.Model(inputs, keras.ops.tanh(top(plain)))) == ["head/h1", "head/h2"]
    whole = keras.Model(inputs, layers.Dense(1, name="p4")(plain), name="whole")
    adapted = keras.Sequential([keras.Input((2,)), layers.Dense(4, name="adapter"), whole])
    assert head_of(adapted) == ["whole/p4"]
    features = base_and()[0](inputs)
    assert head_of(keras.Model(inputs, [features, layers.Dense(1, name="logits")(features)])) == ["logits"]


def test_an_output_made_of_several_has_several_heads():
    inputs = keras.Input((4,))
    below = layers.Dense(4, name="below")(inputs)
    first, second = layers.Dense(1, name="first")(below), layers.Dense(1, name="second")(below)
    for output in (layers.Add()([first, layers.Dropout(0.1)(second)]), first * keras.ops.exp(second)):
        assert sorted(head_of(keras.Model(inputs, output))) == ["first", "second"]
    twice = layers.Dense(4, name="twice")
    output = layers.Concatenate()([twice(twice(inputs)), layers.Dense(1, name="other")(below)])
    assert sorted(head_of(keras.Model(inputs, output))) == ["other", "twice"]


def test_the_layers_of_a_subclassed_model_count_in_the_order_of_calls(data):
    def dense(*names):
        return [layers.Dense(4, name=name) for name in names]

    base, top = base_and(*dense("h1", "h2"))
    for model, wanted in (
        (Subclassed([*dense("out"), base], ["base", "out"]), ["out"]),
        (Subclassed([top, base], ["base", "head"], function=keras.ops.tanh), ["head/h1", "head/h2"]),
        (Subclassed(dense("d1", "out", "d2"), ["d1", "d2", "out"], function=keras.ops.tanh), ["out"]),
        (Subclassed(dense("end1", "d1", "end2"), ["d1"], ["end1", "end2"]), ["end1", "end2"]),
    ):
        model(data[0])
        before = values(model)
        assert sorted(head_of(model)) == wanted and changed(before, values(model)) == set()
    model = Subclassed(dense("d1", "out", "d2"), ["d1", "d2", "out"])
    model.compile("sgd", "mse", jit_compile=JIT)
    y = np.repeat(data[1], 4, axis=1)
    seen = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kept.append(values(model)))
    kept = []
    fit(model, (data[0], y), GradualUnfreezing([0.3, 0.6, 1.0]), seen)
    assert changed(kept[0], kept[1]) == {"out/kernel", "out/bias", "d2/kernel", "d2/bias"}


def test_a_model_whose_order_is_not_known_is_refused_unless_layers_are_named(data):
    planted = []

    def function(x):
        for error in planted:
            raise error
        return x

    untraced = Subclassed([layers.Dense(1, name="out"), layers.Dense(4, name="d1")], ["d1", "out"], function=function)
    several = Subclassed([layers.Dense(1, name=name) for name in "abc"], ["a"], ["b", "c"], keras.ops.tanh)
    untraced(data[0]), several(data[0])
    planted.append(RuntimeError("planted"))
    for model, stages in ((untraced, "small"), (untraced, [0.5]), (several, "small")):
        unfreezing = GradualUnfreezing(stages)
        unfreezing.set_model(model)
        with pytest.raises(ValueError, match="GradualUnfreezing: .*`subclassed`.* cannot be found out.* list of names"):
            unfreezing._stage_plans(model)
    unfreezing = GradualUnfreezing([["out"]])
    unfreezing.set_model(untraced)
    assert [len(frozen) for frozen, _ in unfreezing._stage_plans(untraced)] == [2]


@pytest.mark.parametrize(
    ("names", "last"),
    [
        (["block1_a", "block1_b", "block2_a", "block2_b", "block3_a", "block3_b"], 2),
        (["conv1", "conv4_block1_a", "conv4_block1_b", "conv5_block1_a", "conv5_block1_b"], 2),
        (["block_1_expand", "block_10_expand", "block_10_project", "block_16_expand", "block_16_project"], 2),
        (["a", "b", "c", "d", "e", "f"], 2),
        (["a", "b"], 1),
    ],
)
def test_a_block_is_not_cut(names, last):
    model = keras.Sequential([keras.Input((2,)), *[layers.Dense(2, name=name) for name in names]])
    found = _layer_groups.last_blocks(_layer_groups.units(model), 1 / 3)
    assert [unit.path for unit in found] == names[-last:]


# --- beside others ----------------------------------------------------------------------------------------------------


def test_frozen_weights_have_no_gradient_for_other_callbacks(data):
    model = fine_tuned_model()
    before = values(model)
    logger, guard = GradientNormLogger(per="variable", verbose=0), NaNGuard(on_nan="skip", verbose=0)
    bad = (data[0], np.where(np.arange(ROWS)[:, None] == 20, np.nan, data[1]))
    fit(model, bad, guard, logger, GradualUnfreezing("small"), epochs=1)
    assert guard.num_skipped == 1 and changed(before, values(model)) == set()
    fit(model, data, logger, guard, GradualUnfreezing("large", epochs=2), epochs=4)
    norms = {name: np.array(value) for name, value in logger.history.items() if name.startswith("grad_norm/")}
    below = next(value for name, value in norms.items() if "first/kernel" in name)
    assert (below[:2] == 0).all() and (below[2:] > 0).all()
    assert all((value > 0).all() for name, value in norms.items() if "top" in name)


def test_a_second_fit_knows_what_is_trained_already(data):
    model, unfreezing = linear_model("adam"), GradualUnfreezing("large")
    fit(model, data, unfreezing, epochs=4)
    assert unfreezing.get_state()["since"] == [1, 1, 0, 0]
    fit(model, data, unfreezing, epochs=2)
    assert unfreezing.get_state()["since"] == [1, 1, 0, 0]
    other = GradualUnfreezing("large")
    fit(model, data, other, epochs=2)  # nobody tells it, and it does not guess: all moments are taken for warm
    assert other.get_state()["since"] == [0, 0, 0, 0]


def test_a_run_goes_on_where_another_one_was(data):
    whole = linear_model("adam")
    fit(whole, data, GradualUnfreezing("large", epochs=2), epochs=6)
    model, first, second = (
        linear_model("adam"),
        GradualUnfreezing("large", epochs=2),
        GradualUnfreezing("large", epochs=2),
    )
    fit(model, data, first, keras.callbacks.LambdaCallback(on_epoch_end=lambda e, logs: stop(model, e == 3)), epochs=6)
    second.set_state(first.get_state())
    fit(model, data, second, epochs=6, initial_epoch=4)
    for path, wanted in values(whole).items():
        np.testing.assert_array_equal(values(model)[path], wanted)


def test_an_earlier_state_put_back_in_a_later_stage(data):
    model, kept = linear_model("adam"), []

    def take_or_put_back(epoch, logs):
        variables = [*model.trainable_variables, *model.optimizer.variables]
        if epoch == 0:
            kept.extend(np.array(keras.ops.convert_to_numpy(v)) for v in variables)
        if epoch == 3:
            for variable, value in zip(variables, kept, strict=True):
                variable.assign(value)

    back = keras.callbacks.LambdaCallback(on_epoch_end=take_or_put_back)
    unfreezing = GradualUnfreezing("large", epochs=2)
    fit(model, data, unfreezing, back, epochs=6)
    assert unfreezing.get_state()["since"] == [1, 1, 0, 0]
    assert all(np.isfinite(value).all() for value in values(model).values())


def stop(model, now):
    model.stop_training = now


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_what_the_user_froze_stays_frozen_or_is_named(data):
    model = fine_tuned_model(trainable=False)
    before = values(model)
    fit(model, data, GradualUnfreezing("small"), epochs=1)
    assert not any(path.startswith("base/") for path in changed(before, values(model)))
    with pytest.raises(ValueError, match="stage 1 adds no weight.*base/last.*Set `trainable = True` on what"):
        fit(model, data, GradualUnfreezing("large"))
    model.get_layer("base").trainable = True  # without `compile`
    with pytest.raises(ValueError, match="GradualUnfreezing: the optimizer was built while other.*Call `compile`"):
        fit(model, data, GradualUnfreezing("large"))


def test_mistakes_in_fit(data):
    model = linear_model("sgd")
    with pytest.raises(ValueError, match=r"no layer of the model matches 'topp' of `stages\[0\]`. Layers: below, top"):
        fit(model, data, GradualUnfreezing([["topp"], ["below"]]))
    with pytest.raises(ValueError, match="stage 1 adds no weight that could be trained"):
        fit(model, data, GradualUnfreezing([["top"], ["top"]]))
    with pytest.raises(ValueError, match="one `fit` takes one plan of freezing"):
        fit(model, data, GradualUnfreezing("small"), GradualUnfreezing("small"))
    with pytest.warns(UserWarning, match="the last of 2 stages begins with epoch 5, which this `fit` does not reach"):
        fit(model, data, GradualUnfreezing("large", epochs=5), epochs=2)
    assert "FitHook" not in type(model.train_function).__name__


def test_a_model_that_fit_builds(data):
    model = keras.Sequential([layers.Dense(3), layers.Dense(1)])
    model.compile("adam", "mse", jit_compile=JIT)
    seen = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(values(model)))
    fit(model, data, GradualUnfreezing("large", epochs=2), look)
    assert [len(changed(*pair)) for pair in zip(seen, seen[1:], strict=False)] == [2, 4]
    assert len(model.optimizer.variables) == 2 + 2 * 4


def test_lines(data, capsys):
    fit(linear_model(keras.optimizers.SGD(0.1)), data, GradualUnfreezing("large", verbose=1), epochs=3)
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert lines == [
        "Epoch 1: GradualUnfreezing begins stage 1 of 2: 2 of 4 variables are trained, at 0.1.",
        "Epoch 2: GradualUnfreezing begins stage 2 of 2: 4 of 4 variables are trained, at 0.01.",
    ]
