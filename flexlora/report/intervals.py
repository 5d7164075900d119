"""Set the intervals over the examples for those figures and differences of a table that have only one seed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flexlora.report.cells import Cell, Interval
from flexlora.report.sheet import Row
from flexlora.report.table import Average, Column, Count
from flexlora.results.collect import Run

Runs = Mapping[tuple[str, str, str, int], Run]
"""The runs by task, method, variant and seed."""


def set_intervals(rows: Sequence[Row], columns: Sequence[Column], runs: Sequence[Run], evaluation: str) -> None:
    """Set the intervals of the rows' figures with one seed, and of their differences in one seed."""
    found = {(r.record.task, r.record.method, r.record.variant, r.record.seed): r for r in runs}
    for row in rows:
        others = row.reference.cells if row.reference else [None] * len(columns)
        row.cells = [
            cell
            if isinstance(column, Count | Average)
            else _with_intervals(cell, other, row, column, found, evaluation)
            for cell, other, column in zip(row.cells, others, columns, strict=True)
        ]


def _with_intervals(cell: Cell, other: Cell | None, row: Row, column: Column, runs: Runs, evaluation: str) -> Cell:
    from flexlora.report.bootstrap import difference_interval, interval  # here: most reports do without numpy

    if cell.n == 1:
        (seed,) = cell.by_seed
        cell = replace(cell, interval=_percent(interval(_run(row, column, seed, runs), column.metric, evaluation)))
    if other is not None and row.reference is not None and cell.paired is not None and cell.paired.n == 1:
        (seed,) = cell.by_seed.keys() & other.by_seed.keys()
        ours, reference = (_run(which, column, seed, runs) for which in (row, row.reference))
        span = _percent(difference_interval(ours, reference, column.metric, evaluation))
        cell = replace(cell, paired=replace(cell.paired, interval=span))
    return cell


def _run(row: Row, column: Column, seed: int, runs: Runs) -> Run:
    return runs[column.task, row.method, row.variant, seed]


def _percent(found: Interval | None) -> Interval | None:
    return None if found is None else (100 * found[0], 100 * found[1])
