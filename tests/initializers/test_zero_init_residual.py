"""Which scale of which branch becomes zero, and that each block then is what its shortcut is."""

import keras
import numpy as np
import pytest

from tf_tricks.initializers import zero_init_residual
from tf_tricks.initializers.zero_init_residual import passes_zero

ops, layers = keras.ops, keras.layers


def norm(name, x):
    return layers.BatchNormalization(name=name)(x)


def conv(filters, x):
    return layers.Conv2D(filters, 3, padding="same")(x)


def basic_block(x, filters, name, shortcut=False, plus=False):
    branch = layers.ReLU()(norm(f"{name}_first", conv(filters, x)))
    branch = norm(f"{name}_last", conv(filters, branch))
    if shortcut:
        x = norm(f"{name}_shortcut", layers.Conv2D(filters, 1)(x))
    return layers.ReLU()(x + branch if plus else layers.Add(name=name)([branch, x]))


def names(report):
    return [row.variable for row in report.rows]


def test_residual_network():
    inputs = keras.Input((6, 6, 4))
    x = layers.ReLU()(inputs)
    same = basic_block(basic_block(x, 4, "a"), 4, "b", plus=True)
    model = keras.Model(inputs, [same, basic_block(same, 8, "c", shortcut=True)])
    before = {v.path: ops.convert_to_numpy(v).copy() for v in model.variables}
    report = zero_init_residual(model)
    assert names(report) == ["a_last/gamma", "b_last/gamma", "c_last/gamma"]
    for v in model.variables:
        expected = 0 * before[v.path] if v.path in names(report) else before[v.path]
        np.testing.assert_array_equal(ops.convert_to_numpy(v), expected)
    image = np.random.default_rng(0).normal(size=(2, 6, 6, 4)).astype("float32")
    for training in (False, True):  # both blocks are the identity
        np.testing.assert_allclose(
            ops.convert_to_numpy(model(image, training=training)[0]), np.maximum(image, 0), atol=1e-6
        )
    assert "a_last/gamma" in str(report) and str(report).splitlines()[0].startswith("addition")


def test_transformer_and_dense_blocks():
    inputs = keras.Input((5, 8))
    y = layers.LayerNormalization()(inputs)
    attention = layers.MultiHeadAttention(2, 4, name="attention")(y, y)
    x = inputs + layers.Dropout(0.1)(attention)
    y = layers.Dense(16, activation="gelu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dropout(0.1)(layers.Dense(8, activation="tanh", name="down")(y))])
    model = keras.Model(inputs, x)
    assert names(zero_init_residual(model)) == ["attention/attention_output/kernel", "down/kernel"]
    values = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    np.testing.assert_allclose(ops.convert_to_numpy(model(values)), values, atol=1e-6)


def test_models_inside_models():
    inner_inputs = keras.Input((4,))
    inner = keras.Model(inner_inputs, inner_inputs + layers.Dense(4, name="inner_last")(inner_inputs))
    inputs = keras.Input((4,))
    x = inner(inputs)
    outer = keras.Sequential([keras.Input((4,)), keras.Model(inputs, x + inner(layers.Dense(4, name="o")(x)))])
    assert "inner_last/kernel" in names(zero_init_residual(outer))


def test_branches_that_are_models():
    inputs, x = keras.Input((4,)), keras.Input((4,))
    inner = keras.Model(x, layers.Dropout(0.1)(layers.Dense(4, name="deep")(layers.Dense(6)(x))))
    chain = keras.Sequential([layers.Dense(6, activation="relu"), layers.Dense(4, name="last"), layers.Dropout(0.1)])
    # The projection has one layer with weights, and the model more than that.
    model = keras.Model(inputs, layers.Dense(4, name="projection")(inputs) + keras.Sequential([chain, inner])(inputs))
    assert names(zero_init_residual(model)) == ["deep/kernel"]
    model = keras.Model(inputs, inputs + keras.Sequential([chain, layers.Dropout(0.1)])(inputs))
    assert names(zero_init_residual(model)) == [chain.layers[1].kernel.path]
    values = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    np.testing.assert_allclose(ops.convert_to_numpy(model(values)), values, atol=1e-6)
    before = layers.Dense(4, name="before")(inputs)  # behind a model without weights
    model = keras.Model(inputs, inputs + keras.Sequential([layers.Dropout(0.1)])(before))
    assert names(zero_init_residual(model)) == ["before/kernel"]
    dead = keras.Sequential([layers.Dense(4), layers.ReLU()])
    with pytest.raises(ValueError, match="ends in an activation without a slope at zero"):
        zero_init_residual(keras.Model(inputs, inputs + dead(inputs)))


def test_a_frozen_scale_would_stay_zero():
    inputs = keras.Input((5, 8))
    frozen = layers.MultiHeadAttention(2, 4, name="frozen")
    x = layers.Dense(8)(inputs)
    branch = frozen(x, x)
    frozen.trainable = False
    before = frozen.get_weights()
    with pytest.raises(ValueError, match="ends in a scale that is frozen"):
        zero_init_residual(keras.Model(inputs, inputs + branch))
    for old, new in zip(before, frozen.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_additions_of_three():
    inputs = keras.Input((4,))
    near, far = layers.Dense(4, name="near")(inputs), layers.Dense(4, name="far")(layers.Dense(4)(inputs))
    report = zero_init_residual(keras.Model(inputs, layers.Add(name="sum")([far, inputs, near])))
    assert [row[:3] for row in report.rows] == [("sum", "far", "far/kernel"), ("sum", "near", "near/kernel")]


def test_gradients_reach_a_branch_that_begins_at_zero():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, inputs + layers.Dense(4, name="last")(layers.Dense(6, activation="relu")(inputs)))
    zero_init_residual(model)
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    model.fit(x, np.sin(x), verbose=0)
    assert np.abs(model.get_layer("last").get_weights()[0]).max() > 0


def test_a_branch_that_ends_in_relu_would_never_learn():
    inputs = keras.Input((4,))
    x = inputs + layers.Dense(4, activation="relu", name="dead")(inputs)
    x = x + layers.ReLU()(layers.Dense(4, name="dead_too")(x))
    with pytest.raises(ValueError, match="ends in an activation without a slope at zero"):
        zero_init_residual(keras.Model(inputs, x))
    report = zero_init_residual(keras.Model(inputs, x + layers.Dense(4, name="good")(x)))
    assert names(report) == ["", "", "good/kernel"]
    assert [row.note.startswith("ends in an activation") for row in report.rows] == [True, True, False]


def test_an_activation_that_is_not_elementwise_is_not_taken_for_one_that_passes_zero():
    assert [passes_zero(keras.activations.get(name)) for name in ("glu", "softmax", "gelu")] == [False, False, True]


def test_what_is_no_residual_branch():
    a, b = keras.Input((4,)), keras.Input((4,))
    both = layers.Dense(4)(a) + layers.Dense(4)(a)  # two towers
    unrelated = layers.Dense(4)(a) + b
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(4)])

    class Block(keras.Model):
        def call(self, inputs):
            return inputs

    for model in (keras.Model(a, both), keras.Model([a, b], unrelated), plain, Block()):
        with pytest.raises(ValueError, match="`model` must be a functional model with a residual branch"):
            zero_init_residual(model)
    with pytest.raises(TypeError, match="`model` must be a keras.Model. Received: model=3"):
        zero_init_residual(3)
