"""E²VeRA (E²LoRA, ICLR 2026): VeRA whose vectors belong to intervals, with ranks from the sharing plan.

    ΔW_l = diag(b_k) B[:out, :r_k] diag(d_k) A[:r_k, :in] for every layer l of interval k

A and B are random, are not trained, and are the same for all modules: they have the largest rank and the largest sizes
of the plan, and each module uses a part of them. d_k (r_k) and b_k (out) train. As in PEFT's VeRA, A and B are Kaiming
uniform (a = 0), d starts at `d_initial`, and b = 0, so ΔW = 0 at the start. A and B are saved with the adapter. There
is no scale lora_alpha / r.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from peft.tuners._buffer_dict import BufferDict
from torch import nn

from flexlora.tuner.checks import number

from .e2lora import E2Layer, E2LoraConfig, E2Model
from .low_rank import Factors, setting
from .shared import Owned


@dataclass
class E2VeraConfig(E2LoraConfig):
    """Configuration of an [`E2VeraModel`]: the fields of [`E2LoraConfig`] without the scale, and `d_initial`.

    Raises:
        ValueError: as [`E2LoraConfig`], or a scale is set.
    """

    r: int = setting(256, "Rank of the plan. VeRA trains vectors only, so its ranks are larger than LoRA's.")
    lora_alpha: float = setting(1, "Always 1: VeRA has no scale.", number, above=0)
    d_initial: float = setting(0.1, "The initial value of d.", number)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_alpha != 1 or self.alpha_pattern or self.scale != "fixed":
            raise ValueError("VeRA's vectors are its scale: leave `lora_alpha`, `alpha_pattern` and `scale` out.")


class E2VeraLayer(E2Layer):
    """ΔW = diag(b) B diag(d) A, where b and d belong to the layer's interval, and A and B to the model."""

    title = "E²VeRA"
    adapter_layer_names = ("lora_b", "lora_d")
    buffer_names = ("lora_A", "lora_B")
    lora_b: nn.ParameterDict
    lora_d: nn.ParameterDict
    lora_A: BufferDict
    lora_B: BufferDict

    def scale(self, config: Any, **place: Any) -> float:
        return 1.0

    def owned(self, adapter_name: str, config: Any, **place: Any) -> dict[str, Owned]:
        rank, widest, tallest = place["whole"]
        return {
            "lora_A": Owned("all", (rank, widest), nn.init.kaiming_uniform_),
            "lora_B": Owned("all", (tallest, rank), nn.init.kaiming_uniform_),
            "lora_d": Owned(place["interval"], (place["r"],), lambda d: d.fill_(config.d_initial)),
            "lora_b": Owned(place["interval"], (self.out_features,)),
        }

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        r = self.r[adapter_name]
        left = self.tensor("lora_B", adapter_name)[: self.out_features, :r]
        right = self.tensor("lora_A", adapter_name)[:r, : self.in_features]
        b, d = self.tensor("lora_b", adapter_name), self.tensor("lora_d", adapter_name)
        return b.unsqueeze(1) * left, d.unsqueeze(1) * right


class E2VeraModel(E2Model, name="e2_vera", config=E2VeraConfig, layer=E2VeraLayer):
    """E²VeRA on a pretrained model, made by `peft.get_peft_model(model, E2VeraConfig(plan=plan, r=256))`."""

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        kinds = config.plan.types
        whole = (
            max(config.plan.ranks.values()),
            max(kind.in_features for kind in kinds),
            max(kind.out_features for kind in kinds),
        )
        return {**super().place(adapter_name, config, name), "whole": whole}
