"""What every refusal of an argument says, whoever refuses it."""

import pytest


def cases(rows):
    """The `bad` entries of rows as parameters: name, argument, value, error, accepted, other arguments."""
    return [
        pytest.param(name, *bad[:4], *(bad[4:] or [{}]), id=f"{name}-{bad[0]}-{bad[1]}")
        for name, row in sorted(rows.items())
        for bad in row.bad
    ]


def check(function, argument, value, error, accepted, others):
    """The argument is named, with what is accepted and what came."""
    with pytest.raises(error) as caught:
        function(**{**others, argument: value})
    assert type(caught.value) is error
    said, received = str(caught.value).split(" Received: ")
    assert said.startswith(f"`{argument}` must ")
    assert accepted in said
    assert f"{argument}={value!r}" in received
