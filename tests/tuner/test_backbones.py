"""FlexLoRA on real architectures, at small sizes, and on quantised bases."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import timm
import torch
from backbone_helpers import gpt2
from builders import adapters, delta, fixed, moving, scramble
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from flexlora import module_ranks

# --- real architectures ----------


def llama():
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=20,
        max_position_embeddings=16,
    )
    return LlamaForCausalLM(config).eval(), torch.arange(10).view(2, 5)


def deberta():
    config = DebertaV2Config(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=20,
        max_position_embeddings=16,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_buckets=4,
    )
    return DebertaV2ForSequenceClassification(config).eval(), torch.arange(10).view(2, 5)


def bert():
    config = BertConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=20)
    return BertForSequenceClassification(config).eval(), torch.arange(10).view(2, 5)


def vit():
    model = timm.create_model(
        "vit_tiny_patch16_224", pretrained=False, img_size=32, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )
    return model.eval(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


BACKBONES = {
    "gpt2": (gpt2, ["c_attn", "c_fc", "mlp.c_proj"], 6),
    "llama": (llama, ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"], 10),
    "deberta": (
        deberta,
        ["query_proj", "key_proj", "value_proj", "attention.output.dense", "intermediate.dense", "output.dense"],
        12,
    ),
    "bert": (bert, None, 4),
    "vit": (vit, r"blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)", 8),
}


def logits(model, inputs):
    out = model(inputs)
    return out if torch.is_tensor(out) else out.logits


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(name, tmp_path):
    make, targets, count = BACKBONES[name]
    torch.manual_seed(0)
    base, inputs = make()
    torch.manual_seed(1)
    model = get_peft_model(copy.deepcopy(base), moving(target_modules=targets, r=2, max_rank=5)).eval()
    assert len(adapters(model)) == count
    assert torch.equal(logits(model, inputs), logits(base, inputs)), "ΔW = 0 at the start"
    scramble(model, scale=0.05)
    before = logits(model, inputs)
    assert not torch.allclose(before, logits(base, inputs), atol=1e-4)
    logits(model, inputs).square().sum().backward()
    for layer in adapters(model):
        off = ~layer.flexlora_active["default"]
        p, values, q = layer.factors("default")
        assert (p.grad[:, off] == 0).all()
        assert (values.grad[off] == 0).all()
        assert (q.grad[off] == 0).all()
        assert (values.grad[~off] != 0).any()
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path)).eval()
    assert torch.equal(logits(loaded, inputs), before)
    ranks = list(module_ranks(loaded).values())
    assert ranks == [layer.rank("default") for layer in adapters(model)]
    merged = loaded.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged, inputs), before, rtol=1e-3, atol=1e-4)
    total = sum(module_ranks(model).values())
    event = model.base_model.update_and_allocate(1)
    assert event.total_rank == total
    assert event.pruned


def test_default_targets_come_from_pefts_table():
    torch.manual_seed(0)
    model = get_peft_model(llama()[0], moving(target_modules=None))
    assert {name.rpartition(".")[2] for name in module_ranks(model)} == {"q_proj", "v_proj"}


def test_layers_to_transform():
    model = get_peft_model(llama()[0], moving(target_modules=["q_proj"], layers_to_transform=[1]))
    assert list(module_ranks(model)) == ["model.layers.1.self_attn.q_proj"]


def test_gradient_checkpointing_gives_the_same_gradients():
    def gradients(checkpointing):
        torch.manual_seed(0)
        base, ids = llama()
        model = get_peft_model(base, moving(target_modules=["q_proj", "down_proj"])).train()
        scramble(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(ids, labels=ids).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    for plain, checkpointed in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_bfloat16_backbone_keeps_float32_factors():
    torch.manual_seed(0)
    base, ids = llama()
    model = get_peft_model(base.to(torch.bfloat16), moving(target_modules=["q_proj", "down_proj"]))
    scramble(model)
    assert {t.dtype for layer in adapters(model) for t in layer.factors("default")} == {torch.float32}
    assert model(ids).logits.dtype == torch.bfloat16
    merged = model.merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}


# --- quantised bases ----------

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_bitsandbytes_linears(kind):
    import bitsandbytes as bnb

    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 64))
    if kind == "8bit":
        quantised = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
    else:
        quantised = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.float32)
    quantised.load_state_dict(plain[0].state_dict())
    model = nn.Sequential(quantised).to("cpu")
    x = torch.randn(3, 64)
    base = model(x)
    adapted = get_peft_model(model, fixed(target_modules=["0"]))
    torch.testing.assert_close(adapted(x), base)
    scramble(adapted)
    (layer,) = adapters(adapted)
    torch.testing.assert_close(adapted(x), base + (x.double() @ delta(layer).T).to(base), rtol=1e-2, atol=1e-2)
    adapted(x).float().square().sum().backward()
    assert layer.flexlora_lambda["default"].grad.isfinite().all()
    apart = adapted(x)
    adapted.merge_adapter()  # dequantised, added, quantised again
    assert layer.merged
    rounding = 0.02 if kind == "8bit" else 0.2  # of the adapter's share of the output; seen: 0.004 and 0.08
    assert (adapted(x) - apart).abs().max() < rounding * (apart - base).abs().max()
    adapted.unmerge_adapter()
    assert not layer.merged
