"""E²DoRA (E²LoRA, ICLR 2026): DoRA whose direction belongs to an interval, with ranks from the sharing plan.

    W'_l = diag(m_l / ‖W_l + s B_k A_k‖) (W_l + s B_k A_k) for every layer l of interval k

‖·‖ is the norm of each row (each output). A_k and B_k are those of E²LoRA. m_l (out) starts at ‖W_l‖, and B = 0, so
W' = W at the start. As in DoRA (arXiv 2402.09353, section 4.3), the norm in the denominator has no gradient.

The summary of the paper does not say whether magnitudes are shared. With `magnitude=layer` each layer has its own m_l.
With `magnitude=interval` the layers of an interval share a factor c_k (out), which starts at 1, and m_l = c_k ‖W_l‖.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from flexlora.tuner.checks import choice
from flexlora.tuner.delta import LoraFactors

from .e2lora import E2LoraConfig, E2LoraLayer, E2Model
from .low_rank import setting
from .shared import Owned

MAGNITUDES = ("layer", "interval")


@dataclass
class E2DoraConfig(E2LoraConfig):
    """Configuration of an [`E2DoraModel`]: the fields of [`E2LoraConfig`], and `magnitude`.

    Raises:
        ValueError: as [`E2LoraConfig`].
    """

    magnitude: str = setting("layer", "Who has a magnitude: layer or interval.", partial(choice, options=MAGNITUDES))


class E2DoraLayer(E2LoraLayer):
    """W' = diag(m / ‖W + s B A‖) (W + s B A), where A and B belong to the layer's interval."""

    title = "E²DoRA"
    adapter_layer_names = ("lora_A", "lora_B", "lora_magnitude")
    lora_magnitude: nn.ParameterDict

    def look_at_base(self, **place: Any) -> None:
        super().look_at_base(**place)
        self.before_merge: list[torch.Tensor] = []
        """The weights that merging replaced, oldest first. Unmerging restores the base exactly."""

    def owned(self, adapter_name: str, config: Any, **place: Any) -> dict[str, Owned]:
        shape = (self.out_features,)
        of_interval = config.magnitude == "interval"
        magnitude = (
            Owned(place["interval"], shape, lambda c: c.fill_(1.0))
            if of_interval
            else Owned(place["name"], shape, lambda m: m.copy_(self.pretrained_weight(m.dtype).norm(dim=1)))
        )
        return {**super().owned(adapter_name, config, **place), "lora_magnitude": magnitude}

    def factor(self, adapter_name: str, weight: torch.Tensor) -> torch.Tensor:
        """Return m / ‖W + s B A‖ (out), with the gradient of m only. `weight` is W (out × in)."""
        with torch.no_grad():
            left, right = self.product(adapter_name)
            norm = (weight + left @ right).norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)
        magnitude = self.tensor("lora_magnitude", adapter_name)
        if self.settings[adapter_name].magnitude == "interval":
            magnitude = magnitude * weight.norm(dim=1)
        return magnitude / norm

    def lora_factors(self, adapter_name: str) -> LoraFactors:
        magnitude = self.tensor("lora_magnitude", adapter_name)
        if self.settings[adapter_name].magnitude == "interval":
            magnitude = magnitude * self.pretrained_weight(magnitude.dtype).norm(dim=1)
        return LoraFactors(*self.product(adapter_name), magnitude=magnitude)

    def add(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        """Add (W' - W) x to the output. The dropout is on the input of W' - W."""
        left, right = self.product(adapter_name, training=self.training)
        weight = self.pretrained_weight(right.dtype)
        hidden = self._adapter_input(x, adapter_name, right.dtype)
        factor = self.factor(adapter_name, weight)
        low_rank = F.linear(F.linear(hidden, right), left)
        return (result + (factor - 1) * F.linear(hidden, weight) + factor * low_rank).to(result.dtype)

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Compute W' - W in the base weight's orientation, for the W without any merged adapter."""
        with torch.no_grad():
            left, right = self.product(adapter)
            weight = self.pretrained_weight(right.dtype)
            if self.before_merge:
                first = self.before_merge[0].to(weight.dtype)
                weight = first.T if self.fan_in_fan_out else first
            delta = self.factor(adapter, weight).unsqueeze(1) * (weight + left @ right) - weight
        return delta.T if self.fan_in_fan_out else delta

    def fold(self, adapter_name: str, safe_merge: bool) -> None:
        before = self.get_base_weight().detach().clone()
        super().fold(adapter_name, safe_merge)
        self.before_merge.append(before)

    def unfold(self, adapter_name: str) -> None:
        self.set_base_weight(self.before_merge.pop())


class E2DoraModel(E2Model, name="e2_dora", config=E2DoraConfig, layer=E2DoraLayer):
    """E²DoRA on a pretrained model, made by `peft.get_peft_model(model, E2DoraConfig(plan=plan))`."""
