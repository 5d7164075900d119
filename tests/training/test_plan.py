"""What a run is going to do: counted here, and met by the batches that the loop draws."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loop_helpers import training

from flexlora.training.batching import epoch_batches, optimizer_steps
from flexlora.training.plan import plan_steps, warmup_steps, windows_line


@given(
    rows=st.integers(4, 400),
    batch_size=st.integers(1, 40),
    accumulation=st.integers(1, 5),
    processes=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_the_steps_of_an_epoch_are_those_that_the_loop_draws(rows, batch_size, accumulation, processes, epoch):
    steps = plan_steps(training(batch_size, accumulation), rows, processes)
    lengths = [1 + i % 7 for i in range(rows)]
    batches = (
        epoch_batches(lengths, batch_size, seed=0, epoch=epoch, processes=processes) if rows >= steps.batches else []
    )
    if batches:
        assert steps.batches == len(batches)
        assert steps.per_epoch == len(optimizer_steps(batches, accumulation, processes))
    assert steps.total == 3 * steps.per_epoch


def test_cola_has_the_papers_steps():
    steps = plan_steps(training(32, epochs=20), 8551)
    assert (steps.batches, steps.per_epoch, steps.total, steps.warmup) == (268, 268, 5360, 536)
    assert str(steps) == "8,551 rows, 268 optimizer steps an epoch, 5,360 in all"


def test_max_steps_takes_the_place_of_epochs():
    assert plan_steps(training(32, epochs=20, max_steps=7), 8551).total == 7


@pytest.mark.parametrize(("total", "ratio", "warmup"), [(100, 0.1, 10), (101, 0.1, 11), (5, 0.0, 0), (5, 1.0, 5)])
def test_warmup_is_rounded_up(total, ratio, warmup):
    assert warmup_steps(total, replace(training(8), warmup_ratio=ratio, warmup_steps=None)) == warmup


@pytest.mark.parametrize(("given", "warmup"), [(0, 0), (7, 7), (100, 100), (101, 100)])
def test_warmup_steps_take_the_place_of_the_ratio_and_are_all_at_most(given, warmup):
    assert warmup_steps(100, replace(training(8), warmup_steps=given)) == warmup


def test_windows_are_told_in_one_line():
    given_windows = {"tinit": 1000, "deltaT": 200}
    scaled = {"factor": 0.05, "total_steps": 268, "paper_steps": 5360, "given": given_windows}
    assert windows_line({**scaled, "used": {"tinit": 50, "deltaT": 10}}) == (
        "windows scaled by 0.05 (268 steps here, 5360 in the recipe): tinit 1000 → 50, deltaT 200 → 10"
    )
    assert windows_line({"factor": 1.0, "used": given_windows}) == "windows as given: tinit 1000, deltaT 200"
