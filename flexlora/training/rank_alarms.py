"""Signs in a run's rank events that something is wrong. They go into the log and the record and do not stop the run."""

from collections.abc import Sequence
from typing import Any

# MANY: the share of the modules from which there is an alarm. SPIKE: the rise of the logged loss that is not noise.
MANY = 0.5
SPIKE = 1.5


def rank_alarms(events: Sequence[dict[str, Any]], losses: Sequence[tuple[int, float]]) -> list[str]:
    """Return the alarms about the rank events of a run, one line each; an empty list if nothing is unusual.

    Args:
        events: rank events as the method reports them (`RankEvent.to_dict()`), oldest first. A value is null if the
            sign has no meaning for the method.
        losses: (step, mean training loss since the previous row), oldest first.
    """
    if not events:
        return []
    alarms = []
    last = events[-1]
    modules = len(last["ranks"])
    at_one = sum(rank == 1 for rank in last["ranks"].values())
    if at_one >= MANY * modules:
        alarms.append(f"{at_one} of {modules} modules ended at rank 1")
    if (last["at_limit"] or 0) >= MANY * modules:
        alarms.append(f"{last['at_limit']} of {modules} modules ended at their rank limit: raise max_rank")
    grown = sum(len(event["grown"]) for event in events)
    regrown = sum(event["regrown"] or 0 for event in events)
    if grown and regrown >= MANY * grown:
        alarms.append(f"{regrown} of {grown} growths went to modules that had been pruned before: ranks go to and fro")
    unconserved = [event["step"] for event in events if event["budget_conserved"] is False]
    if unconserved:
        alarms.append(f"the total rank changed at {_steps(unconserved)}")
    skipped = [event for event in events if event["skipped"]]
    if skipped:
        steps = _steps([event["step"] for event in skipped])
        alarms.append(f"nothing could be moved at {steps}: {skipped[0]['skipped']}")
    spikes = [event["step"] for event in events if _spikes(event["step"], losses)]
    if spikes:
        alarms.append(f"the training loss rose by more than {SPIKE - 1:.0%} after the event at {_steps(spikes)}")
    return alarms


def _spikes(step: int, losses: Sequence[tuple[int, float]]) -> bool:
    """Return whether the first logged mean over steps after `step` is far above the last mean over steps before it."""
    before = [loss for at, loss in losses if at <= step]
    # The first row after the event also covers steps before it, unless a row ends at the event.
    exact = any(at == step for at, _ in losses)
    after = [loss for at, loss in losses if at > step][0 if exact else 1 :]
    return bool(before and after) and after[0] > SPIKE * before[-1]


def _steps(steps: Sequence[int]) -> str:
    shown = ", ".join(map(str, steps[:5])) + (f" and {len(steps) - 5} more" if len(steps) > 5 else "")
    return f"step {shown}" if len(steps) == 1 else f"steps {shown}"
