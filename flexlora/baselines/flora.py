"""FLoRA: low-rank core space (Si et al., ICLR 2025, arXiv 2405.14739), for matrices.

    ΔW = s · B G A

with a trainable core G (r × r). G = 0, so ΔW = 0 at the start; A and B ~ N(0, 0.02²), as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from flexlora.tuner.checks import number

from .low_rank import Factors, LowRankConfig, LowRankLayer, LowRankModel, Shapes, setting


@dataclass
class FLoraConfig(LowRankConfig):
    """Configuration of a [`FLoraModel`]."""

    init_std: float = setting(0.02, "Initial standard deviation of A and B.", number, above=0)


class FLoraLayer(LowRankLayer):
    """ΔW = s · B G A."""

    title = "FLoRA"
    adapter_layer_names = ("lora_A", "lora_G", "lora_B")
    lora_G: nn.ParameterDict

    def shapes(self, r: int, config: Any) -> Shapes:
        return {**super().shapes(r, config), "lora_G": (r, r)}

    def reset(self, adapter_name: str, config: Any) -> None:
        self.lora_A[adapter_name].normal_(std=config.init_std)
        self.lora_B[adapter_name].normal_(std=config.init_std)

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        left, right = super().product(adapter_name, training)
        return left, self.lora_G[adapter_name] @ right


class FLoraModel(LowRankModel, name="flora", config=FLoraConfig, layer=FLoraLayer):
    """FLoRA on a pretrained model, made by `peft.get_peft_model(model, FLoraConfig(...))`."""
