"""MLAE: masked LoRA experts (Wang et al., 2024, arXiv 2405.18897).

    ΔW = Σ_i m_i λ_i b_i a_iᵀ

LoRA's directions are rank-1 experts, each with a trainable coefficient λ_i and a stochastic mask m_i. B = 0, so ΔW = 0
at the start. A is Kaiming uniform (√5), and every λ starts at `lora_alpha`, which replaces s. In training each expert
is dropped with probability p, with one draw per matrix and forward pass for all tokens, and the others are scaled by
1 / (1 - p), as in the authors' code. In evaluation all experts are active.

The authors' code has no training script. Our choices are p = 0.5, and lora_alpha = 1, the default of their layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import nn

from flexlora.tuner.checks import probability

from .low_rank import Factors, LowRankConfig, LowRankLayer, LowRankModel, Shapes, setting


@dataclass
class MLAEConfig(LowRankConfig):
    """Configuration of an [`MLAEModel`]."""

    lora_alpha: float = setting(1.0, "Initial value of every coefficient λ; there is no other scale.")
    expert_dropout: float = setting(0.5, "Probability of dropping an expert in a forward pass.", probability)


class MLAELayer(LowRankLayer):
    """ΔW = B diag(drop(λ)) A."""

    title = "MLAE"
    adapter_layer_names = ("lora_A", "lora_lambda", "lora_B")
    lora_lambda: nn.ParameterDict

    def shapes(self, r: int, config: Any) -> Shapes:
        return {**super().shapes(r, config), "lora_lambda": (r,)}

    def reset(self, adapter_name: str, config: Any) -> None:
        super().reset(adapter_name, config)
        self.lora_lambda[adapter_name].fill_(self.lora_alpha[adapter_name])

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        gain = F.dropout(self.lora_lambda[adapter_name], self.settings[adapter_name].expert_dropout, training)
        return self.lora_B[adapter_name], gain.unsqueeze(1) * self.lora_A[adapter_name]


class MLAEModel(LowRankModel, name="mlae", config=MLAEConfig, layer=MLAELayer):
    """MLAE on a pretrained model, made by `peft.get_peft_model(model, MLAEConfig(...))`."""
