"""The shared checks of settings. Each error names the field, the required value and the given value.

A check takes the object with the fields and the fields' names, such as `whole(self, "r", "deltaT")`. For a dictionary
field the check applies to each value, whose name in messages is such as `rank_pattern.query`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any


class FieldError(ValueError):
    """The value of a field is invalid.

    Attributes:
        field: the field's name.
        reason: the predicate of the message, whose subject is the field: "must be a whole number, not 'a'".
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason

    def __str__(self) -> str:
        return f"`{self.field}` {self.reason}."


def require(owner: Any, name: str, holds: bool, what: str) -> None:
    """Check a condition on the field `name` of `owner`. `what` describes the required value for the message.

    Raises:
        FieldError: `holds` is false. The other checks of this module raise it too.
    """
    _refuse_unless(holds, name, what, getattr(owner, name))


def whole(owner: Any, *names: str, at_least: int | None = 1, at_most: float = math.inf, or_none: bool = False) -> None:
    """Check that fields are whole numbers from `at_least` (None means no lower limit) to `at_most`."""
    what = "a whole number" + ("" if at_least is None else f" of at least {at_least}")
    for name, value in _values(owner, names, or_none):
        _refuse_unless(is_whole(value) and (at_least is None or value >= at_least), name, what, value)
        _refuse_unless(value <= at_most, name, f"{what} and of at most {at_most}", value)


def number(
    owner: Any,
    *names: str,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    or_none: bool = False,
) -> None:
    """Check that fields are finite numbers within the bounds."""
    bounds = [("of at least", at_least), ("above", above), ("of at most", at_most), ("below", below)]
    said = " and ".join(f"{words} {bound:g}" for words, bound in bounds if math.isfinite(bound))
    what = "a positive number" if said == "above 0" else f"a number {said}" if said else "a finite number"
    for name, value in _values(owner, names, or_none):
        holds = is_number(value) and at_least <= value <= at_most and above < value < below
        _refuse_unless(holds, name, what, value)


def number_or(owner: Any, name: str, words: Sequence[str], above: float = -math.inf) -> None:
    """Check that a field is one of `words`, or a finite number above the bound."""
    value = getattr(owner, name)
    if not isinstance(value, str):
        number(owner, name, above=above)
    else:
        _refuse_unless(value in words, name, f"a number or {' or '.join(words)}", value)


def probability(owner: Any, *names: str, or_none: bool = False) -> None:
    """Check that fields are in [0, 1). A dropout of 1 would remove everything."""
    for name, value in _values(owner, names, or_none):
        _refuse_unless(is_number(value) and 0 <= value < 1, name, "a probability below 1", value)


def nonzero(owner: Any, *names: str) -> None:
    """Check that fields are finite numbers other than 0."""
    for name, value in _values(owner, names):
        _refuse_unless(is_number(value) and value != 0, name, "a number other than 0", value)


def choice(owner: Any, name: str, options: Iterable[Any]) -> None:
    """Check that the value of a field is one of `options`."""
    options = list(options)
    value = getattr(owner, name)
    holds = any(value == option and type(value) is type(option) for option in options)
    _refuse_unless(holds, name, f"one of {', '.join(map(str, options))}", value)


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number. True and False do not count."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number. True and False do not count."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _values(owner: Any, names: Iterable[str], or_none: bool = False) -> Iterator[tuple[str, Any]]:
    for name in names:
        value = getattr(owner, name)
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", item) for key, item in value.items())
        elif value is not None or not or_none:
            yield name, value


def _refuse_unless(holds: bool, name: str, what: str, value: Any) -> None:
    if not holds:
        raise FieldError(name, f"must be {what}, not {value!r}")
