"""The benchmarks run and print what they promise; how fast anything is, no test asks."""

import importlib.util
import pathlib
import sys

import keras
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "benchmarks"


def tiny():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(10)]), (8, "float")


def load(name, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds its own
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def callbacks_overhead(monkeypatch):
    module = load("callbacks_overhead", monkeypatch)
    monkeypatch.setattr(module, "MODELS", {"tiny": tiny})
    monkeypatch.setattr(module, "deep", tiny)
    return module


@pytest.fixture
def checkpoint_cost(monkeypatch):
    return load("checkpoint_cost", monkeypatch)


def test_callbacks_overhead_measures_every_variant(callbacks_overhead, backend, tmp_path, capsys):
    output = tmp_path / "overhead.md"
    jit = "on" if backend == "jax" else "off"
    names = ["bare, again", *callbacks_overhead.ours(), "all four", "keras TerminateOnNaN"]
    names = (names if backend == "torch" else []) + ["second gradient pass", callbacks_overhead.FLOOR]  # Torch is quick
    small = ["--jit", jit, "--repeats", "1", "--steps", "3", "--variants", *names]
    callbacks_overhead.main([*small, "--output", str(output)])
    text = output.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    for name in ["bare", *names]:
        cells = next(line for line in text.splitlines() if line.startswith(f"| {name} |")).split(" | ")
        assert float(cells[1]) > 0, cells
        assert float(cells[2]) > 0, cells
    assert "Device memory of all four callbacks" in text
    assert keras.__version__ in text


def test_every_benchmark_model_builds_and_its_data_fits(callbacks_overhead):
    for build in (callbacks_overhead.mlp, callbacks_overhead.cnn, callbacks_overhead.transformer):
        model, (_, kind) = build()
        x, y = callbacks_overhead.data(model, kind, 2)
        assert x.shape[1:] == model.input_shape[1:]
        assert (y.shape, model.output_shape) == ((2,), (None, 10))


SMALL = ["--rounds", "1", "--saves", "2", "--every", "2", "--batch", "4", "--width", "8"]


@pytest.mark.any_backend
def test_checkpoint_cost_measures_every_variant(checkpoint_cost, tmp_path, capsys):
    output, names = tmp_path / "cost.md", ["BackupAndRestore", "ModelCheckpoint", "TrainingCheckpoint", "floor"]
    arguments = [*SMALL, "--no-memory", "--directory", str(tmp_path), "--output", str(output)]
    checkpoint_cost.main([*arguments, "--variants", *names])
    text = output.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    rows = {line.split(" | ")[0]: line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
    wanted = [name for name in checkpoint_cost.variants() if any(each in name for each in ["bare", *names])]
    for name in set(wanted) - {"bare, again"}:  # that one was not asked for
        assert float(rows[f"| {name}"][1]) > 0, text
        assert float(rows[f"| {name}"][2]) > 0, text
    assert "Our file, with its checksum" in text and "Beside the steps: our write" in text
    assert keras.__version__ in text
    assert [path.name for path in tmp_path.iterdir()] == ["cost.md"]


def test_checkpoint_cost_tells_the_stalls_from_the_steps(checkpoint_cost, tmp_path):
    options = ["--every", "4", "--saves", "2", "--batch", "4", "--width", "8", "--directory", str(tmp_path)]
    variant = checkpoint_cost.Variant(None, checkpoint_cost.parse(options))
    clock = checkpoint_cost.Steps()
    #             step 0  1  2  3  4  5  6   7  8   9: after 3 and 7 it saves, and 0 and 1 are not counted
    clock.wall = [0.0, 9, 9, 10, 13, 14, 15, 16, 20, 21, 22]
    clock.cpu = [each / 2 for each in clock.wall]
    assert variant._times(clock) == {"wall": 13 / 8, "cpu": 13 / 16, "stall": [2, 3]}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of the memory is read from /proc")
def test_checkpoint_cost_reads_the_peak_of_the_memory(checkpoint_cost, tmp_path, capsys):
    checkpoint_cost.main([*SMALL, "--directory", str(tmp_path), "--peak-of", "TrainingCheckpoint"])
    assert int(capsys.readouterr().out.splitlines()[-1]) > 10e6


@pytest.mark.any_backend
def test_initializers_measures_signal_and_training(monkeypatch, tmp_path, capsys):
    initializers = load("initializers", monkeypatch)
    output, picture = tmp_path / "initializers.md", tmp_path / "initializers.png"
    initializers.main(["--quick", "--output", str(output), "--picture", str(picture)])
    text = output.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    for name in initializers.VARIANTS:
        signal, training = (line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert len(signal.split(" | ")) == 1 + 3 * len(initializers.ACTIVATIONS)
        assert training.count("%") == len(initializers.ACTIVATIONS)
    assert picture.stat().st_size > 1000 and keras.__version__ in text


def test_augmentation_measures_ours_beside_keras_s(monkeypatch, tmp_path, capsys):
    module = load("augmentation", monkeypatch)
    monkeypatch.setattr(module, "SIZES", {32: 2})
    output = tmp_path / "augmentation.md"
    module.main(["--cases", "flip", "brightness", "--rounds", "1", "--modes", module.MODES[0], "--output", str(output)])
    text = output.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    for name in ("flip", "brightness"):
        lines = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert len(lines) == 2, "one for float32, one for uint8"
        assert all(float(line.split(" | ")[2]) > 0 for line in lines)


def test_the_summary_of_the_augmentation_benchmark_compares_rows_with_targets(monkeypatch):
    module = load("augmentation", monkeypatch)

    def row(ours, keras_s, seconds=1.0, peak=200.0):
        other = {"ms": keras_s, "compile": 1.0, "peak": None} if isinstance(keras_s, list) else keras_s
        return {"tf_tricks": {"ms": ours, "compile": seconds, "peak": peak}, "Keras": other}, 100

    rows = {
        (224, "float32", "graph", "gaussian noise"): row([1.0, 2.0, 4.0], [16.0, 32.0, 4.0]),
        (224, "float32", "graph", "pipeline of six, one matrix"): row([50.0] * 3, [700.0] * 3, peak=400.0),
        (224, "float32", "graph", "flip"): row([2.0] * 3, [1.0] * 3, seconds=6.0),
        (224, "float32", "XLA", "pipeline of six, one matrix"): row([40.0] * 3, "does not compile"),
    }
    lines = [line for line in module.summary(rows) if line.endswith("met |") or line.endswith("missed |")]
    expected = [
        ("graph, float32, 224: pipeline of six, one matrix", ">= 15 x", "14.0", "missed"),
        ("graph, float32, 224: gaussian noise", ">= 15 x", "16.0", "met"),
        ("graph, float32, 224: median over the layers", ">= 5 x", "14.0", "met"),
        ("graph, float32, 224: slowest beside Keras's, flip", ">= 1 x, within 5 %", "0.50", "missed"),
        ("graph, float32, 224: longest first call, flip", "< 5 s", "6.0", "missed"),
        ("graph, float32, 224: most memory, pipeline of six, one matrix", "<= 3 batches", "4.0", "missed"),
        ("XLA, float32, 224: pipeline of six, one matrix", ">= 15 x Keras's graph", "17.5", "met"),
        ("XLA, float32, 224: longest first call, pipeline of six, one matrix", "< 5 s", "1.0", "met"),
        ("XLA, float32, 224: most memory, pipeline of six, one matrix", "<= 3 batches", "2.0", "met"),
    ]
    assert lines == [f"| {' | '.join(each)} |" for each in expected]


@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="the system does not say")
def test_the_peak_of_the_augmentation_benchmark_is_what_a_call_needs(monkeypatch):
    module = load("augmentation_measuring", monkeypatch)
    if module.BACKEND == "tensorflow":
        import tensorflow as tf

        one_more = tf.function(lambda x: x + 1.0)
        x = tf.zeros(2**24)
        assert 1.0 <= module.peak_of(lambda: one_more(x)) / 2**26 <= 2.0
        return
    assert module.peak_of(lambda: np.ones(2**23)) == pytest.approx(2**26, rel=0.1)
    assert module.peak_of(lambda: [np.ones(2**23) for _ in range(2)]) == pytest.approx(2**27, rel=0.1)
    assert module.peak_of(lambda: None) < 2**22


def test_every_case_of_the_augmentation_benchmark_can_be_made(monkeypatch):
    module = load("augmentation", monkeypatch)
    for make_ours, make_keras in module.CASES.values():
        assert make_ours(32, "uint8").compute_dtype == "uint8"
        assert callable(make_keras(32, "float32"))


def test_keras_s_noise_takes_bytes_by_way_of_float32(monkeypatch):
    measuring, cases = load("augmentation_measuring", monkeypatch), load("augmentation", monkeypatch).CASES
    layer = measuring.by_way_of_float32(cases["gaussian noise"][1])(8, "uint8")
    x = np.random.default_rng(0).integers(20, 200, (2, 8, 8, 3)).astype("uint8")
    changed = keras.ops.convert_to_numpy(layer(keras.ops.convert_to_tensor(x), training=True))
    assert changed.dtype == "uint8"
    assert np.abs(changed.astype(int) - x).max() <= 1  # a standard deviation of 0.1


@pytest.mark.any_backend
def test_debug_cost_measures_every_function_beside_plain_training(monkeypatch, tmp_path, capsys):
    module, output = load("debug_cost", monkeypatch), tmp_path / "debug_cost.md"
    monkeypatch.setattr(module, "MODELS", {"mlp": normalised})
    module.main(["--quick", "--models", "mlp", "--output", str(output)])
    text = output.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    for name in ["10 steps of `fit`", *module.TARGETS]:
        cells = next(line for line in text.splitlines() if line.startswith(f"| mlp | {name} |")).split(" | ")
        assert float(cells[3].removesuffix(" (!)")) >= 0, cells  # an error in its place is no number
        assert name.endswith("`fit`") or float(cells[2]) == module.TARGETS[name]
    assert keras.__version__ in text


def normalised():
    layers = keras.layers
    return keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.BatchNormalization(), layers.Dense(10)])


def test_debug_cost_knows_every_debugging_function(monkeypatch):
    from tf_tricks import debug

    module = load("debug_cost", monkeypatch)
    functions = {name for name in debug.__all__ if name[0].islower()} - {"signal_propagation"}  # one forward pass
    assert functions == set(module.TARGETS)


def test_every_model_of_debug_cost_is_small_and_its_data_fit(monkeypatch):
    module = load("debug_cost", monkeypatch)
    for build in module.MODELS.values():
        model = build()
        x, y = module.data(model, 2)
        assert model.count_params() <= 1e6
        assert (x.shape[1:], y.shape, model.output_shape) == (model.input_shape[1:], (2,), (None, 10))


@pytest.mark.any_backend
def test_learning_rate_finder_measures_spread_and_loss(monkeypatch, tmp_path, capsys):
    finder = load("learning_rate_finder", monkeypatch)
    output = tmp_path / "learning_rate_finder.md"
    finder.main(["--quick", "--tasks", "diabetes, MLP", "--output", str(output)])
    text = output.read_text()
    assert text.strip() == capsys.readouterr().out.strip() and keras.__version__ in text
    cells = next(line for line in text.splitlines() if line.startswith("| diabetes, MLP |")).split(" | ")
    assert len(cells) == 9 and cells[7] in ("0 of 2", "1 of 2", "2 of 2")
    suggestions, ratios = ([float(each) for each in cells[i].split()] for i in (1, 6))
    assert len(suggestions) == len(ratios) == 2 and min(suggestions + ratios) > 0
    assert float(cells[2].split()[0]) == pytest.approx(max(suggestions) / min(suggestions), rel=0.1)


def test_every_task_of_learning_rate_finder_fits_its_model(monkeypatch):
    finder = load("learning_rate_finder", monkeypatch)
    for task in finder.TASKS:
        model, x, y = finder.compiled(task, 0)
        assert model.output_shape[0] is None and len(x) == len(y) and model.count_params() < 50_000
        assert model.predict_on_batch(x[:2]).shape == (2, 1 if "diabetes" in task else 10)
