"""The arguments that say how strong a change is, as Keras's layers take them."""

from tf_tricks._checks import check_number


def check_factor(name, value, minimum=-1.0, maximum=1.0):
    """A pair (lower, upper) from a number or a pair within [minimum, maximum]; a number f stands for (-f, f).

    Where `minimum` is above -f, as for layers that take no negative factor, for (minimum, f).

    Raises:
        TypeError, ValueError: it is neither, or lies outside.
    """
    if isinstance(value, list | tuple):
        return tuple(sorted(_pair(name, value, minimum, maximum)))
    value = abs(check_number(name, value, above=minimum, below=maximum, closed="[]"))
    return max(-value, minimum), value


def check_spread(name, value, maximum=1.0):
    """How far below and above 1 a factor may be, `(below, above)` in [0, maximum]; a number stands for both.

    Raises:
        TypeError, ValueError: it is neither a number nor a pair, or lies outside.
    """
    if isinstance(value, list | tuple):
        return _pair(name, value, 0.0, maximum)
    value = check_number(name, value, above=0.0, below=maximum, closed="[]")
    return value, value


def _pair(name, value, minimum, maximum):
    if len(value) != 2:
        raise ValueError(f"`{name}` must be a number or a pair (lower, upper). Received: {name}={value!r}")
    lower, upper = (check_number(name, each, above=minimum, below=maximum, closed="[]") for each in value)
    return lower, upper
