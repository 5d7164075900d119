"""A split of texts and labels as read, whatever it was read from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flexlora.errors import UserError
from flexlora.settings import GlueTask


@dataclass
class Rows:
    """One list for each text column, and a label for each row (a class's number, or a float)."""

    texts: tuple[list[str], ...]
    labels: list[Any]
    sha256: dict[str, str] = field(default_factory=dict)
    """Of the files they were read from, by name; empty from the hub."""
    left_out: dict[str, list[int]] = field(default_factory=dict)
    """Line numbers of broken rows that were left out, by file."""

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int | None) -> "Rows":
        """The first `count` rows, all of them for None."""
        return Rows(tuple(text[:count] for text in self.texts), self.labels[:count], self.sha256, self.left_out)

    def pick(self, numbers: Sequence[int]) -> "Rows":
        """The rows of these numbers, counted from 0."""
        texts = tuple([text[i] for i in numbers] for text in self.texts)
        return Rows(texts, [self.labels[i] for i in numbers], self.sha256, self.left_out)


def held_out(count: int, rows: int) -> tuple[list[int], list[int]]:
    """The numbers of the training rows that stay, and of `count` that are held out: the same ones for every seed.

    Raises:
        UserError: none would stay.
    """
    if count >= rows:
        raise UserError(f"task.validation_rows={count} leaves none of {rows} rows to train on")
    chosen = set(np.random.default_rng(0).permutation(rows)[:count].tolist())
    return [i for i in range(rows) if i not in chosen], sorted(chosen)


def as_number(label: Any, settings: GlueTask) -> float | str:
    """A label that is a number as a float; where it is none, or out of `label_range`, what to say of it."""
    try:
        value = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        return f"label {_shown(label)} is not a number"
    if settings.label_range is not None and not settings.label_range[0] <= value <= settings.label_range[1]:
        return f"label {_shown(label)} is not between {_ends(settings.label_range)}"
    return value


def as_class(label: Any, settings: GlueTask) -> int | str:
    """A label's class by its text; where it is none of `task.labels`, what to say of it."""
    if label not in settings.labels:
        return f"label {_shown(label)} is none of {', '.join(settings.labels)}"
    return settings.labels.index(label)


def check_columns(settings: GlueTask) -> None:
    """Refuse text columns that do not fit each other.

    Raises:
        UserError: neither one nor two, or another number of them in the TSV files.
    """
    if len(settings.text) not in (1, 2):
        raise UserError(f"task.text names one or two columns, not {len(settings.text)}")
    if len(settings.tsv.text) != len(settings.text):
        raise UserError(f"task.text has {len(settings.text)} columns, task.tsv.text has {len(settings.tsv.text)}")


def check_labels(settings: GlueTask) -> None:
    """Refuse labels that do not fit each other.

    Raises:
        UserError: as many labels as classes, or a range of two numbers, and it is not so.
    """
    if len(settings.labels) != (settings.num_labels if settings.num_labels > 1 else 0):
        raise UserError(f"task.num_labels is {settings.num_labels}, task.labels has {len(settings.labels)}")
    ends: Sequence[float] | None = settings.label_range
    if ends is not None and not (len(ends) == 2 and ends[0] < ends[1]):
        raise UserError(f"task.label_range is the lowest and the highest label, not {list(ends)}")


def _shown(label: Any) -> str:
    return f"'{label}'" if isinstance(label, str) else repr(label)


def _ends(label_range: Sequence[float]) -> str:
    return f"{label_range[0]:g} and {label_range[1]:g}"
