"""Dynamic-rank DoRA: importance, timetable and penalty."""

from __future__ import annotations

import pytest
import torch
from linear_helpers import RANK, held, outer, single
from low_rank_helpers import BACKBONES, adapted

from flexlora.baselines import DynamicDoraConfig, LowRankLayer


def test_dynamic_doras_importance_is_a_smoothed_share_of_the_norm():
    model, layer = single("dynamic_dora", beta=0.9, tinit=5, total_step=20, tfinal=5)
    expected = torch.zeros(RANK, dtype=torch.float64)
    for step in (1, 2, 3):
        t = held(layer)
        parts = [(t["c"][i] * torch.outer(t["B"][:, i], t["A"][i])).norm() for i in range(RANK)]
        whole = outer(t["B"], t["A"], list(t["c"])).norm()
        expected = 0.9 * expected + 0.1 * torch.stack(parts) / whole
        model.base_model.after_step(step)
        torch.testing.assert_close(held(layer)["importance"], expected.detach(), rtol=1e-6, atol=1e-9)
        with torch.no_grad():
            layer.lora_c["default"].normal_()


def test_dynamic_doras_penalty_is_the_gradient_of_the_mean_variance():
    model = adapted("dynamic_dora", "bert", dem_weight=0.3)
    layers = [m for m in model.modules() if isinstance(m, LowRankLayer)]
    variances = [v for m in layers for v in (m.lora_A["default"].var(1), m.lora_B["default"].var(0))]
    penalty = 0.3 * torch.cat(variances).mean()
    parameters = [p for m in layers for p in (m.lora_A["default"], m.lora_B["default"])]
    wanted = torch.autograd.grad(penalty, parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    model.base_model.regularise(1)
    for parameter, gradient in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(parameter.grad - 1, gradient, rtol=1e-4, atol=1e-6)
    before = [parameter.grad.clone() for parameter in parameters]
    model.base_model.regularise(model.peft_config["default"].last_event + 1)
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(parameters, before, strict=True))


def test_dynamic_dora_lowers_ranks_by_a_cubic_to_its_target_and_holds_them():
    model = adapted("dynamic_dora", "bert", r=4, target_r=2, total_step=20, tinit=2, tfinal=8, deltaT=3)
    layers = [m for m in model.modules() if isinstance(m, LowRankLayer)]
    components = 4 * len(layers)
    events, optimizer = [], torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    frozen = None
    for step in range(1, 21):
        BACKBONES["bert"].loss(model).backward()
        model.base_model.regularise(step)
        optimizer.step()
        event = model.base_model.after_step(step, optimizer)
        optimizer.zero_grad()
        if event is not None:
            events.append(event)
            scores = torch.cat([m.lora_importance["default"] for m in layers])
            active = torch.cat([m.lora_active["default"] for m in layers])
            assert (~active).sum() == 0 or scores[~active].max() <= scores[active].min()
            assert not torch.cat([m.lora_c["default"] for m in layers])[~active].any()
            frozen = active
        elif step > 12:
            assert not torch.cat([m.lora_c["default"] for m in layers])[~frozen].any()
    assert [event["step"] for event in events] == [5, 8, 11, 12]
    left = [components - int(components / 2 * ((step - 2) / 10) ** 3) for step in (5, 8, 11, 12)]
    assert [event["total_rank"] for event in events] == [event["budget"] for event in events] == left
    assert left[-1] == 2 * len(layers)
    assert events[-1]["ranks"] == model.base_model.ranks()
    assert events[-1]["active_parameters"] == sum(
        m.rank("default") * (m.in_features + m.out_features + 1) for m in layers
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "`total_step` is missing"),
        ({"total_step": 100, "tinit": 60, "tfinal": 50}, "leave no step for lowering the ranks"),
        ({"total_step": 100, "r": 4, "target_r": 8}, "must not be above"),
    ],
)
def test_dynamic_dora_refuses_invalid_windows(settings, message):
    with pytest.raises(ValueError, match=message):
        DynamicDoraConfig(target_modules=["a"], **settings)


def test_dynamic_doras_default_windows_are_the_authors():
    config = DynamicDoraConfig(target_modules=["a"], total_step=1000)
    assert (config.r, config.tinit, config.tfinal, config.deltaT, config.last_event) == (12, 150, 500, 100, 500)
