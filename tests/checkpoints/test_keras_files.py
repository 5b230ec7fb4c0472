import warnings
import zipfile

import keras
import numpy as np
import pytest

from tests.checkpoints.models import bits, fill, fit, make_model
from tf_tricks.checkpoints import DamagedCheckpoint, restore, verify

SUFFIXES = (".weights.h5", ".keras")


def save(model, folder, suffix):
    path = str(folder / f"run{suffix}")
    model.save(path) if suffix == ".keras" else model.save_weights(path)
    return path


@pytest.fixture(params=SUFFIXES)
def trained(request, tmp_path):
    """A model as after two epochs, and the file that Keras saved it to."""
    model = make_model(dropout=None)
    fill(model)
    return model, save(model, tmp_path, request.param)


def both(model):
    return bits(model.weights), bits(model.optimizer.variables)


def test_training_goes_on_with_adams_state(trained):
    model, path = trained
    other = make_model(dropout=None)
    report = restore(path, other)
    assert both(other) == both(model)
    fit(model), fit(other)
    assert both(other) == both(model)
    assert (len(report.loaded), report.skipped, report.step) == (8, {}, 8)
    assert report.optimizer == "Adam, 14 variables, 8 steps" and "not in files of Keras" in report.seeds


def test_what_keras_itself_does_with_an_optimizer_that_is_not_built(tmp_path):
    # The reason for building it first; if Keras stops skipping it, `keras_files` can become simpler.
    model, other = make_model(dropout=None), make_model(dropout=None)
    fill(model)
    path = save(model, tmp_path, ".weights.h5")
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        other.load_weights(path)
    assert int(other.optimizer.iterations) == 0
    restore(path, other)
    assert int(other.optimizer.iterations) == 8


def test_a_model_that_is_not_built(tmp_path):
    model, other = make_model(dropout=None), make_model(dropout=None, shape=None)
    fill(model)
    restore(save(model, tmp_path, ".keras"), other)
    assert both(other) == both(model)
    with pytest.raises(ValueError, match=r"not built.*model\.build"):
        restore(save(model, tmp_path, ".weights.h5"), make_model(dropout=None, shape=None))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_without_an_optimizer(tmp_path, suffix):
    bare, other = make_model(dropout=None, optimizer=None), make_model(dropout=None)
    path, before = save(bare, tmp_path, suffix), bits(other.weights)
    with pytest.raises(ValueError, match="holds no optimizer's state"):
        restore(path, other)
    assert bits(other.weights) == before
    assert "not restored" in restore(path, other, optimizer="if-present").optimizer
    assert bits(other.weights) == bits(bare.weights)


def test_another_optimizer(trained):
    model, path = trained
    other = make_model(dropout=None, optimizer="nadam")
    fill(other)
    before = both(other)
    with pytest.raises(ValueError, match="optimizer is Nadam, the checkpoint holds the state of Adam"):
        restore(path, other)
    assert both(other) == before
    assert restore(path, other, optimizer="ignore").optimizer == "left alone, as asked for"
    assert both(other) == (bits(model.weights), before[1])


def test_loss_scale(tmp_path):
    model, other = make_model(dropout=None, dtype="mixed_float16"), make_model(dropout=None)
    fill(model)
    for suffix in SUFFIXES:
        report = restore(save(model, tmp_path, suffix), other)
        assert "LossScaleOptimizer(Adam)" in report.optimizer and report.step == 8
        assert both(other) == (bits(model.weights), bits(model.optimizer.inner_optimizer.variables))
    again = make_model(dropout=None, dtype="mixed_float16")
    restore(tmp_path / "run.keras", again)
    assert both(again) == both(model)


def test_bfloat16(tmp_path):
    model, other = make_model(dropout=None, dtype="bfloat16"), make_model(dropout=None, dtype="bfloat16")
    fill(model)
    restore(save(model, tmp_path, ".weights.h5"), other)
    assert both(other) == both(model)


def test_a_file_that_does_not_fit_changes_nothing(trained):
    model, path = trained
    wider = make_model(units=5, dropout=None)
    deeper = keras.Sequential([*make_model(dropout=None).layers, keras.layers.Dense(1)])
    deeper.build((None, 3))
    shallower = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    for other in (wider, deeper, shallower):
        other.compile("adam", "mse", jit_compile=False)
        before = bits(other.weights)
        with pytest.raises(ValueError, match="does not fit the model|holds 8 arrays, and the model .* has 2 weights"):
            restore(path, other)
        assert bits(other.weights) == before
    before = bits(wider.weights)
    report = restore(path, wider, strict=False, optimizer="if-present")
    assert all(bits(wider.weights)[i] == before[i] for i, v in enumerate(wider.weights) if v.path in report.skipped)
    assert len(report.skipped) >= 5 and len(report.loaded) + len(report.skipped) == 8
    assert all(np.isfinite(weight).all() for weight in wider.get_weights())
    with pytest.raises(ValueError, match="optimizer's state fits only the weights"):
        restore(path, wider, strict=False)


def test_layers_by_name(trained):
    model, path = trained
    other = make_model(dropout=None)
    fill(other)
    before = both(other)
    report = restore(path, other, partial=["hidden"])
    assert len(report.loaded) == 2 and not report.optimizer_restored
    assert bits(other.weights[:2]) == bits(model.weights[:2])
    assert (bits(other.weights[2:]), bits(other.optimizer.variables)) == (before[0][2:], before[1])
    with pytest.raises(ValueError, match="`partial` must name layers"):
        restore(path, other, partial=["conv*"])


def test_damage_is_refused(trained):
    model, path = trained
    other = make_model(dropout=None)
    content = open_bytes(path)
    damaged = [content[: len(content) // 2], b"", b"\0" * len(content)]
    if path.endswith(".keras"):  # checksums; `.weights.h5` has none
        damaged.append(content.replace(model.get_weights()[0].tobytes(), b"\x01" * 48))
        assert damaged[-1] != content
    before = bits(other.weights)
    for broken in damaged:
        with open(path, "wb") as file:
            file.write(broken)
        for action in (lambda: restore(path, other), lambda: verify(path)):
            with pytest.raises(DamagedCheckpoint, match="run"):
                action()
    assert bits(other.weights) == before
    with open(path, "wb") as file:
        file.write(content)
    verify(path)


def open_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def test_files_of_another_kind(tmp_path):
    model = make_model(dropout=None)
    with zipfile.ZipFile(tmp_path / "run.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(DamagedCheckpoint, match="cannot be read as a file of Keras"):
        restore(tmp_path / "run.keras", model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save(tmp_path / "old.h5")
    with pytest.raises(ValueError, match="is a file of Keras 2"):
        restore(tmp_path / "old.h5", model)
