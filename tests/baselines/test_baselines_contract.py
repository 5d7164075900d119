"""Every baseline fulfils PEFT's contract and ours on every backbone that it supports.

A method is added to `CASES` in baseline_helpers.py, and its exact parameter counts to `COUNTS` here.
"""

from __future__ import annotations

import copy
import json

import pytest
import torch
from baseline_helpers import BACKBONES, CASES, backbone, config, inputs, outputs, train, wrapped
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

import flexlora
from flexlora.baselines import (
    AdaptFormerConfig,
    FactConfig,
    HoulsbyConfig,
    NoahConfig,
    PfeifferConfig,
    SsfConfig,
    VptConfig,
)
from flexlora.models.random_init import random_init

WORKING = [(method, name) for method, case in CASES.items() for name in BACKBONES if name not in case.refused]
REFUSED = [(method, name) for method, case in CASES.items() for name in case.refused]

everywhere = pytest.mark.parametrize(("method", "name"), WORKING)

# Trainable parameters without the head, at the shapes of the published checkpoints.
COUNTS = [
    (HoulsbyConfig(), "deberta_v3_base", 1_198_848),
    (PfeifferConfig(), "deberta_v3_base", 1_189_632),
    (PfeifferConfig(bottleneck=8), "vit_b16", 156_768),
    (AdaptFormerConfig(), "vit_b16", 156_768),
    (AdaptFormerConfig(), "llama3_8b", 32 * (2 * 8 * 4096 + 8 + 4096)),
    (FactConfig(), "vit_b16", 61_440),
    (FactConfig(r=32, factorization="tk"), "vit_b16", 86_528),
    (FactConfig(width=1024), "llama3_8b", 2 * 1024 * 16 + 32 * (16 + 4 + 4 + 16 + 3 * 4 * 14) * 16**2),
    (SsfConfig(), "vit_b16", 205_824),
    (VptConfig(deep=False), "vit_b16", 50 * 768),
    (VptConfig(), "vit_b16", 12 * 50 * 768),
    (NoahConfig(), "vit_b16", 12 * (5 * 768 + 5 * 4 * 768 + 5 * (2 * 768 + 1) + 768)),
    (
        NoahConfig(prompt_dim=[2] * 3 + [0] * 9, lora_dim=[1] * 6 + [0] * 6, adapter_dim=[0] * 11 + [4]),
        "vit_b16",
        6 * 768 + 6 * 4 * 768 + 4 * (2 * 768 + 1) + 768,
    ),
]


@everywhere
def test_the_initial_output_is_the_backbones(method, name):
    model = wrapped(method, name)
    same = torch.equal(outputs(model, name), outputs(backbone(name), name))
    assert same is not CASES[method].starts_elsewhere
    with model.disable_adapter():
        assert torch.equal(outputs(model, name), outputs(backbone(name), name))


@everywhere
def test_two_steps_change_all_trainable_parameters_and_nothing_else(method, name):
    """Two steps are needed: in the first, a factor of 0 gives its partner no gradient."""
    model = wrapped(method, name)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    frozen = {key for key, value in backbone(name).named_parameters()}
    trains = {key for key, value in model.named_parameters() if value.requires_grad}
    train(model, name)
    moved = {key for key, value in model.named_parameters() if not torch.equal(value, before[key])}
    assert moved == trains
    adapter = {key for key in trains if "modules_to_save" not in key}
    assert adapter
    assert adapter.isdisjoint(frozen)
    count = flexlora.count_parameters(model)
    assert count.adapter_active == sum(before[key].numel() for key in adapter)
    assert count.trainable == sum(before[key].numel() for key in trains)


@everywhere
def test_a_saved_adapter_loads_into_a_fresh_backbone(method, name, tmp_path):
    model = train(wrapped(method, name), name)
    expected = outputs(model, name)
    assert not torch.allclose(expected, outputs(wrapped(method, name), name), atol=1e-3)  # there is something to save
    model.save_pretrained(str(tmp_path))
    assert {file.suffix for file in tmp_path.iterdir()} <= {".safetensors", ".json", ".md"}
    for quick in (False, True):
        loaded = PeftModel.from_pretrained(backbone(name), str(tmp_path), low_cpu_mem_usage=quick)
        assert torch.equal(outputs(loaded, name), expected)
        assert not any(p.requires_grad for p in loaded.parameters())
    saved = load_file(tmp_path / "adapter_model.safetensors")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(value.numel() for value in saved.values()) == trained  # nothing of the backbone, nothing twice
    again = PeftModel.from_pretrained(backbone(name), str(tmp_path), is_trainable=True)
    assert {key for key, p in again.named_parameters() if p.requires_grad} == {
        key for key, p in model.named_parameters() if p.requires_grad
    }


@everywhere
def test_a_merged_backbone_gives_the_same_output_or_merging_is_refused(method, name):
    model = train(wrapped(method, name), name)
    expected, state = outputs(model, name), copy.deepcopy(model.state_dict())
    if name not in CASES[method].merges:
        for merge in (model.merge_and_unload, model.merge_adapter):
            with pytest.raises(ValueError, match="cannot be merged into the backbone: ") as refused:
                merge()
            assert "\n" not in str(refused.value)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert torch.equal(outputs(model, name), expected)
        return
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(outputs(model, name), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())  # bit for bit
    merged = model.merge_and_unload()
    torch.testing.assert_close(outputs(merged, name), expected, rtol=1e-4, atol=1e-5)
    assert {key for key, _ in merged.named_parameters()} == {key for key, _ in backbone(name).named_parameters()}


@everywhere
def test_unloading_restores_the_backbone(method, name):
    model = train(wrapped(method, name), name)
    plain, base = model.unload(), backbone(name)
    weights = dict(plain.named_parameters())
    assert weights.keys() == dict(base.named_parameters()).keys()
    head = tuple(config(method, name).modules_to_save or ())
    for key, value in base.named_parameters():
        if not set(head) & set(key.split(".")):
            assert torch.equal(weights[key], value), key


@everywhere
def test_two_adapters_are_independent(method, name):
    model = wrapped(method, name)
    first = outputs(train(model, name), name)
    torch.manual_seed(7)
    model.add_adapter("other", config(method, name))
    assert torch.equal(outputs(model, name), first)
    frozen = [key for key, p in model.named_parameters() if ".other" in key and p.requires_grad]
    assert frozen == []
    model.set_adapter("other")
    second = outputs(train(model, name), name)
    assert not torch.equal(second, first)
    model.set_adapter("default")
    assert torch.equal(outputs(model, name), first)
    model.delete_adapter("default")
    model.set_adapter("other")
    assert torch.equal(outputs(model, name), second)
    assert not [key for key, _ in model.named_parameters() if "default" in key and "modules_to_save" not in key]


@everywhere
def test_a_bfloat16_backbone_trains_a_float32_adapter(method, name):
    kind = {"dtype": torch.bfloat16}
    model = wrapped(method, name, backbone(name).to(torch.bfloat16))
    trains = {key: p for key, p in model.named_parameters() if p.requires_grad and "modules_to_save" not in key}
    assert {p.dtype for p in trains.values()} == {torch.float32}
    before = {key: p.detach().clone() for key, p in trains.items()}
    train(model, name, **kind)
    assert [key for key, p in trains.items() if torch.equal(p, before[key])] == []
    out = outputs(model, name, **kind)
    assert out.isfinite().all()
    assert out.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert outputs(wrapped(method, name), name).isfinite().all()


@everywhere
def test_a_deep_copy_of_the_model_is_independent(method, name):
    model = wrapped(method, name)
    before = outputs(model, name)
    twin = copy.deepcopy(model)
    train(twin, name)
    assert torch.equal(outputs(model, name), before)
    trained = outputs(twin, name)
    train(model, name)
    assert torch.equal(outputs(model, name), trained)


@pytest.mark.parametrize(("method", "name"), REFUSED)
def test_an_unsupported_backbone_is_refused_in_one_line(method, name):
    base = backbone(name)
    modules = [key for key, _ in base.named_modules()]
    with pytest.raises(ValueError, match=r"(FacT|NOAH|VPT) ") as refused:
        get_peft_model(base, config(method, name))
    assert "\n" not in str(refused.value)
    assert [key for key, _ in base.named_modules()] == modules  # nothing was replaced


@pytest.mark.parametrize("method", [method for method in CASES if not method.startswith(("vpt", "noah"))])
def test_a_model_with_unknown_module_names_is_refused_in_one_line(method):
    base = torch.nn.Sequential(torch.nn.Linear(4, 4))
    settings = {"width": 4} if method.startswith("fact") else {}
    with pytest.raises(ValueError, match="Name them in target_modules") as refused:
        get_peft_model(base, CASES[method].config(**settings))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("settings", "shape", "expected"), COUNTS, ids=lambda value: str(value)[:20])
def test_parameters_at_exact_shapes(settings, shape, expected):
    settings = copy.deepcopy(settings)
    model = get_peft_model(random_init(shape, device="meta"), settings)
    count = flexlora.count_parameters(model)
    assert (count.adapter_active, count.adapter_allocated, count.head) == (expected, expected, 0)


@pytest.mark.parametrize("method", CASES)
def test_a_saved_configuration_loads_unchanged(method, tmp_path):
    settings = CASES[method].config()
    settings.save_pretrained(str(tmp_path))
    again = type(settings).from_pretrained(str(tmp_path))
    assert again == settings
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == settings.peft_type.value


def test_gradient_checkpointing_keeps_the_gradients() -> None:
    """`set_grad_checkpointing` runs a ViT's blocks twice, prompts included."""
    for method in ("vpt_deep", "houlsby", "fact_tk", "noah"):
        gradients = []
        for checkpointing in (False, True):
            model = wrapped(method, "vit", dropout=0.0)
            model.base_model.model.set_grad_checkpointing(checkpointing)
            model.train()(inputs("vit")).square().sum().backward()
            gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        for plain, checkpointed in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, checkpointed)
