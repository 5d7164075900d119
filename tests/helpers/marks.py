"""Marks for parametrized tests."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def selected(request: pytest.FixtureRequest, argument: str) -> list[Any]:
    """The values of a parametrized `argument` in the selected tests of the file that asks for the fixture."""
    ours = (item for item in request.session.items if item.path == request.path and hasattr(item, "callspec"))
    return list(dict.fromkeys(item.callspec.params[argument] for item in ours if argument in item.callspec.params))


def slow_but(fast: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """All `values` for `pytest.mark.parametrize`; those that are not in `fast` are slow tests.

    Raises:
        ValueError: a member of `fast` is not among the values, so `make test` would miss it.
    """
    values = list(values)
    if missing := [value for value in fast if value not in values]:
        raise ValueError(f"not among the values: {missing}")
    marked = []
    for value in values:
        arguments = value if isinstance(value, tuple) else (value,)
        marked.append(pytest.param(*arguments, marks=() if value in fast else pytest.mark.slow))
    return marked
