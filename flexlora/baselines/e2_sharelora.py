"""E²ShareLoRA (E²LoRA, ICLR 2026): ShareLoRA whose B belong to intervals, with ranks from the sharing plan.

    ΔW_l = s · B_k A[:r_k] for every layer l of interval k

Each module type has one A with as many rows as the largest rank of its intervals (r_max × in). Each interval has one B
(out × r_k) and uses the first r_k rows of A. A is Kaiming uniform (√5). B = 0, so ΔW = 0 at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .e2lora import E2Layer, E2LoraConfig, E2Model
from .low_rank import Factors, kaiming
from .shared import Owned


@dataclass
class E2ShareLoraConfig(E2LoraConfig):
    """Configuration of an [`E2ShareLoraModel`]; the fields are [`E2LoraConfig`]'s.

    Raises:
        ValueError: as [`E2LoraConfig`].
    """


class E2ShareLoraLayer(E2Layer):
    """ΔW = s · B A[:r_k], where B belongs to the layer's interval and A to its module type."""

    title = "E²ShareLoRA"
    adapter_layer_names = ("lora_A", "lora_B")

    def owned(self, adapter_name: str, config: Any, **place: Any) -> dict[str, Owned]:
        return {
            "lora_A": Owned(place["kind_number"], (place["largest"], self.in_features), kaiming),
            "lora_B": Owned(place["interval"], (self.out_features, place["r"])),
        }

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        left, right = super().product(adapter_name, training)
        return left, right[: self.r[adapter_name]]


class E2ShareLoraModel(E2Model, name="e2_sharelora", config=E2ShareLoraConfig, layer=E2ShareLoraLayer):
    """E²ShareLoRA on a pretrained model, made by `peft.get_peft_model(model, E2ShareLoraConfig(plan=plan))`."""
