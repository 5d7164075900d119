"""MiLoRA: minor singular components (Wang et al., NAACL 2025, arXiv 2406.09044).

With W = U Σ Vᵀ and its r smallest singular triplets (U_m, Σ_m, V_m), α = r:

    B₀ = U_m √(Σ_m / s),    A₀ = √(Σ_m / s) V_mᵀ,    W ← W - s B₀ A₀,    ΔW = s B A from B = B₀, A = A₀

so that W + ΔW is unchanged at the start.

This class does not change W. It stores the subtracted part with the factors: ΔW = s (B A - B₀ A₀). The function, its
gradients and its training are the same. The advantages: a saved adapter contains A, B, A₀ and B₀, so it gives the same
output on a fresh backbone without another decomposition. (PEFT's PiSSA saves only A and B and decomposes the fresh W
again on loading. The *smallest* singular values are close together, so another machine may find other vectors.) A
bfloat16 or quantised W is not rounded twice, the start is exact, and disabling the adapter restores the backbone.
`lora_dropout` acts on B A x and not on B₀ A₀ x, as it would if W had been changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict

from .low_rank import LowRankConfig, LowRankLayer, LowRankModel, setting


@dataclass
class MiLoraConfig(LowRankConfig):
    """Configuration of a [`MiLoraModel`]."""

    lora_alpha: float = setting(8, "Scale: s = lora_alpha / r; the paper has lora_alpha = r.")


class MiLoraLayer(LowRankLayer):
    """ΔW = s (B A - B₀ A₀)."""

    title = "MiLoRA"
    buffer_names = ("lora_A0", "lora_B0")
    lora_A0: BufferDict
    lora_B0: BufferDict

    def buffers_at_start(self, r: int, config: Any) -> dict[str, torch.Tensor]:
        dtype = self._adapter_dtype()
        return {
            "lora_A0": torch.zeros(r, self.in_features, dtype=dtype),
            "lora_B0": torch.zeros(self.out_features, r, dtype=dtype),
        }

    def reset(self, adapter_name: str, config: Any) -> None:
        """Compute the r smallest singular triplets of W. Do nothing if weights are loaded later."""
        if config.inference_mode:
            return
        r = min(self.r[adapter_name], self.in_features, self.out_features)
        u, sigma, vh = torch.linalg.svd(self.pretrained_weight(), full_matrices=False)
        root = (sigma[-r:] / self.scaling[adapter_name]).sqrt()
        for name, value in (("A", root.unsqueeze(1) * vh[-r:]), ("B", u[:, -r:] * root)):
            for factor in (getattr(self, f"lora_{name}")[adapter_name], getattr(self, f"lora_{name}0")[adapter_name]):
                (factor[:r] if name == "A" else factor[:, :r]).copy_(value)

    def _draw_zeros(self, adapter_name: str) -> None:
        """Move B away from B₀: only ΔW is 0 at the start, and no parameter is."""
        b = self.lora_B[adapter_name]
        b.add_(torch.empty_like(b).normal_(std=0.02))

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        moved = self.lora_B[adapter] @ self.lora_A[adapter]
        delta = self.scaling[adapter] * (moved - self.lora_B0[adapter] @ self.lora_A0[adapter])
        return delta.T if self.fan_in_fan_out else delta

    def add(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        # Both products are equal at the start, so their difference is exactly 0.
        left, right = self.product(adapter_name)
        moved = F.linear(F.linear(self._adapter_input(x, adapter_name, right.dtype), right), left)
        right0 = self.scaling[adapter_name] * self.lora_A0[adapter_name]
        taken = F.linear(F.linear(x.to(right0.dtype), right0), self.lora_B0[adapter_name])
        return (result + (moved - taken)).to(result.dtype)


class MiLoraModel(LowRankModel, name="milora", config=MiLoraConfig, layer=MiLoraLayer):
    """MiLoRA on a pretrained model, made by `peft.get_peft_model(model, MiLoraConfig(...))`."""
