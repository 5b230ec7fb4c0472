"""What `restore` did and what a file holds, as plain attributes and as text."""

import dataclasses
import math

_ROWS = 24  # variables that a description lists: it shall fit on one screen


@dataclasses.dataclass
class RestoreReport:
    """What `restore` loaded, and what it did not.

    Args:
        path: str, the file.
        loaded: list of the paths of the model's weights that got their value from the file.
        skipped: dict from the paths of the weights that did not, to the reason.
        unused: list of the paths in the file that found no place in the model.
        cast: dict from path to "float32 -> bfloat16", for weights and optimizer variables of another floating dtype.
        optimizer: str, what became of the optimizer's state.
        optimizer_restored: bool.
        seeds: str, what became of the random state of the model's layers.
        epoch, step: int or None, where the run of the file was.
        metadata: what `save` was given.
    Example:
        >>> print(RestoreReport("run.safetensors", ["dense/kernel"], {"dense/bias": "not in the file"}))
        Restored 1 of 2 weights from run.safetensors.
        Left as they were:
          dense/bias: not in the file
    """

    path: str
    loaded: list = dataclasses.field(default_factory=list)
    skipped: dict = dataclasses.field(default_factory=dict)
    unused: list = dataclasses.field(default_factory=list)
    cast: dict = dataclasses.field(default_factory=dict)
    optimizer: str = ""
    optimizer_restored: bool = False
    seeds: str = ""
    epoch: int | None = None
    step: int | None = None
    metadata: object = None

    def __str__(self):
        lines = [f"Restored {len(self.loaded)} of {len(self.loaded) + len(self.skipped)} weights from {self.path}."]
        lines += [f"Optimizer: {self.optimizer}."] if self.optimizer else []
        lines += [f"Random state: {self.seeds}."] if self.seeds else []
        if self.skipped:
            lines += ["Left as they were:", *(f"  {path}: {reason}" for path, reason in self.skipped.items())]
        if self.unused:
            lines += ["In the file, but not used:", *(f"  {path}" for path in self.unused)]
        for change in dict.fromkeys(self.cast.values()):
            lines.append(f"Converted {change}: {sum(change == each for each in self.cast.values())} variables.")
        return "\n".join(lines)


@dataclasses.dataclass
class Description:
    """What a checkpoint holds; `str()` of it fits on one screen.

    Args:
        path: str, the file.
        created: str, ISO time, UTC.
        versions: dict with "tf_tricks", "keras" and "backend".
        model: str, the model's name.
        epoch, step: int or None, where the run was.
        optimizer: str or None, the optimizer's class.
        moments: bool, are there optimizer variables beyond iteration and learning rate.
        variables: list of `(group, path, shape, dtype, bytes)`.
        metadata: what `save` was given.
        damage: None if the checksum is right, else a sentence.
    Example:
        >>> print(Description("run.safetensors", variables=[("weights", "dense/bias", (4,), "float32", 16)]))
        run.safetensors: 1 variable, 16 B
        optimizer  none
        checksum   ok
        <BLANKLINE>
        weights  dense/bias  (4,)  float32  16 B
    """

    path: str
    created: str | None = None
    versions: dict = dataclasses.field(default_factory=dict)
    model: str | None = None
    epoch: int | None = None
    step: int | None = None
    optimizer: str | None = None
    moments: bool = False
    variables: list = dataclasses.field(default_factory=list)
    metadata: object = None
    damage: str | None = None

    def __str__(self):
        total = sum(entry[-1] for entry in self.variables)
        heading = f"{self.path}: {len(self.variables)} variable{'s' * (len(self.variables) != 1)}, {readable(total)}"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        moments = "with its moments" if self.moments else "without moments"
        rows = [
            ("created", self.created),
            ("versions", versions),
            ("model", self.model),
            ("position", position(self.epoch, self.step)),
            ("optimizer", f"{self.optimizer}, {moments}" if self.optimizer else "none"),
            ("metadata", self.metadata),
            ("checksum", self.damage or "ok"),
        ]
        facts = columns([(name, str(value)) for name, value in rows if value not in (None, "")])
        return "\n".join([heading, *facts, "", *columns(self._table())])

    def _table(self):
        rows = [(group, path, str(tuple(shape)), dtype, readable(n)) for group, path, shape, dtype, n in self.variables]
        more = len(rows) - _ROWS
        return rows if more <= 0 else [*rows[:_ROWS], ("...", f"and {more} more", "", "", "")]


def position(epoch, step):
    """ "epoch 3, step 120", or what of it is known."""
    known = (("epoch", epoch), ("step", step))
    return ", ".join(f"{name} {value}" for name, value in known if value is not None)


def columns(rows):
    """Lines in which the cells of `rows` stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def readable(count):
    """A number of bytes for people: 16 B, 1.5 kB, 120 MB."""
    power = min(int(math.log(count, 1000)), 4) if count else 0
    value = count / 1000**power
    return f"{value:.4g} {['B', 'kB', 'MB', 'GB', 'TB'][power]}"
