"""Batches: every example once, the same for the same seed and epoch, alike in length, disjoint between processes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexlora.training.batching import (
    batches_per_epoch,
    epoch_batches,
    evaluation_batches,
    optimizer_steps,
    steps_per_epoch,
)

lengths_strategy = st.lists(st.integers(1, 64), min_size=4, max_size=300)


@given(lengths_strategy, st.integers(1, 40), st.integers(0, 5), st.integers(0, 5), st.integers(1, 4))
def test_every_example_is_in_exactly_one_batch(lengths, batch_size, seed, epoch, processes):
    if len(lengths) < batches_per_epoch(len(lengths), batch_size, processes):
        return
    batches = epoch_batches(lengths, batch_size, seed=seed, epoch=epoch, processes=processes)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(batches) == batches_per_epoch(len(lengths), batch_size, processes)
    assert len(batches) % processes == 0


@given(lengths_strategy, st.integers(1, 16), st.integers(0, 5), st.integers(0, 5))
def test_order_is_a_function_of_seed_and_epoch(lengths, batch_size, seed, epoch):
    first = epoch_batches(lengths, batch_size, seed=seed, epoch=epoch)
    assert first == epoch_batches(lengths, batch_size, seed=seed, epoch=epoch)


def test_seeds_and_epochs_give_different_orders():
    lengths = [5 + i % 7 for i in range(200)]
    orders = [epoch_batches(lengths, 8, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({str(order) for order in orders}) == 4


def test_batches_by_length_hold_little_padding():
    lengths = [3 + (i * 7919) % 60 for i in range(4000)]
    batches = epoch_batches(lengths, 32, seed=0, epoch=0)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded <= 1.05 * sum(lengths)


def test_batches_are_not_in_order_of_length():
    lengths = [3 + (i * 7919) % 60 for i in range(1600)]
    longest = [max(lengths[i] for i in batch) for batch in epoch_batches(lengths, 32, seed=0, epoch=0)]
    assert longest != sorted(longest)


@given(st.integers(8, 300), st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_steps_are_counted_as_they_come(examples, batch_size, accumulation, processes):
    if examples < batches_per_epoch(examples, batch_size, processes):
        return
    batches = epoch_batches([1] * examples, batch_size, seed=0, epoch=0, processes=processes)
    steps = optimizer_steps(batches, accumulation, processes)
    assert len(steps) == steps_per_epoch(examples, batch_size, accumulation, processes)
    assert [batch for step in steps for batch in step] == batches
    assert all(len(step) % processes == 0 for step in steps)


def test_cola_takes_the_papers_number_of_steps():
    assert steps_per_epoch(8551, 32) == math.ceil(8551 / 32) == 268


def test_too_few_examples_for_the_processes_are_refused():
    with pytest.raises(ValueError, match="too few for 4 processes"):
        epoch_batches([1, 1, 1], 2, seed=0, epoch=0, processes=4)


@given(lengths_strategy, st.integers(1, 40))
def test_evaluation_goes_from_the_longest_to_the_shortest(lengths, batch_size):
    order = [i for batch in evaluation_batches(lengths, batch_size) for i in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[i] for i in order] == sorted(lengths, reverse=True)
