"""Every check on data with the fault planted, and on a healthy twin; scikit-learn's data stays silent."""

import tracemalloc

import keras
import numpy as np
import pytest
from sklearn import datasets

from tf_tricks.debug import _input_checks, check_inputs
from tf_tricks.debug._axes_order import orders, read_as, roughness
from tf_tricks.debug._equal_samples import are_unmistakable, row_keys
from tf_tricks.debug._input_checks import column_numbers, columns_of
from tf_tricks.debug._label_dependence import dependence
from tf_tricks.debug._target_checks import aligned, does_not_fit, loss_kind

layers, ops = keras.layers, keras.ops
RNG = np.random.default_rng(0)
N = 200
X = RNG.normal(size=(N, 6)).astype("float32")
CLASSES = (X[:, 0] > 0).astype("int64") + (X[:, 1] > 0)  # 0, 1, 2
TARGETS = X @ RNG.normal(size=6) / 3


def mlp(units=3, activation="softmax", loss="sparse_categorical_crossentropy", inputs=(6,), first=()):
    model = keras.Sequential([keras.Input(inputs), *first, layers.Flatten(), layers.Dense(units, activation)])
    model.compile("sgd", loss, jit_compile=False)
    return model


def quick(x, y=None, model=None, validation=None, **kwargs):
    return check_inputs(x, y, model, validation, seconds=None, verbose=0, **kwargs)


def names(*args, **kwargs):
    return [finding.name for finding in quick(*args, **kwargs).findings]


def smooth_pictures(n=N, height=16, width=12, channels=3, seed=0):
    """Waves of a few colours in [0, 1], other ones for each sample."""
    rng = np.random.default_rng(seed)
    h, w = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    phase, pace = rng.uniform(0, 6, (n, 1, 1, channels)), rng.uniform(0.2, 0.5, (n, 2, 1, 1, channels))
    waves = np.sin(pace[:, 0] * h[..., None] + pace[:, 1] * w[..., None] + phase)
    return (0.5 + 0.5 * waves * np.linspace(0.3, 1, channels)).astype("float32")


@pytest.fixture(scope="module")
def classifier():
    return mlp()


# --- healthy ----------------------------------------------------------------------------------------------------------


def prepared(name):
    data = getattr(datasets, f"load_{name}")()
    order = np.random.default_rng(3).permutation(len(data.data))
    x, y = data.data[order], data.target[order]
    return x, y, 4 * len(x) // 5


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "diabetes", "wine"])
@pytest.mark.parametrize("scaling", ["standardized", "to one"])
def test_no_false_alarm_on_data_that_works(name, scaling):
    x, y, n = prepared(name)
    if scaling == "standardized":
        x = (x - x[:n].mean(axis=0)) / (x[:n].std(axis=0) + 1e-9)
    else:
        x = (x - x[:n].min(axis=0)) / (np.ptp(x[:n], axis=0) + 1e-9)
    if name == "diabetes":
        y, model = (y - y[:n].mean()) / y[:n].std(), mlp(1, None, "mse", x.shape[1:])
    elif name == "breast_cancer":
        model = mlp(1, "sigmoid", "binary_crossentropy", x.shape[1:])
    else:
        model = mlp(len(np.unique(y)), inputs=x.shape[1:])
    for each in (None, model):
        result = quick(x[:n], y[:n], each, (x[n:], y[n:]))
        assert result.passed and result.dependence.p_value < 0.01, str(result)
        assert {finding.name for finding in result.findings} <= {"constant_columns"}, str(result)
    assert result.num_samples == n and result.num_validation_samples == len(x) - n


def test_shuffled_labels_are_found_in_each_of_these_and_called_a_fault_where_samples_are_many():
    for name, many in (("digits", True), ("breast_cancer", False), ("diabetes", False), ("wine", False)):
        x, y, _ = prepared(name)
        x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)
        finding = quick(x, np.random.default_rng(1).permutation(y)).named("labels_independent")
        assert finding is not None and finding.evidence["p_value"] > 0.01
        assert finding.is_fault or (not many and "too weak for this many samples" in finding.text)


def test_a_weak_relation_and_an_exclusive_or_are_no_fault_and_labels_of_nothing_are():
    weak, nothing = [], []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        x, noise = rng.normal(size=(1000, 30)), rng.normal(size=1000)
        signal = x @ rng.normal(size=30)
        y = 0.2 * signal / signal.std() + noise  # explains 4 %
        weak.append(dependence(x, y[:, None], seed).is_independent)
        nothing.append(dependence(x, noise[:, None], seed).is_independent)
    assert not any(weak) and all(nothing), (weak, nothing)
    found = dependence(x, (x[:, :1] * x[:, 1:2] > 0).astype(float))
    assert found.p_value == 1 / 200 and found.learner == "pairs"


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_dependence_sees_linear_local_and_single_column_relations():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 30))
    linear = (x @ rng.normal(size=(30, 1))) + 3 * rng.normal(size=(300, 1))
    pair = rng.normal(size=(300, 2))
    xor = ((pair[:, :1] > 0) ^ (pair[:, 1:] > 0)).astype(float)  # neither a line nor a column knows
    column = 0.5 * x[:, :1] + rng.normal(size=(300, 1))
    assert dependence(x, linear).p_value == 1 / 200
    found = dependence(pair, xor)
    assert found.p_value == 1 / 200 and found.learner == "neighbours" and found.score > 0.7
    assert dependence(x, column).p_value == 1 / 200


def test_p_values_of_independent_labels_are_uniform():
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        found.append(dependence(rng.normal(size=(60, 5)), rng.normal(size=(60, 1)), seed).p_value)
    assert 0.3 < np.mean(found) < 0.7 and np.mean(np.array(found) <= 0.01) <= 0.1


def test_roughness_of_noise_a_ramp_and_a_flat_picture():
    assert roughness(RNG.normal(size=(50, 20, 20, 3))) == pytest.approx(1, abs=0.05)
    ramp = np.broadcast_to(np.arange(20.0)[None, :, None, None], (2, 20, 20, 1))
    assert roughness(ramp) == pytest.approx(0.5 * 1 / (2 * np.var(np.arange(20.0))), rel=1e-6)
    assert roughness(np.ones((2, 8, 8, 1))) == 0


def test_orders_of_axes():
    assert len(orders((4, 5, 3))) == 6 and len(orders((8, 8, 3))) == 3
    assert len(orders((4, 5, 1))) == 2 and len(orders((8, 8, 1))) == 1
    pictures = smooth_pictures(4)
    for order in orders(pictures.shape[1:]):
        written = np.transpose(pictures, (0, *(1 + axis for axis in order))).reshape(pictures.shape)
        np.testing.assert_array_equal(read_as(written, order), pictures)


def test_shapes_are_aligned_as_keras_aligns_them():
    for target, output, expected in [
        ((8,), (8, 1), ((8, 1), (8, 1))),
        ((8, 1), (8,), ((8, 1), (8, 1))),
        ((8, 5), (8, 5, 1), ((8, 5), (8, 5))),
        ((8, 1), (8, 3), ((8, 1), (8, 3))),
        ((8, 1), (8, 5, 1), ((8, 1), (8, 5))),
    ]:
        assert aligned(target, output) == expected
        loss = keras.losses.MeanSquaredError(reduction=None)
        values = np.asarray(ops.convert_to_numpy(loss(np.zeros(target), np.ones(output))))
        assert values.shape == np.broadcast_shapes(*expected)[:-1]


def test_losses_are_known_by_string_object_and_function():
    for loss in ("mse", keras.losses.MeanSquaredError(), keras.losses.mean_squared_error):
        assert loss_kind(loss) == "meansquarederror"
    assert loss_kind("sparse_categorical_crossentropy") == "sparsecategoricalcrossentropy"
    assert loss_kind(lambda y, p: p) is None and loss_kind(None) is None


def test_row_keys_are_equal_where_rows_are():
    keys = row_keys([np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]]), np.array([1, 1, 1])])
    assert keys[0] == keys[1] != keys[2]


# --- features ---------------------------------------------------------------------------------------------------------


def test_nan_and_infinities(classifier):
    x = X.copy()
    x[[3, 7], 2], x[9, 4] = np.nan, np.inf
    finding = quick(x, CLASSES, classifier).findings[0]
    assert finding.name == "not_finite" and finding.evidence["samples"] == [3, 7, 9]
    assert finding.evidence["columns"] == [2, 4] and "NaN or Inf" in finding.text
    assert names(X, CLASSES, classifier) == []
    assert names(np.full_like(X, np.nan)) == ["not_finite"]


def test_constant_and_duplicate_columns(classifier):
    x = X.copy()
    x[:, 4], x[:, 5] = 1.0, x[:, 2]
    result = quick(x, CLASSES, classifier)
    assert result.named("constant_columns").evidence["columns"] == [4] and result.passed
    assert result.named("duplicate_columns").evidence["pairs"] == [(2, 5)]
    assert quick(np.ones_like(X), CLASSES, classifier).named("constant_columns").is_fault


def test_columns_far_from_unit_scale_unless_the_model_scales_them(classifier):
    x = X * np.array([1, 1, 1000, 1, 1, 1], "float32")
    finding = quick(x, CLASSES, classifier).named("not_scaled")
    assert finding.is_fault and finding.evidence["columns"] == [2]
    assert "not_scaled" in names(X * [1, 1, 1, 1, 1, 1e-5], CLASSES, classifier)
    assert not quick(x, CLASSES).named("not_scaled").is_fault
    scale = layers.Normalization()
    scale.adapt(x)
    assert names(x, CLASSES, mlp(first=[scale])) == []


def test_a_layer_that_learns_its_scale_in_training_scales():
    x = X * np.array([1, 1, 1000, 1, 1, 1], "float32") + 300
    model = mlp(first=[layers.BatchNormalization()])
    before = [np.array(ops.convert_to_numpy(v)) for v in model.variables]
    assert names(x, CLASSES, model) == []
    for a, v in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, ops.convert_to_numpy(v))
    pictures = np.round(255 * smooth_pictures())
    first = [layers.BatchNormalization(), layers.Conv2D(2, 3)]
    classes = (pictures.mean(axis=(1, 2))[:, 0] > 128).astype("int64")
    assert "images_not_scaled" not in names(pictures, classes, mlp(inputs=(16, 12, 3), first=first))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_pictures_of_0_to_255(dtype):
    pictures = np.round(255 * smooth_pictures()).astype(dtype)
    classes = (pictures.mean(axis=(1, 2))[:, 0] > 128).astype("int64")
    conv = layers.Conv2D(2, 3)
    finding = quick(pictures, classes, mlp(inputs=(16, 12, 3), first=[conv])).findings[0]
    assert finding.name == "images_not_scaled" and finding.is_fault
    rescaled = mlp(inputs=(16, 12, 3), first=[layers.Rescaling(1 / 255), layers.Conv2D(2, 3)])
    assert "images_not_scaled" not in names(pictures, classes, rescaled)
    assert not quick(pictures, classes).named("images_not_scaled").is_fault


def test_scaling_of_each_of_several_inputs_and_word_numbers_are_left_alone():
    words, table = keras.Input((5,), dtype="int32", name="words"), keras.Input((6,), name="table")
    embedded = layers.Flatten()(layers.Embedding(500, 4)(words))
    joined = layers.concatenate([layers.Dense(4)(embedded), layers.Dense(4)(table)])
    model = keras.Model({"words": words, "table": table}, layers.Dense(3, "softmax")(joined))
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    numbers = RNG.integers(0, 500, (N, 5)).astype("int32")
    assert names({"words": numbers, "table": X}, CLASSES, model) == []
    assert names({"words": numbers, "table": X}, CLASSES) == []
    found = quick({"words": numbers, "table": 1000 * X}, CLASSES, model).named("not_scaled")
    assert "`x['table']`" in found.text


class Reshaped(keras.Model):
    """Takes flat pictures and reshapes them, by a layer or by itself."""

    def __init__(self, by_layer, shape):
        super().__init__()
        self.reshape = layers.Reshape(shape) if by_layer else lambda x: ops.reshape(x, (-1, *shape))
        self.conv, self.pool, self.dense = layers.Conv2D(2, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)

    def call(self, x):
        return self.dense(self.pool(self.conv(self.reshape(x))))


def test_pictures_of_huge_numbers():
    pictures = smooth_pictures(width=16)
    y = pictures.mean(axis=(1, 2, 3))
    shape = pictures.shape[1:]
    huge = 1.4e8 * pictures
    model = mlp(1, None, "mse", shape, first=[layers.Conv2D(2, 3)])
    finding = quick(huge, y, model).named("images_not_scaled")
    assert finding.is_fault and finding.evidence["rms"] == pytest.approx(np.sqrt(np.mean(huge[:64] ** 2)), rel=1e-3)
    assert not quick(huge).named("images_not_scaled").is_fault
    scaled = mlp(1, None, "mse", shape, first=[layers.Rescaling(1 / 1.4e8), layers.Conv2D(2, 3)])
    assert names(huge, y, scaled) == names(pictures, y, model) == []
    assert names(255 * pictures - [104.0, 117.0, 124.0], y, model) == []  # as VGG and ResNet take them


def test_bfloat16_hides_nothing():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, "softmax", dtype="mixed_bfloat16")])
    model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
    assert quick(1000 * X, CLASSES, model).named("not_scaled").is_fault
    assert names(X, CLASSES, model) == []


@pytest.mark.parametrize("by_layer", [True, False])
def test_a_reshape_that_scrambles_the_axes(by_layer):
    pictures = smooth_pictures()
    y = pictures.mean(axis=(1, 2))
    model = Reshaped(by_layer, (16, 12, 3))
    model.compile("sgd", "mse", jit_compile=False)
    channels_first = np.transpose(pictures, (0, 3, 1, 2)).reshape(N, -1)
    finding = quick(channels_first, y, model).named("axes_scrambled")
    assert finding is not None and finding.evidence["order"] == "channels, height, width"
    assert finding.evidence["roughness"] > 2 * finding.evidence["smoothest"]
    assert "`reshape` to (n, 3, 16, 12), then `transpose(0, 2, 3, 1)`" in finding.text
    assert names(pictures.reshape(N, -1), y, model) == []


def test_scrambled_and_channels_first_arrays():
    pictures = smooth_pictures(width=16)
    first = np.transpose(pictures, (0, 3, 1, 2))
    assert names(first.reshape(pictures.shape)) == ["axes_scrambled"]
    assert names(pictures) == [] and names(RNG.uniform(size=(50, 16, 16, 3))) == []
    assert names(RNG.uniform(size=(50, 3, 16, 16))) == []
    if keras.config.image_data_format() == "channels_last":
        assert not quick(first).named("channels_first").is_fault
        model = mlp(1, None, "mse", (3, 16, 16), first=[layers.Conv2D(2, 1)])
        y = pictures.mean(axis=(1, 2, 3))
        assert quick(first, y, model).named("channels_first").is_fault
        assert "channels_first" not in names(pictures, y, mlp(1, None, "mse", (16, 16, 3), first=[layers.Conv2D(2, 1)]))


# --- targets ----------------------------------------------------------------------------------------------------------


def test_one_hot_and_integer_targets(classifier):
    one_hot = np.eye(3)[CLASSES]
    assert names(X, one_hot, classifier) == ["one_hot_targets"]
    categorical = mlp(loss=keras.losses.CategoricalCrossentropy())
    for y in (CLASSES, CLASSES[:, None]):
        assert names(X, y, categorical) == ["integer_targets"]
    assert names(X, one_hot, categorical) == names(X, CLASSES[:, None], classifier) == []
    assert "one_unit" in names(X, CLASSES, mlp(1, "sigmoid"))  # of a softmax Keras warns by itself


@pytest.mark.parametrize(("shift", "labels"), [(1, [3]), (-1, [-1])])
def test_labels_out_of_range(classifier, shift, labels):
    finding = quick(X, CLASSES + shift, classifier).named("labels_out_of_range")
    assert finding.evidence["labels"] == labels
    if shift < 0:
        ignoring = mlp(loss=keras.losses.SparseCategoricalCrossentropy(ignore_class=-1))
        assert names(X, CLASSES - 1, ignoring) == []


def test_labels_of_a_sigmoid():
    model, y = mlp(1, "sigmoid", "binary_crossentropy"), (X[:, 0] > 0).astype("float32")
    assert "labels_out_of_range" in names(X, 2 * y - 1, model)
    assert names(X, y, model) == names(X, y[:, None], model) == []
    assert names(X, X[:, 0], mlp()) == ["not_integers"]


def test_a_single_class_and_imbalance(classifier):
    assert "single_class" in names(X, 0 * CLASSES, classifier)
    rare = np.where(np.arange(N) % 25 == 0, 1, 0)
    finding = quick(X, rare, classifier).named("imbalance")
    assert finding.evidence["counts"] == [192, 8] and not finding.is_fault and "96.0 %" in finding.text
    assert "imbalance" not in names(X, CLASSES)


def test_targets_of_regression():
    model = mlp(1, None, "mse")
    assert names(X, TARGETS, model) == []
    assert names(X, 1000 + 500 * TARGETS, model) == ["target_scale"]
    assert "constant_target" in names(X, np.full(N, 2.5), model)


def test_targets_that_would_be_broadcast():
    three = mlp(3, None, "mse")
    assert "broadcast" in names(X, TARGETS[:, None], three)
    assert names(X, np.stack(3 * [TARGETS], axis=1), three) == []
    sequence = keras.Sequential([keras.Input((6, 1)), layers.Dense(1)])
    sequence.compile("sgd", "mae", jit_compile=False)
    assert "broadcast" in names(X[..., None], TARGETS[:, None], sequence)
    assert names(X[..., None], X, sequence) == []


def test_targets_that_do_not_fit_the_output():
    three, five = mlp(3, None, "mse"), np.eye(5)[RNG.integers(0, 5, N)]
    finding = quick(X, TARGETS, three).named("target_shape")
    assert finding.is_fault and "of shape (n, 3)" in finding.text
    assert "target_shape" in names(X, five, mlp(10, loss="categorical_crossentropy"))
    assert "target_shape" in names(X, np.stack([CLASSES, CLASSES], axis=1), mlp())
    assert "target_shape" not in names(X, five, mlp(5, loss="categorical_crossentropy"))
    sparse = loss_kind("sparse_categorical_crossentropy")
    assert does_not_fit("y", (8, 4, 5), (8, 3, 4, 5), sparse) is None  # of `axis=1`
    assert does_not_fit("y", (8, 4, 1), (8, 4, 5), sparse) is None


class OwnLoss(keras.Sequential):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean(ops.square(ops.cast(y, "float32") - y_pred))


class OwnStep(keras.Sequential):
    """Minimises nothing, and tells the loss that it computes itself."""

    def train_step(self, *args):
        x, y = (args[-1] if keras.backend.backend() == "jax" else args[0])[:2]
        if keras.backend.backend() == "jax":
            trainable, others = args[0][:2]
            predicted, _ = self.stateless_call(trainable, others, x)
        else:
            predicted = self(x)
        logs = {"loss": ops.mean(ops.square(ops.cast(y, "float32") - predicted))}
        return (logs, args[0]) if keras.backend.backend() == "jax" else logs


@pytest.mark.parametrize("cls", [OwnLoss, OwnStep])
def test_a_loss_of_ones_own_that_broadcasts(cls):
    model = cls([keras.Input((6,)), layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    result = quick(X, TARGETS, model)
    finding = result.named("broadcast")
    predicted = np.asarray(X[:64] @ model.layers[-1].get_weights()[0])
    assert finding is not None, str(result)
    assert finding.evidence["loss"] == pytest.approx(np.mean((TARGETS[:64] - predicted) ** 2), rel=1e-3)
    assert finding.evidence["loss_in_shape"] == pytest.approx(np.mean((TARGETS[:64, None] - predicted) ** 2), rel=1e-3)
    assert names(X, TARGETS[:, None], model) == []
    # Keras's own losses align the shapes: nothing to find.
    assert names(X, TARGETS, mlp(1, None, "mse")) == []


def test_equal_samples_with_different_labels():
    x = RNG.normal(size=(N, 16)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    doubled, labels = np.concatenate([x, x[:10]]), np.concatenate([y, 1 - y[:10]])
    finding = quick(doubled, labels).named("conflicting_labels")
    assert finding.is_fault and finding.evidence["pairs"][0] == (0, 200) and len(finding.evidence["pairs"]) == 10
    assert names(doubled, np.concatenate([y, y[:10]])) == []
    coarse = RNG.integers(0, 2, (N, 4))  # few numbers: equal samples are no wonder
    assert not quick(coarse, (X[:, 0] + coarse[:, 0] > 0).astype("int64")).named("conflicting_labels").is_fault


def one_hot_table(n=1000, seed=0):
    """Three categorical columns as 20 columns of 0 and 1, and labels that depend on the first by chance."""
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, k, n) for k in (5, 7, 8)]
    x = np.hstack([np.eye(k)[column] for k, column in zip((5, 7, 8), columns, strict=True)])
    return x, (rng.random(n) < 1 / (1 + np.exp(2.0 - columns[0]))).astype("int64")


def test_a_table_of_categories_repeats_itself():
    x, y = one_hot_table()
    result = quick(x[:800], y[:800], None, (x[800:], y[800:]))
    assert result.passed and {f.name for f in result.findings} == {"conflicting_labels", "leakage"}, str(result)


@pytest.mark.parametrize(
    ("rows", "unmistakable"),
    [
        (RNG.normal(size=(100, 2)), True),
        (RNG.integers(0, 80, (1000, 1)), False),
        (np.stack([RNG.integers(0, 80, 1000), RNG.integers(0, 2, 1000)], axis=1), False),
        (RNG.integers(0, 5, (1000, 10)), False),
        (RNG.integers(0, 17, (1000, 64)), True),
        (one_hot_table()[0], False),
    ],
    ids=["two continuous", "age", "age and sex", "ten answers", "digits", "one-hot"],
)
def test_which_samples_are_unmistakable_whether_they_come_once_or_three_times(rows, unmistakable):
    for leaf in (rows, np.repeat(rows, 3, axis=0)):
        assert are_unmistakable([leaf], row_keys([leaf])) == unmistakable


# --- validation -------------------------------------------------------------------------------------------------------


def test_validation_scaled_differently():
    x, y = 5 + 40 * X, TARGETS
    for other in (x[150:] / 40, 40 * x[150:], x[150:] - 300):
        finding = quick(x[:150], y[:150], None, (other, y[150:])).named("scaled_differently")
        assert finding.evidence["columns"] == list(range(6))
    one = X[150:] * np.array([1, 1, 1, 1, 255, 1])
    assert quick(X[:150], y[:150], None, (one, y[150:])).named("scaled_differently").evidence["columns"] == [4]
    assert "scaled_differently" in names(X[:150], y[:150], None, (X[150:], 100 * y[150:]))
    assert names(X[:150], y[:150], None, (X[150:], y[150:])) == []
    assert "shapes_differ" in names(X[:150], y[:150], None, (X[150:, :5], y[150:]))


def test_classes_that_occur_in_validation_only():
    known = CLASSES < 2
    assert "unknown_classes" in names(X[known], CLASSES[known], None, (X[~known], CLASSES[~known]))
    assert names(X[:150], CLASSES[:150], None, (X[150:], CLASSES[150:])) == []


def test_counts_are_no_classes():
    counts = np.random.default_rng(0).poisson(np.exp(1 + 0.5 * X[:, 0]))
    y, other = np.minimum(counts[:150], 8), np.append(counts[150:], 9)
    x_other = np.append(X[150:], X[:1] + 0.1, axis=0)
    finding = quick(X[:150], y, None, (x_other, other)).named("unknown_classes")
    assert not finding.is_fault and "whole numbers" in finding.text
    for loss in ("mse", "poisson"):
        assert names(X[:150], y, mlp(1, "exponential", loss), (x_other, other)) == []
    result = quick(X[:150], y, mlp(20), (x_other, other))
    assert result.named("unknown_classes").is_fault and "classes 9 occur" in result.named("unknown_classes").text


def test_leakage():
    validation = np.concatenate([X[150:], X[:10]]).astype("float64")
    labels = np.concatenate([CLASSES[150:], CLASSES[:10]])
    finding = quick(X[:150], CLASSES[:150], None, (validation, labels)).findings[0]
    assert finding.name == "leakage" and finding.evidence["pairs"] == [(i, 50 + i) for i in range(10)]
    coarse, y = RNG.integers(0, 2, (N, 3)), CLASSES
    result = quick(coarse[:150], y[:150], None, (coarse[150:], y[150:]))
    assert not result.named("leakage").is_fault


def test_duplicates_made_before_the_split_leak_however_many_there_are():
    order = np.random.default_rng(0).permutation(2 * N)
    x, y = np.repeat(X, 2, axis=0)[order], np.repeat(CLASSES, 2)[order]
    finding = quick(x[:300], y[:300], None, (x[300:], y[300:])).named("leakage")
    assert finding.is_fault and finding.evidence["share"] > 0.5 and finding.evidence["natural"] > 0.2
    x, y = np.repeat(X, 2, axis=0), np.repeat(CLASSES, 2)  # both of a pair on the same side
    assert names(x[:300], y[:300], None, (x[300:], y[300:])) == []
    x = X.copy()
    x[::4] = 0  # as empty pictures
    assert not quick(x[:150], CLASSES[:150], None, (x[150:], CLASSES[150:])).named("leakage").is_fault


# --- more samples than are looked at by statistics --------------------------------------------------------------------


def test_nan_leakage_and_conflicts_are_found_in_all_samples_under_their_own_numbers():
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(3000, 16)).astype("float32"), rng.normal(size=(800, 16)).astype("float32")
    y = (x[:, 0] > 0).astype("int64")
    result = quick(x, y, None, (other, (other[:, 0] > 0).astype("int64")), samples=100)
    assert result.findings == [] and (result.num_samples, result.num_sampled) == (3000, 100)
    assert "those of 100 finite samples" in str(result)
    x[5], x[2987, 3] = np.nan, np.inf
    x[2900:2910], y[2900:2910] = x[1000:1010], 1 - y[1000:1010]
    other[100:700] = x[2000:2600]
    result = quick(x, y, None, (other, (other[:, 0] > 0).astype("int64")), samples=100)
    assert result.named("not_finite").evidence["samples"] == [5, 2987]
    conflicts = result.named("conflicting_labels")
    assert conflicts.is_fault and conflicts.evidence["pairs"] == [(1000 + i, 2900 + i) for i in range(10)]
    pairs = result.named("leakage").evidence["pairs"]
    assert pairs == [(2000 + i, 100 + i) for i in range(600)]


def test_rare_values_and_labels_count():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 4)), rng.integers(0, 3, 2000)
    x[:, 0] += y
    x[:, 1], x[:, 2], x[:, 3] = 0, 0, 7
    x[1234, 1], x[77, 3] = 1, np.nan
    y[1500] = 3
    result = quick(x, y, mlp(inputs=(4,)), samples=50)
    assert result.named("constant_columns").evidence["columns"] == [2, 3]
    assert result.named("labels_out_of_range").evidence == {"labels": [3], "count": 1, "units": 3}
    x[:, 1] = x[:, 0]
    assert quick(x, samples=50).named("duplicate_columns").evidence["pairs"] == [(0, 1)]
    x[1999, 1] += 1
    assert quick(x, samples=50).named("duplicate_columns") is None


def test_columns_of_wide_tables_have_their_own_numbers_and_take_little_memory(monkeypatch):
    x = np.random.default_rng(0).normal(size=(200, 30_000)).astype("float32")
    chosen = np.flatnonzero(np.isin(np.arange(30_000), column_numbers(x)))
    assert len(chosen) == 2048 and columns_of(x).shape == (200, 2048)
    np.testing.assert_array_equal(columns_of(x)[:, 7], x[:, chosen[7]])
    tracemalloc.start()
    assert names(x) == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * x.nbytes  # a copy in float64 alone takes twice as much
    x[:, chosen[7]] *= 1000
    assert quick(x).named("not_scaled").evidence["columns"] == [chosen[7]]
    monkeypatch.setattr(_input_checks, "NUMBERS", 1500)
    assert columns_of(np.zeros((20, 10, 10, 3), "uint8")).shape == (500, 3)  # of 5 pictures


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_the_model_is_as_it_was_and_nothing_is_printed(capsys):
    model = mlp(first=[layers.BatchNormalization(), layers.Dropout(0.5)])
    model.train_on_batch(X, CLASSES)
    before = [np.array(ops.convert_to_numpy(v)) for v in [*model.variables, *model.optimizer.variables]]
    calls = [vars(layer).get("call") for layer in model.layers]
    first, second = (str(quick(X, CLASSES, model)) for _ in range(2))
    assert first == second and capsys.readouterr().out == ""
    for a, v in zip(before, [*model.variables, *model.optimizer.variables], strict=True):
        np.testing.assert_array_equal(a, ops.convert_to_numpy(v))
    assert [vars(layer).get("call") for layer in model.layers] == calls


def test_datasets_generators_and_data_that_does_not_fit(classifier):
    batches = ((X[i : i + 50], CLASSES[i : i + 50]) for i in range(0, N, 50))
    result = check_inputs(batches, model=classifier, samples=100, seconds=None, verbose=0)
    assert result.num_samples == 100 and result.passed
    finding = quick(X[:, :5], CLASSES, classifier).findings[0]
    assert finding.name == "does_not_fit" and finding.is_fault


class Noisy(keras.utils.PyDataset):
    num_batches = 2

    def __getitem__(self, index):
        return X[:50] + 0.01 * np.random.randn(50, 6), CLASSES[:50]


def test_random_states_stay_as_they_are():
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    quick(Noisy(), validation=Noisy())
    assert np.random.rand() == expected


def test_out_of_time_is_told_and_the_text_fits_a_screen(tmp_path):
    result = check_inputs(1000 * X, np.random.default_rng(0).permutation(CLASSES), seconds=1e-9, verbose=0)
    assert "shuffled labels" in result.skipped and "not checked" in str(result)
    result = quick(np.where(np.arange(6) == 2, np.nan, 1000 * X), RNG.integers(0, 3, N), mlp(), (X, CLASSES))
    lines = str(result).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 110
    result.plot(tmp_path / "columns.png")
    assert (tmp_path / "columns.png").stat().st_size > 1000


def test_mistakes(classifier):
    with pytest.raises(TypeError, match=r"`model` must be a keras.Model or None. Received: model=3"):
        check_inputs(X, CLASSES, 3)
    with pytest.raises(ValueError, match="`model` must be compiled"):
        check_inputs(X, CLASSES, keras.Sequential([layers.Dense(1)]))
    with pytest.raises(TypeError, match=r"`validation` must be \(x, y\)"):
        check_inputs(X, CLASSES, validation=0.2)
    with pytest.raises(ValueError, match="`samples` must be an int >= 50"):
        check_inputs(X, CLASSES, samples=3)
    with pytest.raises(ValueError, match=r"`seconds` must lie in \(0, inf\)"):
        check_inputs(X, CLASSES, seconds=-1)
    with pytest.raises(ValueError, match="`y` must have as many samples as `x`"):
        check_inputs(X, CLASSES[:5])
