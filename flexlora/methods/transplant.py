"""Use the final ranks of another run as fixed ranks, to compare an allocation with the training that found it."""

from typing import Any

from flexlora.errors import UserError
from flexlora.results.record import recorded_run
from flexlora.tuner.names import specific_first


def final_ranks(folder: Any) -> dict[str, int]:
    """Read the final ranks of the finished run in `folder` as a `rank_pattern`.

    Raises:
        UserError: the folder has no finished run, its method has no ranks, or a rank in its record is not a number.
    """
    record = recorded_run("method.ranks_from", folder)
    ranks = (record.rank_events or {}).get("final_ranks")
    if record.status != "done" or not ranks:
        raise UserError(
            f"method.ranks_from: the run in {folder} has no final ranks: "
            f"its method is {record.method}, its status is {record.status}"
        )
    if not isinstance(ranks, dict) or not all(type(rank) is int and rank >= 0 for rank in ranks.values()):
        raise UserError(f"method.ranks_from: the final ranks in the record of {folder} are not whole numbers from 0 on")
    return specific_first(ranks)
