"""Run a user's training script up to its first `fit`, and the debugging functions in place of that `fit`."""

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import runpy
import subprocess
import sys
import textwrap
import time
import traceback
import typing

import keras

from tf_tricks import debug
from tf_tricks._backend import BACKEND
from tf_tricks.debug._data import Samples, is_dataset, samples
from tf_tricks.debug._result import Finding
from tf_tricks.debug.signal_propagation import is_healthy
from tf_tricks.fit_hooks.replay_state import sublayers

DATASET_SAMPLES = 2048  # as many of a dataset are read, once for all checks
SIGNAL_SAMPLES = 256
FAULTS_SHOWN = 3  # of one check: the report is one page
_INDENT, _WIDTH = " " * 7, 100


@dataclasses.dataclass
class Case:
    """The first `fit` of a script: its model, data and validation data, as `Samples`."""

    model: keras.Model
    data: Samples
    validation: Samples | None = None


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: str, what `--skip` takes: the name of the function in `tf_tricks.debug`.
        weight: float, its part of the time.
        run: callable `(case, seconds) -> result` with `findings`.
        skip: callable `case -> str`, why it does not apply, "" if it does.
    """

    name: str
    weight: float
    run: typing.Callable
    skip: typing.Callable = lambda case: ""


def _of_debug(name):
    """Call a function of `tf_tricks.debug` with the model and the data."""

    def run(case, seconds):
        function = getattr(debug, name)
        extra = {"sample_weight": case.data.sample_weight} if case.data.sample_weight is not None else {}
        extra = {key: value for key, value in extra.items() if key in inspect.signature(function).parameters}
        return function(case.model, case.data.x, case.data.y, seconds=seconds, verbose=0, **extra)

    return run


def _inputs(case, seconds):
    validation = None if case.validation is None else (case.validation.x, case.validation.y)
    return debug.check_inputs(
        case.data.x, case.data.y, model=case.model, validation=validation, seconds=seconds, verbose=0
    )


@dataclasses.dataclass
class _Findings:
    findings: list


def _signal(case, seconds):
    part = case.data.take(slice(SIGNAL_SAMPLES))
    verdict = debug.signal_propagation(case.model, part.x, part.y).verdict
    return _Findings([] if is_healthy(verdict) else [Finding("signal", verdict)])


def _without_batch_norm(case):
    found = any(isinstance(layer, keras.layers.BatchNormalization) for layer in sublayers(case.model))
    return "" if found else "the model has no batch normalisation"


CHECKS = (
    Check("check_inputs", 1, _inputs),
    Check("signal_propagation", 1, _signal),
    Check("without_batch_norm", 1, _of_debug("without_batch_norm"), _without_batch_norm),
    Check("overfit_one_batch", 1.5, _of_debug("overfit_one_batch")),
    Check("check_gradients", 1.5, _of_debug("check_gradients")),
    Check("find_learning_rate", 2, _of_debug("find_learning_rate")),
    Check("batch_size_advice", 1, _of_debug("batch_size_advice")),
    Check("loss_outliers", 1, _of_debug("loss_outliers")),
)


# --- the script -------------------------------------------------------------------------------------------------------


def check_script(path, arguments=(), seconds=60.0, quiet=False, skip=()):
    """Run a script up to its first `fit`, carry out the checks there and print one page.

    Args:
        path: str, the script; it runs as `python path arguments` would run it.
        arguments: sequence of str, what the script finds in `sys.argv[1:]`.
        seconds: float > 0, budget of all checks together, not of what the script does before.
        quiet: bool. True: what the script prints is not shown.
        skip: sequence of str, names of checks to leave out.
    Returns:
        int, an exit status: 0 if all checks passed, 1 if one failed or raised, 2 if the script could not be run or did
        not come to a `fit`.
    """
    try:
        with open(path, encoding="utf-8") as file:
            wanted = _backend_of(file.read())
    except (OSError, UnicodeDecodeError) as error:
        return _could_not(f"{path} cannot be read: {error}")
    if wanted not in (None, BACKEND):  # this package has imported Keras, which reads the backend once
        return _start_anew(wanted, path, arguments, seconds, quiet, skip)
    first_fit = _FirstFit(path, seconds, skip, sys.stdout)
    try:
        with _as_main(path, arguments), first_fit.caught(), _silence() if quiet else contextlib.nullcontext():
            runpy.run_path(path, run_name="__main__")
        ended = "ended"
    except SystemExit as stopped:
        ended = f"ended with exit status {stopped.code}"
    except Exception as error:
        if first_fit.status is None:
            # The frames of this file and of `runpy` say nothing to the user.
            frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
            frames = [f for f in frames if "runpy" not in f.filename]
            lines = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
            print("Traceback (most recent call last):\n" + "".join(lines), end="", file=sys.stderr)
        ended = f"raised {type(error).__name__}"
    if first_fit.status is None:
        return _could_not(f"{path} {ended} before its first call of `keras.Model.fit`.")
    return first_fit.status


def _could_not(sentence):
    print(f"tf_tricks: {sentence}", file=sys.stderr)
    return 2


def _backend_of(source):
    """The backend that a script chooses with a line such as `os.environ["KERAS_BACKEND"] = "jax"`, or None."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return None  # Python says so when the script runs
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
            key, value = node.targets[0].slice, node.value
            if _is(key, "KERAS_BACKEND") and isinstance(value, ast.Constant):
                return value.value
    return None


def _is(node, value):
    return isinstance(node, ast.Constant) and node.value == value


def _start_anew(backend, path, arguments, seconds, quiet, skip):
    options = ["--seconds", str(seconds), *(["--quiet"] if quiet else []), *(f"--skip={name}" for name in skip)]
    command = [sys.executable, "-m", "tf_tricks", "check", path, *options, "--", *arguments]
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = [folder, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    found = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(command, env=found, check=False).returncode


@contextlib.contextmanager
def _as_main(path, arguments):
    """What `python path arguments` does: its `sys.argv`, and the script's folder as the first place of imports."""
    argv, places = sys.argv, list(sys.path)
    sys.argv = [path, *arguments]
    sys.path[:1] = [os.path.dirname(os.path.abspath(path))]
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, places


@contextlib.contextmanager
def _silence():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# --- its first fit ----------------------------------------------------------------------------------------------------


class _FirstFit:
    """Stands at `keras.Model.fit`: carries out the checks in place of the first call, and ends the script."""

    def __init__(self, path, seconds, skip, stream):
        self.path, self.seconds, self.skip, self.stream = path, seconds, skip, stream
        self.status = None

    @contextlib.contextmanager
    def caught(self):
        """While this lasts, `fit` is ours. A subclass's own `fit` runs up to its `super().fit`."""
        own, original = "fit" in vars(keras.Model), keras.Model.fit

        def fit(model, *args, **kwargs):
            if self.status is None:
                if not model.compiled:
                    return original(model, *args, **kwargs)  # Keras says what is missing
                case = _case(model, inspect.signature(original).bind(model, *args, **kwargs).arguments)
                keras.Model.fit = original
                try:
                    self.status = self._report(case)
                finally:
                    keras.Model.fit = fit
            # Scripts catch `Exception`, and threads ignore just this. Also from a second `fit`, if that was caught.
            raise SystemExit

        keras.Model.fit = fit
        try:
            yield
        finally:
            if own:
                keras.Model.fit = original
            else:
                del keras.Model.fit

    def _report(self, case):
        """Print the page, a line as soon as its check is over; returns the exit status."""
        model = case.model
        self._print(
            f"{os.path.basename(self.path)}: {type(model).__name__} `{model.name}`, {_parameters(model)} parameters, "
            f"{case.data.size} samples; stopped at its first `fit`, {BACKEND} backend"
        )
        wanted = os.environ.get("KERAS_BACKEND", BACKEND)
        if wanted != BACKEND:
            self._print(
                f"note   The script asks for {wanted} too late: set KERAS_BACKEND={wanted} outside of it."
            )
        counts = {"PASS": 0, "FAIL": 0, "ERROR": 0, "skip": 0}
        begin = time.monotonic()
        reasons = {check.name: "left out" if check.name in self.skip else check.skip(case) for check in CHECKS}
        weight = sum(check.weight for check in CHECKS if not reasons[check.name])
        for check in CHECKS:
            if reasons[check.name]:
                self._print(f"skip   {check.name:<20} {reasons[check.name]}")
                counts["skip"] += 1
                continue
            left = max(0.0, self.seconds - (time.monotonic() - begin))
            # What a quick check leaves is for those that come after it.
            counts[self._line(check, case, max(0.1, left * check.weight / weight))] += 1
            weight -= check.weight
        failed = counts["FAIL"] + counts["ERROR"]
        self._print(
            f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['ERROR']} raised, {counts['skip']} skipped, "
            f"in {time.monotonic() - begin:.0f} s."
            + (" Each is a function of `tf_tricks.debug` that tells more: call it on this model." if failed else "")
        )
        return int(failed > 0)

    def _line(self, check, case, seconds):
        begin = time.monotonic()
        try:
            with _silence():
                faults = [finding for finding in check.run(case, seconds).findings if finding.is_fault]
        except Exception as error:  # of one check: the others go on
            self._print(_wrapped(f"ERROR  {check.name:<20} {type(error).__name__}: {error}", FAULTS_SHOWN))
            return "ERROR"
        status = "FAIL" if faults else "PASS"
        self._print(f"{status}   {check.name:<20} {time.monotonic() - begin:.1f} s")
        for finding in faults[:FAULTS_SHOWN]:
            self._print(_wrapped(_INDENT + finding.text))
        if len(faults) > FAULTS_SHOWN:
            self._print(f"{_INDENT}and {len(faults) - FAULTS_SHOWN} more")
        return status

    def _print(self, text):
        print(text, file=self.stream, flush=True)


def _wrapped(text, most=None):
    return textwrap.fill(
        text, _WIDTH, subsequent_indent=_INDENT, break_long_words=False, max_lines=most, placeholder=" ..."
    )


def _parameters(model):
    return f"{model.count_params():,}" if model.built else "not yet built, unknown"


def _case(model, arguments):
    """The `Case` of a call of `fit`; what is a dataset is read up to a limit, once."""
    x, y, weight = (arguments.get(name) for name in ("x", "y", "sample_weight"))
    data = samples(x, y, weight, limit=DATASET_SAMPLES if is_dataset(x) else None)
    validation, split = arguments.get("validation_data"), arguments.get("validation_split") or 0.0
    if validation is None and split and not is_dataset(x):
        first = int(data.size * (1 - split))  # Keras takes the last ones, too
        return Case(model, data.take(slice(first)), data.take(slice(first, None)))
    if validation is None:
        return Case(model, data)
    if is_dataset(validation):
        return Case(model, data, samples(validation, limit=DATASET_SAMPLES))
    return Case(model, data, Samples(*keras.utils.unpack_x_y_sample_weight(validation)))
