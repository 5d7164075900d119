"""The rows of a split with texts and labels, from any kind of file."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flexlora.errors import UserError
from flexlora.settings import GlueTask


@dataclass
class Rows:
    """One list for each text column, and one label for each row: a class number or a float."""

    texts: tuple[list[str], ...]
    labels: list[Any]
    sha256: dict[str, str] = field(default_factory=dict)
    """The hashes of the source files, by name; empty for data from the hub."""
    left_out: dict[str, list[int]] = field(default_factory=dict)
    """The line numbers of omitted broken rows, by file."""

    def __len__(self) -> int:
        return len(self.labels)

    def content(self) -> str:
        """The hash of the texts and labels: the identity of rows that come from no file."""
        digest = hashlib.sha256()
        for column in (*self.texts, self.labels):
            digest.update(json.dumps(column).encode())
        return digest.hexdigest()

    def first(self, count: int | None) -> "Rows":
        """Return the first `count` rows, or all rows if `count` is None."""
        return Rows(tuple(text[:count] for text in self.texts), self.labels[:count], self.sha256, self.left_out)

    def pick(self, numbers: Sequence[int]) -> "Rows":
        """Return the rows with these numbers, counted from 0."""
        texts = tuple([text[i] for i in numbers] for text in self.texts)
        return Rows(texts, [self.labels[i] for i in numbers], self.sha256, self.left_out)


def held_out(count: int, rows: int) -> tuple[list[int], list[int]]:
    """Choose `count` of the training rows as held-out split; return the numbers of the remaining and held-out rows.

    The choice is the same for every seed.

    Raises:
        UserError: no training row would remain.
    """
    if count >= rows:
        raise UserError(f"task.validation_rows={count} leaves none of the {rows} rows for training: lower it")
    chosen = set(np.random.default_rng(0).permutation(rows)[:count].tolist())
    return [i for i in range(rows) if i not in chosen], sorted(chosen)


def drawn(labels: Sequence[int], train_share: float, test_share: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Draw the numbers of the training and test rows of every class. Each split has its share of all rows.

    A class gets the share of its rows, rounded so that the totals are right; a small class may get no training row.
    """
    numbers = np.asarray(labels)
    counts = np.bincount(numbers)
    tests = _rounded(counts * test_share)
    trains = np.minimum(_rounded(counts * train_share), counts - tests)
    train: list[int] = []
    test: list[int] = []
    for klass in range(len(counts)):
        order = np.random.default_rng([seed, klass]).permutation(np.flatnonzero(numbers == klass)).tolist()
        test += order[: tests[klass]]
        train += order[tests[klass] : tests[klass] + trains[klass]]
    return sorted(train), sorted(test)


def _rounded(shares: Any) -> Any:
    """Round to whole numbers with the rounded total: the largest fractions are rounded up."""
    whole = np.floor(shares + 1e-9).astype(int)
    missing = round(float(shares.sum())) - int(whole.sum())
    whole[np.argsort(whole - shares, kind="stable")[:missing]] += 1
    return whole


def as_number(label: Any, settings: GlueTask) -> float | str:
    """Return a numeric label as a float, or an error text if it is not a number or is outside `label_range`."""
    try:
        value = math.nan if isinstance(label, bool) else float(label)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        return f"label {_shown(label)} is not a number"
    if settings.label_range is not None and not settings.label_range[0] <= value <= settings.label_range[1]:
        return out_of_range(label, _ends(settings.label_range))
    return value


def as_class(label: Any, settings: GlueTask) -> int | str:
    """Return the class of a label text, or an error text if it is not in `task.labels`."""
    if label not in settings.labels:
        return f"label {_shown(label)} is not one of {', '.join(settings.labels)}{_unlabelled(label)}"
    return settings.labels.index(label)


def out_of_range(label: Any, ends: str) -> str:
    """Return the error text for a label that is not between `ends`, such as `0 and 1`."""
    return f"label {_shown(label)} is not between {ends}{_unlabelled(label)}"


def check_columns(settings: GlueTask) -> None:
    """Check the text columns of the task.

    Raises:
        UserError: `task.text` does not have one or two columns, or `task.tsv.text` has a different number.
    """
    if len(settings.text) not in (1, 2):
        raise UserError(f"task.text has {len(settings.text)} columns: give one or two")
    if len(settings.tsv.text) != len(settings.text):
        raise UserError(
            f"task.text has {len(settings.text)} columns, but task.tsv.text has {len(settings.tsv.text)}: "
            "they must have the same number"
        )


def check_labels(settings: GlueTask) -> None:
    """Check the labels of the task.

    Raises:
        UserError: the number of labels differs from `num_labels`, or `label_range` is not `[low, high]`.
    """
    if len(settings.labels) != (settings.num_labels if settings.num_labels > 1 else 0):
        raise UserError(
            f"task.num_labels is {settings.num_labels}, but task.labels has {len(settings.labels)} labels: "
            "give one label for each class, and none for num_labels=1"
        )
    ends: Sequence[float] | None = settings.label_range
    if ends is not None and not (len(ends) == 2 and ends[0] < ends[1]):
        raise UserError(f"task.label_range is {list(ends)}: give the lowest and the highest label, [low, high]")


def _unlabelled(label: Any) -> str:
    """Return an explanation for the label -1, which marks the rows of a test set; an empty text for other labels."""
    try:
        marks = float(label) == -1
    except (TypeError, ValueError):
        marks = False
    return ": -1 marks a row without a label, as in GLUE's test sets: give a file with labels" if marks else ""


def _shown(label: Any) -> str:
    return f"'{label}'" if isinstance(label, str) else repr(label)


def _ends(label_range: Sequence[float]) -> str:
    return f"{label_range[0]:g} and {label_range[1]:g}"
