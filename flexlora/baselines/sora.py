"""SoRA: sparse low-rank adaptation (Ding et al., EMNLP 2023, arXiv 2311.11696).

    ΔW = s · B diag(g) A,    g ← sign(g) max(|g| - ξ, 0) after every optimizer step

Every direction has a gate g. A proximal gradient step keeps the gates sparse: soft thresholding, where ξ is the product
of the paper's step size and L1 weight. B = 0, so ΔW = 0 at the start. A is Kaiming uniform (√5), and g ~ N(0, 1). A
gate at 0 becomes active again when an optimizer step moves it beyond ξ. A module's rank is the number of nonzero gates.

The authors' code differs from the paper in two ways, and this class follows the paper. In the code a value between ξ
and 2ξ is thresholded twice (to ξ' = |g| - ξ, and then to 0, because ξ' is below ξ), and the L1 norm is in the loss
(weight 10) as well as in the proximal step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flexlora.tuner.checks import number

from .low_rank import Factors, LowRankConfig, LowRankLayer, LowRankModel, Shapes, setting


@dataclass
class SoRAConfig(LowRankConfig):
    """Configuration of a [`SoRAModel`]."""

    xi: float = setting(3e-4, "ξ: the amount by which every gate shrinks after an optimizer step.", number, at_least=0)


class SoRALayer(LowRankLayer):
    """ΔW = s · B diag(g) A."""

    title = "SoRA"
    adapter_layer_names = ("lora_A", "lora_gate", "lora_B")
    lora_gate: nn.ParameterDict

    def shapes(self, r: int, config: Any) -> Shapes:
        return {**super().shapes(r, config), "lora_gate": (r,)}

    def reset(self, adapter_name: str, config: Any) -> None:
        super().reset(adapter_name, config)
        self.lora_gate[adapter_name].normal_()

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        left, right = super().product(adapter_name, training)
        return left, self.lora_gate[adapter_name].unsqueeze(1) * right

    def rank(self, adapter_name: str) -> int:
        gate = self.lora_gate[adapter_name]
        return self.r[adapter_name] if gate.device.type == "meta" else int(gate.count_nonzero())

    inactive_parameters = LowRankLayer.unused_directions


class SoRAModel(LowRankModel, name="sora", config=SoRAConfig, layer=SoRALayer):
    """SoRA on a pretrained model: call `after_step` after every optimizer step."""

    ranks = LowRankModel.ranks_in_use

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any] | None:
        """Apply the proximal step: soft thresholding of every gate."""
        for _, adapter_name, layer, config in self.trained():
            gate = layer.lora_gate[adapter_name]
            gate.copy_(nn.functional.softshrink(gate, config.xi))
        return None
