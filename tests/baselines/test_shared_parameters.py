"""A parameter that several layers share exists once, and its gradient is the sum over them: ShareLoRA, RaSA, E²LoRA."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from low_rank_helpers import BACKBONES, PLANNED, adapted, base, plan_for, train
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

import flexlora
from flexlora import baselines as b
from flexlora.baselines.shared import SharedLayer
from flexlora.sharing import SharingPlan

SHARING = ("sharelora", "rasa", *PLANNED)
every_method = pytest.mark.parametrize("method", SHARING)


def layers_of(model: nn.Module) -> dict[str, SharedLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, SharedLayer)}


def users_of(model: nn.Module) -> dict[tuple[str, int], list[SharedLayer]]:
    """The layers that use each trained tensor, by the tensor's name and identity."""
    found: dict[tuple[str, int], list[SharedLayer]] = {}
    for layer in layers_of(model).values():
        for name in layer.adapter_layer_names:
            found.setdefault((name, id(layer.tensor(name, "default"))), []).append(layer)
    return found


@every_method
def test_a_shared_parameters_gradient_is_the_sum_over_its_layers(method):
    model = adapted(method, "bert", init_weights=False)
    BACKBONES["bert"].loss(model).backward()
    shared = {key: users for key, users in users_of(model).items() if len(users) > 1}
    assert shared
    for (name, _), users in shared.items():
        together = users[0].tensor(name, "default").grad
        parts = []
        for layer in users:  # each once with a copy of its own
            mine = layer.tensor(name, "default").detach().clone().requires_grad_()
            original = layer.tensor
            layer.tensor = lambda asked, adapter, original=original, name=name, mine=mine: (
                mine if asked == name else original(asked, adapter)
            )
            parts.append(torch.autograd.grad(BACKBONES["bert"].loss(model), mine)[0])
            del layer.tensor
        torch.testing.assert_close(sum(parts), together, rtol=1e-4, atol=1e-7)


@every_method
def test_a_shared_parameter_exists_once(method, tmp_path):
    model = adapted(method, "bert")
    train(model, "bert")
    used = {key[1] for key in users_of(model)}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert used <= {id(p) for p in trained}
    assert len(trained) == len({id(p) for p in trained})
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    adapter = sum(value.numel() for name, value in saved.items() if name.endswith(layers_of_names(model)))
    count = flexlora.count_parameters(model)
    assert adapter == count.adapter_allocated == sum(p.numel() for p in trained if id(p) in used)


def layers_of_names(model: nn.Module) -> tuple[str, ...]:
    """The ends of the names of trained tensors in a saved adapter."""
    layer = next(iter(layers_of(model).values()))
    return tuple(f".{name}" for name in layer.adapter_layer_names)


@every_method
def test_a_copy_of_the_model_shares_among_its_own_layers(method):
    model = adapted(method, "bert", init_weights=False)
    twin = copy.deepcopy(model)
    assert sorted(map(len, users_of(twin).values())) == sorted(map(len, users_of(model).values()))
    assert {key[1] for key in users_of(twin)}.isdisjoint(key[1] for key in users_of(model))
    before = BACKBONES["bert"].evaluate(model)
    train(twin, "bert")
    assert torch.equal(BACKBONES["bert"].evaluate(model), before)
    assert not torch.equal(BACKBONES["bert"].evaluate(twin), before)


@every_method
@pytest.mark.parametrize("first", [True, False])
def test_one_layer_merges_alone(method, first):
    """The layer that holds a tensor, or the last one that refers to it. The others go on unmerged."""
    model = adapted(method, "llama", init_weights=False)
    expected = BACKBONES["llama"].evaluate(model)
    layers = list(layers_of(model).values())
    chosen = layers[0 if first else -1]
    weight = chosen.get_base_weight().detach().clone()
    chosen.merge(safe_merge=True)
    assert not torch.equal(chosen.get_base_weight(), weight)
    torch.testing.assert_close(BACKBONES["llama"].evaluate(model), expected, rtol=1e-4, atol=1e-5)
    chosen.unmerge()
    torch.testing.assert_close(chosen.get_base_weight(), weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(BACKBONES["llama"].evaluate(model), expected, rtol=1e-4, atol=1e-5)


# --- what a plan decides ----------


@pytest.mark.parametrize("method", PLANNED)
@pytest.mark.parametrize("options", [{}, {"lss": False}, {"hra": False}, {"lss": False, "hra": False}])
def test_counts_follow_the_plan(method, options):
    """E²LoRA: Σ (in + out) Σ r_k; E²ShareLoRA: Σ (in · r_max + out Σ r_k); the others by their tensors."""
    around = BACKBONES["bert"]
    plan = plan_for(base("bert"), around.targets, 4, **options)
    given = {"target_modules": None, "plan": plan}
    model = adapted(method, "bert", **given)
    ranks = [[interval.rank for interval in kind.intervals] for kind in plan.types]
    a_and_b = sum((k.in_features + k.out_features) * sum(r) for k, r in zip(plan.types, ranks, strict=True))
    outs = sum(kind.out_features * len(interval.modules) for kind in plan.types for interval in kind.intervals)
    expected = {
        "e2lora": a_and_b,
        "e2_sharelora": sum(
            k.in_features * max(r) + k.out_features * sum(r) for k, r in zip(plan.types, ranks, strict=True)
        ),
        "e2_dora": a_and_b + outs,
        "e2_vera": sum(sum(r) + k.out_features * len(r) for k, r in zip(plan.types, ranks, strict=True)),
        "e2_lori": sum(k.out_features * sum(r) for k, r in zip(plan.types, ranks, strict=True)),
    }[method]
    assert flexlora.count_parameters(model).adapter_active == expected
    if method == "e2lora":
        assert expected == plan.parameters()
    if method == "e2_sharelora":
        assert expected == plan.parameters(one_a=True)


def test_a_magnitude_of_an_interval_is_shared_and_starts_at_the_backbone():
    plan = plan_for(base("bert"), BACKBONES["bert"].targets, 4)
    model = adapted("e2_dora", "bert", plan=plan, magnitude="interval")
    assert torch.equal(BACKBONES["bert"].evaluate(model), BACKBONES["bert"].evaluate(base("bert")))
    intervals = sum(kind.out_features * len(kind.intervals) for kind in plan.types)
    assert flexlora.count_parameters(model).adapter_active == plan.parameters() + intervals
    train(model, "bert")
    expected = BACKBONES["bert"].evaluate(model)
    torch.testing.assert_close(BACKBONES["bert"].evaluate(model.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "expected"), [("fixed", 16 / 4), ("rank", 16 / 3), ("sqrt_rank", 16 / 3**0.5)])
def test_the_scale_counts_the_plans_rank_or_the_intervals(scale, expected):
    plan = plan_for(base("bert"), BACKBONES["bert"].targets, 4)
    values = plan.as_dict()
    values["types"][0]["intervals"][0]["rank"] = 3
    model = adapted("e2lora", "bert", plan=values, lora_alpha=16, scale=scale)
    name = values["types"][0]["intervals"][0]["modules"][0]
    assert layers_of(model)[f"base_model.model.{name}"].scaling["default"] == pytest.approx(expected)


def test_e2_dora_without_sharing_is_pefts_dora():
    around = BACKBONES["bert"]
    plan = plan_for(base("bert"), around.targets, 4, lss=False, hra=False)
    ours = adapted("e2_dora", "bert", plan=plan, lora_alpha=8)
    torch.manual_seed(1)
    dora = LoraConfig(r=4, lora_alpha=8, target_modules=around.targets, modules_to_save=around.head, use_dora=True)
    theirs = get_peft_model(base("bert"), dora)
    values = dict(ours.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            mine = name.replace("lora_magnitude_vector.default.weight", "lora_magnitude.default.weight")
            mine = mine.replace(".default.weight", ".default.tensor") if ".lora_" in name else mine
            if parameter.requires_grad:
                values[mine].copy_(parameter)
    for model in (ours, theirs):
        train_plainly(model)
    torch.testing.assert_close(around.evaluate(ours), around.evaluate(theirs), rtol=1e-4, atol=1e-5)


def train_plainly(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(4):
        BACKBONES["bert"].loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_mask_counts_a_shared_b_once():
    model = adapted("e2_lori", "bert", tinit=2)
    optimizer = train(model, "bert", steps=1)
    holders = [layer for layer in layers_of(model).values() if "default" in layer.lora_B]
    assert len(holders) < len(layers_of(model))
    with torch.no_grad():
        for layer in holders:
            layer.lora_B["default"].normal_()
    entries = sum(layer.lora_B["default"].numel() for layer in holders)
    model.base_model.after_step(2, optimizer)
    assert sum(int(layer.lora_mask["default"].count_nonzero()) for layer in holders) == round(0.1 * entries)
    assert flexlora.count_parameters(model).adapter_active == round(0.1 * entries)


# --- export ----------


@every_method
@pytest.mark.parametrize("uniform_rank", [False, True])
def test_a_plain_lora_with_copies_gives_the_same_output(method, uniform_rank, tmp_path):
    model = adapted(method, "bert", init_weights=False)
    train(model, "bert")
    flexlora.save_as_lora(tmp_path, model, uniform_rank=uniform_rank)
    loaded = PeftModel.from_pretrained(base("bert"), tmp_path)
    config = loaded.peft_config["default"]
    assert (str(config.peft_type.value), config.use_dora) == ("LORA", method == "e2_dora")
    torch.testing.assert_close(
        BACKBONES["bert"].evaluate(loaded), BACKBONES["bert"].evaluate(model), rtol=1e-6, atol=1e-6
    )
    assert bool(config.rank_pattern) is not uniform_rank


def test_an_update_that_is_no_lora_is_not_exported():
    with pytest.raises(ValueError, match="no adapter named 'default' that is a LoRA"):
        flexlora.convert_to_lora(adapted("liera", "bert"))


# --- the plan as a part of the configuration ----------


@pytest.mark.parametrize("method", PLANNED)
def test_the_plan_is_saved_with_the_adapter(method, tmp_path):
    model = adapted(method, "bert")
    model.save_pretrained(tmp_path)
    config = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config.plan, SharingPlan)
    assert config.plan == model.peft_config["default"].plan
    loaded = PeftModel.from_pretrained(base("bert"), tmp_path)
    assert {n: layer.r for n, layer in layers_of(loaded).items()} == {
        n: layer.r for n, layer in layers_of(model).items()
    }


CASES: list[tuple[dict[str, Any], str]] = [
    ({"plan": None}, r"E²LoRA needs a sharing plan: make it with plan = flexlora\.sharing_plan\("),
    ({"r": 8}, r"r=8, but the plan was made with r=4"),
    ({"rank_pattern": {"query": 2}}, r"`rank_pattern` has no effect beside a sharing plan"),
    ({"exclude_modules": ["query"]}, r"`exclude_modules` has no effect beside a sharing plan"),
    ({"target_modules": ["query"]}, r"`target_modules` has no bert\.encoder\.layer\.0\.attention\.self\.key, which"),
    ({"target_modules": ["query", "key", "value", "dense"]}, r"bert\.pooler\.dense is not in the sharing plan"),
    ({"scale": "log"}, r"`scale` must be one of fixed, rank, sqrt_rank, not 'log'"),
    ({"plan": {"r": 4}}, r"this is not a sharing plan"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), CASES)
def test_what_contradicts_the_plan_is_refused(changes, message):
    plan = plan_for(base("bert"), BACKBONES["bert"].targets, 4)
    with pytest.raises(ValueError, match=message):
        get_peft_model(base("bert"), b.E2LoraConfig(**{"plan": plan, "r": 4, **changes}))


def test_a_plan_of_another_model_is_refused():
    plan = plan_for(base("bert"), BACKBONES["bert"].targets, 4)
    with pytest.raises(ValueError, match="match no module"):
        get_peft_model(base("llama"), b.E2LoraConfig(plan=plan, r=4))
    values = plan.as_dict()
    values["types"][0]["in_features"] = 99
    with pytest.raises(ValueError, match=r"is 16 × 16, but 99 × 16 in the sharing plan, which was made for another"):
        get_peft_model(base("bert"), b.E2LoraConfig(plan=values, r=4))


def test_vera_has_no_scale():
    for given in ({"lora_alpha": 2.0}, {"alpha_pattern": {"query": 2.0}}, {"scale": "rank"}):
        with pytest.raises(ValueError, match="VeRA's vectors are its scale"):
            b.E2VeraConfig(**given)
