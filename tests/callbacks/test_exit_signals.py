"""Real signals to this very process: noticed first, acted upon later, and by whom they belong to."""

import gc
import os
import signal
import threading

import pytest

from tf_tricks.callbacks._exit_signals import ExitSignals

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="os.kill sends signals on POSIX only"),
    pytest.mark.any_backend,
]
NUMBERS = [signal.SIGTERM, signal.SIGINT]


class Fit:
    """Stands for a `RunningFit`."""

    def __init__(self):
        self.running = True

    def is_running(self):
        return self.running


def send(number):
    """Python runs the handler before this returns, on the main thread."""
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers():
    """Whatever a test does, the handlers are given back."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    # If a handler is lost, SIGTERM shall fail a test and not end the process.
    signal.signal(signal.SIGTERM, lost)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Lost(Exception):
    """A signal reached the handler that was there before."""


def lost(number, frame):
    raise Lost(number)


@pytest.fixture
def fit():
    return Fit()


@pytest.fixture
def signals(fit):
    signals = ExitSignals(fit.is_running)
    signals.install()
    return signals


@pytest.mark.parametrize("number", NUMBERS)
def test_the_first_signal_is_only_noticed(number, signals):
    assert signals.requested is None
    send(number)
    assert signals.requested == number


def test_the_second_ctrl_c_acts_at_once(signals):
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is lost


def test_another_signal_after_the_first_acts_at_once(signals):
    send(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def test_leaving_after_ctrl_c_is_a_keyboard_interrupt(signals):
    send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signals.leave()
    assert signals.requested is None


def test_leaving_after_sigterm_is_system_exit_where_nobody_handles_it(fit):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signals = ExitSignals(fit.is_running)
    signals.install()
    send(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        signals.leave()
    assert caught.value.code == 128 + signal.SIGTERM  # what a shell reports of a process that SIGTERM has ended
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_users_own_handler_is_called_with_the_signal(fit):
    called = []
    signal.signal(signal.SIGTERM, lambda number, frame: called.append((number, frame.f_code.co_name)))
    signals = ExitSignals(fit.is_running)
    signals.install()
    send(signal.SIGTERM)
    assert called == []
    signals.leave()
    assert called == [(signal.SIGTERM, "leave")]
    send(signal.SIGTERM)  # now it is theirs alone
    assert len(called) == 2


def test_a_signal_that_is_ignored_stays_ignored(fit):
    # A shell has its background jobs ignore SIGINT, so that Ctrl-C ends those in the foreground alone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signals = ExitSignals(fit.is_running)
    signals.install()
    send(signal.SIGINT)
    assert signals.requested is None
    signals.uninstall()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_the_handlers_are_given_back(signals):
    assert signal.getsignal(signal.SIGTERM) is not lost
    signals.uninstall()
    assert signal.getsignal(signal.SIGTERM) is lost
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signals.uninstall()  # twice does no harm
    assert signal.getsignal(signal.SIGTERM) is lost


def test_a_handler_that_the_user_sets_meanwhile_stays(signals):
    def theirs(number, frame):
        pass

    signal.signal(signal.SIGTERM, theirs)
    signals.uninstall()
    assert signal.getsignal(signal.SIGTERM) is theirs


@pytest.mark.parametrize("gone", [False, True])
def test_one_left_behind_by_a_fit_that_raised_swallows_nothing(gone):
    fit = Fit()
    ExitSignals(fit.is_running).install()
    if gone:
        del fit
        gc.collect()
    else:
        fit.running = False
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
    with pytest.raises(Lost):
        send(signal.SIGTERM)


def test_one_left_behind_makes_room_for_the_next(fit, signals):
    fit.running = False
    second_fit = Fit()
    second = ExitSignals(second_fit.is_running)
    second.install()
    send(signal.SIGINT)
    assert (signals.requested, second.requested) == (None, signal.SIGINT)
    second.uninstall()
    assert signal.getsignal(signal.SIGTERM) is lost
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_fit_within_a_fit_passes_the_signal_on(fit, signals):
    inner = ExitSignals(fit.is_running)
    inner.install()
    send(signal.SIGTERM)
    assert (signals.requested, inner.requested) == (None, signal.SIGTERM)
    inner.leave()
    assert signals.requested == signal.SIGTERM


def test_nothing_is_installed_outside_of_the_main_thread(fit):
    signals = ExitSignals(fit.is_running)
    thread = threading.Thread(target=signals.install)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is lost
    signals.uninstall()
    assert signal.getsignal(signal.SIGTERM) is lost
