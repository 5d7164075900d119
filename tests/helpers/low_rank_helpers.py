"""Tiny backbones, the low-rank methods as the contract tests them, and a training loop that gives them their calls."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from flexlora import baselines as b
from flexlora.sharing import GradientStatistics, SharingOptions, SharingPlan, plan_of
from flexlora.sharing.plan import find_targets, linear_shape

# Every method with what makes it act within a few steps. LoRI calibrates on: its masks have tests of their own.
METHODS: dict[str, Callable[..., b.LowRankConfig]] = {
    "moslora": b.MoSLoraConfig,
    "flora": b.FLoraConfig,
    "liera": b.LieRAConfig,
    # Few experts are left out: with half of them, a step in four leaves all of some matrix out.
    "mlae": lambda **given: b.MLAEConfig(**{"expert_dropout": 0.1, **given}),
    "sora": b.SoRAConfig,
    "milora": b.MiLoraConfig,
    "lora_dash": lambda **given: b.LoraDashConfig(**{"tinit": 1, "directions": 3, **given}),
    "nora_plus": b.NoRAPlusConfig,
    "sharelora": b.ShareLoraConfig,
    "rasa": b.RasaConfig,
    "ralora": lambda **given: b.RaLoraConfig(**{"block_pattern": {r".*\..*": 2}, **given}),
    "lori": lambda **given: b.LoriConfig(**{"tinit": 50, **given}),
    "dynamic_dora": lambda **given: b.DynamicDoraConfig(
        **{"target_r": 2, "total_step": 8, "tinit": 1, "tfinal": 4, "deltaT": 1, **given}
    ),
    "e2lora": b.E2LoraConfig,
    "e2_sharelora": b.E2ShareLoraConfig,
    "e2_dora": b.E2DoraConfig,
    "e2_vera": b.E2VeraConfig,
    "e2_lori": lambda **given: b.E2LoriConfig(**{"tinit": 50, **given}),
}
PLANNED = tuple(method for method in METHODS if method.startswith("e2"))
"""The methods whose configuration has a sharing plan."""


@dataclass(frozen=True)
class Backbone:
    """A tiny model: how to make it, what to feed it, which linears are adapted and which modules train whole."""

    make: Callable[[], nn.Module]
    inputs: dict[str, torch.Tensor]
    targets: str
    head: list[str]
    classes: int

    def logits(self, model: nn.Module) -> torch.Tensor:
        output = model(**self.inputs)
        return output if torch.is_tensor(output) else output.logits

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> torch.Tensor:
        training = model.training
        logits = self.logits(model.eval())
        model.train(training)
        return logits

    def loss(self, model: nn.Module) -> torch.Tensor:
        logits = self.logits(model).flatten(0, -2).float()
        return nn.functional.cross_entropy(logits, torch.arange(len(logits)) % self.classes)


def _bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    )  # fmt: skip


def _llama() -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            intermediate_size=24, max_position_embeddings=16,
        )
    )  # fmt: skip


def _vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3
    )


def _ids(rows: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.arange(rows * 5).view(rows, 5) % 30}


BACKBONES = {
    "bert": Backbone(
        _bert, _ids(4), r".*\.layer\.\d+\.(attention\.self\.(query|key|value)|.*\.dense)", ["pooler", "classifier"], 2
    ),
    "llama": Backbone(_llama, _ids(2), r".*\.(q_proj|k_proj|v_proj|up_proj|down_proj)", [], 30),
    "vit": Backbone(
        _vit, {"x": torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)},
        r"blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)", ["head"], 3,
    ),
}  # fmt: skip


@cache
def _made(name: str) -> nn.Module:
    torch.manual_seed(7)
    return BACKBONES[name].make().eval()


def base(name: str) -> nn.Module:
    """The tiny backbone `name`: another copy of the same weights every time."""
    return copy.deepcopy(_made(name))


def plan_for(model: nn.Module, targets: str, r: int, **options: Any) -> SharingPlan:
    """A sharing plan from made-up gradients: neighbours share, and the ranks of module types differ."""
    chosen = SharingOptions(**{"rank_pool": "all", "rank_entropy": "information", **options})
    shapes = {name: linear_shape(module) for name, module in find_targets(model, targets).items()}
    found = {name: GradientStatistics(name, 100, 0.0, 99 * (1e-3 * (1 + len(name) % 7)) ** 2) for name in shapes}
    return plan_of(found, shapes, r, chosen, batches=1)


def adapted(method: str, backbone: str, model: nn.Module | None = None, **settings: Any) -> PeftModel:
    """The method on a copy of the backbone, or on `model`."""
    around = BACKBONES[backbone]
    model = base(backbone) if model is None else model
    given = {"target_modules": around.targets, "modules_to_save": around.head or None, "r": 4, **settings}
    if method in PLANNED and "plan" not in given:
        given["plan"] = plan_for(base(backbone), around.targets, given["r"])
    torch.manual_seed(1)  # after the first backbone, whose making draws too
    return get_peft_model(model, METHODS[method](**given))


def train(model: PeftModel, backbone: str, steps: int = 2, learning_rate: float = 0.02) -> torch.optim.Optimizer:
    """So many steps of AdamW, with the two calls a method may need."""
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.0
    )
    model.train()
    for step in range(1, steps + 1):
        BACKBONES[backbone].loss(model).backward()
        model.base_model.regularise(step)
        optimizer.step()
        model.base_model.after_step(step, optimizer)
        optimizer.zero_grad()
    return optimizer
