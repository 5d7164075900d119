"""Tiny backbones, and the baselines on them: what the contract and the tests of single methods share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm.models.vision_transformer
import torch
from method_helpers import tiny
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from flexlora.baselines import (
    AdaptFormerConfig,
    FactConfig,
    HoulsbyConfig,
    NoahConfig,
    PfeifferConfig,
    SsfConfig,
    VptConfig,
)

TEXT = ("bert", "roberta", "deberta-v2", "llama")
BACKBONES = (*TEXT, "vit")
HEADS = {"vit": ["head"], "llama": None, "roberta": ["classifier"]}


@dataclass(frozen=True)
class Case:
    """A method: how it is configured, and where it does not keep to the contract, for what reason."""

    config: Callable[..., PeftConfig]
    refused: tuple[str, ...] = ()
    """Backbones that it cannot work on."""
    starts_elsewhere: bool = False
    """Its output at the start is not the backbone's, by its own definition."""
    merges: tuple[str, ...] = ()
    """Backbones whose weights can take it up; on the others merging is refused."""


CASES: dict[str, Case] = {
    "houlsby": Case(lambda **k: HoulsbyConfig(**{"bottleneck": 8} | k), starts_elsewhere=True),
    "pfeiffer": Case(lambda **k: PfeifferConfig(**{"bottleneck": 8} | k), starts_elsewhere=True),
    "adaptformer": Case(lambda **k: AdaptFormerConfig(**{"bottleneck": 8} | k)),
    "ssf": Case(SsfConfig, starts_elsewhere=True, merges=("bert", "roberta", "deberta-v2", "vit")),
    "fact_tt": Case(
        lambda **k: FactConfig(**{"r": 3} | k), refused=("llama",), merges=("bert", "roberta", "deberta-v2", "vit")
    ),
    "fact_tk": Case(
        lambda **k: FactConfig(**{"r": 3, "factorization": "tk"} | k),
        refused=("llama",),
        merges=("bert", "roberta", "deberta-v2", "vit"),
    ),
    "vpt_shallow": Case(
        lambda **k: VptConfig(**{"num_tokens": 3, "deep": False} | k), refused=TEXT, starts_elsewhere=True
    ),
    "noah": Case(
        lambda **k: NoahConfig(**{"prompt_dim": [3, 2], "lora_dim": [2, 3], "adapter_dim": [4, 2]} | k),
        refused=TEXT,
        starts_elsewhere=True,
    ),
    "vpt_deep": Case(lambda **k: VptConfig(**{"num_tokens": 3} | k), refused=TEXT, starts_elsewhere=True),
}


def backbone(name: str) -> nn.Module:
    """A model of two layers and width 32 for three classes (a LLaMA: 40 words); the same weights at every call.

    Biases and norms are not left at 0 and 1, where a mistake with them would not show.
    """
    model = _fresh(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def _fresh(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "vit":
        return timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=3
        )
    if name == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, initializer_range=0.2,
            )
        )  # fmt: skip
    return tiny(name)


def config(method: str, name: str, **settings: Any) -> PeftConfig:
    """The method's configuration on this backbone, whose head trains with it."""
    return CASES[method].config(modules_to_save=HEADS.get(name, ["pooler", "classifier"]), **settings)


def wrapped(method: str, name: str, base: nn.Module | None = None, **settings: Any) -> PeftModel:
    """The method on a tiny backbone (or on `base`), with the same numbers at every call."""
    base = backbone(name) if base is None else base
    torch.manual_seed(1)
    return get_peft_model(base, config(method, name, **settings))


def inputs(name: str, batch: int = 4, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Pictures (batch, 3, 32, 32) or token ids (batch, 8)."""
    draw = torch.Generator().manual_seed(2)
    if name == "vit":
        return torch.randn(batch, 3, 32, 32, generator=draw).to(dtype)
    return torch.randint(2, 40, (batch, 8), generator=draw)


def logits(model: nn.Module, name: str, **options: Any) -> torch.Tensor:
    """(batch, classes); of a LLaMA the last position's (batch, words)."""
    out = model(inputs(name, **options))
    out = out if torch.is_tensor(out) else out.logits
    return out[:, -1] if out.dim() == 3 else out


@torch.no_grad()
def outputs(model: nn.Module, name: str, **options: Any) -> torch.Tensor:
    """`logits` in evaluation."""
    return logits(model.eval(), name, **options)


def train(model: nn.Module, name: str, steps: int = 2, **options: Any) -> nn.Module:
    """A few optimizer steps on one batch."""
    torch.manual_seed(3)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.0)
    for _ in range(steps):
        out = logits(model, name, **options)
        nn.functional.cross_entropy(out.float(), torch.arange(len(out)) % 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
