"""Real processes that are killed, starved of disc and sent away, and go on; `benchmarks/resume_faults.py` has more."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from tf_tricks._backend import BACKEND
from tf_tricks.checkpoints import file_format

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks, and Linux's signals and limits")

SERVER = pathlib.Path(__file__).parents[2] / "benchmarks" / "resume_children.py"
STEPS_PER_EPOCH = 7  # of the job in benchmarks/resume_job.py, which saves every 3 steps
SIGKILL, SIGSTOP = int(signal.SIGKILL), int(signal.SIGSTOP)


class Server:
    """A process that has imported Keras and computed nothing, whose forks are the children."""

    def __init__(self, directory):
        environment = {**os.environ, "KERAS_BACKEND": BACKEND, "JAX_COMPILATION_CACHE_DIR": str(directory)}
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, **command):
        print(json.dumps(command), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def start(self, spec):
        return self.ask(start=spec)["pid"]

    def wait(self, pid, **options):
        return self.ask(wait=pid, **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("compiled"))
    yield server
    server.process.kill()  # it has nothing to put away, and would take its time
    server.process.communicate()


@pytest.fixture(scope="module")
def wanted(server, tmp_path_factory):
    """data -> evidence of a run without faults and without any checkpoint."""
    known = {}

    def evidence(data="arrays"):
        if data not in known:
            directory = str(tmp_path_factory.mktemp("untouched"))
            known[data] = ended(Job(server, directory, data, mechanism="none")())
        return known[data]

    return evidence


class Job:
    """The same script, as often as it is called."""

    def __init__(self, server, directory, data="arrays", mechanism="TrainingCheckpoint(every=int)"):
        self.server, self.directory = server, pathlib.Path(directory)
        self.spec = {"mechanism": mechanism, "directory": str(directory), "data": data, "seed": 7}

    def start(self, **fault):
        return self.server.start({**self.spec, "fault": fault or None})

    def __call__(self, **fault):
        return self.server.wait(self.start(**fault))

    def killed(self, at, when="end"):
        outcome = self(kind="signal", signal=SIGKILL, at=at, when=when)
        assert outcome["status"] == -SIGKILL, outcome["output"]
        return outcome

    def steps(self):
        return sorted(int(path.stem.removeprefix("step-")) for path in self.directory.glob("step-*.safetensors"))

    def newest(self):
        return max(self.directory.glob("step-*.safetensors"))


@pytest.fixture
def job(server, tmp_path):
    return Job(server, tmp_path / "run")


def ended(outcome):
    assert outcome["status"] == 0, outcome["output"]
    return outcome["notes"][-1]["ended"]


def began_at(outcome):
    return next(each["begin"] for each in outcome["notes"] if "begin" in each)


def steps_of(outcome):
    return sum("step" in each for each in outcome["notes"])


def test_killed_at_a_step_and_as_an_epoch_ends_with_tf_data(server, tmp_path, wanted):
    pytest.importorskip("tensorflow")
    job = Job(server, tmp_path, "tf.data")
    job.killed(at=2 * STEPS_PER_EPOCH, when="epoch end")
    saved = max(job.steps())
    assert saved >= 9  # two copies are never under way at once
    last = job()
    assert began_at(last) == saved
    assert ended(last) == wanted("tf.data")


def test_killed_in_a_write_and_beside_renames_then_the_newest_file_is_damaged(job, wanted):
    outcome = job(kind="write", at=1, bytes=9000)  # the write of step 3
    assert outcome["status"] == -signal.SIGXFSZ
    assert [path.stat().st_size for path in job.directory.glob(".step*.tmp")] == [9000]
    assert job.steps() == []
    outcome = job(kind="call", name="replace", number=2, before=True)  # step 6's
    assert outcome["status"] == -SIGKILL
    assert job.steps() == [3]
    outcome = job(kind="call", name="replace", number=3, before=False)  # step 12's
    assert outcome["status"] == -SIGKILL
    assert job.steps() == [6, 9, 12][-len(job.steps()) :] or job.steps() == [3, 6, 9, 12]

    cut = job.newest()
    os.truncate(cut, cut.stat().st_size - 100)
    outcome = job(kind="call", name="replace", number=1, before=True)  # step 12's once more
    assert f"renamed to `{cut.name}.damaged`" in outcome["output"]
    assert began_at(outcome) == 9

    flipped = job.newest()
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 4
    flipped.write_bytes(content)
    last = job()
    assert f"renamed to `{flipped.name}.damaged`" in last["output"]
    assert began_at(last) == 6
    assert ended(last) == wanted()
    assert not list(job.directory.glob(".step*.tmp"))
    assert {path.name for path in job.directory.glob("*.damaged")} == {f"{cut.name}.damaged", f"{flipped.name}.damaged"}


def test_a_disc_that_takes_nothing_is_a_warning_and_no_end(job, wanted):
    job.killed(at=8)
    saved = job.steps()
    outcomes = [job(kind="full", at=1, bytes=9000, kill=9), job(kind="read-only", at=1)]
    job.directory.chmod(0o755)
    for outcome, reason in zip(outcomes, ("File too large", "Permission denied"), strict=True):
        assert began_at(outcome) == max(saved)
        assert "UserWarning: TrainingCheckpoint: could not write to" in outcome["output"]
        assert reason in outcome["output"]
    assert outcomes[0]["status"] == -SIGKILL  # by us, six steps after the first save that failed
    assert ended(outcomes[1]) == wanted()
    assert job.steps() == saved
    assert not list(job.directory.glob(".step*.tmp"))
    for path in job.directory.glob("step-*.safetensors"):
        file_format.check(path)


def test_no_step_is_lost_when_asked_to_stop(job, wanted):
    asked = job(kind="signal", signal=int(signal.SIGTERM), at=10, when="begin")
    assert asked["status"] == 143
    assert steps_of(asked) == 10
    asked = job(kind="signal", signal=int(signal.SIGINT), at=2 * STEPS_PER_EPOCH - 10, when="begin")
    assert asked["output"].splitlines()[-1] == "KeyboardInterrupt"
    assert began_at(asked) == 10
    assert steps_of(asked) == 2 * STEPS_PER_EPOCH - 10  # the last step of an epoch
    last = job()
    assert began_at(last) == 2 * STEPS_PER_EPOCH
    assert ended(last) == wanted()


def test_a_second_process_is_refused_until_the_first_dies_and_a_run_that_ended_returns_at_once(job, wanted):
    first = job.start(kind="signal", signal=SIGSTOP, at=5, when="end")
    assert job.server.wait(first)["status"] is None  # it sleeps, and has the folder
    second = job()
    assert second["status"] == 1
    assert f"RuntimeError: `{job.directory}` is in use by another process (pid {first} on host" in second["output"]
    os.kill(first, SIGKILL)
    assert job.server.wait(first)["status"] == -SIGKILL
    assert ended(job()) == wanted()
    after = job()
    assert ended(after) == wanted()
    assert steps_of(after) == 0


def test_the_comparison_fails_when_the_seeds_are_left_out(job, wanted):
    job.killed(at=11)
    tree = file_format.read(job.newest())
    seeds = tree["model"]["seeds"]
    assert seeds
    tree["model"]["seeds"] = {name: np.array([value[0], 0], value.dtype) for name, value in seeds.items()}
    file_format.write(job.newest(), tree)
    got = ended(job())
    different = {name for name in got if got[name] != wanted()[name]}
    assert {"weights", "optimizer", "other variables"} <= different


@pytest.mark.any_backend
def test_the_campaign_prints_its_table(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", [str(SERVER.parent), *sys.path])
    import resume_faults

    output = tmp_path / "faults.md"
    resume_faults.main(
        ["--kills", "1", "--mechanisms", "TrainingCheckpoint", "--quiet", "--output", str(output)], children=server
    )
    text = output.read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    cells = next(line for line in text.splitlines() if line.startswith("| TrainingCheckpoint")).split(" | ")
    found = dict(zip(resume_faults.COLUMNS, cells, strict=True))
    assert int(found["kills"]) >= 1
    assert found["runs equal to the uninterrupted one without manual help"] == "1 of 1"
    assert found["steps lost beyond the last save, at most"] == "0"
