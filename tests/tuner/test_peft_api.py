"""FlexLoRA through PEFT's own interface, on linears of all kinds and on real architectures with random weights."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from backbone_helpers import gpt2
from builders import SHAPES, Chain, adapters, delta, fixed, moving, scramble, wrapped
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
)

import flexlora
from flexlora import FlexLoraConfig, attach, module_ranks
from flexlora.tuner import FlexLoraLayer

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))


def expected_output(base: Chain, model: nn.Module, names: list[str], weights: list[float] | None = None):
    """The base with Σ weight · ΔW added to its weights by hand."""
    dense = copy.deepcopy(base).double()
    with torch.no_grad():
        for adapter, weight in zip(names, weights or [1.0] * len(names), strict=True):
            for module_name, module in model.named_modules():
                if isinstance(module, FlexLoraLayer) and adapter in module.flexlora_P:
                    target = dense.get_submodule(module_name.removeprefix("base_model.model."))
                    target.weight += weight * delta(module, adapter)
    return dense(X.double()).float()


def two(seed: int = 0):
    """A model with a trainable adapter on all and a frozen one on two linears, and its base."""
    torch.manual_seed(1)
    base = Chain()
    model = get_peft_model(copy.deepcopy(base), moving())
    model.add_adapter("second", fixed(target_modules=["q", "o"], r=3, lora_alpha=5, inference_mode=True))
    scramble(model, seed)
    scramble(model, seed + 1, "second")
    return model, base


# --- wrapping ----------


def test_only_the_adapter_trains():
    model = wrapped(fixed())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {
        f"base_model.model.{name}.flexlora_{part}.default.tensor" for name in SHAPES for part in ("P", "lambda", "Q")
    }


@pytest.mark.parametrize("bias", ["none", "all", "flexlora_only"])
def test_bias(bias, tmp_path):
    torch.manual_seed(1)
    base = Chain()
    model = get_peft_model(copy.deepcopy(base), fixed(bias=bias, target_modules=["q", "k"]))
    found = {name for name, p in model.named_parameters() if p.requires_grad and "flexlora_" not in name}
    adapted = {f"base_model.model.{name}.base_layer.bias" for name in ("q", "k")}
    others = {f"base_model.model.{name}.bias" for name in ("v", "o", "head")}
    assert found == {"none": set(), "all": adapted | others, "flexlora_only": adapted}[bias]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in found:
                parameter.add_(1.0)
    scramble(model, 0)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    torch.testing.assert_close(loaded(X), model(X))


def test_repr_names_the_tuner():
    assert "flexlora.FlexLoraLayer" in repr(wrapped(fixed()))


# --- several adapters ----------


def test_set_adapter():
    model, base = two()
    torch.testing.assert_close(model(X), expected_output(base, model, ["default"]), rtol=1e-4, atol=1e-5)
    model.set_adapter("second", inference_mode=True)
    torch.testing.assert_close(model(X), expected_output(base, model, ["second"]), rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in model.parameters())
    model.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(model(X), expected_output(base, model, ["default", "second"]), rtol=1e-4, atol=1e-5)


def test_an_additional_adapter_is_frozen_and_does_not_freeze_the_first():
    model, _ = two()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 3 * len(SHAPES)
    assert all(".default." in name for name in trainable)


def test_delete_adapter():
    model, base = two()
    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"]
    assert not any("second" in name for name in model.state_dict())
    for layer in adapters(model):
        for held in (layer.r, layer.scaling, layer.lora_alpha, layer.flexlora_active, layer.flexlora_dropout):
            assert set(held) == {"default"}
    torch.testing.assert_close(model(X), expected_output(base, model, ["default"]), rtol=1e-4, atol=1e-5)


def test_delete_the_active_adapter():
    model, base = two()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.delete_adapter("default")
    torch.testing.assert_close(model(X), expected_output(base, model, ["second"]), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="no adapter is trainable"):
        model.base_model.update_and_allocate(1)


def test_an_adapter_made_again_under_an_old_name_has_its_own_allocator():
    model, _ = two()
    model.base_model.update_and_allocate(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.delete_adapter("default")
    model.add_adapter("default", moving(target_modules=["k"], r=2, max_rank=4))
    model.set_adapter("default")
    scramble(model, 5)
    allocator = model.base_model.rank_allocator
    assert allocator.names == ["k"]
    assert allocator.limits == [4]
    assert allocator.step == 0
    assert allocator.config is model.peft_config["default"]


# --- disabling ----------


@pytest.mark.parametrize("merge_first", [False, True])
def test_disable_adapter_gives_the_base(merge_first):
    model, base = two()
    before = model(X)
    if merge_first:
        model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(X), base(X), rtol=1e-4, atol=1e-5)
        if not merge_first:
            assert torch.equal(model(X), base(X))
    torch.testing.assert_close(model(X), before, rtol=1e-4, atol=1e-5)


def test_enable_and_disable_layers():
    model, base = two()
    before = model(X)
    model.base_model.disable_adapter_layers()
    assert torch.equal(model(X), base(X))
    model.base_model.enable_adapter_layers()
    assert torch.equal(model(X), before)


# --- merging ----------


@pytest.mark.parametrize("safe", [False, True])
def test_merge_and_unload(safe):
    model, base = two()
    before, expected = model(X), expected_output(base, model, ["default"])
    merged = model.merge_and_unload(safe_merge=safe)
    assert type(merged) is Chain
    assert not any("flexlora" in name for name in merged.state_dict())
    torch.testing.assert_close(merged(X), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged(X), expected, rtol=1e-4, atol=1e-5)


def test_merge_several_then_unmerge():
    model, base = two()
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if "base_layer" in name}
    model.merge_adapter(["default", "second"])
    torch.testing.assert_close(model(X), expected_output(base, model, ["default", "second"]), rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    for name, parameter in model.named_parameters():
        if name in weights:
            torch.testing.assert_close(parameter, weights[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model(X), expected_output(base, model, ["default"]), rtol=1e-4, atol=1e-5)


def test_safe_merge_refuses_nan_and_leaves_the_layer():
    model, base = two()
    with torch.no_grad():
        next(iter(adapters(model))).flexlora_P["default"][:, -1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(model.base_model.model.q.base_layer.weight, base.q.weight)
    assert not model.base_model.model.q.merged


def test_unload_gives_the_base_back():
    model, base = two()
    assert torch.equal(model.unload()(X), base(X))


def test_conv1d_merges_in_its_own_orientation():
    torch.manual_seed(0)
    model, ids = gpt2()
    adapted = get_peft_model(copy.deepcopy(model), fixed(target_modules=["c_attn", "c_fc"]))
    scramble(adapted)
    before = adapted(ids).logits
    torch.testing.assert_close(adapted.merge_and_unload(safe_merge=True)(ids).logits, before, rtol=1e-3, atol=1e-4)


# --- modules to save ----------


def test_modules_to_save(tmp_path):
    torch.manual_seed(1)
    base = Chain()
    model = get_peft_model(copy.deepcopy(base), fixed(modules_to_save=["head"]))
    scramble(model)
    head = model.base_model.model.head.modules_to_save["default"]
    assert all(p.requires_grad for p in head.parameters())
    with torch.no_grad():
        head.weight.add_(1.0)
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(base, str(tmp_path))
    assert torch.equal(loaded(X), model(X))
    assert torch.equal(loaded.base_model.model.head.modules_to_save["default"].weight, head.weight)
    assert torch.equal(loaded.merge_and_unload().head.weight, head.weight)


def test_a_module_to_save_without_a_weight_of_its_own_is_unloaded():
    """BERT's pooler holds its linear one level down; PEFT's default way to put modules back asks it for `weight`."""
    base = BertForSequenceClassification(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12)
    ).eval()
    model = wrapped(fixed(target_modules="all-linear", modules_to_save=["pooler", "classifier"]), base)
    scramble(model)
    ids = torch.arange(10).view(2, 5)
    before = model(ids).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, before)
    assert not any("flexlora" in name or "modules_to_save" in name for name, _ in merged.named_modules())


# --- without a wrapper ----------


def test_inject_adapter_in_model_and_attach():
    torch.manual_seed(1)
    injected = inject_adapter_in_model(moving(r=2, total_step=20, init_b=1), Chain())
    assert type(injected) is Chain
    assert list(module_ranks(injected)) == list(SHAPES)
    assert {name for name, p in injected.named_parameters() if p.requires_grad} == {
        f"{name}.flexlora_{part}.default.tensor" for name in SHAPES for part in ("P", "lambda", "Q")
    }
    optimizer = torch.optim.AdamW([p for p in injected.parameters() if p.requires_grad], lr=0.05)
    attachment = attach(injected, optimizer)
    for _ in range(12):
        optimizer.zero_grad()
        injected(X).square().sum().backward()
        optimizer.step()
    assert attachment.step == 12
    assert len(attachment.events) == 12
    assert set(module_ranks(injected).values()) != {2}
    assert sum(module_ranks(injected).values()) == 8
    assert list(attachment.events[-1].ranks) == list(SHAPES)


def test_injected_equals_wrapped():
    def train(model):
        torch.manual_seed(3)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
        attach(model, optimizer)
        for _ in range(6):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()
        return model(X)

    torch.manual_seed(1)
    base = Chain()
    torch.manual_seed(2)
    injected = inject_adapter_in_model(moving(), copy.deepcopy(base))
    torch.manual_seed(2)
    wrapped_model = get_peft_model(copy.deepcopy(base), moving())
    assert torch.equal(train(injected), train(wrapped_model))


def test_every_name_in_all_exists():
    for name in flexlora.__all__:
        assert hasattr(flexlora, name)
    assert FlexLoraConfig is flexlora.FlexLoraConfig
