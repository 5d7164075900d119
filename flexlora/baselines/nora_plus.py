"""NoRA+: Nyström initialisation with preconditioned descent (Li et al., ICLR 2025, arXiv 2410.18965). LOW CONFIDENCE.

    ΔW = s · B A from B = W Ω, A = 0, with a Gaussian sketch Ω (in × r)

so ΔW = 0 at the start, and B spans the images of random inputs under W. NoRA is only this initialisation. NoRA+ trains
it with the preconditioned gradients of ScaledGD, gA ← (BᵀB + εI)⁻¹ gA and gB ← gB (AAᵀ + εI)⁻¹, which PEFT's
`create_riemannian_optimizer` computes (the parameters are named as LoRA's, so it finds them).

The authors' code is not public and the paper's text was not available. Our choices: which factor takes the sketch,
Ω ~ N(0, 1/in) (columns have unit length on average, so B's columns have the size of W's response to a unit input),
ε = 1e-2 (PEFT's default), and AdamW as the inner optimizer. Table rows with this method are marked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.optimizers import create_riemannian_optimizer

from flexlora.tuner.checks import number

from .low_rank import LowRankConfig, LowRankLayer, LowRankModel, setting


@dataclass
class NoRAPlusConfig(LowRankConfig):
    """Configuration of a [`NoRAPlusModel`]."""

    reg: float = setting(1e-2, "ε, added to the diagonals before they are inverted.", number, above=0)


class NoRAPlusLayer(LowRankLayer):
    """ΔW = s · B A, with B = W Ω at the start."""

    title = "NoRA+"

    def reset(self, adapter_name: str, config: Any) -> None:
        """Set B to the sketch. Do nothing if weights are loaded later."""
        if config.inference_mode:
            return
        weight = self.pretrained_weight()
        sketch = torch.empty(self.in_features, self.r[adapter_name], dtype=weight.dtype)
        sketch.normal_(std=self.in_features**-0.5)
        self.lora_B[adapter_name].copy_(weight @ sketch.to(weight.device))


class NoRAPlusModel(LowRankModel, name="nora_plus", config=NoRAPlusConfig, layer=NoRAPlusLayer):
    """NoRA+ on a pretrained model, to be trained by its own `optimizer`."""

    def optimizer(self, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
        """PEFT's preconditioned AdamW, over everything that trains in one group."""
        _, _, _, config = next(self.trained())
        return create_riemannian_optimizer(
            self, torch.optim.AdamW, lr=learning_rate, reg=config.reg, weight_decay=weight_decay
        )
