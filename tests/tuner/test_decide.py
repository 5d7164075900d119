"""`decide` against a brute-force reference that knows no sorting."""

from __future__ import annotations

import math

import pytest
import torch
from builders import adapters, bank, set_mask
from decide_helpers import candidates, highest, lowest, situations
from hypothesis import given, settings
from hypothesis import strategies as st

from flexlora.tuner import Reallocation, decide


@settings(max_examples=300)
@given(situations())
def test_both_is_the_largest_disjoint_pair(situation):
    scores, ranks, limits, budget = situation
    prunable, growable = candidates(scores, ranks, limits)
    found = None
    for k in range(min(len(prunable), len(growable)) + 1):  # every k, and the largest allowed that is disjoint
        low, high = lowest(scores, prunable, k), highest(scores, growable, k)
        if k <= budget and not set(low) & set(high):
            found = (tuple(low), tuple(high))
    moves = decide(scores, ranks, limits, budget)
    assert (moves.pruned, moves.grown) == found


@settings(max_examples=200)
@given(situations())
def test_one_sided_and_overlapping_take_up_to_the_budget(situation):
    scores, ranks, limits, budget = situation
    prunable, growable = candidates(scores, ranks, limits)
    low = tuple(lowest(scores, prunable, min(budget, len(prunable))))
    high = tuple(highest(scores, growable, min(budget, len(growable))))
    assert decide(scores, ranks, limits, budget, direction="prune_only") == Reallocation(pruned=low)
    assert decide(scores, ranks, limits, budget, direction="expand_only") == Reallocation(grown=high)
    assert decide(scores, ranks, limits, budget, selection="overlapping") == Reallocation(low, high)


@settings(max_examples=200)
@given(situations(), st.sampled_from(["both", "prune_only", "expand_only"]))
def test_invariants(situation, direction):
    scores, ranks, limits, budget = situation
    before = ([*scores], [*ranks], [*limits])
    moves = decide(scores, ranks, limits, budget, direction=direction)
    assert (scores, ranks, limits) == before, "pure"
    assert moves == decide(tuple(scores), tuple(ranks), tuple(limits), budget, direction=direction)
    assert len(moves.pruned) <= budget
    assert len(moves.grown) <= budget
    assert all(ranks[i] > 1 and scores[i] is not None for i in moves.pruned), "rank 1 is never pruned"
    assert all(ranks[i] < limits[i] and scores[i] is not None for i in moves.grown), "the limit is never passed"
    if direction == "both":
        assert len(moves.pruned) == len(moves.grown)
        assert not set(moves.pruned) & set(moves.grown)


def test_all_ties_prune_the_first_and_grow_the_last():
    """topk would take the same indices at both ends."""
    moves = decide([0.5] * 6, [4] * 6, [8] * 6, 2)
    assert moves == Reallocation(pruned=(0, 1), grown=(5, 4))


def test_odd_number_leaves_the_middle_alone():
    assert decide([0.5] * 5, [4] * 5, [8] * 5, 4) == Reallocation(pruned=(0, 1), grown=(4, 3))


def test_infinity_is_first_to_grow_and_last_to_be_pruned():
    scores = [math.inf, 0.1, 0.9, math.inf]
    assert decide(scores, [1, 4, 4, 1], [8] * 4, 1).grown == (3,)
    assert decide(scores, [1, 4, 4, 1], [8] * 4, 2).grown == (3, 0)
    assert decide(scores, [3, 4, 4, 3], [8] * 4, 4, direction="prune_only").pruned == (1, 2, 0, 3)


def test_none_is_neither_pruned_nor_grown():
    assert decide([None, None], [4, 4], [8, 8], 4, selection="overlapping") == Reallocation()
    assert decide([None, 0.1, 0.2], [4, 4, 4], [8] * 3, 4) == Reallocation(pruned=(1,), grown=(2,))


def test_limits_push_growth_to_the_next_matrix():
    assert decide([0.1, 0.5, 0.9], [4, 4, 8], [8, 8, 8], 1) == Reallocation(pruned=(0,), grown=(1,))


def test_overlapping_may_prune_and_grow_the_same_matrix():
    moves = decide([0.1, 0.5, 0.9], [4, 4, 4], [8, 8, 8], 4, selection="overlapping")
    assert set(moves.pruned) & set(moves.grown)
    assert decide([0.1, 0.5, 0.9], [4, 4, 4], [8, 8, 8], 4) == Reallocation(pruned=(0,), grown=(2,))


def test_overlapping_through_the_model_keeps_the_masks_sound():
    """A matrix pruned and grown in one event ends with its rank, and both bits where they belong."""
    model, allocator = bank([[0.9, 0.5, 0.1], [0.7, 0.6]], limit=4, selection="overlapping", init_b=4)
    for layer in adapters(model):
        set_mask(layer, [True, False, True, True])
    event = allocator.hold_event(1)
    assert event.pruned == ["m00", "m01"] or event.pruned == ["m01", "m00"]
    assert set(event.grown) == {"m00", "m01"}
    for layer in adapters(model):
        assert layer.rank("default") == 3
        p, values, q = layer.factors("default")
        off = ~layer.flexlora_active["default"]
        assert not p[:, off].any()
        assert not values[off].any()
        assert not q[off].any()
        assert (p[:, ~off].norm(dim=0) > 0).all()


@pytest.mark.parametrize("budget", [0, 1])
def test_a_single_matrix_never_trades_with_itself(budget):
    assert decide([0.5], [4], [8], budget) == Reallocation()


def test_overlapping_reuses_the_slot_it_has_just_freed():
    """Growth sees the mask after pruning: the first free slot is then the pruned one."""
    model, allocator = bank([[0.5, 0.5], [0.5, 0.5]], limit=4, selection="overlapping", init_b=4)
    for layer in adapters(model):
        set_mask(layer, [True, False, True, True])
        with torch.no_grad():
            layer.flexlora_lambda["default"].copy_(torch.tensor([0.1, 0.0, 0.8, 0.9]))
    allocator.hold_event(1)
    for layer in adapters(model):
        assert layer.slots("default").tolist() == [0, 2, 3]
        assert layer.flexlora_lambda["default"].tolist() == pytest.approx([0.0, 0.0, 0.8, 0.9])
