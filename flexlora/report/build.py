"""From the runs under a folder to tables."""

from collections.abc import Sequence

from flexlora.report.costs import build_costs
from flexlora.report.scores import Asked, build_scores
from flexlora.report.sheet import Sheet
from flexlora.report.table import Table
from flexlora.results.collect import Run


def build(
    table: Table,
    runs: Sequence[Run],
    evaluation: str = "last",
    all_tasks: bool = False,
    against: str | None = None,
    intervals: bool = False,
) -> list[Sheet]:
    """The table of each scale and model that has runs of its tasks.

    A table of costs ignores what is asked of scores.
    """
    if table.of_costs:
        return build_costs(table, runs)
    return build_scores(table, runs, Asked(evaluation, all_tasks, against, intervals))
