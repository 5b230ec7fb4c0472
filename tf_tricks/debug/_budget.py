"""How long an experiment may last, and the bar that shows how far it is."""

import math
import time

import keras

from tf_tricks._checks import check_integer, check_number, check_optional


class Budget:
    """Seconds and steps of an experiment, whichever are over first.

    Args:
        seconds: float > 0 or None for no limit.
        steps: int >= 1 or None for no limit.
        verbose: 0: silent; 1: a progress bar.
        title: str, printed before the bar.
    """

    def __init__(self, seconds=None, steps=None, verbose=0, title=""):
        self.seconds = check_optional(check_number, "seconds", seconds, above=0)
        self.limit = check_optional(check_integer, "steps", steps, 1)
        self.verbose = check_integer("verbose", verbose, 0)
        self.taken = 0
        self._begin, self._bar, self._title = time.monotonic(), None, title

    def steps(self, most=None):
        """Yield the numbers of the steps, from 0, until the budget is over or `most` more steps are taken."""
        number, last = 0, math.inf if most is None else most
        while number < last and not self.over():
            yield number
            number += 1
            self.taken += 1
            self._show()

    def over(self):
        """Is nothing left?"""
        return self.share() >= 1

    def elapsed(self):
        """float, seconds since the begin."""
        return time.monotonic() - self._begin

    def share(self):
        """float >= 0, the part that is used up."""
        by_time = self.elapsed() / self.seconds if self.seconds else 0.0
        return max(by_time, self.taken / self.limit if self.limit else 0.0)

    def close(self):
        """Complete the bar: the experiment has ended, maybe early."""
        if self._bar is not None:
            self._bar.update(100, finalize=True)
            self._bar = None

    def _show(self):
        if not self.verbose:
            return
        if self._bar is None:
            if self._title:
                print(self._title)
            self._bar = keras.utils.Progbar(100, unit_name="percent")
        self._bar.update(min(99, int(100 * self.share())))
