"""Read the numbers that papers print. `published/<file>.csv` has one line for each number, with its table and row."""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flexlora.errors import UserError
from flexlora.reading import read_text
from flexlora.report.table import Column, PaperRow


@dataclass(frozen=True)
class Published:
    """One line of the file. `metric` and `row` are spelled as the paper spells them.

    `params_of` names the part that the printed parameters count: `adapter`, `adapter+head`, `model` or `unknown`.
    `inferred` is `no`, `label` if we inferred the row's label, or `params` if we inferred what its parameters count.
    """

    table: str
    row: str
    method: str
    task: str
    metric: str
    value: float | None
    params: str
    params_of: str
    note: str
    inferred: str


@cache
def read_published(name: str) -> tuple[Published, ...]:
    """Return all lines of `published/<name>`, in the order of the file."""
    text = read_text(Path(__file__).parent / "published" / name)
    return tuple(
        Published(
            **{key: text for key, text in line.items() if key != "value"},
            value=float(line["value"]) if line["value"] else None,
        )
        for line in csv.DictReader(text.splitlines())
    )


def lines_of(row: PaperRow, name: str) -> list[Published]:
    """Return the lines of one row, in the order of the row's tables.

    Raises:
        UserError: the file has no line of the row.
    """
    lines = [line for line in read_published(name) if line.row == row.row and line.table in row.tables]
    if not lines:
        raise UserError(f"{name} has no line of the row {row.row!r} with the table {' or '.join(row.tables)}")
    return sorted(lines, key=lambda line: row.tables.index(line.table))


def printed_value(lines: list[Published], column: Column) -> float | None:
    """Return the number that the paper prints in this column, or None if it prints none."""
    if column.published is None:
        return None
    wanted = (column.task, column.published)
    return next((line.value for line in lines if (line.task, line.metric) == wanted and line.value is not None), None)
