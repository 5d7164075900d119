"""b(t) and the steps of events, against paper.md's formulas by brute force over t."""

from __future__ import annotations

import math

import pytest
from builders import moving
from hypothesis import given
from hypothesis import strategies as st

from flexlora import FlexLoraConfig
from flexlora.tuner.budget import BUDGET_SCHEDULES, budget, event_steps

windows = st.tuples(st.integers(1, 300), st.integers(0, 120), st.integers(0, 120), st.integers(1, 60))


@given(windows)
def test_events_by_brute_force(window):
    total, tinit, tfinal, interval = window
    expected = [t for t in range(total + 1) if tinit < t < total - tfinal and (t - tinit) % interval == 0]
    assert list(event_steps(total, tinit, tfinal, interval)) == expected


def test_no_event_at_either_end_of_the_window():
    assert list(event_steps(100, 20, 30, 10)) == [30, 40, 50, 60]  # neither 20 nor 70
    assert list(event_steps(100, 20, 29, 10)) == [30, 40, 50, 60, 70]


FORMULAS = {
    "cubic": lambda p: 1 - p * p * p,
    "cubic_early": lambda p: (1 - p) * (1 - p) * (1 - p),
    "linear": lambda p: 1 - p,
    "exponential": lambda p: math.e ** (-5 * p),
    "constant": lambda p: 1.0,
}


def test_every_schedule_has_a_formula_here():
    assert set(FORMULAS) == set(BUDGET_SCHEDULES)


@given(windows, st.integers(0, 20), st.sampled_from(sorted(FORMULAS)))
def test_budget_by_brute_force(window, init_b, schedule):
    total, tinit, tfinal, _ = window
    if total - tfinal - tinit <= 0:
        assert budget(5, init_b, total, tinit, tfinal, schedule) == 0
        return
    for t in range(total + 1):
        p = (t - tinit) / (total - tfinal - tinit)
        p = 0.0 if p < 0 else 1.0 if p > 1 else p
        exact = init_b * FORMULAS[schedule](p)
        got = budget(t, init_b, total, tinit, tfinal, schedule)
        assert isinstance(got, int)
        assert abs(got - exact) <= 0.5 + 1e-9
        assert 0 <= got <= init_b


def test_halves_round_up():
    assert budget(50, 1, 100, 0, 0, "linear") == 1
    assert budget(50, 5, 100, 0, 0, "linear") == 3
    assert budget(50, 3, 100, 0, 0, "linear") == 2  # python's round() gives 2, too; at 5 it gives 2


@given(windows, st.integers(1, 20), st.sampled_from(sorted(FORMULAS)))
def test_budget_never_rises(window, init_b, schedule):
    total, tinit, tfinal, _ = window
    values = [budget(t, init_b, total, tinit, tfinal, schedule) for t in range(total + 1)]
    assert values == sorted(values, reverse=True)


def test_cubic_is_the_papers_default_and_late():
    config = FlexLoraConfig(target_modules=["q"], total_step=110, tinit=5, tfinal=5, deltaT=10, init_b=8)
    assert config.budget_schedule == "cubic"
    assert [config.budget(t) for t in config.event_steps()] == [
        math.floor(8 * (1 - ((t - 5) / 100) ** 3) + 0.5) for t in range(15, 105, 10)
    ]
    early = FlexLoraConfig(
        target_modules=["q"], total_step=110, tinit=5, tfinal=5, deltaT=10, init_b=8, budget_schedule="cubic_early"
    )
    assert early.budget(55) == 1 < config.budget(55) == 7


def test_constant_as_the_released_script():
    config = moving(budget_schedule="constant", init_b=4, total_step=300, tinit=10, tfinal=20)
    assert {config.budget(t) for t in config.event_steps()} == {4}


# --- the default of max_rank ----------


@given(st.integers(1, 40), windows, st.sampled_from(["both", "prune_only", "expand_only"]))
def test_default_max_rank_by_brute_force(r, window, direction):
    total, tinit, tfinal, interval = window
    events = sum(tinit < t < total - tfinal and (t - tinit) % interval == 0 for t in range(total + 1))
    if events == 0:
        with pytest.raises(ValueError, match="no rank event is possible"):
            FlexLoraConfig(r=r, total_step=total, tinit=tinit, tfinal=tfinal, deltaT=interval, direction=direction)
        return
    config = FlexLoraConfig(
        r=r, total_step=total, tinit=tinit, tfinal=tfinal, deltaT=interval, direction=direction, init_b=100
    )
    limit = r if direction == "prune_only" else min(r + events, 4 * r)
    while limit % 8:
        limit += 1
    assert config.resolved_max_rank() == limit


CAPACITIES = [
    # r, events, direction, limit
    (8, 3, "both", 16),  # 8 + 3 = 11
    (8, 8, "both", 16),
    (8, 9, "both", 24),
    (8, 200, "both", 32),  # 4r
    (3, 200, "both", 16),  # 4r = 12
    (1, 200, "expand_only", 8),
    (8, 200, "prune_only", 8),
    (9, 200, "prune_only", 16),
]


@pytest.mark.parametrize(("r", "events", "direction", "limit"), CAPACITIES)
def test_default_max_rank(r, events, direction, limit):
    config = FlexLoraConfig(r=r, total_step=events + 1, direction=direction)
    assert len(config.event_steps()) == events
    assert config.resolved_max_rank() == limit


def test_max_rank_explicit_and_fixed():
    assert moving(max_rank=5).resolved_max_rank() == 5
    assert FlexLoraConfig(r=9, init_b=0).resolved_max_rank() == 16
    assert FlexLoraConfig(r=8, init_b=0).resolved_max_rank() == 8
    assert FlexLoraConfig(r=8, init_b=0, rank_pattern={"q": 20}).resolved_max_rank() == 24


def test_fixed_ranks_plan_nothing():
    config = FlexLoraConfig(init_b=0, total_step=100)
    assert list(config.event_steps()) == []
    assert config.budget(50) == 0
    assert list(FlexLoraConfig(init_b=0).event_steps()) == []
