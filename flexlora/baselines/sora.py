"""SoRA: sparse low-rank adaptation (Ding et al., EMNLP 2023, arXiv 2311.11696).

    ΔW = s · B diag(g) A,    g ← sign(g) max(|g| - ξ, 0) after every optimizer step

A gate g on every direction, kept sparse by a proximal gradient step: soft thresholding, ξ the product of the paper's
step size and L1 weight. B = 0, so ΔW = 0 at the start; A is Kaiming uniform (√5), g ~ N(0, 1). A gate at 0 comes back
when an optimizer step takes it beyond ξ. A module's rank is the number of its gates that are not 0.

The authors' code differs twice, and the paper's rule is taken: there a value between ξ and 2ξ is thresholded twice (to
ξ' = |g| - ξ, and that, being below ξ, to 0), and the L1 norm is in the loss (weight 10) as well as in the proximal
step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft.utils.peft_types import PeftType
from torch import nn

from flexlora.baselines.low_rank import LowRankConfig, LowRankLayer, LowRankModel, hint, require_number
from flexlora.tuner.peft_type import extend_peft_types, register_tuner

NAME = "SORA"


@dataclass
class SoRAConfig(LowRankConfig):
    """Configuration of a [`SoRAModel`]."""

    type_name: ClassVar[PeftType] = extend_peft_types(NAME)

    xi: float = field(default=3e-4, metadata=hint("ξ: how far every gate is pulled to 0 after an optimizer step."))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("xi", self.xi, at_least=0)


class SoRALayer(LowRankLayer):
    """ΔW = s · B diag(g) A."""

    method = "SoRA"
    adapter_layer_names = ("lora_A", "lora_gate", "lora_B")
    lora_gate: nn.ParameterDict

    def shapes(self, r: int, config: Any) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(r, config), "lora_gate": (r,)}

    def reset(self, adapter_name: str, config: Any) -> None:
        super().reset(adapter_name, config)
        self.lora_gate[adapter_name].normal_()

    def product(self, adapter_name: str, training: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        left, right = super().product(adapter_name, training)
        return left, self.lora_gate[adapter_name].unsqueeze(1) * right

    def rank(self, adapter_name: str) -> int:
        gate = self.lora_gate[adapter_name]
        return self.r[adapter_name] if gate.device.type == "meta" else int(gate.count_nonzero())

    def inactive_parameters(self, adapter_name: str) -> int:
        return (self.r[adapter_name] - self.rank(adapter_name)) * (self.in_features + self.out_features + 1)


class SoRAModel(LowRankModel):
    """SoRA on a pretrained model: call `after_step` after every optimizer step."""

    tuner_layer_cls = SoRALayer
    linear_cls = SoRALayer

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any] | None:
        """The proximal step: soft thresholding of every gate."""
        for _, adapter_name, layer, config in self.trained():
            gate = layer.lora_gate[adapter_name]
            gate.copy_(nn.functional.softshrink(gate, config.xi))
        return None


register_tuner(NAME, SoRAConfig, SoRAModel)
