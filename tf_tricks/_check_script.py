"""Run a user's training script up to its first `fit`, and the debugging functions in place of that `fit`."""

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import re
import runpy
import subprocess
import sys
import textwrap
import time
import traceback
import typing

import keras
import numpy as np

from tf_tricks import debug
from tf_tricks._backend import BACKEND
from tf_tricks.debug._data import Samples, first_batch, fixed_batch_size, is_dataset, one_batch, samples
from tf_tricks.debug._result import Finding
from tf_tricks.debug.signal_propagation import is_healthy
from tf_tricks.fit_hooks.functional import UnknownLossError
from tf_tricks.fit_hooks.replay_state import sublayers

DATASET_SAMPLES = 2048  # as many of a dataset are read, once for all checks
SIGNAL_SAMPLES = 256
FAULTS_SHOWN = 3  # of one check: the report is one page
LINES_OF_ERROR = 3
_INDENT, _WIDTH = " " * 7, 100


@dataclasses.dataclass
class Case:
    """The first `fit` of a script.

    Attributes:
        model: keras.Model.
        data, validation: `Samples`, the latter None where there are none; class weights are part of `data`'s weights.
        batch_size: int, or None for that of Keras.
    """

    model: keras.Model
    data: Samples
    validation: Samples | None = None
    batch_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: str, what `--skip` takes: the name of the function in `tf_tricks.debug`.
        weight: float, its part of the time.
        run: callable `(case, seconds) -> result` with `findings`.
        skip: callable `case -> str`, why it does not apply, "" if it does.
        outcome: callable `result -> str`, what it found out, whether that is a fault or not.
    """

    name: str
    weight: float
    run: typing.Callable
    skip: typing.Callable = lambda case: ""
    outcome: typing.Callable = lambda result: _headline(result, 1)


def _headline(result, lines, joint=" "):
    """The first lines of a result's heading as one, without the name of the check."""
    heading = result.heading() if hasattr(result, "heading") else ""
    return re.sub(r"^\w+_\w+(?: passed| FAILED)?: ", "", joint.join(heading.splitlines()[:lines]))


def _of_debug(name, passes=("sample_weight", "batch_size")):
    """Call a function of `tf_tricks.debug` with the model and the data, and what it `passes` of the call of `fit`."""

    def run(case, seconds):
        function = getattr(debug, name)
        known = inspect.signature(function).parameters
        extra = {"sample_weight": case.data.sample_weight, "batch_size": case.batch_size}
        extra = {key: extra[key] for key in passes if key in known and extra[key] is not None}
        return function(case.model, case.data.x, case.data.y, seconds=seconds, verbose=0, **extra)

    return run


def _inputs(case, seconds):
    validation = None if case.validation is None else (case.validation.x, case.validation.y)
    return debug.check_inputs(
        case.data.x, case.data.y, model=case.model, validation=validation, seconds=seconds, verbose=0
    )


@dataclasses.dataclass
class _Verdict:
    findings: list
    verdict: str

    def heading(self):
        return "" if self.findings else self.verdict


def _signal(case, seconds):
    part = one_batch(case.model, case.data.take(slice(fixed_batch_size(case.model) or SIGNAL_SAMPLES)))
    verdict = debug.signal_propagation(case.model, part.x, part.y).verdict
    return _Verdict([] if is_healthy(verdict) else [Finding("signal", verdict)], verdict)


def _without_batch_norm(case):
    found = any(isinstance(layer, keras.layers.BatchNormalization) for layer in sublayers(case.model))
    return "" if found else "the model has no batch normalisation"


def _nothing_to_train(case):
    built = all(layer.built for layer in [case.model, *case.model.layers])
    return "the model has no trainable weights" if built and not case.model.trainable_variables else ""


def _one_size(case):
    size = fixed_batch_size(case.model)
    return f"the model takes batches of {size} samples only" if size else ""


def _advice(result):
    return " ".join(finding.text for finding in result.findings if not finding.is_fault)


CHECKS = (
    Check("check_inputs", 1, _inputs),
    Check("signal_propagation", 1, _signal),
    Check("without_batch_norm", 1, _of_debug("without_batch_norm"), _without_batch_norm),
    Check("overfit_one_batch", 1.5, _of_debug("overfit_one_batch")),
    # A batch of its own size, of few samples: its errors do not depend on that, its time does.
    Check("check_gradients", 1.5, _of_debug("check_gradients", ("sample_weight",)), _nothing_to_train),
    Check("find_learning_rate", 2, _of_debug("find_learning_rate"), _nothing_to_train, lambda r: _headline(r, 2, ". ")),
    Check("batch_size_advice", 1, _of_debug("batch_size_advice"), _nothing_to_train, _advice),
    Check("loss_outliers", 1, _of_debug("loss_outliers"), _one_size, lambda r: _headline(r, 2)),
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
            self._print(f"note   The script asks for {wanted} too late: set KERAS_BACKEND={wanted} outside of it.")
        counts = {"PASS": 0, "FAIL": 0, "ERROR": 0, "skip": 0}
        begin = time.monotonic()
        for number, check in enumerate(CHECKS):
            # Asked anew before each check: an earlier one may have built the model.
            reasons = [self._reason(each, case) for each in CHECKS[number:]]
            if reasons[0]:
                self._skip(check, reasons[0])
                counts["skip"] += 1
                continue
            weight = sum(each.weight for each, reason in zip(CHECKS[number:], reasons, strict=True) if not reason)
            left = max(0.0, self.seconds - (time.monotonic() - begin))
            # What a quick check leaves is for those that come after it.
            counts[self._line(check, case, max(0.1, left * check.weight / weight))] += 1
        failed = counts["FAIL"] + counts["ERROR"]
        self._print(
            f"{counts['PASS']} passed, {counts['FAIL']} failed, {counts['ERROR']} raised, {counts['skip']} skipped, "
            f"in {time.monotonic() - begin:.0f} s."
            + (" Each is a function of `tf_tricks.debug` that tells more: call it on this model." if failed else "")
        )
        return int(failed > 0)

    def _reason(self, check, case):
        return "left out" if check.name in self.skip else check.skip(case)

    def _skip(self, check, reason):
        self._print(_wrapped(f"skip   {check.name:<20} {reason}"))
        return "skip"

    def _line(self, check, case, seconds):
        begin = time.monotonic()
        try:
            with _silence():
                result = check.run(case, seconds)
                outcome = check.outcome(result)
        except UnknownLossError:
            cls = type(case.model).__name__
            return self._skip(check, f"only `{cls}.train_step` knows the loss: override `compute_loss`")
        except Exception as error:  # of one check: the others go on
            text = f"ERROR  {check.name:<20} {type(error).__name__}: {last_sentence(error)}"
            self._print(_wrapped(text, LINES_OF_ERROR))
            return "ERROR"
        faults = [finding for finding in result.findings if finding.is_fault]
        status = "FAIL" if faults else "PASS"
        self._print(_wrapped(f"{status}   {check.name:<20} {time.monotonic() - begin:>4.1f} s  {outcome}".rstrip()))
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


_ESCAPE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_PLACE = re.compile(r"\s*(?:File \".*|in user code:|Detected at node .*|<stack traces unavailable>|\[\[\{\{node .*)$")


def last_sentence(error):
    """What an exception says in the end: no colours, no places in the code, no arguments of a layer."""
    text = _ESCAPE.sub("", str(error)).partition("\n\nArguments received by ")[0].rstrip()
    lines = [" " if _PLACE.match(line) else line for line in text.splitlines()]
    paragraphs = [part for part in re.split(r"\n\s*\n", "\n".join(lines)) if part.strip()]
    if not paragraphs:
        return text.strip()
    found = " ".join(paragraphs[-1].split())
    # An exception inside of another one's text brings its name along.
    return re.sub(rf"^{type(error).__name__}: ", "", found)


def _parameters(model):
    return f"{model.count_params():,}" if model.built else "not yet built, unknown"


def _case(model, arguments):
    """The `Case` of a call of `fit`; what is a dataset is read up to a limit, once."""
    x, y, weight = (arguments.get(name) for name in ("x", "y", "sample_weight"))
    batch_size, class_weight = arguments.get("batch_size"), arguments.get("class_weight")
    if is_dataset(x):
        first, x = first_batch(x)
        batch_size = first.size
    data = samples(x, y, weight, limit=DATASET_SAMPLES if is_dataset(x) else None)
    validation, split = arguments.get("validation_data"), arguments.get("validation_split") or 0.0
    if validation is None and split and not is_dataset(x):
        first = int(data.size * (1 - split))  # Keras takes the last ones, too
        data, validation = data.take(slice(first)), data.take(slice(first, None))
    elif validation is not None:
        found = [validation] if is_dataset(validation) else keras.utils.unpack_x_y_sample_weight(validation)
        validation = samples(*found, limit=DATASET_SAMPLES) if is_dataset(validation) else Samples(*found)
    return Case(model, _weighted(data, class_weight), validation, batch_size)


def _weighted(data, class_weight):
    """The `Samples`, their weights multiplied by those of their classes, as Keras does."""
    leaves = keras.tree.flatten(data.y)
    if not class_weight or len(leaves) != 1 or leaves[0] is None:  # Keras refuses several
        return data
    labels = leaves[0]
    if labels.ndim > 1:
        labels = labels.argmax(axis=-1) if labels.shape[-1] > 1 else labels[..., 0]
    weights = np.array([class_weight.get(int(label), 1.0) for label in np.round(labels)], "float32")
    return Samples(data.x, data.y, weights if data.sample_weight is None else weights * data.sample_weight)
