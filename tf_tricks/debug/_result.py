"""What the debugging functions return: findings with their numbers, text that reads as advice, a picture."""

import dataclasses
import textwrap

from tf_tricks._text_chart import text_chart

WIDTH = 100  # characters of a line of advice


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that an experiment saw.

    Attributes:
        name: str, the kind of finding, a fixed word for programs such as "dead_relus".
        text: str, what was seen, with its numbers, and what to do, for people.
        is_fault: bool; False for a remark that alone does not fail the check.
        evidence: dict, the numbers that led to it.
    Example:
        >>> print(Finding("flat", "The loss does not move.", evidence={"loss": 2.3}).text)
        The loss does not move.
    """

    name: str
    text: str
    is_fault: bool = True
    evidence: dict = dataclasses.field(default_factory=dict)

    def __str__(self):
        mark = "FAULT " if self.is_fault else "note  "
        return textwrap.fill(mark + self.text, WIDTH, subsequent_indent=" " * 6, break_long_words=False)


class Result:
    """Base of the results: a subclass is a dataclass with a list `findings`, and says how its heading and picture look.

    Attributes:
        findings: list of `Finding`s, the most important first.
        passed: bool, whether none of them is a fault.
    """

    @property
    def passed(self):
        return not any(finding.is_fault for finding in self.findings)

    def named(self, name):
        """The first finding of that name, or None."""
        return next((finding for finding in self.findings if finding.name == name), None)

    def heading(self):
        """str, the first lines of the text: the outcome, and the few numbers that everybody wants."""
        raise NotImplementedError

    def draw(self, axes):
        """Draw the result into matplotlib `axes`."""
        raise NotImplementedError

    def series(self):
        """What a terminal can show in place of the picture: (title, list of numbers)."""
        raise NotImplementedError

    def __str__(self):
        return "\n".join([self.heading(), *map(str, self.findings)])

    def plot(self, path=None):
        """Draw the result.

        Args:
            path: None, or the file to write the picture to.
        Returns:
            A `matplotlib.figure.Figure`; without matplotlib the str of a chart in characters, which is printed, too.
        Raises:
            ImportError: `path` is given and matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError:
            if path is not None:
                raise ImportError("`path` needs matplotlib: pip install 'tf-tricks[plot]'", name="matplotlib") from None
            chart = text_chart(*self.series())
            print(chart)
            return chart
        figure = Figure(figsize=(7, 4), layout="constrained")
        self.draw(figure.subplots())
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure
