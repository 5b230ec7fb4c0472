"""Compare with gradients that a loop of our own takes from the backend, batch by batch; NumPy does the rest."""

import csv
import math
import warnings

import keras
import numpy as np
import pytest

from tf_tricks.callbacks import GradientNormLogger

layers = keras.layers
BATCH, STEPS, RATE = 4, 6, 0.05


# --- a model with everything in it, and an oracle ---------------------------------------------------------------------


def network():
    """An embedding that sees ids twice, a layer that is used twice, a layer that is frozen, and one more."""
    ids = keras.Input((3,), dtype="int32")
    shared = layers.Dense(3, "tanh", name="shared")
    x = layers.Embedding(BATCH * 3, 3, name="table")(ids)
    x = layers.GlobalAveragePooling1D()(shared(shared(x)))
    x = layers.Dense(4, "tanh", name="frozen", trainable=False)(x)
    return keras.Model(ids, layers.Dense(2, name="out")(x))


LAYERS = {"table": [0], "shared": [1, 2], "out": [3, 4]}
VARIABLES = {"table/embeddings": [0], "shared/kernel": [1], "shared/bias": [2], "out/kernel": [3], "out/bias": [4]}


def batches(scale=1.0, repeated=True):
    """Ids and targets; with `repeated=False` no id comes twice in a batch."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, (BATCH * STEPS, 3)).astype("int32")
    if not repeated:
        x = np.concatenate([rng.permutation(BATCH * 3).reshape(BATCH, 3) for _ in range(STEPS)]).astype("int32")
    return x, (scale * rng.normal(size=(BATCH * STEPS, 2))).astype("float32")


def gradient_function(model, backend):
    """A function of (x, y): gradients of the mean squared error, one array (or None) a trainable variable."""

    def loss(prediction, y):
        return keras.ops.mean(keras.ops.square(prediction - y))

    if backend == "jax":
        import jax

        def loss_of(values, x, y):
            others = [v.value for v in model.non_trainable_variables]
            return loss(model.stateless_call(values, others, x)[0], y)

        compiled = jax.jit(jax.grad(loss_of))

        def raw(x, y):
            return compiled([v.value for v in model.trainable_variables], x, y)
    elif backend == "torch":

        def raw(x, y):
            model.zero_grad()
            loss(model(x), keras.ops.convert_to_tensor(y)).backward()
            return [v.value.grad for v in model.trainable_variables]
    else:
        import tensorflow as tf

        @tf.function
        def raw(x, y):
            with tf.GradientTape() as tape:
                value = loss(model(x), y)
            found = tape.gradient(value, [v.value for v in model.trainable_variables])
            return [None if each is None else tf.convert_to_tensor(each) for each in found]

    def function(x, y):
        return [None if g is None else np.array(keras.ops.convert_to_numpy(g), "float64") for g in raw(x, y)]

    return function


def clip(grads, clipnorm=None, global_clipnorm=None, clipvalue=None):
    if clipnorm:
        return [grad * min(1.0, clipnorm / np.linalg.norm(grad)) for grad in grads]
    if global_clipnorm:
        total = math.sqrt(sum(np.sum(grad**2) for grad in grads))
        return [grad * min(1.0, global_clipnorm / total) for grad in grads]
    return [np.clip(grad, -clipvalue, clipvalue) for grad in grads] if clipvalue else grads


def norms_of(arrays):
    return [np.linalg.norm(array) for array in arrays]


def oracle(model, x, y, backend, epochs=1, accumulate=1, **clipping):
    """Train a copy with plain SGD in NumPy; norms of each step: dict of arrays `(steps, n)`."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    gradients = gradient_function(copy, backend)
    rows, sums = {"grad": [], "clipped": [], "weight": [], "update": []}, None
    for step in range(epochs * len(x) // BATCH):
        rows_of_step = slice(step % STEPS * BATCH, (step % STEPS + 1) * BATCH)
        grads = gradients(x[rows_of_step], y[rows_of_step])
        rows["grad"].append(norms_of(grads))
        sums = grads if sums is None else [a + b for a, b in zip(sums, grads, strict=True)]
        updates = [np.zeros_like(grad) for grad in grads]
        rows["clipped"].append([np.nan] * len(grads))
        if (step + 1) % accumulate == 0:
            clipped = clip([grad / accumulate for grad in sums], **clipping)
            rows["clipped"][-1] = norms_of(clipped)
            updates, sums = [-RATE * grad for grad in clipped], None
        for variable, update in zip(copy.trainable_variables, updates, strict=True):
            variable.assign(keras.ops.convert_to_numpy(variable) + update)
        rows["weight"].append(norms_of(map(keras.ops.convert_to_numpy, copy.trainable_variables)))
        rows["update"].append(norms_of(updates))
    return {key: np.array(values) for key, values in rows.items()}


def over(norms, indices):
    return np.sqrt(np.sum(norms[:, indices] ** 2, axis=1))


def train(model, x, y, logger, epochs=1, optimizer=None, callbacks=(), **kwargs):
    arguments = {"jit_compile": False, **kwargs}
    model.compile(optimizer or keras.optimizers.SGD(RATE), "mse", **arguments)
    return model.fit(
        x, y, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=[logger, *callbacks]
    ).history


def assert_history(history, expected, groups, rtol=3e-5, has_update=None):
    updates = slice(None) if has_update is None else has_update
    for name, indices in {"global": list(range(expected["grad"].shape[1])), **groups}.items():
        np.testing.assert_allclose(history[f"grad_norm/{name}"], over(expected["grad"], indices), rtol=rtol)
        np.testing.assert_allclose(history[f"clipped_grad_norm/{name}"], over(expected["clipped"], indices), rtol=rtol)
        np.testing.assert_allclose(history[f"weight_norm/{name}"], over(expected["weight"], indices), rtol, 1e-7)
        ratio = over(expected["update"], indices) / over(expected["weight"], indices)
        # The update is the small difference of two float32 numbers.
        np.testing.assert_allclose(history[f"update_ratio/{name}"][updates], ratio[updates], rtol=2e-3, atol=1e-6)


WAYS = {
    "plain": ({}, {}),
    "compiled": ({}, {"jit_compile": True}),
    "eager": ({}, {"run_eagerly": True}),
    "clipnorm": ({"clipnorm": 0.2}, {}),
    "global_clipnorm": ({"global_clipnorm": 0.4}, {"jit_compile": True}),
    "clipvalue": ({"clipvalue": 0.1}, {}),
    "several steps": ({"clipvalue": 0.1}, {"steps_per_execution": 4}),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_norm_of_every_step(way, backend):
    clipping, compile_arguments = WAYS[way]
    if backend == "torch" and "jit_compile" in compile_arguments:
        compile_arguments = {}  # takes a C++ compiler and a minute
    if backend == "torch" and "steps_per_execution" in compile_arguments:
        pytest.skip("the Torch backend runs one step at a time")
    # On TensorFlow Keras clips the slices of an embedding's gradient one by one, before repeated rows are added up.
    model, (x, y) = network(), batches(repeated=not clipping)
    expected = oracle(model, x, y, backend, epochs=2, **clipping)
    if clipping:
        assert (expected["clipped"] < 0.99 * expected["grad"]).any()
    logger = GradientNormLogger(per="variable" if way in ("plain", "clipvalue") else "layer", verbose=0)
    optimizer = keras.optimizers.SGD(RATE, **clipping)
    history = train(model, x, y, logger, epochs=2, optimizer=optimizer, **compile_arguments)
    groups = VARIABLES if logger.per == "variable" else LAYERS
    assert_history(logger.history, expected, groups)
    assert logger.history["step"].tolist() == list(range(12))
    kinds = "grad_norm", "clipped_grad_norm", "weight_norm", "update_ratio"
    keys = {f"{kind}/{name}" for kind in kinds for name in ("global", *groups)}
    assert set(logger.history) == {"step", "loss", *keys}
    for name in ("global", *groups):
        for kind in ("grad_norm", "update_ratio"):
            means = logger.history[f"{kind}/{name}"].reshape(2, STEPS).mean(axis=1)
            np.testing.assert_allclose(history[f"{kind}/{name}"], means, rtol=1e-6)
    assert all(type(value) is float for key, values in history.items() if "/" in key for value in values)


@pytest.mark.parametrize("clipping", [{"clipnorm": 0.1}, {"clipvalue": 0.05}], ids=str)
def test_gradient_accumulation(clipping, backend):
    model, (x, y) = network(), batches(repeated=not clipping)
    expected = oracle(model, x, y, backend, epochs=2, accumulate=3, **clipping)
    logger = GradientNormLogger(verbose=0)
    optimizer = keras.optimizers.SGD(RATE, gradient_accumulation_steps=3, **clipping)
    history = train(model, x, y, logger, epochs=2, optimizer=optimizer)
    updating = np.arange(12) % 3 == 2
    assert_history(logger.history, expected, LAYERS, has_update=updating)
    assert np.isnan(logger.history["update_ratio/out"][~updating]).all()
    ratios = logger.history["update_ratio/out"][updating].reshape(2, 2)
    np.testing.assert_allclose(history["update_ratio/out"], ratios.mean(axis=1), rtol=1e-6)


@pytest.mark.parametrize("clipping", [{}, {"clipvalue": 0.1}], ids=str)
def test_loss_scaling_is_undone(clipping, backend):
    model, (x, y) = network(), batches(repeated=not clipping)
    expected = oracle(model, x, y, backend, **clipping)
    logger = GradientNormLogger(verbose=0)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(RATE, **clipping), initial_scale=1024.0)
    train(model, x, y, logger, optimizer=optimizer)
    assert_history(logger.history, expected, LAYERS)


def test_loss_scale_factor(backend):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="one"), layers.Dense(2, name="two")])
    x, y = np.float32(batches()[0]) / 5, batches()[1]
    expected = oracle(model, x, y, backend)
    logger = GradientNormLogger(verbose=0)
    # Keras scales the loss by the factor and divides the gradients by it again.
    train(model, x, y, logger, optimizer=keras.optimizers.SGD(RATE, loss_scale_factor=64.0))
    assert_history(logger.history, expected, {"one": [0, 1], "two": [2, 3]})


def test_steps_that_the_loss_scale_skips_are_no_explosion(backend):
    keras.config.set_dtype_policy("mixed_float16")
    model, (x, y) = network(), batches(scale=100.0)
    logger = GradientNormLogger()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-6), initial_scale=2.0**18)
    history = train(model, x, y, logger, epochs=8, optimizer=optimizer)
    norms = logger.history["grad_norm/global"]
    skipped = ~np.isfinite(norms)
    assert skipped[0] and not skipped[-STEPS:].any() and logger.findings == []
    assert (logger.history["update_ratio/global"][skipped] == 0).all()
    for epoch, mean in enumerate(history["grad_norm/global"]):
        of_epoch = slice(epoch * STEPS, (epoch + 1) * STEPS)
        there = norms[of_epoch][~skipped[of_epoch]]
        assert math.isnan(mean) if not len(there) else mean == pytest.approx(there.mean())
    assert math.isfinite(history["grad_norm/global"][-1])


class WithSpare(keras.Model):
    """Has a layer that the loss does not depend on."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = layers.Dense(2, name="used"), layers.Dense(2, name="spare")

    def call(self, x, training=None):
        self.spare(x)
        return self.used(x)


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables")
@pytest.mark.parametrize("jit", [True, False])
def test_a_layer_without_gradient_has_norm_zero(jit, backend):
    model, x = WithSpare(), np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
    y = x[:, :2]
    model(x)
    grads = gradient_function(model, backend)(x[:BATCH], y[:BATCH])
    logger = GradientNormLogger(verbose=0)
    history = train(model, x, y, logger, epochs=2, jit_compile=jit and backend != "torch")
    expected = math.sqrt(sum(np.sum(grad**2) for grad in grads if grad is not None))
    assert logger.history["grad_norm/used"][0] == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(logger.history["grad_norm/global"], logger.history["grad_norm/used"])
    assert history["grad_norm/spare"] == history["update_ratio/spare"] == [0.0, 0.0]


class Slope(keras.layers.Layer):
    """Multiplies by a weight; the gradient of a sum is the input itself."""

    def build(self, shape):
        self.weight = self.add_weight(shape=(shape[-1],), initializer="ones", name="weight")

    def call(self, x):
        return x * self.weight


def slope(x, **clipping):
    model = keras.Sequential([keras.Input((x.shape[1],)), Slope(name="slope")])
    model.compile(keras.optimizers.SGD(1e-3, **clipping), lambda y, p: keras.ops.sum(p, axis=-1), jit_compile=False)
    return model


@pytest.mark.parametrize("size", [1e30, 1e-12, 3e37])
def test_huge_and_tiny_gradients(size):
    x = np.full((3, 4), size, "float32")
    logger = GradientNormLogger(verbose=0)
    slope(x).fit(x, np.zeros((3, 1)), batch_size=1, verbose=0, callbacks=[logger])
    np.testing.assert_allclose(logger.history["grad_norm/slope"], np.full(3, 2 * size), rtol=1e-5)


@pytest.mark.parametrize("clipping", [{"clipnorm": 1.0}, {"global_clipnorm": 1.0}, {"clipvalue": 1.0}], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e30, np.inf])
def test_after_clipping_is_what_really_moves_the_weight(clipping, size):
    """Keras squares in float32, so that clipping by norm makes 0 or NaN of huge gradients: we show what it does."""
    x = np.full((1, 4), size, "float32")
    model = slope(x, **clipping)
    logger = GradientNormLogger(verbose=0)
    model.fit(x, np.zeros((1, 1)), verbose=0, callbacks=[logger])
    moved = np.linalg.norm((1.0 - model.get_weights()[0].astype("float64")) / 1e-3)
    np.testing.assert_allclose(logger.history["clipped_grad_norm/slope"], [moved], rtol=2e-4)


def test_a_gradient_that_is_not_finite_is_shown():
    x = np.ones((6, 4), "float32")
    x[4] = np.nan
    logger = GradientNormLogger(verbose=0)
    history = slope(x).fit(x, np.zeros((6, 1)), batch_size=1, shuffle=False, verbose=0, callbacks=[logger]).history
    norms = logger.history["grad_norm/slope"]
    assert np.isnan(norms).tolist() == [False] * 4 + [True, False] and math.isnan(history["grad_norm/slope"][0])
    assert np.isnan(logger.history["weight_norm/slope"]).tolist() == [False] * 4 + [True, True]


@pytest.mark.parametrize(
    ("scope", "clipping"),
    # Under MirroredStrategy Keras clips on each replica, before the sum: another update than that of one device.
    [("mirrored_strategy", {}), ("data_parallel", {}), ("data_parallel", {"clipvalue": 0.02})],
    ids=str,
)
def test_several_devices_show_the_norm_of_the_global_batch(scope, clipping, request, backend):
    x, y = batches(repeated=not clipping)
    found = []
    weights = None
    for distributed in (False, True):
        with request.getfixturevalue(scope).scope():
            if not distributed and backend == "jax":
                keras.distribution.set_distribution(None)
            model = network() if distributed or backend == "jax" else None
        model = model or network()
        weights = weights or model.get_weights()
        model.set_weights(weights)
        logger = GradientNormLogger(verbose=0)
        with request.getfixturevalue(scope).scope() if distributed else warnings.catch_warnings():
            optimizer = keras.optimizers.SGD(RATE, **clipping)
            train(model, x, y, logger, optimizer=optimizer, jit_compile=backend == "jax")
        found.append(logger.history)
    for key in found[0]:
        np.testing.assert_allclose(found[1][key], found[0][key], rtol=1e-3 if "ratio" in key else 1e-5, err_msg=key)


# --- what it keeps and logs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """One compiled model for the tests in which the numbers do not matter."""
    model = network()
    model.compile(keras.optimizers.SGD(RATE), "mse", jit_compile=False)
    return model


def refit(model, logger, epochs=2, callbacks=(), **kwargs):
    x, y = batches()
    arguments = {"batch_size": BATCH, "epochs": epochs, "verbose": 0, "shuffle": False, **kwargs}
    return model.fit(x, y, callbacks=[logger, *callbacks], **arguments).history


def test_every_kth_step(trained):
    weights = trained.get_weights()
    logger = GradientNormLogger(verbose=0)
    all_logs = refit(trained, logger, epochs=3)
    trained.set_weights(weights)
    some = GradientNormLogger(every=4, verbose=0)
    some_logs = refit(trained, some, epochs=3)
    assert some.history["step"].tolist() == [0, 4, 8, 12, 16]
    for key, values in some.history.items():
        np.testing.assert_allclose(values, logger.history[key][::4], rtol=1e-5)
    np.testing.assert_allclose(some_logs["grad_norm/out"], all_logs["grad_norm/out"], rtol=1e-5)  # over all steps


@pytest.mark.parametrize(("per", "groups"), [("global", {}), ("layer", LAYERS), ("variable", VARIABLES)])
@pytest.mark.parametrize("update_ratio", [True, False])
def test_keys(trained, per, groups, update_ratio):
    kinds = ["grad_norm", "update_ratio"] if update_ratio else ["grad_norm"]
    logs = refit(trained, GradientNormLogger(per=per, update_ratio=update_ratio, verbose=0), validation_data=batches())
    assert set(logs) - {"loss", "val_loss"} == {f"{kind}/{name}" for kind in kinds for name in ("global", *groups)}


def test_csv_logger_behind_it_writes_the_keys_from_the_first_epoch_on(trained, tmp_path):
    history = refit(trained, GradientNormLogger(verbose=0), callbacks=[keras.callbacks.CSVLogger(tmp_path / "log.csv")])
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    for key in ("grad_norm/global", "grad_norm/table", "update_ratio/out"):
        np.testing.assert_allclose([float(row[key]) for row in rows], history[key], rtol=1e-6)


def test_two_fits_begin_anew_and_two_loggers_agree(trained):
    first, second = GradientNormLogger(verbose=0), GradientNormLogger(per="variable", every=2, verbose=0)
    for epochs in (2, 1):
        history = refit(trained, first, epochs, callbacks=[second])
        assert {len(values) for values in first.history.values()} == {epochs * STEPS}
        assert len(history["grad_norm/global"]) == epochs
        np.testing.assert_array_equal(first.history["grad_norm/global"][::2], second.history["grad_norm/global"])


def test_after_a_fit_that_raised(trained, tmp_path):
    def fail(epoch, logs):
        raise KeyError("planted")

    logger = GradientNormLogger(log_dir=tmp_path, verbose=0)
    with pytest.raises(KeyError, match="planted"):
        refit(trained, logger, callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=fail)])
    assert len(logger.history["step"]) == STEPS
    refit(trained, logger)
    assert len(logger.history["step"]) == 2 * STEPS


# --- findings ---------------------------------------------------------------------------------------------------------


def deep(activation, depth=6):
    hidden = [layers.Dense(8, activation, name=f"hidden{i}") for i in range(depth)]
    return keras.Sequential([keras.Input((4,)), *hidden, layers.Dense(1, name="top")])


@pytest.mark.parametrize("per", ["global", "layer"])
@pytest.mark.parametrize(("activation", "vanishes"), [("sigmoid", True), ("selu", False)])
def test_a_vanishing_gradient_is_named_once(activation, vanishes, per, capsys):
    if per != "layer" and not vanishes:
        pytest.skip("one healthy twin is enough")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * 10, 4)).astype("float32")
    logger = GradientNormLogger(per=per)
    train(deep(activation), x, x[:, :1] + 1, logger, epochs=3, optimizer=keras.optimizers.SGD(1e-3))
    out = capsys.readouterr().out
    if not vanishes:
        assert logger.findings == [] and out == ""
        return
    assert len(logger.findings) == 1
    assert "vanishes" in logger.findings[0] and "`hidden0`" in logger.findings[0] and "`top`" in logger.findings[0]
    assert out == f"\nGradientNormLogger: {logger.findings[0]}\n"


@pytest.mark.parametrize("planted", [True, False])
def test_an_exploding_gradient_is_named_once_with_the_layer(planted, capsys):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH * 20, 4)).astype("float32")
    y = x[:, :1].copy()
    if planted:
        y[17 * BATCH] *= 1e5
        y[19 * BATCH] *= 1e5
    logger = GradientNormLogger(verbose=0)
    model = keras.Sequential([keras.Input((4,)), Slope(name="small"), layers.Dense(1, name="big")])
    model.layers[1].set_weights([np.full((4, 1), 1e-2, "float32"), np.zeros(1, "float32")])
    train(model, x, y, logger, optimizer=keras.optimizers.SGD(1e-6))
    assert capsys.readouterr().out == ""
    if not planted:
        assert logger.findings == []
        return
    assert len(logger.findings) == 1
    assert "explodes at step 17, most of all in `big`" in logger.findings[0]


# --- TensorBoard and pictures -----------------------------------------------------------------------------------------


def events(folder):
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    found = event_accumulator.EventAccumulator(str(folder), size_guidance={event_accumulator.TENSORS: 0})
    found.Reload()
    tags = found.Tags()["tensors"]
    plugins = {tag: found.SummaryMetadata(tag).plugin_data.plugin_name for tag in tags}
    values = {tag: [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in found.Tensors(tag)] for tag in tags}
    return plugins, values


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(trained, tmp_path):
    logger = GradientNormLogger(log_dir=tmp_path, verbose=0)
    history = refit(trained, logger, epochs=3, initial_epoch=1)
    (file,) = (tmp_path / "gradient_norms").iterdir()
    plugins, values = events(file.parent)
    for name in ("global", *LAYERS):
        for kind in ("grad_norm", "update_ratio"):
            steps, scalars = zip(*values[f"{kind}/{name}"], strict=True)
            assert plugins[f"{kind}/{name}"] == "scalars" and steps == (1, 2)
            np.testing.assert_allclose(scalars, history[f"{kind}/{name}"], rtol=1e-6)
        assert f"clipped_grad_norm/{name}" in values and f"weight_norm/{name}" in values
        assert plugins[f"grad_norm/{name}/steps"] == "histograms"
        buckets = values[f"grad_norm/{name}/steps"][1][1]  # rows of left edge, right edge, count
        norms = logger.history[f"grad_norm/{name}"][STEPS:]
        assert buckets[:, 2].sum() == STEPS
        np.testing.assert_allclose([buckets[0, 0], buckets[-1, 1]], [norms.min(), norms.max()], rtol=1e-6)
    for variable in trained.trainable_variables:
        buckets = values[f"weights/{variable.path}"][-1][1]
        array = keras.ops.convert_to_numpy(variable)
        assert buckets[:, 2].sum() == array.size and buckets[-1, 1] == pytest.approx(array.max())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_every_k_steps(trained, tmp_path):
    logger = GradientNormLogger(every=2, per="global", log_dir=str(tmp_path), verbose=0)
    refit(trained, logger)
    _, values = events(tmp_path / "gradient_norms")
    steps, scalars = zip(*values["grad_norm/global"], strict=True)
    assert list(steps) == [0, 2, 4, 6, 8, 10]
    np.testing.assert_allclose(scalars, logger.history["grad_norm/global"], rtol=1e-6)
    refit(trained, logger)
    assert len(list((tmp_path / "gradient_norms").iterdir())) == 2  # one file a fit


def test_log_dir_without_tensorboard(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"needs tensorboard: pip install 'tf-tricks\[tensorboard\]'"):
        GradientNormLogger(log_dir=tmp_path)


@pytest.mark.parametrize(
    ("per", "update_ratio", "panels"), [("layer", True, 3), ("global", True, 2), ("global", False, 1)]
)
def test_plot(trained, tmp_path, per, update_ratio, panels):
    logger = GradientNormLogger(per=per, update_ratio=update_ratio, verbose=0)
    refit(trained, logger)
    figure = logger.plot(tmp_path / "norms.png")
    import matplotlib.figure
    import matplotlib.pyplot

    assert isinstance(figure, matplotlib.figure.Figure) and matplotlib.pyplot.get_fignums() == []
    assert (tmp_path / "norms.png").read_bytes().startswith(b"\x89PNG")
    axes = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
    assert len(axes) == panels
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), logger.history["grad_norm/global"])
    if per == "layer":
        image = axes[2].images[0].get_array()
        expected = [np.log10(logger.history[f"grad_norm/{name}"]) for name in LAYERS]
        np.testing.assert_allclose(image, expected, rtol=1e-6)
        assert [label.get_text() for label in axes[2].get_yticklabels()] == list(LAYERS)


def test_plot_before_fit():
    with pytest.raises(RuntimeError, match="GradientNormLogger.plot: nothing is recorded yet; call it after `fit`."):
        GradientNormLogger().plot()


# --- arguments --------------------------------------------------------------------------------------------------------


def test_config_round_trip(tmp_path):
    config = {"every": 3, "per": "variable", "update_ratio": False, "log_dir": str(tmp_path), "verbose": 0}
    saved = keras.saving.serialize_keras_object(GradientNormLogger(**config))
    assert saved["registered_name"] == "tf_tricks>GradientNormLogger"
    assert keras.saving.deserialize_keras_object(saved).get_config() == config


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every": "step"}, ValueError, "`every` must be one of 'epoch'. Received: every='step'"),
        ({"every": 0}, ValueError, "`every` must be an int >= 1. Received: every=0"),
        ({"every": 1.5}, TypeError, "`every` must be an int >= 1"),
        ({"every": True}, TypeError, "`every` must be an int >= 1"),
        ({"per": "model"}, ValueError, "`per` must be one of 'global', 'layer', 'variable'. Received: per='model'"),
        ({"update_ratio": 1}, TypeError, "`update_ratio` must be True or False"),
        ({"verbose": -1}, ValueError, "`verbose` must be an int >= 0"),
        ({"log_dir": 3}, TypeError, "str, bytes or os.PathLike"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        GradientNormLogger(**arguments)
