"""The first loss is the entropy of the labels."""

import keras
import numpy as np
import pytest

from tf_tricks.initializers import PriorBias

ops = keras.ops


def first_loss(units, initializer, loss, y):
    x = np.random.default_rng(0).normal(size=(len(y), 3)).astype("float32")
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(units, kernel_initializer="zeros", bias_initializer=initializer)]
    )
    model.compile(loss=loss, jit_compile=False)
    return model.evaluate(x, y, verbose=0)


def test_classes():
    counts = [700, 200, 90, 10]
    y = np.repeat(range(4), counts)
    frequencies = np.array(counts) / 1000
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    got = first_loss(4, PriorBias(class_counts=counts), loss, y)
    assert got == pytest.approx(-np.sum(frequencies * np.log(frequencies)), rel=1e-5)
    assert got < first_loss(4, "zeros", loss, y) - 0.5


def test_rare_positives():
    y = np.zeros((1000, 1))
    y[:10] = 1
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    entropy = -(0.01 * np.log(0.01) + 0.99 * np.log(0.99))
    assert first_loss(1, PriorBias(0.01), loss, y) == pytest.approx(entropy, rel=1e-5)


def test_one_probability_per_unit():
    bias = ops.convert_to_numpy(PriorBias([0.5, 0.01, 0.999])((3,)))
    np.testing.assert_allclose(1 / (1 + np.exp(-bias.astype("float64"))), [0.5, 0.01, 0.999], rtol=1e-5)
    np.testing.assert_allclose(
        ops.convert_to_numpy(PriorBias(0.01)((2, 3))), np.full((2, 3), np.log(1 / 99)), rtol=1e-6
    )
    assert ops.convert_to_numpy(PriorBias(1e-12)((1,)))[0] == pytest.approx(np.log(1e-12), rel=1e-6)


def test_config_and_dtype():
    for arguments in [{"probability": 0.25}, {"probability": [0.1, 0.2]}, {"class_counts": [3, 1]}]:
        initializer = PriorBias(**arguments)
        again = keras.initializers.deserialize(keras.initializers.serialize(initializer))
        assert type(again) is PriorBias
        assert (
            again.get_config() == initializer.get_config() == {"probability": None, "class_counts": None, **arguments}
        )
    arrays = PriorBias(class_counts=np.array([3, 1]))
    assert arrays.get_config()["class_counts"] == [3, 1]
    for dtype in ("float16", "bfloat16"):
        assert keras.backend.standardize_dtype(arrays((2,), dtype=dtype).dtype) == dtype


@pytest.mark.parametrize(
    ("arguments", "error", "pattern"),
    [
        ({}, ValueError, "`probability` must be given, or `class_counts`"),
        ({"probability": 0.5, "class_counts": [1]}, ValueError, "`class_counts` must be None where `probability`"),
        ({"probability": 0.0}, ValueError, r"`probability` must be .* in \(0, 1\). Received: probability=0.0"),
        ({"probability": [0.5, 1.0]}, ValueError, "`probability` must be"),
        ({"probability": float("nan")}, ValueError, "`probability` must be"),
        ({"probability": "half"}, TypeError, "`probability` must be"),
        ({"probability": True}, TypeError, "`probability` must be"),
        ({"probability": ["0.5"]}, TypeError, "`probability` must be"),
        ({"class_counts": 3}, TypeError, "`class_counts` must be a sequence of numbers > 0. Received: class_counts=3"),
        ({"class_counts": [3, 0]}, ValueError, "`class_counts` must be a sequence of numbers > 0"),
        ({"class_counts": []}, TypeError, "`class_counts` must be"),
        ({"class_counts": [1, float("inf")]}, ValueError, "`class_counts` must be"),
    ],
)
def test_bad_arguments(arguments, error, pattern):
    with pytest.raises(error, match=pattern):
        PriorBias(**arguments)


def test_another_number_of_units():
    with pytest.raises(ValueError, match="`class_counts` has 3 entries, and the layer a bias of shape .4,."):
        PriorBias(class_counts=[1, 2, 3])((4,))
    with pytest.raises(ValueError, match="`probability` has 2 entries"):
        PriorBias([0.1, 0.2])((4,))
