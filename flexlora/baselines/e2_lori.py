"""E²LoRI (E²LoRA, ICLR 2026): LoRI whose A and B belong to intervals, with ranks from the sharing plan.

    ΔW_l = s · (M_k ∘ B_k) A_k for every layer l of interval k

A_k is random (Kaiming uniform, √5) and is not trained. B_k trains where the mask M_k is 1. Calibration and masks are
those of LoRI (lori.py); a B that several layers share has one mask and counts once. B = 0, so ΔW = 0 at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .e2lora import E2Layer, E2LoraConfig, E2Model
from .lori import LoriConfig, LoriLayer, LoriModel
from .low_rank import kaiming
from .shared import Owned


@dataclass
class E2LoriConfig(E2LoraConfig, LoriConfig):
    """Configuration of an [`E2LoriModel`]: the fields of [`E2LoraConfig`] and [`LoriConfig`].

    Raises:
        ValueError: as [`E2LoraConfig`] and [`LoriConfig`].
    """


class E2LoriLayer(E2Layer, LoriLayer):
    """ΔW = s · (M ∘ B) A, where all three belong to the layer's interval."""

    title = "E²LoRI"

    def owned(self, adapter_name: str, config: Any, **place: Any) -> dict[str, Owned]:
        r, interval = place["r"], place["interval"]
        return {
            "lora_A": Owned(interval, (r, self.in_features), kaiming),
            "lora_mask": Owned(interval, (self.out_features, r), lambda mask: mask.fill_(True), torch.bool),
            "lora_B": Owned(interval, (self.out_features, r)),
        }


class E2LoriModel(E2Model, LoriModel, name="e2_lori", config=E2LoriConfig, layer=E2LoriLayer):
    """E²LoRI on a pretrained model: call `after_step` after every optimizer step."""
