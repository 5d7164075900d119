"""Invalid settings and unsupported modules are refused in one line."""

from __future__ import annotations

import pytest
import torch
from baseline_helpers import backbone, outputs, train, wrapped
from peft import get_peft_model

from flexlora.baselines import (
    AdaptFormerConfig,
    FactConfig,
    HoulsbyConfig,
    PfeifferConfig,
    SsfConfig,
    VptConfig,
)


@pytest.mark.parametrize(
    ("make", "settings", "said"),
    [
        (HoulsbyConfig, {"bottleneck": 0}, "`bottleneck` must be a whole number of at least 1, not 0"),
        (HoulsbyConfig, {"bottleneck": True}, "`bottleneck` must be a whole number"),
        (HoulsbyConfig, {"init_std": -1.0}, "`init_std` must be a number of at least 0, not -1.0"),
        (PfeifferConfig, {"non_linearity": "swish"}, "`non_linearity` must be one of relu, gelu, not 'swish'"),
        (PfeifferConfig, {"dropout": 1.0}, "`dropout` must be a probability below 1, not 1.0"),
        (AdaptFormerConfig, {"scale": 0}, "`scale` must be a number other than 0"),
        (AdaptFormerConfig, {"scale": float("nan")}, "`scale` must be a number other than 0"),
        (FactConfig, {"factorization": "cp"}, "`factorization` must be one of tt, tk, not 'cp'"),
        (FactConfig, {"r": 2.5}, "`r` must be a whole number"),
        (FactConfig, {"width": 0}, "`width` must be a whole number"),
        (SsfConfig, {"init_std": -0.1}, "`init_std` must be a number of at least 0"),
        (VptConfig, {"num_tokens": 0}, "`num_tokens` must be a whole number"),
        (VptConfig, {"target_modules": ["blocks.0"]}, "`target_modules` must be left out"),
        (VptConfig, {"exclude_modules": ["blocks.0"]}, "`exclude_modules` must be left out"),
    ],
)
def test_a_value_out_of_range_is_refused(make, settings, said):
    with pytest.raises(ValueError, match=said) as refused:
        make(**settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "targets", "said"),
    [
        (HoulsbyConfig, ["norm1"], r"blocks\.0\.norm1 is a LayerNorm: Houlsby's adapter works on linears"),
        (AdaptFormerConfig, ["fc1"], r"blocks\.0\.mlp\.fc1 is a Linear: AdaptFormer adapts MLPs only"),
        (FactConfig, ["norm1"], r"blocks\.0\.norm1 is a LayerNorm: FacT adapts linears"),
        (FactConfig, ["head"], r"pieces of 32 × 32.* but head is 3 × 32"),
        (PfeifferConfig, ["fc2", "fc3"], r"target_modules: fc3 match no module"),
        (SsfConfig, ["mlp"], r"blocks\.0\.mlp is a Mlp: SSF adapts linears"),
    ],
)
def test_an_unsupported_module_is_refused(make, targets, said):
    with pytest.raises(ValueError, match=said) as refused:
        get_peft_model(backbone("vit"), make(target_modules=targets))
    assert "\n" not in str(refused.value)


def test_only_ssf_adapts_the_patch_embedding():
    """In a ViT both the patch convolution and the attention's last linear are called `proj`."""
    for method in ("houlsby", "fact_tt", "ssf"):
        model = wrapped(method, "vit")
        adapted = {name for name, module in model.base_model.model.named_modules() if hasattr(module, "base_layer")}
        assert ("patch_embed.proj" in adapted) is (method == "ssf")
        assert "blocks.0.attn.proj" in adapted
        assert "head" not in adapted


def test_target_modules_can_be_chosen():
    model = wrapped("houlsby", "vit", target_modules=["attn.proj"])
    assert sum("houlsby_down." in name for name, _ in model.named_parameters()) == 2
    model = wrapped("fact_tt", "llama", target_modules=["q_proj", "o_proj"])
    assert sum("fact_sigma" in name for name, _ in model.named_parameters()) == 4
    model = wrapped("fact_tk", "bert", target_modules="all-linear")
    assert sum("fact_P" in name for name, _ in model.named_parameters()) == 12  # PEFT leaves the head out


def test_ssf_on_a_llama_merges_only_into_modules_with_a_bias():
    model = wrapped("ssf", "llama")
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj has no bias for the shift"):
        model.merge_and_unload()


def test_ssf_works_on_a_vit_that_averages_its_patches():
    """Such a ViT has an empty `norm` and a real `fc_norm`. Empty operations are skipped."""
    import timm

    base = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=16,
        embed_dim=32,
        depth=1,
        num_heads=2,
        num_classes=3,
        global_pool="avg",
        class_token=False,
    )
    model = wrapped("ssf", "vit", base)
    names = [name for name, _ in model.named_parameters() if "ssf_scale" in name]
    assert len(names) == 8
    assert any(".fc_norm." in name for name in names)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_vpt_leaves_no_prompt_behind(pool):
    """Without attention to the prompts, the average over the patches equals the output without prompts."""
    import timm

    torch.manual_seed(0)
    base = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=3, global_pool=pool, reg_tokens=2
    ).eval()
    with torch.no_grad():
        for block in base.blocks:
            block.attn.proj.weight.zero_()  # no token sees another
    plain = outputs(base, "vit")
    seen = []
    base.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    base.fc_norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    for method in ("vpt_shallow", "vpt_deep"):
        model = wrapped(method, "vit", base)
        torch.testing.assert_close(outputs(model, "vit"), plain)
        model.unload()
    assert {shape[1] for shape in seen if len(shape) == 3} == {1 + 2 + 4}


def test_prompts_of_two_adapters_are_concatenated():
    model = wrapped("vpt_deep", "vit")
    model.add_adapter("other", VptConfig(num_tokens=2))
    seen = []
    for block in model.base_model.model.blocks:
        block.base_layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[1]))
    model.base_model.set_adapter(["default", "other"])
    train(model, "vit", steps=1)
    assert seen == [10, 10]
    outputs(model, "vit")
    model.set_adapter("other")
    outputs(model, "vit")
    assert seen[-2:] == [7, 7]


def test_an_attention_mask_with_prompts_is_refused():
    model = wrapped("vpt_deep", "vit")
    from baseline_helpers import inputs

    with pytest.raises(ValueError, match="an attention mask does not fit"):
        model(inputs("vit"), is_causal=True)
