"""The figures of runs as a tidy frame with one row for each figure. Every table is a pivot of it.

The report itself keeps the frame as a list, because importing pandas takes longer than all other work on a thousand
runs. `read_frame` returns the same figures as a pandas frame, for the user's own analyses.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flexlora.report.record_values import COSTS, figure, number, scores_of
from flexlora.report.table import Average, Column, Count
from flexlora.results.collect import Run, collect
from flexlora.results.record import RunRecord

if TYPE_CHECKING:
    import pandas as pd

RowKey = tuple[str, str]
"""The method and the variant of a row."""


class Figure(NamedTuple):
    """The figure of a run in a column of its task. `value` is None if the run has no such figure."""

    run: Run
    column: Column
    value: float | None

    @property
    def row(self) -> RowKey:
        return self.run.record.method, self.run.record.variant


def frame_of(runs: Iterable[Run], columns: Iterable[Column], evaluation: str) -> list[Figure]:
    """Return one figure for each run and each of these columns of its task. Every task has the parameter counts."""
    by_task: dict[str | None, list[Column]] = {}
    for column in columns:
        if not isinstance(column, Average):
            by_task.setdefault(None if isinstance(column, Count) else column.task, []).append(column)
    return [
        Figure(run, column, column.value(run.record, evaluation))
        for run in runs
        for column in (*by_task.get(None, ()), *by_task.get(run.record.task, ()))
    ]


def pivot(frame: Iterable[Figure]) -> dict[RowKey, dict[Column, list[Figure]]]:
    """Return the figures of each row and column."""
    found: dict[RowKey, dict[Column, list[Figure]]] = {}
    for one in frame:
        found.setdefault(one.row, {}).setdefault(one.column, []).append(one)
    return found


def read_frame(folder: str | Path) -> "pd.DataFrame":
    """Return every figure of every run under `folder` as a pandas frame with one row for each figure.

    Columns: scale, model, task, method, variant, seed, status, evaluation (`last`, `best`, `parameters`, `cost`),
    metric, value, main (whether it is the task's main metric), path. Scores are shares. Costs are in seconds, bytes
    and operations. A run without figures has one row without a value.
    """
    import pandas as pd

    about = ("scale", "model", "task", "method", "variant", "seed", "status")
    rows = [
        (*(getattr(run.record, name) for name in about), *recorded, str(run.path))
        for run in collect(Path(folder)).runs
        for recorded in _recorded(run.record)
    ]
    return pd.DataFrame(rows, columns=[*about, "evaluation", "metric", "value", "main", "path"])


def _recorded(record: RunRecord) -> Sequence[tuple[str | None, str | None, float | None, bool]]:
    """Return evaluation, metric, value and `main` of every figure. A run without figures gets one empty row."""
    found: list[tuple[str | None, str | None, float | None, bool]] = []
    for evaluation in ("last", "best"):
        for metric in scores_of(record, evaluation):
            found.append((evaluation, metric, figure(record, metric, evaluation), metric == record.main_metric))
    if record.status == "done":
        found += [("parameters", name, number(value), False) for name, value in record.parameters.items()]
        found += [("cost", name, number(read(record)), False) for name, read in COSTS.items()]
    return [one for one in found if one[2] is not None] or [(None, None, None, False)]
