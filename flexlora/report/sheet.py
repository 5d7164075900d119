"""A table that is ready to be printed, and the functions that tables of scores and of costs share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flexlora.report.cells import Cell, average_cell, count_cell, mark_fewer, seeds_cell
from flexlora.report.frame import RowKey, frame_of, pivot
from flexlora.report.marks import MARKS, usual_data
from flexlora.report.record_values import settings_of
from flexlora.report.table import Average, Column, Count, Table
from flexlora.results.collect import Run
from flexlora.results.record import RunRecord

SHOWN_FAILURES = 8


@dataclass
class Row:
    """One row with a cell for each column. `kind` is `ours` or `paper`."""

    kind: str
    label: str
    method: str
    variant: str
    cells: list[Cell]
    settings: Mapping[str, object] = field(default_factory=dict)
    """The settings of our row's method."""
    reference: "Row | None" = None
    """The row that it is compared with."""


@dataclass
class Sheet:
    """One table of one scale and model. Each of its `groups` has rows that belong together."""

    table: Table
    scale: str
    model: str
    evaluation: str
    title: str
    captions: list[str]
    columns: list[Column]
    groups: list[list[Row]]
    notes: list[str]
    common_marks: frozenset[str]
    usual_seeds: int | None = None
    """The most frequent number of seeds in a wide table. A caption says it once for all figures."""
    against: str | None = None
    """The method whose rows the others are compared with, seed by seed."""

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups for row in group]


def our_rows(table: Table, runs: Sequence[Run], columns: Sequence[Column], evaluation: str) -> list[Row]:
    """Return a row for each method and variant of the runs, with a cell for each column."""
    parts = [part for column in columns if isinstance(column, Average) for part in column.columns]
    figures = pivot(frame_of(runs, dict.fromkeys([*columns, *parts]), evaluation))
    usual = {task: usual_data(of_task) for task, of_task in _by_task(runs).items()}

    def cell(row: RowKey, column: Column) -> Cell:
        of_row = figures.get(row, {})
        if isinstance(column, Average):
            return average_cell(of_row, column, [cell(row, part) for part in column.columns])
        found = of_row.get(column, [])
        return count_cell(found) if isinstance(column, Count) else seeds_cell(found, usual.get(column.task))

    settings: dict[RowKey, dict[str, object]] = {}
    for run in runs:
        key = (run.record.method, run.record.variant)
        settings[key] = settings.get(key) or settings_of(run.record, "method")
    keys = sorted(settings, key=lambda key: _order(table, *key))
    rows = [Row("ours", key[0], *key, [cell(key, column) for column in columns], settings[key]) for key in keys]
    for i, column in enumerate(columns):
        if not isinstance(column, Count):
            set_column(rows, i, mark_fewer([row.cells[i] for row in rows]))
    return rows


def _by_task(runs: Iterable[Run]) -> dict[str, list[RunRecord]]:
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(run.record.task, []).append(run.record)
    return found


def shows(table: Table, record: RunRecord) -> bool:
    """Return whether the run belongs to one of the table's rows."""
    return not table.rows or _place(table, record.method, record.variant) < len(table.rows)


def _place(table: Table, method: str, variant: str) -> int:
    """Return the index of the first of the table's rows that matches, or the number of rows if none matches."""
    is_this = (row.method == method and row.variant in (None, variant) for row in table.rows)
    return next((i for i, found in enumerate(is_this) if found), len(table.rows))


def _order(table: Table, method: str, variant: str) -> tuple[int, int, str, bool, int, str]:
    """Return the sort key of a row. It sorts by the table's rows, then by method.

    In a method, the default row comes first, then the row with the fewest overrides.
    """
    place = table.methods.index(method) if method in table.methods else len(table.methods)
    return _place(table, method, variant), place, method, variant != "default", variant.count("+"), variant


def set_column(rows: Sequence[Row], place: int, cells: Sequence[Cell]) -> None:
    """Replace the rows' cells of one column."""
    for row, cell in zip(rows, cells, strict=True):
        row.cells[place] = cell


def overrides(variant: str) -> set[str]:
    """Return the overrides in a variant's name."""
    return {part for part in variant.split("+") if part != "default"}


def label_rows(rows: Sequence[Row]) -> set[str]:
    """Set each row's label: its method and the overrides that not all rows share.

    Returns:
        The overrides that all rows share. If there is only one row, these are all its overrides.
    """
    shared = set.intersection(*(overrides(row.variant) for row in rows)) if rows else set()
    for row in rows:
        own = [part for part in row.variant.split("+") if part not in shared | {"default"}]
        row.label = "\n".join([row.method, *(f"  {part}" for part in own)])
    return shared


def scores_in(rows: Sequence[Row], columns: Sequence[Column]) -> list[Cell]:
    """Return the cells of these rows that have a figure. Numbers of parameters are left out."""
    pairs = [pair for row in rows for pair in zip(row.cells, columns, strict=True)]
    return [cell for cell, column in pairs if cell.n and not isinstance(column, Count)]


def common_marks(rows: Sequence[Row], columns: Sequence[Column]) -> frozenset[str]:
    """Return the marks that every figure has. They are explained once, above the table."""
    marks = [cell.marks for cell in scores_in(rows, columns)]
    return frozenset.intersection(*marks) if marks else frozenset()


def what_all_share(shared: Iterable[str], common: frozenset[str]) -> list[str]:
    """Return the captions about overrides that all rows share and marks that all figures share."""
    return [
        *([f"All rows: {', '.join(sorted(shared))}."] if shared else []),
        *(f"All figures: {text}." for mark, text in MARKS.items() if mark in common),
    ]


def footnotes_of(table: Table, columns: Sequence[Column], is_paper: bool) -> list[str]:
    """Return the footnotes for the shown columns. A table with a paper's model has none if the paper is not shown."""
    if table.paper_model is not None and not is_paper:
        return []
    shown = {None, *(column.task for column in columns)}
    return [text for task, text in table.footnotes if task in shown]


def rates_for_a_start(runs: Sequence[Run]) -> list[str]:
    """Return the note on the learning rates that come from another benchmark's recipe row, if runs have such rates."""
    found: dict[str, dict[str, None]] = {}
    for record in (run.record for run in runs):
        row = record.for_a_start.get("training.learning_rate")
        if row is not None:
            found.setdefault(str(row), {})[record.method] = None
    return [
        f"learning rates of {', '.join(methods)}: recipe rows '{row}', for a start: not tuned for this data"
        for row, methods in sorted(found.items())
    ]


def failures(runs: Sequence[Run]) -> list[str]:
    """Return a line for each run that is not done. Only the first `SHOWN_FAILURES` are listed, the others counted."""
    failed = [run for run in runs if run.record.status != "done"]
    lines = [
        f"{run.record.status}: {run.record.task} {run.record.method} seed {run.record.seed}: {run.record.error} "
        f"({run.path})"
        for run in failed[:SHOWN_FAILURES]
    ]
    return lines + ([f"and {len(failed) - SHOWN_FAILURES} more"] if len(failed) > SHOWN_FAILURES else [])
