"""A budget of active adapter parameters: the size that comes nearest, for every method that has one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from method_helpers import context, settings_of, tiny

from flexlora.errors import UserError
from flexlora.methods import build_method
from flexlora.methods.parameter_budget import fit_to_budget
from flexlora.results.record import read_record

MODEL = tiny("bert")


def active(method: str, **changed: int) -> int:
    built = build_method(settings_of(method).method.with_fields(**changed), context("bert"))
    return built.parameters(built.wrap(tiny("bert")))["adapter_active"]


@given(budget=st.integers(1_000, 40_000))
@settings(max_examples=15, deadline=None)
def test_no_other_rank_is_nearer_to_the_budget(budget):
    fit = fit_to_budget(settings_of("lora").method, context("bert"), MODEL, budget)
    rank = fit.changed["r"]
    assert fit.active == active("lora", r=rank)
    others = [active("lora", r=other) for other in (rank - 1, rank + 1) if other > 0]
    assert all(abs(fit.active - budget) <= abs(other - budget) for other in others)


def test_methods_are_brought_to_the_same_budget():
    budget = active("lora", r=5)
    chosen = {}
    for method in ("lora", "flexlora", "flexlora_released", "adalora"):
        fit = fit_to_budget(settings_of(method).method, context("bert"), MODEL, budget)
        assert abs(fit.active - budget) < budget / 10
        chosen[method] = fit.changed
    assert chosen["lora"] == chosen["flexlora"] == {"r": 5}
    # It starts at one and a half times the rank that it comes down to, on average.
    assert chosen["adalora"] == {"target_r": 5, "init_r": 8}


@pytest.mark.parametrize("budget", [900, 2_000, 5_000])
def test_a_method_with_fewer_parameters_at_a_larger_rank_is_fitted_too(budget):
    """RandLoRA's rank is that of each of its random matrices: a larger rank needs fewer of them."""
    fit = fit_to_budget(settings_of("randlora").method, context("bert"), MODEL, budget)
    counts = {rank: 12 * -(-32 // rank) * (32 + rank) for rank in range(1, 33)}
    assert fit.active == counts[fit.changed["r"]] == active("randlora", **fit.changed)
    assert abs(fit.active - budget) <= min(abs(count - budget) for count in counts.values()) + 0.05 * budget


def test_fitting_does_not_change_the_model():
    names = [name for name, _ in MODEL.named_modules()]
    fit_to_budget(settings_of("lora").method, context("bert"), MODEL, 5_000)
    assert [name for name, _ in MODEL.named_modules()] == names
    assert all(parameter.device.type == "cpu" for parameter in MODEL.parameters())


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        ("bitfit", 5_000, r"parameter_budget: method bitfit has no setting for its size"),
        ("lora", 10, r"parameter_budget=10: method lora has at least 896 parameters, with r=1"),
        ("randlora", 100, r"parameter_budget=100: method randlora has at least 768 parameters, with r=32"),
    ],
)
def test_a_budget_that_cannot_be_met_is_refused(method, budget, message):
    with pytest.raises(UserError, match=message):
        fit_to_budget(settings_of(method).method, context("bert"), MODEL, budget)


def test_the_choice_is_printed_and_recorded(flexlora_run, arguments, tmp_path):
    budget = "parameter_budget=5000"
    result = flexlora_run(*arguments, "method=lora", budget, "training.max_steps=1", f"output_root={tmp_path}")
    assert result.returncode == 0, result.stderr
    (file,) = tmp_path.rglob("result.json")
    record = read_record(file)
    assert record.parameter_budget is not None
    rank = record.parameter_budget["changed"]["r"]
    assert record.parameters["adapter_active"] == record.parameter_budget["active"]
    assert f"method.r={rank} has" in result.stdout + result.stderr
    assert record.config["method"]["r"] == 8  # what was asked for is what names the run
