"""LoRA-Dash: task-specific directions (Si et al., ICLR 2025, arXiv 2409.01035).

    ΔW = s · B A                                       for the first `tinit` optimizer steps (pre-launch, t = 100)
    ΔW = s · B A + Σ_k δ_k u_k v_kᵀ                    from then on (dash)

where W = U Σ Vᵀ, and the k are the `directions` = 8 with the largest change rate |u_iᵀ (s B A) v_i| / σ_i at launch.
δ = 0, so the launch does not change the output. u and v are fixed; A, B and δ train. Directions whose σ is 0 up to
rounding have no rate and are not chosen.

The authors' code counts forward passes, including accumulated and evaluated batches. This class counts optimizer steps,
as the paper does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from flexlora.tuner.checks import whole

from .low_rank import Factors, LowRankConfig, LowRankLayer, LowRankModel, Shapes, setting


@dataclass
class LoraDashConfig(LowRankConfig):
    """Configuration of a [`LoraDashModel`].

    Raises:
        ValueError: as [`LowRankConfig`], or the training ends before the launch of the directions.
    """

    directions: int = setting(8, "Number of task-specific directions of every matrix.", whole)
    tinit: int = setting(100, "Optimizer steps before the directions are chosen.", whole)
    total_step: int | None = setting(None, "Optimizer steps of the whole training, if known; used to check `tinit`.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_step is not None and self.tinit >= self.total_step:
            raise ValueError(
                f"tinit={self.tinit} leaves no step for the task-specific directions: the training has "
                f"{self.total_step} steps."
            )


class LoraDashLayer(LowRankLayer):
    """ΔW = s · B A + U diag(δ) V, U and V zero before the launch."""

    title = "LoRA-Dash"
    adapter_layer_names = ("lora_A", "lora_B", "lora_delta")
    buffer_names = ("lora_U", "lora_V")
    lora_delta: nn.ParameterDict
    lora_U: BufferDict
    lora_V: BufferDict

    def _directions(self, config: Any) -> int:
        return min(config.directions, self.in_features, self.out_features)

    def shapes(self, r: int, config: Any) -> Shapes:
        return {**super().shapes(r, config), "lora_delta": (self._directions(config),)}

    def buffers_at_start(self, r: int, config: Any) -> dict[str, torch.Tensor]:
        count, dtype = self._directions(config), self._adapter_dtype()
        return {
            "lora_U": torch.zeros(self.out_features, count, dtype=dtype),
            "lora_V": torch.zeros(count, self.in_features, dtype=dtype),
        }

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        left, right = super().product(adapter_name, training)
        dash = self.lora_delta[adapter_name].unsqueeze(1) * self.lora_V[adapter_name]
        return torch.cat([left, self.lora_U[adapter_name]], 1), torch.cat([right, dash])

    @torch.no_grad()
    def launch(self, adapter_name: str) -> None:
        """Choose the directions by their change rates for the current B A."""
        left, right = super().product(adapter_name)
        u, sigma, vh = torch.linalg.svd(self.pretrained_weight().to(left.device), full_matrices=False)
        # This computes u_iᵀ (L R) v_i for all i without the dense product.
        change = ((u.T @ left) * (vh @ right.T)).sum(1).abs()
        rounding = sigma.max() * torch.finfo(sigma.dtype).eps * max(self.in_features, self.out_features)
        rates = torch.where(sigma > rounding, change / sigma, -1.0)
        chosen = rates.topk(self.lora_delta[adapter_name].numel()).indices
        self.lora_U[adapter_name].copy_(u[:, chosen])
        self.lora_V[adapter_name].copy_(vh[chosen])


class LoraDashModel(LowRankModel, name="lora_dash", config=LoraDashConfig, layer=LoraDashLayer):
    """LoRA-Dash on a pretrained model: call `after_step` after every optimizer step."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any] | None:
        """Launch the directions after step `tinit`."""
        for _, adapter_name, layer, config in self.trained():
            if step == config.tinit:
                layer.launch(adapter_name)
        return None
