"""Complete rank events on a model: the changed ranks, the records, and the options of the released code."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from builders import SHAPES, adapters, bank, moving, scramble, set_spectrum, wrapped
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flexlora import FlexLoraConfig, module_ranks
from flexlora.tuner import RankAllocator


def entropy(lams: list[float]) -> float:
    squares = [float(np.float32(x)) ** 2 for x in lams]
    total = math.fsum(squares)
    return -math.fsum(s / total * math.log(s / total + 1e-8) for s in squares) / math.log(len(lams))


def spectra(model: nn.Module) -> list[list[float]]:
    return [layer.packed_factors("default")[1].tolist() for layer in adapters(model)]


def slots(model: nn.Module) -> list[list[int]]:
    return [layer.slots("default").tolist() for layer in adapters(model)]


# --- one event, by hand ----------


def test_the_lowest_score_loses_its_smallest_direction_and_the_highest_gains_one():
    rich, poor, middle = [0.5, 0.5, 0.5], [3.0, -0.1, 0.2], [1.0, 0.6, 0.4]
    assert entropy(poor) < entropy(middle) < entropy(rich)
    model, allocator = bank([rich, poor, middle], limit=8, init_b=1)
    event = allocator.hold_event(1)
    assert (event.pruned, event.grown) == (["m01"], ["m00"])
    assert slots(model) == [[0, 1, 2, 3], [0, 2], [0, 1, 2]]
    assert spectra(model)[0] == pytest.approx([0.5, 0.5, 0.5, 0.0])
    assert spectra(model)[1] == pytest.approx([3.0, 0.2])


def test_growth_takes_the_first_free_slot():
    model, allocator = bank([[0.5, 0.5, 0.5], [3.0, 0.1, 0.2]], init_b=1)
    adapters(model)[0].prune("default", 1)
    allocator.hold_event(1)
    assert slots(model)[0] == [0, 1, 2]


PRUNE_BY = [
    # released: argmin of the signed λ, so -0.8 goes; ours: the smallest absolute value
    ("signed", [0.9, -0.8, 0.01], [0.9, 0.01]),
    ("magnitude", [0.9, -0.8, 0.01], [0.9, -0.8]),
    ("magnitude", [-0.9, 0.8, -0.01], [-0.9, 0.8]),
    # s = (.9, .05, .05): the largest contributes least to the entropy (Appendix C is false)
    ("entropy_contribution", [0.9**0.5, 0.05**0.5, 0.05**0.5], [0.05**0.5, 0.05**0.5]),
    ("magnitude", [0.9**0.5, 0.051**0.5, 0.05**0.5], [0.9**0.5, 0.051**0.5]),
    # ties: the first slot
    ("magnitude", [0.5, -0.5, 0.5], [-0.5, 0.5]),
    ("magnitude", [0.5, 0.0, 0.0], [0.5, 0.0]),
]


@pytest.mark.parametrize(("prune_by", "before", "after"), PRUNE_BY)
def test_prune_by_chooses_the_direction(prune_by, before, after):
    model, allocator = bank([before], prune_by=prune_by, direction="prune_only", init_b=1)
    allocator.hold_event(1)
    assert spectra(model)[0] == pytest.approx(after)


@settings(max_examples=40)
@given(st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=8), st.integers(0, 99))
def test_the_pruned_direction_is_the_smallest_magnitude(lams, seed):
    if not any(lams):
        return
    model, allocator = bank([lams], direction="prune_only", init_b=1, importance="nuclear")
    (layer,) = adapters(model)
    before = layer.packed_factors("default")
    allocator.hold_event(1)
    values = before[1].double()
    gone = int(np.argmin(np.abs(values.numpy())))
    kept = [i for i in range(len(lams)) if i != gone]
    after = layer.packed_factors("default")
    assert torch.equal(after[0], before[0][:, kept])
    assert torch.equal(after[1], before[1][kept])
    assert torch.equal(after[2], before[2][kept])


def test_rank_one_grow_is_first_in_line():
    """Released: NaN, which topk ranks highest."""
    model, allocator = bank([[0.3], [0.5, 0.5, 0.5], [3.0, 0.1]], rank_one="grow", init_b=1)
    event = allocator.hold_event(1)
    assert (event.pruned, event.grown) == (["m02"], ["m00"])
    assert event.scores["m00"] == 1e308
    assert event.rank_one == 1
    json.dumps(event.to_dict(), allow_nan=False)
    assert len(spectra(model)[0]) == 2


def test_rank_one_keep_is_left_alone():
    model, allocator = bank([[0.3], [0.5, 0.5, 0.5], [3.0, 0.1]], rank_one="keep", init_b=1)
    event = allocator.hold_event(1)
    assert (event.pruned, event.grown) == (["m02"], ["m01"])
    assert event.scores["m00"] is None
    assert event.rank_one == 1
    assert len(spectra(model)[0]) == 1


def test_a_matrix_of_rank_one_can_grow_again():
    model, allocator = bank([[0.3], [1.0, 0.01, 0.01]], init_b=1)
    allocator.hold_event(1)
    assert len(spectra(model)[0]) == 2
    # Its newborn has λ = 0, so the score is 0: untrained until the next event, it is the first to go again.
    assert allocator.hold_event(2).pruned == ["m00"]


@pytest.mark.parametrize(("all_zero", "grown"), [("keep", ["m01"]), ("grow", ["m00"])])
def test_all_zero(all_zero, grown):
    _, allocator = bank([[0.0, 0.0, 0.0], [0.5, 0.5], [3.0, 0.1]], all_zero=all_zero, init_b=1)
    event = allocator.hold_event(1)
    assert (event.pruned, event.grown) == (["m02"], grown)
    assert event.all_zero == 1


@pytest.mark.parametrize("all_zero", ["keep", "grow"])
def test_untrained_adapter(all_zero):
    """Before the first step every λ is 0: by default nothing moves."""
    config = moving(all_zero=all_zero)
    model = wrapped(config)
    event = RankAllocator(model, config, "default").hold_event(1)
    assert event.all_zero == len(SHAPES)
    assert len(event.grown) == len(event.pruned) == (0 if all_zero == "keep" else 2)
    assert event.skipped is None


def test_growth_std_one_as_released_and_init_std_by_default():
    def norm(**options):
        model, allocator = bank([[0.5] * 3, [3.0, 0.1]], limit=64, init_b=1, **options)
        allocator.hold_event(1)
        return float(adapters(model)[0].packed_factors("default")[0][:, 3].norm())

    assert norm(growth_std=1.0) == pytest.approx(8.0, rel=0.4)
    assert norm() == pytest.approx(0.16, rel=0.4)
    assert norm(growth_std=1.0) == pytest.approx(50 * norm(), rel=1e-4), "the same draw, another size"


def test_overlapping_as_released_prunes_and_grows_one_matrix_in_one_event():
    _, allocator = bank([[0.5, 0.4], [3.0, 0.1]], selection="overlapping", init_b=4)
    event = allocator.hold_event(1)
    assert set(event.pruned) == set(event.grown) == {"m00", "m01"}
    assert event.budget_conserved is True


def test_the_budget_of_the_step_caps_the_moves():
    config = {"init_b": 3, "budget_schedule": "linear", "total_step": 101, "tfinal": 1}
    for step in (1, 40, 60, 90):
        _, allocator = bank([[1.0, 0.1 * i] for i in range(1, 10)], **config)
        event = allocator.hold_event(step)
        expected = math.floor(3 * (1 - step / 100) + 0.5)
        assert event.budget == expected == len(event.pruned) == len(event.grown)


def test_budget_schedule_constant_as_released():
    _, allocator = bank([[1.0, 0.1 * i] for i in range(1, 10)], init_b=4, budget_schedule="constant", total_step=200)
    assert len(allocator.hold_event(1).pruned) == len(allocator.hold_event(198).pruned) == 4


def test_inverted_entropy_is_the_opposite():
    cases = [[0.5, 0.5, 0.5], [3.0, 0.1, 0.1], [1.0, 0.5, 0.5]]
    _, plain = bank(cases, init_b=1)
    _, inverted = bank(cases, init_b=1, importance="inverted_entropy")
    a, b = plain.hold_event(1), inverted.hold_event(1)
    assert (a.pruned, a.grown) == (b.grown, b.pruned)


@pytest.mark.parametrize("direction", ["prune_only", "expand_only"])
def test_one_sided(direction):
    _, allocator = bank([[0.5, 0.5, 0.5], [3.0, 0.1, 0.1], [1.0, 0.5]], direction=direction, init_b=2)
    before = allocator.snapshot().ranks
    event = allocator.hold_event(1)
    assert event.budget_conserved is None
    sign = -1 if direction == "prune_only" else 1
    assert event.total_rank == sum(before) + 2 * sign
    assert (event.pruned == []) == (direction == "expand_only")
    assert (event.grown == []) == (direction == "prune_only")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("importance", ["entropy", "nuclear", "sensitivity", "random"])
def test_non_finite_lambda_changes_nothing_and_is_recorded(bad, importance):
    model, allocator = bank([[0.5, bad], [3.0, 0.1]], importance=importance, init_b=1)
    before = slots(model)
    event = allocator.hold_event(1)
    assert event.skipped
    assert slots(model) == before
    assert event.pruned == event.grown == []
    json.dumps(event.to_dict(), allow_nan=False)


@pytest.mark.parametrize("spoiled", ["flexlora_P", "flexlora_lambda", "flexlora_Q"])
def test_an_exact_spectrum_with_non_finite_values_changes_nothing(spoiled):
    model, allocator = bank([[0.5, 0.2], [3.0, 0.1]], spectrum="exact", init_b=1)
    with torch.no_grad():
        getattr(allocator.layers[0], spoiled)["default"].flatten()[0] = math.nan
    before = slots(model)
    event = allocator.hold_event(1)
    assert event.skipped
    assert slots(model) == before
    json.dumps(event.to_dict(), allow_nan=False)


def test_huge_lambda_still_changes_ranks():
    """Squares of 1e30 overflow float32; scores are float64."""
    _, allocator = bank([[1e30, 1e30], [1e30, 1e28], [1e-30, 1e-30, 1e-32]], init_b=1, limit=4)
    event = allocator.hold_event(1)
    assert event.skipped is None
    assert event.pruned == ["m01"]
    assert event.grown == ["m00"]


# --- many events ----------

OPTIONS = {
    "importance": ["entropy", "nuclear", "frobenius", "random", "elementwise_energy_entropy", "inverted_entropy"],
    "growth_init": ["zero_impact", "small", "zero", "orthogonal"],
    "prune_by": ["magnitude", "signed", "entropy_contribution"],
    "rank_one": ["grow", "keep"],
    "all_zero": ["grow", "keep"],
    "spectrum": ["lambda", "exact"],
    "direction": ["both", "both", "prune_only", "expand_only"],
    "selection": ["disjoint", "disjoint", "overlapping"],
}


@settings(max_examples=40)
@given(
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in OPTIONS.items()}),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 2**16),
)
def test_invariants_over_many_random_events(options, init_b, r, seed):
    config = moving(init_b=init_b, r=r, max_rank=6, budget_schedule="constant", **options)
    model = wrapped(config, seed=seed)
    allocator = RankAllocator(model, config, "default")
    layers = adapters(model)
    limits = [min(6, *shape) for shape in SHAPES.values()]
    assert allocator.limits == limits
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 6, generator=generator)
    for step in range(1, 13):
        with torch.no_grad():
            for layer in layers:
                on = layer.flexlora_active["default"]
                p, values, q = layer.factors("default")
                values += torch.randn(values.shape, generator=generator) * on
                p += 0.1 * torch.randn(p.shape, generator=generator) * on
                q += 0.1 * torch.randn(q.shape, generator=generator) * on[:, None]
        before = [layer.rank("default") for layer in layers]
        output = model(x)
        event = allocator.advance(step)
        after = [layer.rank("default") for layer in layers]
        assert all(1 <= rank <= limit for rank, limit in zip(after, limits, strict=True))
        if options["direction"] == "both" and options["selection"] == "disjoint":
            assert sum(after) == sum(before)
            assert event.budget_conserved
            assert sorted(b - a for b, a in zip(before, after, strict=True)) == sorted(
                [1] * len(event.pruned) + [-1] * len(event.grown) + [0] * (4 - len(event.pruned) - len(event.grown))
            )
        if not event.pruned and options["growth_init"] != "small":
            assert torch.equal(model(x), output)
        for layer in layers:
            off = ~layer.flexlora_active["default"]
            p, values, q = layer.factors("default")
            assert not p[:, off].any()
            assert not values[off].any()
            assert not q[off].any()
        # The record
        assert list(event.ranks.values()) == after == list(module_ranks(model).values())
        assert list(event.ranks) == list(SHAPES)
        assert event.total_rank == sum(after)
        assert event.active_parameters == sum(
            rank * (out + width + 1) for rank, (out, width) in zip(after, SHAPES.values(), strict=True)
        )
        assert event.rank_one == before.count(1)
        assert event.at_limit == sum(rank == limit for rank, limit in zip(after, limits, strict=True))
        assert config.rank_pattern == event.ranks
        assert event.step == step
        json.dumps(event.to_dict(), allow_nan=False)
    assert allocator.events[-1] is event
    assert len(allocator.events) == 12


@settings(max_examples=15)
@given(st.integers(0, 2**16))
def test_energy_and_scores_of_the_record_are_those_before(seed):
    config = moving()
    model = wrapped(config)
    scramble(model, seed)
    lams = spectra(model)
    event = RankAllocator(model, config, "default").hold_event(1)
    recorded = zip(lams, event.energy.values(), event.scores.values(), event.singular_values.values(), strict=True)
    for values, energy, score, spectrum in recorded:
        assert spectrum == pytest.approx(sorted((abs(float(v)) for v in values), reverse=True), rel=5e-6)
        assert spectrum == sorted(spectrum, reverse=True)
        assert energy == pytest.approx(math.fsum(float(v) ** 2 for v in values), rel=1e-6)
        if len(values) > 1:
            assert score == pytest.approx(min(1, max(0, entropy(values))), abs=1e-9)


def test_regrown_counts_modules_that_were_pruned_before():
    model, allocator = bank([[3.0, 0.1, 0.1], [0.5, 0.5]], init_b=1)
    assert allocator.hold_event(1).regrown == 0
    set_spectrum(adapters(model)[0], [0.5, 0.5])
    set_spectrum(adapters(model)[1], [3.0, 0.1, 0.1])
    event = allocator.hold_event(2)
    assert event.grown == ["m00"]
    assert event.regrown == 1


def test_two_runs_of_the_same_seed_are_equal_and_another_seed_draws_otherwise():
    def run(seed):
        config = moving(seed=seed)
        model = wrapped(config)
        scramble(model, 3)
        allocator = RankAllocator(model, config, "default")
        torch.manual_seed(np.random.default_rng().integers(2**31))  # whatever the process drew
        for step in range(1, 6):
            allocator.advance(step)
        state = {k: v.clone() for k, v in model.state_dict().items() if "flexlora" in k}
        return [e.to_dict() for e in allocator.events], state

    (events_a, a), (events_b, b), (_, c) = run(0), run(0), run(1)
    assert events_a == events_b
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


# --- when ----------


def test_events_happen_at_the_planned_steps_and_no_other():
    config = FlexLoraConfig(
        target_modules=list(SHAPES), r=2, max_rank=4, total_step=30, tinit=5, tfinal=6, deltaT=4, init_b=1
    )
    model = wrapped(config)
    scramble(model)
    held = [step for step in range(1, 31) if model.base_model.update_and_allocate(step) is not None]
    assert held == [9, 13, 17, 21]
    assert [event.step for event in model.base_model.rank_allocator.events] == held
    assert all(model.base_model.rank_allocator.is_due(step) == (step in held) for step in range(0, 40))


def test_a_step_seen_twice_moves_once():
    config = moving()
    model = wrapped(config)
    scramble(model)
    allocator = RankAllocator(model, config, "default")
    assert allocator.advance(3) is not None
    assert allocator.advance(3) is None
    assert allocator.advance(2) is None
    assert allocator.advance(4) is not None
    assert allocator.step == 4


def test_fixed_ranks_never_move():
    model = wrapped(moving(init_b=0))
    scramble(model)
    before = slots(model)
    assert all(model.base_model.update_and_allocate(step) is None for step in range(1, 110))
    assert slots(model) == before


def test_unknown_adapter():
    with pytest.raises(ValueError, match="no FlexLoRA adapter named 'other'"):
        RankAllocator(wrapped(moving()), moving(), "other")


def test_allocator_state_round_trip():
    model, allocator = bank([[3.0, 0.1, 0.1], [0.5, 0.5]], init_b=1)
    allocator.advance(5)
    state = json.loads(json.dumps(allocator.state_dict()))
    assert state["step"] == 5
    other = RankAllocator(model, allocator.config, "default")
    other.load_state_dict(state)
    assert other.step == 5
    assert other.advance(5) is None
    set_spectrum(adapters(model)[0], [0.5, 0.5])
    set_spectrum(adapters(model)[1], [3.0, 0.1, 0.1])
    assert other.hold_event(6).regrown == 1
