"""Build tables from the runs under a folder."""

from collections import Counter
from collections.abc import Sequence

from flexlora.report.costs import build_costs
from flexlora.report.record_values import measures_cost
from flexlora.report.scores import Asked, build_scores
from flexlora.report.sheet import Sheet
from flexlora.report.table import Column, Table
from flexlora.report.tables import DEFAULTS
from flexlora.results.collect import Run

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
    metrics: dict[str, Counter[str]] = {}
    for record in (run.record for run in runs):
        if record.task not in known and not measures_cost(record):
            metrics.setdefault(record.task, Counter())[record.main_metric or ""] += 1
    columns = tuple(_plain_column(task, metrics[task]) for task in sorted(metrics))
    return [*DEFAULTS, *([Table(OTHER, "Other tasks", columns)] if columns else [])]


def _plain_column(task: str, metrics: Counter[str]) -> Column:
    """Return the column with the main metric of a task. If runs differ in it, the most frequent one is used."""
    metric = max(metrics, key=lambda name: (name != "", metrics[name], name))
    return Column(task, (task, metric.replace("_", " ")), metric)
