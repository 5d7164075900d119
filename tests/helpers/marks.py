"""Marks for parametrized tests."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


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
