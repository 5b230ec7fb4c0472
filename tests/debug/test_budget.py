"""A budget ends an experiment by steps or by seconds, shows a bar when asked, and nothing otherwise."""

import itertools

import pytest

from tf_tricks.debug import _budget
from tf_tricks.debug._budget import Budget
from tf_tricks.debug._result import Finding, Result

pytestmark = pytest.mark.any_backend


@pytest.fixture
def clock(monkeypatch):
    """One second passes at each look at the clock."""
    monkeypatch.setattr(_budget.time, "monotonic", itertools.count().__next__)


def test_steps_end_it(capsys):
    budget = Budget(steps=5)
    assert (list(budget.steps(most=2)), list(budget.steps())) == ([0, 1], [0, 1, 2])
    assert budget.over() and list(budget.steps()) == []
    assert capsys.readouterr() == ("", "")


def test_seconds_end_it(clock):
    assert len(list(Budget(seconds=4).steps())) == 3


def test_without_limits_the_caller_ends_it():
    assert len(list(itertools.islice(Budget().steps(), 1000))) == 1000


def test_the_bar_reaches_its_end_even_early(capsys):
    budget = Budget(steps=10, verbose=1, title="Overfitting one batch")
    next(iter(budget.steps())), list(budget.steps(most=2))
    budget.close()
    printed = capsys.readouterr().out
    assert printed.startswith("Overfitting one batch\n") and "100/100" in printed


@pytest.mark.parametrize("bad", [{"seconds": 0}, {"steps": 0}, {"seconds": "1"}, {"steps": 1.5}, {"verbose": -1}])
def test_a_bad_budget_is_refused(bad):
    (name,) = bad
    with pytest.raises((ValueError, TypeError), match=f"`{name}` must"):
        Budget(**bad)


class Example(Result):
    findings = [Finding("dead", "Eleven of sixteen units never fire. " * 5), Finding("slow", "Slow.", is_fault=False)]

    def heading(self):
        return "A heading"

    def series(self):
        return "loss", [3.0, float("nan"), 1.0, 2.0]

    def draw(self, axes):
        axes.plot(self.series()[1])


def test_a_result_reads_as_text():
    result = Example()
    lines = str(result).splitlines()
    assert lines[0] == "A heading" and lines[1].startswith("FAULT ") and lines[-1] == "note  Slow."
    assert max(map(len, lines)) <= 100
    assert not result.passed and result.named("slow").text == "Slow." and result.named("fast") is None


def test_a_picture_without_matplotlib_is_made_of_characters(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    chart = Example().plot()
    assert capsys.readouterr().out == chart + "\n"
    rows = chart.splitlines()
    assert rows[0] == "loss" and rows[1] == "3 |*" and rows[-1] == "1 |  *"
    with pytest.raises(ImportError, match="`path` needs matplotlib"):
        Example().plot("picture.png")


def test_a_picture_with_matplotlib(tmp_path):
    pytest.importorskip("matplotlib")
    figure = Example().plot(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000 and len(figure.axes) == 1
