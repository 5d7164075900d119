"""MoSLoRA: mixture of subspaces (Wu et al., EMNLP 2024, arXiv 2406.11909).

    ΔW = s · B M A

with a trainable mixer M (r × r) between LoRA's factors. B = 0, so ΔW = 0 at the start; A and M are Kaiming uniform
(√5), as in the authors' code for language models (others are commented out there).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .low_rank import Factors, LowRankConfig, LowRankLayer, LowRankModel, Shapes, kaiming


@dataclass
class MoSLoraConfig(LowRankConfig):
    """Configuration of a [`MoSLoraModel`]."""


class MoSLoraLayer(LowRankLayer):
    """ΔW = s · B M A."""

    title = "MoSLoRA"
    adapter_layer_names = ("lora_A", "lora_M", "lora_B")
    lora_M: nn.ParameterDict

    def shapes(self, r: int, config: Any) -> Shapes:
        return {**super().shapes(r, config), "lora_M": (r, r)}

    def reset(self, adapter_name: str, config: Any) -> None:
        super().reset(adapter_name, config)
        kaiming(self.lora_M[adapter_name])

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        left, right = super().product(adapter_name, training)
        return left, self.lora_M[adapter_name] @ right


class MoSLoraModel(LowRankModel, name="moslora", config=MoSLoraConfig, layer=MoSLoraLayer):
    """MoSLoRA on a pretrained model, made by `peft.get_peft_model(model, MoSLoraConfig(...))`."""
