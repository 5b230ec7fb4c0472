"""When a checkpoint is due: counted by hand, with a clock that the test moves."""

import pytest

from tests.clock import Clock
from tf_tricks._checks import check_keep_best
from tf_tricks.callbacks import _checkpoint_schedule
from tf_tricks.callbacks._checkpoint_schedule import Schedule, check_every

pytestmark = pytest.mark.any_backend


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(_checkpoint_schedule, "time", clock)
    return clock


def due(schedule, epochs, steps_per_epoch, stride=1):
    """Steps since the begin of the run after which a checkpoint is due, the ends of epochs as negative numbers."""
    found, done = [], schedule.total
    for _ in range(epochs):
        for step in range(stride, steps_per_epoch, stride):
            if schedule.step_ends(step):
                found.append(done + step)
        done += steps_per_epoch
        if schedule.epoch_ends(steps_per_epoch, {}):
            found.append(-done)
        assert schedule.total == done
    return found


@pytest.mark.parametrize(
    ("every", "wanted"),
    [
        (1, [1, 2, 3, 4, -5, 6, 7, 8, 9, -10]),
        (2, [2, 4, 6, 8, -10]),
        (3, [3, 6, 9]),
        (5, [-5, -10]),
        (7, [7]),
        (100, []),
        ("epoch", [-5, -10]),
    ],
)
def test_steps_count_through_the_epochs(every, wanted):
    assert due(Schedule(every), epochs=2, steps_per_epoch=5) == wanted


def test_several_steps_at_once_save_when_the_number_is_passed():
    # Steps 4 and 8 of each epoch, and the epoch's end at 10: 3 is passed within 1..4, 6 within 5..8, 9 within 9..10.
    assert due(Schedule(3), epochs=1, steps_per_epoch=10, stride=4) == [4, 8, -10]
    assert due(Schedule(6), epochs=1, steps_per_epoch=10, stride=4) == [8]


def test_a_resumed_schedule_saves_at_the_same_steps():
    whole = due(Schedule(4), epochs=3, steps_per_epoch=7)
    first = Schedule(4)
    for step in range(1, 7):
        first.step_ends(step)
    first.epoch_ends(7, {})
    first.step_ends(1)
    first.step_ends(2)  # the 9th step of the run, where the process ends
    second = Schedule(4, state=first.get_state())
    second.resume_in_epoch(2)
    found = [7 + step for step in range(3, 7) if second.step_ends(step)]
    if second.epoch_ends(7, {}):
        found.append(-14)
    assert second.total == 14
    assert found + due(second, epochs=1, steps_per_epoch=7) == [each for each in whole if abs(each) > 9]


def test_a_schedule_that_resumes_at_an_epoch_s_begin_counts_on():
    first = Schedule(4)
    for step in range(1, 7):
        first.step_ends(step)
    first.epoch_ends(7, {})
    assert due(Schedule(4, state=first.get_state()), epochs=1, steps_per_epoch=7) == [8, 12]


@pytest.mark.parametrize(("every", "seconds"), [("30s", 30), ("1.5min", 90), ("2 h", 7200), ("10min", 600)])
def test_a_time_is_up_after_so_many_seconds(every, seconds, clock):
    schedule = Schedule(every)
    clock.now += seconds - 0.5
    assert not schedule.step_ends(1)
    clock.now += 0.5
    assert schedule.step_ends(2)
    assert schedule.step_ends(3)  # nothing was saved yet
    schedule.saved(0.0)
    assert not schedule.step_ends(4)
    clock.now += seconds
    assert schedule.epoch_ends(5, {})


@pytest.mark.parametrize(("cost", "wait"), [(0.05, 10), (0.1, 10), (0.5, 50), (3.0, 300)])
def test_a_time_is_stretched_until_saving_takes_one_percent_of_it(cost, wait, clock):
    schedule = Schedule("10s")
    schedule.saved(cost)
    clock.now += wait - 0.01
    assert not schedule.step_ends(1)
    clock.now += 0.02
    assert schedule.step_ends(2)


def test_steps_are_not_stretched(clock):
    schedule = Schedule(2)
    schedule.saved(1e9)
    assert due(schedule, epochs=1, steps_per_epoch=5) == [2, 4]


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [("min", [True, True, False, False, False, False, True]), ("max", [True, False, False, True, False, False, False])],
)
def test_an_epoch_that_is_the_best_so_far_is_due(mode, wanted):
    nan, inf = float("nan"), float("inf")
    scores = [2.0, 1.0, 1.0, 3.0, nan, inf if mode == "max" else -inf, 0.5]
    schedule = Schedule(1000, ("score", mode))
    assert [schedule.epoch_ends(1, {"score": score}) for score in scores] == wanted


def test_the_best_is_remembered_by_a_resumed_run():
    first = Schedule(1000, ("score", "min"))
    first.epoch_ends(1, {"score": 1.0})
    second = Schedule(1000, ("score", "min"), first.get_state())
    assert not second.epoch_ends(1, {"score": 1.5})
    assert second.epoch_ends(1, {"score": 0.5})


def test_a_monitored_value_that_is_not_there_is_none():
    schedule = Schedule("epoch", ("val_loss", "min"))
    assert schedule.metric({"loss": 1.0}) is None and schedule.metric(None) is None
    assert schedule.metric({"val_loss": 2}) == 2.0
    assert schedule.epoch_ends(1, {"loss": 1.0})  # because of "epoch"
    assert Schedule(5).metric({"loss": 1.0}) is None


def test_the_state_is_made_of_plain_values():
    schedule = Schedule(3, ("score", "max"))
    due(schedule, epochs=1, steps_per_epoch=4)
    schedule.epoch_ends(4, {"score": 0.5})
    assert schedule.get_state() == {"total": 8, "best": 0.5}


@pytest.mark.parametrize("every", ["epoch", 1, 50, "30s", "0.5s", "10min", "10 min", "2h"])
def test_what_every_may_be(every):
    assert check_every(every) == every


@pytest.mark.parametrize(
    ("every", "error"),
    [("", ValueError), ("step", ValueError), ("10", ValueError), ("0s", ValueError), ("0.0min", ValueError),
     ("-1s", ValueError), ("5ms", ValueError), ("10 days", ValueError), ("1e3s", ValueError), (" 10s", ValueError),
     (0, ValueError), (-3, ValueError), (True, TypeError), (2.0, TypeError), (None, TypeError)],
)  # fmt: skip
def test_what_every_may_not_be(every, error):
    with pytest.raises(error, match=r"^`every` must be .*Received: every="):
        check_every(every)


def test_what_keep_best_may_be():
    assert check_keep_best(None) is None
    assert check_keep_best(["loss", "min"]) == check_keep_best(("loss", "min")) == ("loss", "min")


@pytest.mark.parametrize(
    ("keep_best", "error"),
    [("loss", TypeError), (("loss",), TypeError), (("loss", "min", 1), TypeError), ((1, "min"), TypeError),
     (("loss", "auto"), ValueError), (("loss", None), ValueError), (("loss", ["min"]), ValueError)],
)  # fmt: skip
def test_what_keep_best_may_not_be(keep_best, error):
    with pytest.raises(error, match=r"^`keep_best` must be .*Received: keep_best="):
        check_keep_best(keep_best)
