"""MLAE: masked LoRA experts (Wang et al., 2024, arXiv 2405.18897).

    ΔW = Σ_i m_i λ_i b_i a_iᵀ

LoRA's directions as rank-1 experts, each with a trainable coefficient λ_i and a stochastic mask m_i. B = 0, so ΔW = 0
at the start; A is Kaiming uniform (√5) and every λ starts at `lora_alpha`, which takes the place of s. In training each
expert is left out with probability p, one draw a matrix and forward pass for all tokens, and the others are scaled by 1
/ (1 - p), as in the authors' code; otherwise all take part.

Chosen here, because the code came without a training script: p = 0.5, and lora_alpha = 1, its layer's default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from peft.utils.peft_types import PeftType
from torch import nn

from flexlora.baselines.low_rank import LowRankConfig, LowRankLayer, LowRankModel, hint, require_number
from flexlora.tuner.peft_type import extend_peft_types, register_tuner

NAME = "MLAE"


@dataclass
class MLAEConfig(LowRankConfig):
    """Configuration of an [`MLAEModel`]."""

    type_name: ClassVar[PeftType] = extend_peft_types(NAME)

    lora_alpha: float = field(
        default=1.0, metadata=hint("What every coefficient λ starts at; there is no other scale.")
    )
    expert_dropout: float = field(default=0.5, metadata=hint("Probability of leaving an expert out of a forward pass."))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("expert_dropout", self.expert_dropout, at_least=0, below=1)


class MLAELayer(LowRankLayer):
    """ΔW = B diag(drop(λ)) A."""

    method = "MLAE"
    adapter_layer_names = ("lora_A", "lora_lambda", "lora_B")
    settings = (*LowRankLayer.settings, "expert_dropout")
    lora_lambda: nn.ParameterDict

    def update_layer(self, adapter_name: str, r: int, lora_alpha: float, config: Any, **kwargs: Any) -> None:
        self.expert_dropout = {**getattr(self, "expert_dropout", {}), adapter_name: config.expert_dropout}
        super().update_layer(adapter_name, r, lora_alpha, config=config, **kwargs)

    def shapes(self, r: int, config: Any) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(r, config), "lora_lambda": (r,)}

    def reset(self, adapter_name: str, config: Any) -> None:
        super().reset(adapter_name, config)
        self.lora_lambda[adapter_name].fill_(self.lora_alpha[adapter_name])

    def product(self, adapter_name: str, training: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        gain = F.dropout(self.lora_lambda[adapter_name], p=self.expert_dropout[adapter_name], training=training)
        return self.lora_B[adapter_name], gain.unsqueeze(1) * self.lora_A[adapter_name]


class MLAEModel(LowRankModel):
    """MLAE on a pretrained model, made by `peft.get_peft_model(model, MLAEConfig(...))`."""

    tuner_layer_cls = MLAELayer
    linear_cls = MLAELayer


register_tuner(NAME, MLAEConfig, MLAEModel)
