"""Scripts as users write them, healthy and with a planted fault: what is printed, the exit status, what is left."""

import dataclasses
import inspect
import os
import re
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest

from tf_tricks import _check_script, debug
from tf_tricks._check_script import Check
from tf_tricks._cli import main
from tf_tricks.debug._result import Finding

BACKEND = keras.backend.backend()
EVERY_CHECK = _check_script.CHECKS
HEAD = """
import keras
import numpy as np

rng = np.random.default_rng(0)
x = rng.normal(size=(96, 4)).astype("float32")
y = (x @ [[0.5], [-0.5], [0.2], [0.1]]).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse", jit_compile=False)
"""


@pytest.fixture
def script(tmp_path):
    def write(body, head=HEAD, name="train.py"):
        path = tmp_path / name
        path.write_text(head + textwrap.dedent(body), encoding="utf-8")
        return str(path)

    return write


@dataclasses.dataclass
class Outcome:
    findings: list

    def heading(self):
        return "look_at passed: 7 things seen\nand more"


@pytest.fixture
def seen(monkeypatch):
    """What a check that always passes was given; it is the only one."""
    cases = []

    def run(case, seconds):
        cases.append((case, seconds))
        return Outcome([Finding("remark", "all is well", is_fault=False)])

    monkeypatch.setattr(_check_script, "CHECKS", (Check("look", 1, run),))
    return cases


def test_every_check_is_a_function_of_debug():
    names = [check.name for check in _check_script.CHECKS]
    assert [name for name in names if not callable(getattr(debug, name, None))] == []
    assert len(set(names)) == len(names) == 8


# --- the script -------------------------------------------------------------------------------------------------------

BODIES = {
    "at the top": "model.fit(x, y, epochs=1000000)",
    "by name": "model.fit(y=y, x=x, sample_weight=np.ones(96), batch_size=8)",
    "in a function": """
        def train(model):
            print("begins")
            return model.fit(x, y)

        if __name__ == "__main__":
            train(model)
            raise RuntimeError("not reached")
        """,
    "of a subclass": """
        class Mine(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(1)

            def call(self, x):
                return self.dense(x)

            def fit(self, data):
                return super().fit(*data, verbose=0)

        model = Mine()
        model.compile("sgd", "mse", jit_compile=False)
        model.fit((x, y))
        """,
    "with all exceptions caught": """
        try:
            model.fit(x, y)
        except Exception:
            raise SystemExit(3)
        except BaseException:
            model.fit(x, y, epochs=1000000)
        """,
    "in a thread": """
        import threading
        thread = threading.Thread(target=model.fit, args=(x, y))
        thread.start()
        thread.join()
        """,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # Python ignores a SystemExit there
def test_stops_at_the_first_fit(script, seen, capsys, body):
    before = (sys.argv, list(sys.path), keras.Model.fit, "fit" in vars(keras.Model), sys.modules["__main__"])
    assert main(["check", script(body), "--seconds", "9"]) == 0
    assert (sys.argv, sys.path, keras.Model.fit, "fit" in vars(keras.Model), sys.modules["__main__"]) == before
    [(case, seconds)] = seen
    assert case.data.size == 96 and case.data.y.shape == (96, 1) and seconds == pytest.approx(9, abs=1)
    out, err = capsys.readouterr()
    assert (
        "train.py: " in out
        and re.search(r"\nPASS   look +[0-9.]+ s  7 things seen\n", out)
        and "1 passed, 0 failed, 0 raised, 0 skipped" in out
    )
    assert "not reached" not in out + err and err == ""


def test_arguments_and_imports_are_those_of_python(script, seen, tmp_path, capsys, monkeypatch):
    (tmp_path / "beside.py").write_text("UNITS = 3")
    path = script(
        """
        import argparse, os, sys
        from beside import UNITS
        parser = argparse.ArgumentParser()
        parser.add_argument("--units", type=int)
        parser.add_argument("folder")
        options = parser.parse_args()
        assert options.units == UNITS and __file__ == sys.argv[0]
        print("folder", options.folder, os.getcwd())
        model.fit(x, y)
        """
    )
    monkeypatch.chdir("/")
    assert main(["check", "--quiet", path, "--", "--units", "3", "out"]) == 0
    assert "folder" not in capsys.readouterr().out
    assert main(["check", path, "--", "out", "--units=3"]) == 0
    assert "folder out /\n" in capsys.readouterr().out
    assert main(["check", path, "--", "--steps", "3"]) == 2
    assert "ended with exit status 2 before its first call" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["dataset", "endless generator", "split", "pair"])
def test_data_of_every_kind(script, seen, kind):
    endless = "(" + "(x[:32], y[:32]) for _ in iter(int, 1)" + ")"
    dataset = {
        "tensorflow": "__import__('tensorflow').data.Dataset.from_tensor_slices((x, y)).batch(32).repeat()",
        "torch": "__import__('torch').utils.data.DataLoader(list(zip(x, y)), 32)",
        "jax": endless,
    }[BACKEND]
    body = {
        "dataset": f"model.fit({dataset}, steps_per_epoch=3, validation_data={dataset}, validation_steps=3)",
        "endless generator": f"model.fit({endless}, steps_per_epoch=3)",
        "split": "model.fit(x, y, validation_split=0.25)",
        "pair": "model.fit(x, y, validation_data=(x[:10], y[:10]))",
    }[kind]
    assert main(["check", script(body)]) == 0
    [(case, _)] = seen
    assert isinstance(case.data.x, np.ndarray) and case.data.x.shape[1:] == (4,) and case.data.y.shape[1:] == (1,)
    limit = 96 if BACKEND == "torch" and kind == "dataset" else 2048
    assert case.data.size == {"split": 72, "pair": 96}.get(kind, limit)
    validation = None if case.validation is None else case.validation.size
    assert validation == {"split": 24, "pair": 10, "endless generator": None}.get(kind, limit)


def test_the_batch_size_and_the_weights_are_those_of_fit(script, seen, monkeypatch):
    labels = "y = np.arange(96) % 3\n"
    dataset = "((x[i : i + 24], y[i : i + 24]) for i in range(0, 96, 24))"
    for body, batch_size, weights in (
        ("model.fit(x, y)", None, None),
        ("model.fit(x, y, batch_size=48, class_weight={0: 1.0, 1: 3.0})", 48, [1, 3, 1]),
        ("model.fit(x, np.eye(3)[y], class_weight={2: 0.5}, validation_split=0.5)", None, [1, 1, 0.5]),
        ("model.fit(x, y[:, None], class_weight={2: 0.5}, sample_weight=np.full(96, 2.0))", None, [2, 2, 1]),
        (f"model.fit({dataset}, class_weight={{0: 4}})", 24, [4, 1, 1]),
    ):
        assert main(["check", script(labels + body)]) == 0
        case, _ = seen.pop()
        assert case.batch_size == batch_size
        found = case.data.sample_weight
        assert found is None if weights is None else found.tolist() == (weights * 32)[: case.data.size]
        assert case.data.size == (48 if "split" in body else 96)
    given = {}
    for name in ("find_learning_rate", "batch_size_advice", "check_gradients", "overfit_one_batch"):
        function = getattr(debug, name)

        def replaced(*args, name=name, **kwargs):
            given[name] = kwargs.get("batch_size")
            return Outcome([])

        replaced.__signature__ = inspect.signature(function)
        monkeypatch.setattr(debug, name, replaced)
    checks = [check for check in EVERY_CHECK if hasattr(getattr(debug, check.name), "__signature__")]
    monkeypatch.setattr(_check_script, "CHECKS", tuple(checks))
    assert main(["check", script("model.fit(x, y, batch_size=48)")]) == 0
    # That of the gradients' check is no size of training.
    wanted = {"overfit_one_batch": None, "check_gradients": None, "find_learning_rate": 48, "batch_size_advice": 48}
    assert given == wanted


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("1 / 0", "train.py raised ZeroDivisionError before its first call of `keras.Model.fit`"),
        ("def broken(:", "train.py raised SyntaxError before its first"),
        ("model.train_on_batch(x, y)", "train.py ended before its first call of `keras.Model.fit`"),
        ("import sys; sys.exit(0)", "train.py ended with exit status 0 before its first"),
        ("keras.Sequential([keras.layers.Dense(1)]).fit(x, y)", "train.py raised ValueError before its first"),
        ("model.fit(x, y, epoch=3)", "train.py raised TypeError before its first"),
        ("model.fit(x, y[:5])", "train.py raised ValueError before its first"),
    ],
)
def test_a_script_that_cannot_run_or_does_not_fit(script, seen, capsys, body, sentence):
    assert main(["check", script(body)]) == 2
    err = capsys.readouterr().err
    assert sentence in err and seen == []
    assert ("Traceback (most recent call last):" in err) == ("raised" in sentence)
    assert "_check_script.py" not in err and "runpy" not in err


def test_a_script_that_is_not_there(capsys):
    assert main(["check", "/nowhere/train.py"]) == 2
    assert "tf_tricks: /nowhere/train.py cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["check"], ["check", "a.py", "--seconds", "-1"], ["check", "a.py", "--skip", "x"], ["check", "a", "-x"]],
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2 and "usage: " in capsys.readouterr().err


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page(script, monkeypatch, capsys):
    given = []

    def fails(case, seconds):
        given.append(seconds)
        print("hidden")
        return Outcome([Finding("a", f"fault number {i} " + "and so on " * 12) for i in range(5)])

    def raises(case, seconds):
        given.append(seconds)
        raise ValueError("planted")

    checks = (
        Check("fails", 1, fails),
        Check("raises", 3, raises),
        Check("none", 1, fails, lambda case: "does not apply"),
        Check("left", 1, fails),
    )
    monkeypatch.setattr(_check_script, "CHECKS", checks)
    assert main(["check", script("model.fit(x, y)"), "--seconds", "12", "--skip", "left"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train.py: Sequential `sequential") and "5 parameters, 96 samples" in lines[0]
    assert lines[1].startswith("FAIL   fails ") and lines[2].startswith("       fault number 0 and so on")
    assert "       and 2 more" in lines and "hidden" not in str(lines)
    marks = ("PASS", "FAIL", "ERROR", "skip")
    found = [tuple(line.split()[:2]) for line in lines if line.startswith(marks)]
    assert found == [("FAIL", "fails"), ("ERROR", "raises"), ("skip", "none"), ("skip", "left")]
    assert next(line for line in lines if "raises" in line).endswith("ValueError: planted")
    assert lines[-1].startswith("0 passed, 1 failed, 1 raised, 2 skipped")
    assert max(map(len, lines)) <= 150
    np.testing.assert_allclose(given, [3, 12], atol=1)  # a quarter of 12; then what is left


ERRORS = {
    "Exception encountered when calling Dense.call().\n\n\x1b[1mThe shapes do\nnot fit.\x1b[0m\n\nArguments received "
    "by Dense.call():\n  - inputs=tensor": "The shapes do not fit.",
    'in user code:\n\n    File "/b.py", line 9, in call  *\n        y = x @ w\n\n    ValueError: Not so.\n': "Not so.",
    "Graph execution error:\n\nDetected at node sub defined at (most recent call last):\n<stack traces unavailable>\n"
    "Incompatible shapes: [2] vs. [3]\n\t [[{{node sub}}]] [Op:__inference_3]": "Incompatible shapes: [2] vs. [3]",
    "": "",
    "plain: words": "plain: words",
}


@pytest.mark.parametrize(("text", "wanted"), ERRORS.items(), ids=range(len(ERRORS)))
def test_an_error_is_its_last_sentence(text, wanted):
    assert _check_script.last_sentence(ValueError(text)) == wanted


def test_the_backend_that_the_script_chooses(script, capsys, monkeypatch):
    started = []
    monkeypatch.setattr(
        _check_script.subprocess, "run", lambda command, **kw: started.append((command, kw)) or subprocess.Popen
    )
    monkeypatch.setattr(subprocess.Popen, "returncode", 7, raising=False)
    other = "jax" if BACKEND != "jax" else "torch"
    path = script("", head=f'import os\nos.environ["KERAS_BACKEND"] = "{other}"\n')
    assert main(["check", path, "--quiet", "--seconds", "3", "--", "--units", "2"]) == 7
    [(command, arguments)] = started
    assert arguments["env"]["KERAS_BACKEND"] == other
    assert command[1:] == ["-m", "tf_tricks", "check", path, "--seconds", "3.0", "--quiet", "--", "--units", "2"]
    assert main(["check", script("", head=f'import os\nos.environ["KERAS_BACKEND"] = "{BACKEND}"\n')]) == 2


# --- with the real checks ---------------------------------------------------------------------------------------------


def test_a_planted_fault_and_its_healthy_twin(script, capsys, monkeypatch):
    quick = [check for check in _check_script.CHECKS if check.name in ("check_inputs", "signal_propagation")]
    monkeypatch.setattr(_check_script, "CHECKS", tuple(quick))
    assert main(["check", script("model.fit(x, y)")]) == 0
    assert "2 passed, 0 failed, 0 raised" in capsys.readouterr().out
    assert main(["check", script("x[7, 2] = np.nan\nmodel.fit(x, y)")]) == 1
    assert "FAIL   check_inputs" in capsys.readouterr().out


def checks_named(*names):
    return tuple(check for check in EVERY_CHECK if check.name in names)


def test_a_loss_that_only_the_train_step_knows_and_nothing_to_train_are_no_errors(script, capsys, monkeypatch):
    monkeypatch.setattr(_check_script, "CHECKS", checks_named("check_gradients", "batch_size_advice"))
    own = """
        class Own(keras.Model):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(4)

            def call(self, x):
                return self.dense(x)

            def train_step(self, *args):
                raise NotImplementedError

        model = Own()
        model.compile("sgd")
        model.fit(x)
        """
    assert main(["check", script(own), "--seconds", "2"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("only `Own.train_step` knows the loss: override `compute_loss`") == 2, out
    assert "0 failed, 0 raised, 2 skipped" in out
    names = ("check_gradients", "find_learning_rate", "batch_size_advice")
    monkeypatch.setattr(_check_script, "CHECKS", checks_named(*names))
    assert main(["check", script("model.trainable = False\nmodel.fit(x, y)"), "--seconds", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("the model has no trainable weights") == 3 and "0 raised, 3 skipped" in out


def test_a_model_that_takes_batches_of_one_size(script, capsys, monkeypatch):
    monkeypatch.setattr(_check_script, "CHECKS", checks_named("signal_propagation", "loss_outliers"))
    fixed = """
        layers = [keras.layers.Reshape((4, 1)), keras.layers.GRU(4, stateful=True), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input(batch_shape=(24, 4)), *layers])
        model.compile("sgd", "mse", jit_compile=False)
        model.fit(x, y, batch_size=24)
        """
    assert main(["check", script(fixed)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "PASS signal_propagation" in out, out
    assert "the model takes batches of 24 samples only" in out and "0 raised, 1 skipped" in out


def test_what_the_checks_found_is_told_though_nothing_is_wrong(script, capsys, monkeypatch):
    def by_steps(check, **options):  # a limit in seconds would cut off another part on each machine
        def run(case, seconds):
            data = case.model, case.data.x, case.data.y
            return getattr(debug, check.name)(*data, batch_size=case.batch_size, seconds=None, verbose=0, **options)

        return dataclasses.replace(check, run=run)

    checks = zip(checks_named("find_learning_rate", "batch_size_advice"), ({"steps": 900}, {}), strict=True)
    monkeypatch.setattr(_check_script, "CHECKS", tuple(by_steps(check, **options) for check, options in checks))
    assert main(["check", script("model.fit(x, y, batch_size=16)")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(r"PASS find_learning_rate [0-9.]+ s [0-9.e+-]+; safe up to .*\. The present rate is 0.01", out)
    assert re.search(r"PASS batch_size_advice [0-9.]+ s A batch of 16 ", out)


def test_all_checks_from_the_command_line(script):
    body = """
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.BatchNormalization(),
                                  keras.layers.ReLU(), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(1e-2), "mse", jit_compile=False)
        model.fit(x, y)
        """
    command = [sys.executable, "-m", "tf_tricks", "check", script(body), "--seconds", "8"]
    environment = {**os.environ, "KERAS_BACKEND": BACKEND}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode in (0, 1), done.stderr
    assert [line.split()[1] for line in lines if line.startswith(("PASS", "FAIL"))] == [
        check.name for check in _check_script.CHECKS
    ]
    assert len(lines) <= 60 and " 0 raised, 0 skipped" in lines[-1]
