"""LieRA: updates in a Lie algebra (Si et al., ICCV 2025, arXiv 2504.00851).

W is an element of a group with the element-wise product and changes by the exponential map: W ⊙ exp(X), X = s · B A.
The authors' code uses the first order, W ⊙ (1 + X), and so does this class:

    ΔW = s · W ⊙ (B A)

B = 0, so ΔW = 0 at the start; A is Kaiming uniform (√5).

ΔW has full rank and needs one dense product (out × in) per forward pass. PEFT's HIRA has the same form without s. While
an adapter is merged, the pretrained W is stored separately: ΔW needs it, and W ⊙ (1 + X) may contain zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .low_rank import LowRankConfig, LowRankLayer, LowRankModel


@dataclass
class LieRAConfig(LowRankConfig):
    """Configuration of a [`LieRAModel`]."""


class LieRALayer(LowRankLayer):
    """ΔW = s · W ⊙ (B A), where W is the pretrained weight even while adapters are merged."""

    title = "LieRA"
    _before_merge: torch.Tensor | None = None

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        factor = super().get_delta_weight(adapter)
        weight = self.get_base_weight() if self._before_merge is None else self._before_merge
        return weight.detach().to(factor.device, factor.dtype) * factor

    def add(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        delta = self.get_delta_weight(adapter_name)
        x = self._adapter_input(x, adapter_name, delta.dtype)
        return (result + F.linear(x, delta.T if self.fan_in_fan_out else delta)).to(result.dtype)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        if not self.merged:
            self._before_merge = self.get_base_weight().detach().clone()
        try:
            super().merge(safe_merge, adapter_names)
        finally:
            if not self.merged:
                self._before_merge = None

    def unmerge(self) -> None:
        """Restore the pretrained weight exactly."""
        if self._before_merge is None:
            super().unmerge()  # warns that there is nothing to do
            return
        self.set_base_weight(self._before_merge)
        self._before_merge = None
        self.merged_adapters.clear()


class LieRAModel(LowRankModel, name="liera", config=LieRAConfig, layer=LieRALayer):
    """LieRA on a pretrained model, made by `peft.get_peft_model(model, LieRAConfig(...))`."""
