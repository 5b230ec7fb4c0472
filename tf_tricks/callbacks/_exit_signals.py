"""Notice SIGTERM and Ctrl-C between two steps instead of within one, then pass them on to whom they belong."""

import inspect
import os
import signal
import threading
import weakref

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT") if hasattr(signal, name))


class ExitSignals:
    """While installed, the first signal only sets `requested`; a second one acts at once, as it would without us.

    Args:
        is_running: bound method that says whether the `fit` still runs for which the signals are to be noticed. If it
            has raised, nobody looks at `requested` any more, and a signal acts at once.
    """

    def __init__(self, is_running):
        self.requested = None  # the number of the signal that came
        self._is_running = weakref.WeakMethod(is_running)
        self._before = {}
        self._process = os.getpid()

    def install(self):
        """Begin to notice; does nothing outside of the main thread, where Python takes no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            left_behind = getattr(signal.getsignal(number), "__self__", None)
            if isinstance(left_behind, ExitSignals) and not left_behind.is_needed:
                left_behind.uninstall()
            if signal.getsignal(number) == signal.SIG_IGN:  # as a shell sets it for its jobs in the background
                continue
            self._before[number] = signal.signal(number, self._notice)

    @property
    def is_needed(self):
        """Does anybody look at `requested`?"""
        is_running = self._is_running()
        return is_running is not None and is_running()

    def uninstall(self):
        """Give the signals back to the handlers that had them."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            # None: a handler that was not set from Python, and that Python cannot set again.
            if handler is not None and signal.getsignal(number) == self._notice:
                signal.signal(number, handler)

    def leave(self):
        """Uninstall, and act on the signal: KeyboardInterrupt, SystemExit, or what the user's own handler does."""
        number, self.requested = self.requested, None
        handler = self._before.get(number)
        self.uninstall()
        if callable(handler):
            handler(number, inspect.currentframe())
        elif handler == signal.SIG_DFL:
            raise SystemExit(128 + number)  # unlike the default action, it lets `finally` and `atexit` run

    def _notice(self, number, frame):
        # A forked child, such as a worker of the data, has our handler and a copy of the stack, but nobody who looks.
        at_once = self.requested is not None or os.getpid() != self._process or not self.is_needed
        self.requested = number
        if at_once:
            self.leave()
