"""The iterator that feeds one pass over the data, with what is needed to make it again and draw as much from it."""

from tf_tricks.fit_hooks import random_state


class Current:
    """The iterator in use: the random state when it was made, and how many batches were drawn since."""

    def __init__(self, number, anchor, seeds):
        self.number = number  # iterators that were made before it
        self.anchor, self.seeds = anchor, seeds
        self.jumps = {}  # draw -> random state before it, where somebody else had moved it since the last one
        self.drawn = 0

    def get_state(self):
        return {
            "anchor": self.anchor,
            "seeds": self.seeds,
            "jumps": {str(k): state for k, state in self.jumps.items()},
            "drawn": self.drawn,
        }


class Watched:
    """A Python iterator that notes the random state before those draws that use it."""

    def __init__(self, iterator, current, on_first, watched):
        self._iterator, self._current, self._on_first, self._watched = iterator, current, on_first, watched
        self._draws, self._last = 0, current.anchor

    def __iter__(self):
        return self

    def __next__(self):
        k, self._draws = self._draws, self._draws + 1
        if not k:
            self._on_first()
        if k >= self._watched:
            return next(self._iterator)
        before = random_state.host()
        try:
            return next(self._iterator)
        finally:
            after = random_state.host()
            if not random_state.same_host(before, after):
                if not random_state.same_host(before, self._last):
                    self._current.jumps[k] = before
                self._last = after


class Iterable:
    """What `iter` is called on: the iterator is made then, and not before."""

    def __init__(self, make):
        self._make = make

    def __iter__(self):
        return self._make()
