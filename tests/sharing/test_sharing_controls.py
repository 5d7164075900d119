"""Plans that do not look at entropies: random ones of the same sizes for a comparison, and one without sharing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flexlora.sharing import SharingOptions, SharingPlan, TypePlan, plan_of, unshared_plan
from flexlora.sharing.gradients import GradientStatistics

SIGMAS = [1e-3, 2e-3, 9e-3, 8e-3, 1e-3, 1e-3, 5e-3, 5e-3, 5e-3, 2e-4]


def plan(**options) -> SharingPlan:
    found = {
        f"layer.{i}.{kind}": GradientStatistics(f"layer.{i}.{kind}", 101, 0.0, 100 * (sigma * factor) ** 2)
        for kind, factor in (("q", 1.0), ("v", 0.5))
        for i, sigma in enumerate(SIGMAS)
    }
    return plan_of(found, dict.fromkeys(found, (64, 48)), 8, SharingOptions(**options), batches=1)


def sizes(kind: TypePlan) -> list[int]:
    return [len(interval.modules) for interval in kind.intervals]


def ranks(kind: TypePlan) -> list[int]:
    return [interval.rank for interval in kind.intervals]


@given(st.integers(0, 10_000))
def test_random_intervals_have_the_same_sizes_and_cover_all_layers_in_order(seed):
    for ours, random in zip(plan().types, plan(random_intervals=True, random_seed=seed).types, strict=True):
        assert sorted(sizes(random)) == sorted(sizes(ours))
        covered = [module for interval in random.intervals for module in interval.modules]
        assert covered == [module for interval in ours.intervals for module in interval.modules]


@given(st.integers(0, 10_000), st.booleans())
def test_random_ranks_have_the_same_sum(seed, in_one_pool):
    pool = "all" if in_one_pool else "type"
    ours, random = plan(rank_pool=pool), plan(rank_pool=pool, random_ranks=True, random_seed=seed)
    groups = [ours.types] if in_one_pool else [[kind] for kind in ours.types]
    others = [random.types] if in_one_pool else [[kind] for kind in random.types]
    for before, after in zip(groups, others, strict=True):
        assert sum(sum(ranks(kind)) for kind in after) == sum(sum(ranks(kind)) for kind in before)
        assert [sizes(kind) for kind in after] == [sizes(kind) for kind in before]
        assert min(min(ranks(kind)) for kind in after) >= 1
    assert random.parameters() == ours.parameters()


def test_a_seed_decides_what_is_random():
    drawn = [plan(random_intervals=True, random_ranks=True, random_seed=seed) for seed in (1, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1]
    assert len({str(one) for one in drawn}) > 2


def test_a_plan_without_sharing_needs_no_gradients():
    model = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(4, 9)}).to("meta")
    found = unshared_plan(model, ["a", "b"], 5)
    assert found.ranks == {"a": 4, "b": 4}  # never above the smaller side
    assert found.batches == 0
    assert [sizes(kind) for kind in found.types] == [[1], [1]]
    assert found.parameters() == 4 * (6 + 4) + 4 * (4 + 9)
    assert not any(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match=r"no linear of the model matches target_modules=\['c'\]"):
        unshared_plan(model, ["c"], 5)


def test_the_lines_name_module_types_without_what_all_share():
    lines = str(plan()).splitlines()
    assert lines[0] == f"r 8, batches 1, parameters as E²LoRA {plan().parameters():,}"
    assert [line.split()[0] for line in lines[1:]] == ["q", "v"]
    single = nn.ModuleDict({"a": nn.Linear(6, 4)})
    assert str(unshared_plan(single, ["a"], 2)).splitlines()[1].split()[0] == "a"


def test_a_shuffled_gradient_gives_the_same_plan():
    """Only the scale of its elements counts."""
    from flexlora.sharing.gradients import statistics_of

    torch.manual_seed(0)
    drawn = {f"layer.{i}.q": torch.randn(16, 16) * sigma for i, sigma in enumerate(SIGMAS)}
    shuffled = {name: g.flatten()[torch.randperm(256)].view(16, 16) for name, g in drawn.items()}
    plans = [
        plan_of(
            {name: statistics_of(name, g) for name, g in gradients.items()},
            dict.fromkeys(gradients, (16, 16)), 8, SharingOptions(), batches=1,
        )
        for gradients in (drawn, shuffled)
    ]  # fmt: skip
    assert [(sizes(k), ranks(k)) for k in plans[0].types] == [(sizes(k), ranks(k)) for k in plans[1].types]
