import os
import pathlib

import keras
import numpy as np
import pytest

from tests.checkpoints.models import bits, fill, fit, make_model, predict, train_elsewhere
from tests.checkpoints.models import state as everything
from tf_tricks.checkpoints import DamagedCheckpoint, describe, file_format, latest, restore, save, verify


@pytest.fixture
def trained(tmp_path):
    """A model as after two epochs, and the file that it was saved to."""
    model, path = make_model(), str(tmp_path / "run.safetensors")
    fill(model)
    save(path, model, epoch=2, metadata={"note": "before the change", "classes": [1, 2]})
    return model, path


def renamed(**options):
    """Four layers of other automatic names than the first model of a process has."""
    return make_model(names=(None, None), **options)


def test_a_restored_run_goes_on_bit_for_bit(trained):
    model, path = trained
    other = make_model()
    report = restore(path, other)
    assert everything(other) == everything(model)
    fit(model, 2), fit(other, 2)
    assert everything(other) == everything(model)
    assert len(report.loaded) == 8 and not (report.skipped or report.unused or report.cast)
    assert (report.epoch, report.step, report.optimizer_restored) == (2, 8, True)
    assert report.metadata == {"note": "before the change", "classes": [1, 2]}
    assert "Restored 8 of 8 weights" in str(report) and "Adam, 14 variables, 8 steps" in str(report)


def test_automatic_names_do_not_matter(tmp_path):
    model, other = renamed(), renamed()
    fill(model)
    save(tmp_path / "run", model)
    assert [v.path for v in model.weights] != [v.path for v in other.weights]
    for strict in (True, False):
        again = renamed()
        report = restore(tmp_path / "run", again, strict)
        assert everything(again) == everything(model)
        assert len(report.loaded) == 8 and report.optimizer_restored


def test_saved_and_restored_inside_fit(tmp_path):
    model, bytes_then = make_model(), {}

    class There(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                save(tmp_path / "run", self.model)
                bytes_then["saved"] = everything(self.model)
            if batch == 2:
                restore(tmp_path / "run", self.model)

        def on_train_batch_begin(self, batch, logs=None):
            if batch == 3:
                bytes_then["restored"] = everything(self.model)

    model.fit(np.ones((32, 3)), np.ones((32, 1)), batch_size=8, verbose=0, shuffle=False, callbacks=[There()])
    assert bytes_then["saved"] == bytes_then["restored"]
    assert int(model.optimizer.iterations) == 3


def test_another_backend(tmp_path, backend):
    other = "jax" if backend == "tensorflow" else "tensorflow"
    pytest.importorskip(other, reason="the backend that writes the checkpoint")
    child = train_elsewhere(other, tmp_path)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 0, errors
    with np.load(tmp_path / "results.npz") as file:
        results = dict(file)
    model = make_model(dropout=None)
    assert restore(tmp_path, model).optimizer == "Adam, 14 variables, 12 steps"
    np.testing.assert_allclose(predict(model), results["before"], rtol=1e-5, atol=1e-6)
    without = make_model(dropout=None)
    restore(tmp_path, without, optimizer="ignore")
    for each in (model, without):
        fit(each)
    np.testing.assert_allclose(predict(model), results["after"], rtol=1e-4, atol=1e-5)
    assert np.abs(predict(without) - results["after"]).max() > 1e-3  # so the moments mattered


# --- the optimizer is never skipped in silence --------------------------------------------------------------------


def test_a_file_without_an_optimizer(tmp_path):
    model, other = make_model(), make_model()
    fill(model)
    save(tmp_path / "run", model, optimizer=False)
    before = bits(other.variables)
    with pytest.raises(ValueError, match=r"holds no optimizer's state.*if-present"):
        restore(tmp_path / "run", other)
    assert bits(other.variables) == before
    report = restore(tmp_path / "run", other, optimizer="if-present")
    assert bits(other.weights) == bits(model.weights)
    assert "not restored: The checkpoint holds no optimizer" in str(report) and not report.optimizer_restored


def test_an_optimizer_of_another_class(trained):
    model, path = trained
    other = make_model(optimizer="nadam")
    before = bits(other.weights)
    with pytest.raises(ValueError, match="optimizer is Nadam, the checkpoint holds the state of Adam"):
        restore(path, other)
    assert bits(other.weights) == before
    report = restore(path, other, optimizer="if-present")
    assert bits(other.weights) == bits(model.weights)
    assert "not restored: Checkpoint: the model's optimizer is Nadam" in report.optimizer


def test_the_optimizer_can_be_left_alone(trained):
    model, path = trained
    other = make_model()
    fill(other)
    before = bits(other.optimizer.variables)
    assert restore(path, other, optimizer="ignore").optimizer == "left alone, as asked for"
    assert bits(other.optimizer.variables) == before and bits(other.weights) == bits(model.weights)


def test_a_model_without_an_optimizer(trained, tmp_path):
    model, path = trained
    bare = make_model(optimizer=None)
    with pytest.raises(ValueError, match=r"no optimizer.*compile"):
        save(tmp_path / "bare", bare)
    with pytest.raises(ValueError, match=r"no optimizer for the state.*compile"):
        restore(path, bare)
    restore(path, bare, optimizer="ignore")
    assert bits(bare.weights) == bits(model.weights)
    save(tmp_path / "bare", bare, optimizer=False)
    assert describe(tmp_path / "bare").optimizer is None


# --- other precision ----------------------------------------------------------------------------------------------


def test_into_mixed_precision_and_back(trained, tmp_path):
    model, path = trained
    mixed = make_model(dtype="mixed_float16")
    report = restore(path, mixed)
    assert "into LossScaleOptimizer(Adam): its loss scale starts afresh" in report.optimizer
    assert bits(mixed.weights) == bits(model.weights)
    assert bits(mixed.optimizer.inner_optimizer.variables) == bits(model.optimizer.variables)
    fill(mixed)
    save(tmp_path / "mixed", mixed)
    again, single = make_model(dtype="mixed_float16"), make_model()
    restore(tmp_path / "mixed", again)
    assert everything(again) == everything(mixed)
    report = restore(tmp_path / "mixed", single)
    assert "LossScaleOptimizer(Adam), 14 variables, 8 steps, into Adam: without loss scale" in report.optimizer
    assert bits(single.optimizer.variables) == bits(mixed.optimizer.inner_optimizer.variables)
    assert report.step == describe(tmp_path / "mixed").step == 8


def test_into_bfloat16(trained):
    model, path = trained
    half = make_model(dtype="bfloat16")
    report = restore(path, half)
    assert set(report.cast.values()) == {"float32 -> bfloat16"}
    assert "Converted float32 -> bfloat16" in str(report)
    for ours, theirs in zip(half.weights, model.weights, strict=True):
        exact = np.asarray(keras.ops.convert_to_numpy(theirs))
        rounded = np.asarray(keras.ops.convert_to_numpy(ours)).astype("float32")
        np.testing.assert_allclose(rounded, exact, rtol=2**-8)


# --- parts of a file ----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_or_reported(trained):
    model, path = trained
    wider = make_model(units=5)
    before = bits(wider.weights)
    with pytest.raises(
        ValueError, match=r"hidden/kernel` has shape \(3, 5\).*hidden/kernel` with shape \(3, 4\).*strict=False"
    ):
        restore(path, wider)
    with pytest.raises(ValueError, match=r"optimizer's state fits only.*first: `.*hidden/kernel`"):
        restore(path, wider, strict=False)
    assert bits(wider.weights) == before
    report = restore(path, wider, strict=False, optimizer="if-present")
    assert [name.split("/", 1)[1] for name in report.loaded] == ["head/bias"]
    assert "of shape (3, 5), and of shape (3, 4) in the file" in str(report)
    assert len(report.skipped) == len(report.unused) == 7
    assert bits(wider.weights[-1:]) == bits(model.weights[-1:])
    assert bits(wider.weights[:-1]) == before[:-1]


def test_layers_by_name(trained):
    model, path = trained
    tuned = make_model(units=4, names=("hidden", "new_head"))
    before = bits(tuned.weights)
    report = restore(path, tuned, partial=["hid*", "batch*"])
    loaded = [name.split("/")[1] for name in report.loaded]
    assert loaded[:2] == ["hidden", "hidden"] and len(loaded) == 6
    assert bits(tuned.weights[:6]) == bits(model.weights[:6])
    assert bits(tuned.weights[6:]) == before[6:]
    assert set(report.skipped.values()) == {"not chosen by `partial`"}
    assert [name.split("/")[1] for name in report.unused] == ["head", "head"]
    assert not report.optimizer_restored and "`partial`" in report.optimizer
    with pytest.raises(ValueError, match="`partial` must name layers .* hidden, .*new_head. Received: 'conv*"):
        restore(path, tuned, partial=["hidden", "conv*"])
    with pytest.raises(ValueError, match="new_head/kernel` is not in the file. Pass strict=False"):
        restore(path, tuned, partial="new_head")
    assert restore(path, tuned, strict=False, partial="new_head").loaded == []
    with pytest.raises(ValueError, match="`partial` must be None or a list"):
        restore(path, tuned, partial=[])


def test_a_backbone_inside_another_model(tmp_path):
    def build(classes):
        backbone = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(4)], name="backbone")
        inputs = keras.Input((3,))
        return keras.Model(inputs, keras.layers.Dense(classes, name="top")(backbone(inputs)))

    model, tuned = build(2), build(7)
    save(tmp_path / "run", model, optimizer=False)
    report = restore(tmp_path / "run", tuned, partial=["backbone"])
    assert len(report.loaded) == 4 and all(name.startswith("backbone/") for name in report.loaded)
    assert bits(tuned.weights[:4]) == bits(model.weights[:4])
    assert restore(tmp_path / "run", tuned, partial=["backbone/*"]).loaded == report.loaded


def test_seeds_that_are_missing_or_too_many(trained, tmp_path):
    _, path = trained
    without = make_model(dropout=None)
    with pytest.raises(ValueError, match="0 variables in `seeds`, the checkpoint 1"):
        restore(path, without)
    assert "another number of generators" in restore(path, without, strict=False).seeds


# --- files --------------------------------------------------------------------------------------------------------


def test_the_newest_that_verifies(trained, tmp_path):
    model, path = trained
    assert latest(tmp_path) == path
    for name in ("b.safetensors", "a.safetensors"):
        save(tmp_path / name, model, epoch=3)
    (tmp_path / "notes.txt").write_text("not a checkpoint")
    (tmp_path / ".hidden").write_text("neither")
    assert latest(tmp_path) == str(tmp_path / "a.safetensors")
    content = bytearray((tmp_path / "a.safetensors").read_bytes())
    content[-7] ^= 16
    (tmp_path / "a.safetensors").write_bytes(content)
    (tmp_path / "b.safetensors").write_bytes(content[:-100])
    assert latest(tmp_path) == path
    assert restore(tmp_path, make_model()).path == path
    for name in ("a.safetensors", "b.safetensors"):
        other = make_model()
        before = bits(other.variables)
        with pytest.raises(DamagedCheckpoint, match=name):
            verify(tmp_path / name)
        with pytest.raises(DamagedCheckpoint, match=name):
            restore(tmp_path / name, other)
        assert bits(other.variables) == before
    assert "DAMAGED" in str(describe(tmp_path / "a.safetensors"))
    os.remove(path)
    assert latest(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="holds no checkpoint that verifies"):
        restore(tmp_path, model)


def test_paths_that_cannot_be(tmp_path):
    model = make_model(dropout=None)
    with pytest.raises(FileNotFoundError, match="There is no checkpoint .*missing"):
        restore(tmp_path / "missing", model)
    with pytest.raises(NotADirectoryError, match="`directory` must be a folder"):
        latest(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "no folder" / "run", model)
    for name in ("run.weights.h5", "run.keras"):
        with pytest.raises(ValueError, match="`path` must not end in"):
            save(tmp_path / name, model)
    with pytest.raises(ValueError, match="has no variables yet"):
        save(tmp_path / "run", keras.Sequential([keras.layers.Dense(1)]))
    with pytest.raises(TypeError, match="metadata"):
        save(tmp_path / "run", model, metadata={"callback": fit})
    with pytest.raises(ValueError, match="`optimizer` must be one of 'require'"):
        restore(tmp_path, model, optimizer="maybe")
    assert os.listdir(tmp_path) == []
    file_format.write(tmp_path / "other", {"weights": np.zeros(3)})
    with pytest.raises(DamagedCheckpoint, match="does not hold the state of a model"):
        restore(tmp_path / "other", model)
    file_format.write(tmp_path / "other", {"format": 2, "tf_tricks": "9.0", "model": {}, "run": {}})
    with pytest.raises(ValueError, match="has layout 2, written by tf_tricks 9.0.*newer"):
        restore(tmp_path / "other", model)


def test_a_file_that_cannot_be_written_leaves_the_old_one(trained, monkeypatch):
    model, path = trained
    content = pathlib.Path(path).read_bytes()
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save(path, model)
    assert pathlib.Path(path).read_bytes() == content
    assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)]


def test_a_description(trained):
    model, path = trained
    about = describe(path)
    assert (about.epoch, about.step, about.optimizer, about.moments) == (2, 8, "Adam", True)
    assert about.versions["keras"] == keras.__version__ and about.versions["backend"] == keras.backend.backend()
    sizes = {path: size for _, path, _, _, size in about.variables}
    assert sizes[model.weights[0].path] == 3 * 4 * 4
    text = str(about)
    assert len(text.splitlines()) < 40
    for part in (
        "epoch 2, step 8",
        "Adam, with its moments",
        "checksum   ok",
        "hidden/kernel",
        "(3, 4)",
        "before the change",
    ):
        assert part in text
