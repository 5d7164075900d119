"""FLoRA: low-rank core space (Si et al., ICLR 2025, arXiv 2405.14739), for matrices.

    ΔW = s · B G A

with a trainable core G (r × r). G = 0, so ΔW = 0 at the start; A and B ~ N(0, 0.02²), as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft.utils.peft_types import PeftType
from torch import nn

from flexlora.baselines.low_rank import LowRankConfig, LowRankLayer, LowRankModel, hint, require_number
from flexlora.tuner.peft_type import extend_peft_types, register_tuner

NAME = "FLORA"


@dataclass
class FLoraConfig(LowRankConfig):
    """Configuration of a [`FLoraModel`]."""

    type_name: ClassVar[PeftType] = extend_peft_types(NAME)

    init_std: float = field(default=0.02, metadata=hint("Standard deviation A and B start with."))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("init_std", self.init_std, above=0)


class FLoraLayer(LowRankLayer):
    """ΔW = s · B G A."""

    method = "FLoRA"
    adapter_layer_names = ("lora_A", "lora_G", "lora_B")
    lora_G: nn.ParameterDict

    def shapes(self, r: int, config: Any) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(r, config), "lora_G": (r, r)}

    def reset(self, adapter_name: str, config: Any) -> None:
        self.lora_A[adapter_name].normal_(std=config.init_std)
        self.lora_B[adapter_name].normal_(std=config.init_std)

    def product(self, adapter_name: str, training: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        left, right = super().product(adapter_name, training)
        return left, self.lora_G[adapter_name] @ right


class FLoraModel(LowRankModel):
    """FLoRA on a pretrained model, made by `peft.get_peft_model(model, FLoraConfig(...))`."""

    tuner_layer_cls = FLoraLayer
    linear_cls = FLoraLayer


register_tuner(NAME, FLoraConfig, FLoraModel)
