"""ShareLoRA (Song et al., 2024, arXiv 2406.10785), the paper's ShareA.

    ΔW_l = s · B_l A_type(l)

All linears of one type (query, key, ...) share one A, and each has its own B. B = 0, so ΔW = 0 at the start. A is
Kaiming uniform (√5). The type is the module's name without its numbers, together with its number of inputs
(`encoder.layer.attention.self.query`, in 768).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flexlora.tuner.names import without_numbers

from .low_rank import LowRankConfig, kaiming
from .shared import Owned, SharedLayer, SharedModel


@dataclass
class ShareLoraConfig(LowRankConfig):
    """Configuration of a [`ShareLoraModel`].

    Raises:
        ValueError: as [`LowRankConfig`], or `rank_pattern` is set: linears that share A have the same rank.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_pattern:
            raise ValueError("ShareLoRA has one rank for all modules: leave `rank_pattern` out.")


class ShareLoraLayer(SharedLayer):
    """ΔW = s · B A, where A may belong to another layer."""

    title = "ShareLoRA"
    adapter_layer_names = ("lora_B", "lora_A")

    def owned(self, adapter_name: str, config: Any, **place: Any) -> dict[str, Owned]:
        r, kind = place["r"], without_numbers(place["name"])
        return {
            "lora_B": Owned(place["name"], (self.out_features, r)),
            "lora_A": Owned((kind, self.in_features), (r, self.in_features), kaiming),
        }


class ShareLoraModel(SharedModel, name="sharelora", config=ShareLoraConfig, layer=ShareLoraLayer):
    """ShareLoRA on a pretrained model, made by `peft.get_peft_model(model, ShareLoraConfig(...))`."""
