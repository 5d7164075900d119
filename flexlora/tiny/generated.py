"""What all tasks of `scale=tiny` share: they refuse data of one's own, say what they are, and record their source."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from flexlora.errors import UserError
from flexlora.tasks.row_sources import RowFile

log = logging.getLogger("flexlora")


def begin(settings: Any, *keys: str, data: str = "generated data") -> None:
    """Check that the settings name no data of one's own, and say that the results say nothing about the paper.

    Args:
        settings: the settings of the task.
        keys: the fields of `settings` that would name data.
        data: what the task has instead, for the log.

    Raises:
        UserError: one of the fields is set.
    """
    given = [f"task.{key}" for key in keys if getattr(settings, key) is not None]
    if given:
        raise UserError(f"scale=tiny generates its data: leave out {' and '.join(given)}, or leave out scale=tiny")
    log.info("scale=tiny: %s and a small model; the results say nothing about the paper", data)


def provenance(revision: str, rows: Any) -> dict[str, Any]:
    """Return the source of generated rows, for the record. `revision` is a hash of the code that made them."""
    sha256 = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return {"source": "generated", "path": None, "revision": revision, "sha256": {"rows": sha256}}


@cache
def problems(
    generate: Callable[[int, Random], list[dict[str, str]]], seed: str, train: int, test: int
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Generate the rows of a training and a test file. They are cached for the next run, so they must not change."""
    rows = generate(train + test, Random(seed))
    return rows[:train], rows[train:]


def file_of(name: str, rows: list[dict[str, str]], columns: Sequence[str], source: dict[str, Any]) -> RowFile:
    """Return generated rows in the form of a file that was read. `source` is their `provenance`."""
    read = {column: [row[column] for row in rows] for column in columns}
    return RowFile(Path(f"generated {name} rows"), read, source["sha256"]["rows"])
