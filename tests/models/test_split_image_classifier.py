"""A ViT whose query, key and value are three linears computes the same, and has CLIP's six linears in each block."""

import copy
import re

import pytest
import timm
import torch
from compose_helpers import settings_of_run
from torch import nn
from vit_helpers import vit, wrapped
from vtab_helpers import write_vit

from flexlora.architectures import ALL_LINEARS, IMAGE_CLASSIFIER
from flexlora.errors import UserError
from flexlora.models import load_backbone
from flexlora.models.random_init import random_init
from flexlora.models.split_image_classifier import LINEARS, split_attention

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(IMAGES)


@pytest.mark.parametrize("settings", [{}, {"qk_norm": True}, {"qkv_bias": False}])
def test_the_split_model_computes_the_same(settings):
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    model = timm.create_model("vit_base_patch16_224", pretrained=False, **shape, **settings)
    whole = copy.deepcopy(model)
    split_attention(model)
    assert not any(name.endswith("qkv") for name, _ in model.named_modules())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in whole.parameters())
    torch.testing.assert_close(logits(model), logits(whole), rtol=0, atol=1e-6)
    again = copy.deepcopy(model)
    with torch.no_grad():
        again.blocks[0].attn.v_proj.weight.zero_()
    assert not torch.equal(logits(again), logits(model))  # the copy uses its own linears
    torch.testing.assert_close(logits(model), logits(whole), rtol=0, atol=1e-6)


def test_other_attention_is_left_as_it_is():
    model = timm.create_model("mixer_s32_224", pretrained=False, num_classes=2)
    names = [name for name, _ in model.named_modules()]
    split_attention(model)
    assert [name for name, _ in model.named_modules()] == names


def clip(method: str) -> dict[str, int]:
    """The exact number of parameters of a method on CLIP ViT-B/16, by the part of the adapter."""
    with torch.device("meta"):
        model = random_init("clip_vit_b16", num_labels=10)
    _, adapted = wrapped(method, base=model)
    counts = {"head": 0, "adapter": 0}
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            counts["head" if "head" in name else "adapter"] += parameter.numel()
    return counts


@pytest.mark.parametrize(("method", "count"), [("lora", 1_327_104), ("sharelora", 718_848)])
def test_clip_has_the_counts_of_six_linears(method, count):
    """E²LoRA's paper prints 1.31M for LoRA, which no choice of linears gives, and 0.72M for ShareLoRA."""
    assert clip(method) == {"head": 7690, "adapter": count}


def test_every_linear_of_a_block_is_found_once():
    model = random_init("clip_vit_b16", layers=1, device="meta")
    found = [name for name, _ in model.named_modules() if re.fullmatch(ALL_LINEARS, name)]
    linears = ["attn.proj", *(f"attn.{name}" for name in LINEARS), "mlp.fc1", "mlp.fc2"]
    assert sorted(found) == [f"blocks.0.{name}" for name in sorted(linears)]


def test_an_adapter_on_the_split_model_loads_merges_and_exports(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base = vit()
    split_attention(base)
    model = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=IMAGE_CLASSIFIER.target_modules, r=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    expected = logits(model)
    assert not torch.allclose(expected, logits(base))
    assert torch.equal(logits(loaded), expected)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), expected, rtol=0, atol=1e-5)


def test_a_folder_s_model_is_split_by_the_kind_alone(tmp_path):
    write_vit(tmp_path)
    settings = settings_of_run(
        "task=images/svhn", "method=lora", "model=local", f"model.path={tmp_path}", "model.kind=image_classifier"
    ).model
    whole = load_backbone(settings, 3)
    settings.kind = "split_image_classifier"
    split = load_backbone(settings, 3)
    assert whole.model.blocks[0].attn.qkv.weight.shape == (96, 32)
    joined = [getattr(split.model.blocks[1].attn, name).weight for name in ("q_proj", "k_proj", "v_proj")]
    assert torch.equal(torch.cat(joined), whole.model.blocks[1].attn.qkv.weight)


def test_noah_refuses_a_split_attention_in_one_line():
    base = vit()
    split_attention(base)
    with pytest.raises(UserError, match=r"NOAH needs blocks with a fused attn.qkv and an mlp"):
        wrapped("noah", base=base)
