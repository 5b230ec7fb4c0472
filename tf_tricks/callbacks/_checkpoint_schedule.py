"""When TrainingCheckpoint saves: every epoch, every n steps, or as often as the clock says."""

import math
import re
import time

from tf_tricks._checks import check_integer

_UNITS = {"s": 1, "min": 60, "h": 3600}
_TIME = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h)")
_LARGEST_SHARE = 0.01  # of the run's time that saving by the clock may take


def check_every(every):
    """Return `every` if it is "epoch", a number of steps or a time."""
    if not isinstance(every, str):
        return check_integer("every", every, 1)
    match = _TIME.fullmatch(every)
    if every != "epoch" and (match is None or not float(match[1])):
        raise ValueError(
            '`every` must be "epoch", an int >= 1 (steps) or a time such as "30s", "10min", "2h". '
            f"Received: every={every!r}"
        )
    return every


class Schedule:
    """Counts the steps of a run and says when a checkpoint is due."""

    def __init__(self, every, keep_best=None, state=None):
        self._steps = every if isinstance(every, int) else None
        match = _TIME.fullmatch(str(every))
        self._seconds = float(match[1]) * _UNITS[match[2]] if match else None
        self._by_epoch = every == "epoch"
        self._keep_best = keep_best
        state = state or {"total": 0, "best": None}
        self.total = state["total"]  # steps since the begin of the run
        self._best = state["best"]
        self._in_epoch = None  # steps of this epoch that are counted
        self._last, self._cost = time.monotonic(), 0.0

    def get_state(self):
        """A dict of plain values."""
        return {"total": self.total, "best": self._best}

    def resume_in_epoch(self, step):
        """The first `step` steps of the epoch that comes are counted already."""
        self._in_epoch = step

    def step_ends(self, step):
        """`step` steps of the epoch are done: is a checkpoint due?"""
        before, self.total = self.total, self.total + step - (self._in_epoch or 0)
        self._in_epoch = step
        by_steps = self._steps is not None and self.total // self._steps > before // self._steps
        return by_steps or self._time_is_up()

    def epoch_ends(self, step, logs):
        """As `step_ends`, after the last step of an epoch."""
        due = self.step_ends(step) or self._by_epoch
        self._in_epoch = None
        return self._improved(logs) or due

    @property
    def has_best(self):
        """Was what `keep_best` monitors ever there?"""
        return self._best is not None

    def saved(self, seconds):
        """A checkpoint has just cost the training thread so many seconds."""
        self._last, self._cost = time.monotonic(), seconds

    def metric(self, logs):
        """The monitored value as a float, or None."""
        value = (logs or {}).get(self._keep_best[0]) if self._keep_best else None
        return None if value is None else float(value)

    def _time_is_up(self):
        if self._seconds is None:
            return False
        return time.monotonic() - self._last >= max(self._seconds, self._cost / _LARGEST_SHARE)

    def _improved(self, logs):
        value = self.metric(logs)
        if value is None or not math.isfinite(value):
            return False
        sign = 1 if self._keep_best[1] == "max" else -1
        if self._best is not None and sign * value <= sign * self._best:
            return False
        self._best = value
        return True
