"""Rank events that call for a line, and those that do not."""

import pytest

from flexlora.training.outcome import Outcome
from flexlora.training.rank_alarms import rank_alarms
from flexlora.training.summary import events_summary


def event(step: int = 10, ranks: tuple[int, ...] = (3, 4, 5, 6), **changes):
    calm = {
        "step": step,
        "ranks": {str(i): rank for i, rank in enumerate(ranks)},
        "pruned": ["0"],
        "grown": ["3"],
        "at_limit": 0,
        "regrown": 0,
        "budget_conserved": True,
        "skipped": None,
    }
    return calm | changes


FLAT = [(step, 0.5) for step in range(2, 41, 2)]


def test_a_calm_run_says_nothing():
    assert rank_alarms([event(10), event(20, (2, 4, 6, 6))], FLAT) == []
    assert rank_alarms([], FLAT) == []
    assert rank_alarms([event()], []) == []


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event(ranks=(1, 1, 5, 6))], "2 of 4 modules ended at rank 1"),
        ([event(at_limit=3)], "3 of 4 modules ended at their rank limit: raise max_rank"),
        ([event(10), event(20, regrown=1)], "1 of 2 growths went to modules that had been pruned before"),
        ([event(10, budget_conserved=False), event(20)], "the total rank changed at step 10"),
        ([event(10, skipped="λ is not finite"), event(20)], "nothing could be moved at step 10: λ is not finite"),
    ],
)
def test_one_line_each(events, expected):
    (line,) = rank_alarms(events, FLAT)
    assert line.startswith(expected)


def test_one_sided_directions_have_no_total_to_conserve():
    assert rank_alarms([event(budget_conserved=None)], FLAT) == []


@pytest.mark.parametrize(
    ("losses", "alarm"),
    [
        ([(8, 0.5), (10, 0.5), (12, 0.8)], True),
        ([(8, 0.5), (10, 0.5), (12, 0.74)], False),
        # The row up to step 11 holds steps before the event: the next one counts.
        ([(9, 0.5), (11, 0.8), (13, 0.5)], False),
        ([(9, 0.5), (11, 0.5), (13, 0.8)], True),
        ([(9, 0.5), (11, 0.8)], False),
    ],
)
def test_a_loss_that_jumps_after_an_event(losses, alarm):
    lines = rank_alarms([event(10)], losses)
    assert lines == (["the training loss rose by more than 50% after the event at step 10"] if alarm else [])


def test_many_steps_are_counted():
    lines = rank_alarms([event(step, budget_conserved=False) for step in range(10, 80, 10)], FLAT)
    assert lines == ["the total rank changed at steps 10, 20, 30, 40, 50 and 2 more"]


def test_the_record_counts_no_event_that_moved_nothing():
    """An event of a tuner from outside, or of a run that was begun before, may not say whether it is empty."""
    events = [event(10, empty=True), event(20), event(30, empty=False), event(40, empty=True)]
    summary = events_summary(Outcome(events=events), {"0": 3})
    assert (summary["count"], summary["first_step"], summary["last_step"]) == (2, 20, 30)
    summary = events_summary(Outcome(events=events[::3]), {"0": 3})
    assert (summary["count"], summary["first_step"], summary["last_step"]) == (0, None, None)
    skipped = event(10, skipped="λ is not finite", empty=True)
    assert len(events_summary(Outcome(events=[skipped]), {"0": 3})["alarms"]) == 1
