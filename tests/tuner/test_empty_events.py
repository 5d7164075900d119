"""Events in which nothing can move: marked, not planned, and left out where b(t) = 0 as in the released code."""

import math

import pytest
from builders import adapters, bank, moving, scramble, set_spectrum, wrapped

from flexlora.tuner import RankAllocator
from flexlora.tuner.budget import BUDGET_SCHEDULES

RICH, POOR = [0.5, 0.5, 0.5], [3.0, 0.1, 0.2]
EMPTY = {
    "b(t) = 0": ([RICH, POOR], {"budget_schedule": "cubic_early", "init_b": 1}, 95),
    "all λ are 0": ([[0.0, 0.0], [0.0, 0.0]], {"init_b": 1}, 1),
    "one matrix cannot both lose and gain": ([RICH], {"init_b": 1}, 1),
    "all at rank 1, which is kept": ([[1.0], [2.0]], {"init_b": 1, "rank_one": "keep"}, 1),
    "λ is not finite": ([[math.nan, 1.0], POOR], {"init_b": 1}, 1),
    "b(t) = 0 because all scores are equal": ([RICH, RICH], {"init_b": 1, "budget_by": "spread"}, 1),
}


@pytest.mark.parametrize("case", EMPTY)
def test_an_event_that_moves_nothing_is_marked(case):
    spectra, options, step = EMPTY[case]
    _, allocator = bank(spectra, total_step=101, tfinal=1, **options)
    event = allocator.hold_event(step)
    assert event.empty is True
    assert event.to_dict()["empty"] is True
    assert not event.pruned
    assert not event.grown


@pytest.mark.parametrize("options", [{}, {"direction": "prune_only"}, {"direction": "expand_only"}])
def test_an_event_that_moves_a_direction_is_not(options):
    _, allocator = bank([RICH, POOR], init_b=1, **options)
    assert allocator.hold_event(1).empty is False


@pytest.mark.parametrize("schedule", BUDGET_SCHEDULES)
def test_planned_are_the_events_that_happen_without_the_empty_ones(schedule):
    config = moving(total_step=41, tinit=2, tfinal=1, deltaT=3, init_b=2, budget_schedule=schedule)
    model = wrapped(config)
    scramble(model)
    tuner = model.base_model
    events = [event for step in range(1, 42) if (event := tuner.update_and_allocate(step)) is not None]
    moved = [(event.step, event.budget) for event in events if not event.empty]
    planned = tuner.planned_events()
    assert (planned.count, planned.first, planned.last, planned.every) == (len(moved), moved[0], moved[-1], 3)
    assert (len(moved) < len(events)) == (schedule != "constant")


def test_one_planned_event_has_no_interval():
    config = moving(total_step=20, tinit=2, tfinal=1, deltaT=8, init_b=1, budget_schedule="linear")
    assert list(config.event_steps()) == [10, 18]
    planned = wrapped(config).base_model.planned_events()
    assert (planned.count, planned.first, planned.last, planned.every) == (1, (10, 1), (10, 1), None)


def test_without_events_at_zero_budget_the_others_do_not_change():
    """`skips_zero_budget` is the released code's rule. It leaves out exactly the events with b(t) = 0."""
    kept = {}
    for skips in (False, True):
        config = moving(total_step=41, tinit=2, tfinal=1, deltaT=3, init_b=2, budget_schedule="cubic_early")
        model = wrapped(config)
        scramble(model)
        allocator = RankAllocator(model, config, "default", skips_zero_budget=skips)
        held = [allocator.advance(step) for step in range(1, 42)]
        kept[skips] = allocator.events
        assert [event for event in held if event is not None] == allocator.events
    assert [event.budget for event in kept[False]][-1] == 0
    assert kept[True] == [event for event in kept[False] if event.budget > 0]


def test_a_spread_of_zero_is_no_event_either():
    _, allocator = bank([RICH, POOR], init_b=1, budget_by="spread")
    allocator.skips_zero_budget = True
    assert allocator.hold_event(1).budget == 1
    for layer in adapters(allocator.model):
        set_spectrum(layer, [0.5] * layer.rank("default"))
    assert allocator.hold_event(2) is None
    assert [event.step for event in allocator.events] == [1]
