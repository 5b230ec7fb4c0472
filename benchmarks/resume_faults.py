"""Kill a small job again and again, start it again until it is done, and compare it with one that nobody touched.

    python benchmarks/resume_faults.py --kills 1000 --output resume_faults.md

The job has dropout, batch normalisation, random augmentation, Adam, EarlyStopping, ReduceLROnPlateau, shuffled data
and validation. Each run of it meets one to three faults: SIGKILL at a step, at any time (start and restoring too), in
the middle of a write or beside a rename; SIGTERM; a full disk or a folder that cannot be written to, and then SIGKILL.
After some of them the newest file is cut short, zeroed, or has one bit flipped. Nobody helps: whatever the script does
when it is started again counts. A run is equal if weights, optimizer, seeds, metrics, `History` and the callbacks'
counters have the same SHA-256 as a run with the same seed, without faults, and without any checkpoint. A run whose
every interruption came before its first save proves nothing, and is not counted.
"""

import argparse
import collections
import os
import pathlib
import platform
import random
import signal
import statistics
import sys
import tempfile

import resume_children

KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)
MOST_ATTEMPTS = 12
COLUMNS = (
    "mechanism",
    "kills",
    "restarts that end in a crash loop",
    "optimizer silently reset",
    "damaged file loaded without a word",
    "runs that a full or read-only disk ended",
    "runs equal to the uninterrupted one without manual help",
    "of the others, those whose weights are equal",
    "steps lost beyond the last save, at most",
    "steps lost on SIGTERM, mean",
)

# --- one run ------------------------------------------------------------------------------------------------------


class Run:
    """One job under one mechanism, interrupted and started again until it is done, or has no way to go on."""

    def __init__(self, children, mechanism, data, seed, wanted, chance, folder, tally):
        self.children, self.mechanism, self.wanted = children, mechanism, wanted
        self.directory, self.chance, self.tally = os.path.join(folder, "run"), chance, tally
        self.spec = {"mechanism": mechanism, "directory": self.directory, "data": data, "seed": seed}
        self.done_steps = self.saved = self.expected = 0
        self.damage = self.error = self.fault = None
        self.loop = self.interrupted = self.counts = False
        self.story, self.printed = [], ""  # since the last damage
        self.broken = {}  # name of a file that we damaged -> when

    def until_done(self):
        """Evidence of the end, or None."""
        left = self.chance.randint(1, 3)
        for _ in range(MOST_ATTEMPTS):
            before, self.fault = self.fault, self._next_fault() if left and not self.error else None
            left -= bool(self.fault)
            outcome = self._attempt()
            self._look_at_begin(outcome, before)
            if outcome["status"] == 0:
                return outcome["notes"][-1]["ended"]
            self.interrupted = True
            self._look_at_end(outcome)
            if self.loop:
                return None
        self.story.append("never done")
        return None

    def _next_fault(self):
        at = self.chance.randint(1, max(2, self.wanted["steps"] - self.done_steps))
        kinds = ["step", "step", "step", "time", "time", "write", "write", "full", "read-only", "sigterm"]
        kind = self.chance.choice(kinds + ["call"] * 3 * (self.mechanism == self.wanted["ours"]))
        when = self.chance.choice(["begin", "end", "epoch end"])
        later = {"at": at, "kill": at + self.chance.randint(1, 8)}
        return {
            "step": {"kind": "signal", "signal": int(signal.SIGKILL), "at": at, "when": when},
            "sigterm": {"kind": "signal", "signal": int(signal.SIGTERM), "at": at, "when": when},
            "time": {"kind": "time", "seconds": self.chance.uniform(0.05, 1) * self.wanted["seconds"]},
            "write": {"kind": "write", "at": at, "bytes": self.chance.randint(0, self.wanted["bytes"] - 1)},
            "full": {"kind": "full", "bytes": self.chance.randint(0, self.wanted["bytes"] - 1), **later},
            "read-only": {"kind": "read-only", **later},
            "call": {
                "kind": "call",
                "name": self.chance.choice(["replace", "fsync", "remove", "open"]),
                "number": self.chance.randint(1, 12),
                "before": self.chance.random() < 0.5,
            },
        }[kind]

    def _attempt(self):
        fault = self.fault or {"kind": None}
        pid = self.children.start({**self.spec, "fault": self.fault})
        outcome = self.children.wait(pid, kill_after=fault.get("seconds"))
        if os.path.isdir(self.directory):
            os.chmod(self.directory, 0o755)
        self.story.append((self.damage, self.fault, outcome["status"]))
        self.tally["restarts"] += self.interrupted
        self.tally["kills"] += outcome["status"] in KILLED and not outcome["hangs"]
        self.tally[f"fault {fault['kind']}"] += outcome["status"] != 0
        self.tally["hangs"] += outcome["hangs"]
        return outcome

    def _look_at_begin(self, outcome, before):
        """Where did this process go on?"""
        self.printed += outcome["output"]
        begin = next((each for each in outcome["notes"] if "begin" in each), None)
        if begin is None:
            return
        ran_on = begin["weights"] != self.wanted["initial"]
        if self.interrupted:
            lost = self.expected - begin["begin"]
            if self.damage is None or self.mechanism == self.wanted["ours"]:
                self.tally["lost"].append(max(0, lost))
            if self.damage is None and before and before.get("signal") == signal.SIGTERM:
                self.tally["lost on SIGTERM"].append(max(0, self.done_steps - begin["begin"]))
            self.tally["reset"] += bool(self.saved and ran_on and begin["zero"])
            self.tally["silent"] += bool(self.damage and ran_on and "damaged" not in self.printed)
        self.damage, self.error = None, None
        self.saved = self.done_steps = begin["begin"]
        for each in outcome["notes"]:
            self.done_steps += "step" in each
            if "saved" in each:
                self.saved = self.done_steps

    def _look_at_end(self, outcome):
        """What did it leave? Perhaps damage the newest file."""
        error = None
        if outcome["hangs"]:
            error = "it hangs"
        elif outcome["status"] == 1:
            error = outcome["output"].splitlines()[-1]
        elif outcome["status"] not in (*KILLED, 128 + signal.SIGTERM, -signal.SIGTERM):
            error = f"signal {-outcome['status']}"  # HDF5 takes some damaged files for addresses
        by_disk = self.fault and self.fault["kind"] in ("full", "read-only")
        if error and by_disk:
            self.tally["ended by disk"] += 1
        elif error:
            self.loop = error.partition(":")[0] == (self.error or "").partition(":")[0]
            self.tally["restarts in a loop"] += self.loop
            self.story.append(error[:300])
            self.error = error
            return
        if (steps := self._saved_steps()) is not None:
            self.saved = max(steps, default=0)
        self.expected, self.counts = self.saved, self.counts or self.saved > 0
        if self.chance.random() < 0.3 and (damaged := damage_newest(self.directory, self.chance)):
            (self.damage, path), self.printed = damaged, ""
            self.broken[path.name] = path.stat().st_mtime_ns
            if self.mechanism == self.wanted["ours"]:
                self.expected = max(self._saved_steps(), default=0)
            self.tally[f"damage {self.damage}"] += 1

    def _saved_steps(self):
        """Of the complete checkpoints; without those that we damaged, if no process has seen that yet."""
        folder = pathlib.Path(self.directory)
        found = saved_steps(self.mechanism, self.directory)
        if found is None or self.mechanism != self.wanted["ours"]:
            return found
        paths = {step: folder / f"step-{step:010}.safetensors" for step in found}
        return [step for step, path in paths.items() if self.broken.get(path.name) != path.stat().st_mtime_ns]


def damage_newest(directory, chance):
    """Damage the newest file of more than a kilobyte; return how, and its path; None if there is none."""
    files = [path for path in pathlib.Path(directory).rglob("*") if path.is_file() and path.stat().st_size > 1000]
    files = [path for path in files if not path.name.endswith(".tmp") and ".damaged" not in path.name]
    if not files:
        return None
    newest = max(files, key=lambda path: path.stat().st_mtime_ns)
    content, how = bytearray(newest.read_bytes()), chance.choice(["cut", "flip", "zero"])
    if how == "cut":
        del content[chance.randrange(len(content)) :]
    elif how == "flip":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    else:
        content[:] = bytes(len(content))
    newest.write_bytes(content)
    return how, newest


def saved_steps(mechanism, directory):
    import resume_mechanisms  # not at the top: Keras is imported when the arguments are known

    return resume_mechanisms.saved_steps(mechanism, directory)


# --- the campaign -------------------------------------------------------------------------------------------------


def new_tally():
    """Name -> number of times, or a list of numbers of steps."""
    tally = collections.Counter()
    tally.update({"lost": [], "lost on SIGTERM": [], "bad": []})
    return tally


def campaign(children, mechanism, kills, seed, ours, tally, say):
    """Runs until so many kills have taken place; what happens is counted in `tally`."""
    chance, wanted = random.Random(f"{seed}/{mechanism}"), {}
    while tally["kills"] < kills:
        data = ("arrays", "tf.data")[tally["runs"] % 2]
        if data not in wanted:
            wanted[data] = reference(children, mechanism, data, seed, ours)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(children, mechanism, data, seed, wanted[data], chance, folder, tally)
            ended = run.until_done()
        if not run.counts:
            continue
        tally["runs"] += 1
        equal = ended == wanted[data]["ended"]
        tally["equal"] += equal
        tally["weights equal"] += bool(ended and not equal and ended["weights"] == wanted[data]["ended"]["weights"])
        if not equal:
            tally["bad"].append(run.story)
        say(f"{mechanism}: {tally['runs']} runs, {tally['equal']} equal, {tally['kills']} kills")


def reference(children, mechanism, data, seed, ours):
    """What an untouched run without any checkpoint ends with, and how one with this mechanism behaves."""
    found = {}
    for each in ("none", mechanism):
        with tempfile.TemporaryDirectory() as folder:
            directory = os.path.join(folder, "run")
            spec = {"mechanism": each, "directory": directory, "data": data, "seed": seed}
            outcome = children.wait(children.start(spec))
            if outcome["status"]:
                raise RuntimeError(f"{each} does not run undisturbed: {outcome['output'][-2000:]}")
            sizes = [path.stat().st_size for path in pathlib.Path(directory).rglob("*") if path.is_file()]
        found[each] = outcome, max(sizes, default=1)
    bare, (own, size) = found["none"][0], found[mechanism]
    return {
        "ended": bare["notes"][-1]["ended"],
        "initial": bare["notes"][0]["weights"],
        "steps": sum("step" in each for each in bare["notes"]),
        "seconds": own["seconds"],
        "bytes": size,
        "ours": ours,
    }


def row(name, tally):
    lost, on_signal = tally["lost"], tally["lost on SIGTERM"]
    cells = [
        name,
        tally["kills"],
        f"{tally['restarts in a loop']} of {tally['restarts']}",
        tally["reset"],
        tally["silent"],
        tally["ended by disk"],
        f"{tally['equal']} of {tally['runs']}",
        tally["weights equal"],
        max(lost, default="-"),
        f"{statistics.mean(on_signal):.1f} (of {len(on_signal)})" if on_signal else "-",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def faults_of(name, tally):
    """A line: which faults the runs met."""
    met = {key.partition(" ")[2]: tally[key] for key in tally if key.startswith(("fault ", "damage ")) and tally[key]}
    return f"{name}: " + ", ".join(f"{kind} {count}" for kind, count in sorted(met.items()))


def report(rows, remarks, backend, seed):
    import keras

    lines = [
        f"Keras {keras.__version__}, {backend}, Python {platform.python_version()}, {platform.system()}, seed {seed}. "
        "What the processes died or ended of, and how files were damaged, is listed below.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + " --- |" * len(COLUMNS),
        *rows,
        "",
        *(line for remark in remarks for line in (remark, "")),
    ]
    return "\n".join(lines)


def reason_to_leave_out(mechanism, backend):
    if mechanism == "OrbaxCheckpoint":
        try:
            import orbax.checkpoint  # noqa: F401
        except ImportError:
            return "orbax-checkpoint is not installed: pip install orbax-checkpoint"
    if mechanism == "tf.train.CheckpointManager" and backend != "tensorflow":
        return "it belongs to the TensorFlow backend"
    return None


def main(arguments=None, children=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000, help="kills of TrainingCheckpoint's runs")
    parser.add_argument("--peer-kills", type=int, help="kills of each other mechanism's runs; else at most 40")
    parser.add_argument("--mechanisms", nargs="+", help="parts of their names; else all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="also write the table to this file")
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args(arguments)
    if children is None:
        resume_children.import_everything(arguments.mechanisms or ["OrbaxCheckpoint"])
        children = resume_children.Children()

    import keras
    import resume_mechanisms as known

    backend = keras.backend.backend()
    peer_kills = min(arguments.kills, 40) if arguments.peer_kills is None else arguments.peer_kills
    names = [name for name in known.MECHANISMS if name != known.NOTHING]
    if arguments.mechanisms:
        names = [name for name in names if any(each in name for each in arguments.mechanisms)]
    rows, remarks = [], []

    def say(line):
        if not arguments.quiet:
            print(line, file=sys.stderr, flush=True)

    for name in names:
        if reason := reason_to_leave_out(name, backend):
            remarks.append(f"{name} is left out: {reason}.")
            continue
        kills = arguments.kills if name == known.OURS else peer_kills
        tally, interrupted = new_tally(), False
        try:
            campaign(children, name, kills, arguments.seed, known.OURS, tally, say)
        except KeyboardInterrupt:  # print what there is
            interrupted = True
        rows.append(row(name, tally))
        remarks.append(faults_of(name, tally))
        if name == known.OURS:
            remarks += [f"NOT EQUAL: {story}" for story in tally["bad"]]
        if arguments.output:  # hours may pass until the next one is done
            pathlib.Path(arguments.output).write_text(report(rows, remarks, backend, arguments.seed))
        if interrupted:
            remarks.append(f"Ended by Ctrl-C during {name}.")
            break
    text = report(rows, remarks, backend, arguments.seed)
    print(text)
    if arguments.output:
        pathlib.Path(arguments.output).write_text(text)


if __name__ == "__main__":
    main()
