"""Build tables from the runs under a folder."""

from collections import Counter
from collections.abc import Sequence

from flexlora.report.costs import build_costs
from flexlora.report.record_values import further_scores, measures_cost
from flexlora.report.scores import Asked, build_scores
from flexlora.report.sheet import Sheet
from flexlora.report.table import Column, Table
from flexlora.report.tables import DEFAULTS
from flexlora.results.collect import Run
from flexlora.results.record import RunRecord

OTHER = "other"
"""The name of the plain table, which shows the tasks that are in no table of the package."""


def build(
    table: Table,
    runs: Sequence[Run],
    evaluation: str = "last",
    all_tasks: bool = False,
    against: str | None = None,
    intervals: bool = False,
) -> list[Sheet]:
    """Return the table of each scale and model that has runs of its tasks.

    A table of costs ignores the arguments about scores: all arguments after `runs`.
    """
    if table.of_costs:
        return build_costs(table, runs)
    return build_scores(table, runs, Asked(evaluation, all_tasks, against, intervals))


def default_tables(runs: Sequence[Run]) -> list[Table]:
    """Return the tables that are shown by default: the benchmarks, and a plain table of all other tasks."""
    known = {column.task for table in DEFAULTS for column in table.columns}
    by_task: dict[str, list[RunRecord]] = {}
    for record in (run.record for run in runs):
        if record.task not in known and not measures_cost(record):
            by_task.setdefault(record.task, []).append(record)
    columns = tuple(column for task in sorted(by_task) for column in _plain_columns(task, by_task[task]))
    return [*DEFAULTS, *([Table(OTHER, "Other tasks", columns)] if columns else [])]


def _plain_columns(task: str, records: Sequence[RunRecord]) -> list[Column]:
    """Return the column of a task's main metric, and those of its runs' further scores.

    If runs differ in the main metric, the most frequent one is used.
    """
    metrics = Counter(record.main_metric or "" for record in records)
    main = max(metrics, key=lambda name: (name != "", metrics[name], name))
    further = dict.fromkeys(name for record in records for name in further_scores(record) if name != main)
    return [
        Column(task, (task, main.replace("_", " ")), main),
        *(Column(task, ("", name.replace("_", " ")), name, optional=True, secondary=True) for name in further),
    ]
