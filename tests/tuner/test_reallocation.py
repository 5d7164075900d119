"""Extensions of the paper: budgets in parameters, budgets from the spread of scores, and growth that needs energy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from builders import SHAPES, adapters, bank, moving, set_spectrum, wrapped
from decide_helpers import candidates, highest, lowest, situations
from hypothesis import given, settings
from hypothesis import strategies as st

from flexlora.tuner import RankAllocator, decide, decide_by_parameters
from flexlora.tuner.importance import spread
from flexlora.tuner.reallocation import above_energy_quantile

# --- in parameters ----------


@st.composite
def priced(draw):
    """Scores, ranks, limits, budget, the cost of a direction of each matrix, and the spare parameters."""
    scores, ranks, limits, budget = draw(situations().filter(lambda situation: situation[0]))
    costs = draw(st.lists(st.integers(1, 9), min_size=len(scores), max_size=len(scores)))
    return scores, ranks, limits, budget, costs, draw(st.integers(0, 12))


def paid_for(line, costs, means):
    """The longest prefix of `line` that `means` pay for, by trying every one."""
    return max((line[:n] for n in range(len(line) + 1) if sum(costs[i] for i in line[:n]) <= means), key=len)


@settings(max_examples=400)
@given(priced(), st.sampled_from(["both", "prune_only", "expand_only", "overlapping"]))
def test_by_brute_force(situation, way):
    scores, ranks, limits, budget, costs, spare = situation
    prunable, growable = candidates(scores, ranks, limits)
    low, high = lowest(scores, prunable, len(prunable)), highest(scores, growable, len(growable))
    room = budget * float(np.mean(costs)) + 1e-9
    options = {"selection": "overlapping"} if way == "overlapping" else {"direction": way}
    moves = decide_by_parameters(scores, ranks, limits, budget, costs=costs, spare=spare, **options)
    if budget == 0:
        assert (moves.pruned, moves.grown) == ((), ())
        return
    at_most = paid_for(low, costs, room) or low[:1]
    if way == "prune_only":
        assert (list(moves.pruned), moves.grown) == (at_most, ())
        return
    if way == "expand_only":
        assert (moves.pruned, list(moves.grown)) == ((), paid_for(high, costs, room) or high[:1])
        return
    expected = None
    for n in range(len(at_most) + 1):  # all of them; the last that holds is the largest
        grown = paid_for(high, costs, spare + sum(costs[i] for i in low[:n]))
        meets, others = set(low[:n]) & set(grown), set(high) - set(low[:n])
        if way == "overlapping" or (not meets and (others or n == 0)):
            expected = (low[:n], grown)
    assert (list(moves.pruned), list(moves.grown)) == expected
    freed, spent = (sum(costs[i] for i in chosen) for chosen in (moves.pruned, moves.grown))
    assert spent <= freed + spare


@settings(max_examples=100)
@given(situations().filter(lambda situation: situation[0]))
def test_with_equal_costs_the_decision_is_the_papers_rule(situation):
    scores, ranks, limits, budget = situation
    prunable, growable = candidates(scores, ranks, limits)
    by_rank = decide(scores, ranks, limits, budget)
    moves = decide_by_parameters(scores, ranks, limits, budget, costs=[7] * len(scores))
    if min(budget, len(prunable)) <= len(growable):
        assert moves == by_rank


def test_narrow_matrices_pay_for_a_wide_one():
    """A direction of the widest matrix costs 9, of the others 4. Two directions are pruned for it."""
    moves = decide_by_parameters([0.1, 0.2, 0.9], [4] * 3, [8] * 3, 2, costs=[4, 4, 9], spare=1)
    assert (moves.pruned, moves.grown) == ((0, 1), (2,))
    assert decide_by_parameters([0.1, 0.2, 0.9], [4] * 3, [8] * 3, 2, costs=[4, 4, 9]).grown == ()  # saved up for


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(0, 2**16), st.sampled_from(["entropy", "nuclear", "random"]))
def test_the_parameters_never_rise_and_come_back_to_within_one_direction(init_b, seed, importance):
    config = moving(
        init_b=init_b, r=3, max_rank=5, budget_schedule="constant", budget_unit="parameters", importance=importance
    )
    model = wrapped(config, seed=seed)
    allocator = RankAllocator(model, config, "default")
    costs = {name: out + width + 1 for name, (out, width) in SHAPES.items()}
    start = sum(3 * cost for cost in costs.values())
    generator = torch.Generator().manual_seed(seed)
    moved = 0
    for step in range(1, 13):
        with torch.no_grad():
            for layer in adapters(model):
                values = layer.flexlora_lambda["default"]
                values += torch.randn(values.shape, generator=generator) * layer.flexlora_active["default"]
        event = allocator.advance(step)
        assert event.active_parameters <= start
        assert event.budget_conserved
        spare = start - event.active_parameters
        growable = [
            name for name, rank in event.ranks.items()
            if rank < 5 and name not in (*event.pruned, *event.grown) and event.scores[name] is not None
        ]  # fmt: skip
        if growable:
            assert spare < max(costs.values())
        moved += len(event.grown)
    assert moved


def test_spare_parameters_are_restored_on_resume():
    settings = {"budget_unit": "parameters", "init_b": 1, "max_rank": 8}
    model = wrapped(moving(r=4, **settings))
    config = model.peft_config["default"]
    allocator = RankAllocator(model, config, "default")
    start = allocator.state_dict()["parameters_at_start"]
    adapters(model)[0].prune("default", 0)
    again = RankAllocator(model, config, "default")
    assert again.state_dict()["parameters_at_start"] < start
    again.load_state_dict(json.loads(json.dumps(allocator.state_dict())))
    assert again.state_dict()["parameters_at_start"] == start


# --- energy ----------


@given(
    st.lists(st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0, 1e6)), min_size=1, max_size=12),
    st.floats(0, 1, exclude_max=True),
)
def test_the_energy_gate_equals_counting(energies, quantile):
    """The reference closes the gate for a matrix if at most the given share of all matrices is at or below it."""
    share = min(math.floor(quantile * len(energies) + 1e-9), len(energies) - 1)  # the one of most energy may always
    expected = [sum(other <= one for other in energies) > share for one in energies]
    assert above_energy_quantile(energies, quantile) == expected


def test_a_gate_of_different_energies_closes_on_its_share():
    assert above_energy_quantile([4.0, 1.0, 3.0, 2.0], 0.5) == [True, False, True, False]
    assert above_energy_quantile([4.0, 1.0, 3.0, 2.0], 0.0) == [True] * 4
    assert above_energy_quantile([0.0] * 4, 0.9) == [True] * 4
    assert above_energy_quantile([*map(float, range(10))], 0.3) == [False] * 3 + [True] * 7


def test_a_matrix_of_little_energy_does_not_grow_however_rich_it_is():
    spectra = [[0.01, 0.01, 0.01], [3.0, 2.0, 1.0], [3.0, 0.1, 0.1], [2.0, 0.3, 0.2]]
    for quantile, grown in ((0.0, ["m00"]), (0.25, ["m01"])):
        _, allocator = bank(spectra, init_b=1, growth_energy_quantile=quantile)
        event = allocator.hold_event(1)
        assert (event.pruned, event.grown) == (["m02"], grown)
        assert max(event.scores, key=event.scores.get) == "m00"
        assert min(event.energy, key=event.energy.get) == "m00"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([0.3, 0.5, 0.8]), st.sampled_from(["rank", "parameters"]))
def test_no_event_grows_what_is_below_the_quantile(seed, quantile, unit):
    config = moving(r=3, init_b=3, growth_energy_quantile=quantile, budget_unit=unit, importance="random")
    model = wrapped(config, seed=seed)
    allocator = RankAllocator(model, config, "default")
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, 8):
        for layer in adapters(model):
            width = layer.rank("default")
            set_spectrum(layer, torch.randn(width, generator=generator).tolist())
        event = allocator.advance(step)
        closed = np.argsort([*event.energy.values()])[: math.floor(quantile * len(SHAPES) + 1e-9)]
        assert not {[*event.energy][i] for i in closed} & set(event.grown)


# --- the spread of scores ----------


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), st.sampled_from([1e-200, 1.0, 1e200]))
def test_spread_is_the_coefficient_of_variation(values, scale):
    scores = [value * scale for value in values]
    exact = np.asarray(values, np.longdouble)
    mean = exact.mean()
    if abs(mean) < 1e-6 * np.abs(exact).max(initial=0) or not np.asarray(scores).any():
        return
    assert spread(scores) == pytest.approx(float(exact.std() / abs(mean)), rel=1e-6, abs=1e-9)


def test_the_spread_of_equal_or_too_few_scores_is_zero():
    assert spread([]) == spread([0.5]) == spread([0.5] * 4) == spread([0.0, 0.0]) == spread([-1.0, 1.0]) == 0.0
    assert spread([0.2, 0.4, math.inf]) == spread([0.2, 0.4])


def test_a_budget_by_spread_is_its_share_of_the_largest_spread_so_far():
    """Compared with numpy. Nuclear scores equal λ here, so that the test can choose the spreads."""
    rounds = [
        [1.0, 1.2, 1.4, 1.6],
        [1.0, 2.0, 3.0, 4.0],
        [1.0, 1.5, 2.0, 2.5],
        [1.0, 1.0, 1.0, 1.0],
        [1.0, 1.1, 2.0, 9.0],
    ]
    options = {"importance": "nuclear", "budget_schedule": "constant", "init_b": 2}
    model, allocator = bank([[1.0, 1.0]] * 4, budget_by="spread", **options)
    spreads = [float(np.std(values) / np.mean(values)) for values in rounds]
    for step, values in enumerate(rounds, 1):
        for layer, value in zip(adapters(model), values, strict=True):
            set_spectrum(layer, [value, value])
        event = allocator.hold_event(step)
        assert event.budget == math.floor(2 * spreads[step - 1] / max(spreads[:step]) + 0.5)
        assert len(event.pruned) == len(event.grown) == event.budget
    assert [event.budget for event in allocator.events] == [2, 2, 1, 0, 2]
    _, by_schedule = bank([[1.0, 1.0]] * 4, **options)
    assert by_schedule.hold_event(1).budget == 2


def test_the_largest_spread_is_restored_on_resume():
    _, allocator = bank([[3.0, 0.1], [0.5, 0.4], [1.0, 1.0]], budget_by="spread")
    allocator.advance(1)
    state = json.loads(json.dumps(allocator.state_dict()))
    _, other = bank([[1.0, 0.99], [0.5, 0.4], [1.0, 1.0]], budget_by="spread")
    fresh, kept = other, bank([[1.0, 0.99], [0.5, 0.4], [1.0, 1.0]], budget_by="spread")[1]
    kept.load_state_dict(state)
    assert kept.advance(2).budget < fresh.advance(2).budget == 2


def test_by_default_no_state_is_added():
    _, allocator = bank([[3.0, 0.1], [0.5, 0.4]])
    assert allocator.state_dict().keys() == {"step", "ever_pruned"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("growth_energy_quantile", 1.0),
        ("growth_energy_quantile", -0.1),
        ("budget_by", "loss"),
        ("budget_unit", "bytes"),
    ],
)
def test_a_budget_setting_out_of_range_is_refused(name, value):
    with pytest.raises(ValueError, match=name):
        moving(**{name: value})
