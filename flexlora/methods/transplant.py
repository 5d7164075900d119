"""The ranks of another run: is it the allocation that helps, or how it came about? Fixed from the first step on."""

from typing import Any

from flexlora.errors import UserError
from flexlora.results.record import recorded_run
from flexlora.tuner.names import specific_first


def final_ranks(folder: Any) -> dict[str, int]:
    """The final ranks of the finished run in `folder`, as a `rank_pattern`.

    Raises:
        UserError: there is no finished run, or its method has no ranks.
    """
    record = recorded_run("method.ranks_from", folder)
    ranks = (record.rank_events or {}).get("final_ranks")
    if record.status != "done" or not ranks:
        raise UserError(f"method.ranks_from: {folder} is {record.status}, of {record.method}: no ranks to take over")
    return specific_first(ranks)
