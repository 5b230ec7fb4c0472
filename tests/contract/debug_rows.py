"""One row per debugging function: how to call it and what it refuses. `tests/test_debug_contract.py` reads them.

An entry: the function's name -> `DebugRow(kind, bad, any_value, quick)`. Keep them sorted; a helper value that several rows share stands above.
"""

import dataclasses

_A_MODEL = "a keras.Model"


@dataclasses.dataclass
class DebugRow:
    """What the contracts need to know of a debugging function.

    Attributes:
        bad: list of (argument, value, exception, what the message says is accepted) or, with a fifth entry, a dict of
            the other arguments that make the value bad.
        any_value: names of arguments that no single value is bad for.
        quick: dict of keyword arguments that make a call take a second: the contracts pass them.
        takes: "model": called as `f(model, x, y)`; "data": as `f(x, y)`; "history": as `f(history)`.
    """

    bad: list
    any_value: tuple = ()
    quick: dict = dataclasses.field(default_factory=dict)
    takes: str = "model"


DEBUG = {}
