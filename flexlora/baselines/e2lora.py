"""E²LoRA (ICLR 2026): neighbouring layers of similar entropy share one LoRA, and ranks follow the entropies.

    ΔW_l = s · B_k A_k for every layer l of interval k

A sharing plan (`flexlora.sharing_plan`) says which layers of a module type form an interval, and its rank r_k. It is
made from the gradients of a few batches before training, and it is a part of the configuration, so that a saved adapter
loads without gradients. Each interval has one A (r_k × in) and one B (out × r_k). A is Kaiming uniform (√5). B = 0, so
ΔW = 0 at the start. Nothing changes shape during training.

The summary of the paper does not give the scale s. `scale=fixed` is lora_alpha / r with the rank r of the plan, as in
the LoRA that it replaces. `rank` is lora_alpha / r_k, and `sqrt_rank` is lora_alpha / √r_k.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from torch import nn

from flexlora.sharing.plan import SharingPlan
from flexlora.tuner.base_config import as_set
from flexlora.tuner.checks import choice

from .low_rank import LowRankConfig, kaiming, setting
from .shared import Owned, SharedLayer, SharedModel

SCALES = ("fixed", "rank", "sqrt_rank")


@dataclass
class E2LoraConfig(LowRankConfig):
    """Configuration of an [`E2LoraModel`]: `E2LoraConfig(plan=flexlora.sharing_plan(model, batches, r=8), r=8)`.

    Raises:
        ValueError: as [`LowRankConfig`], or a value contradicts the plan.
    """

    plan: SharingPlan | dict[str, Any] | None = setting(
        None, "The sharing plan, from `flexlora.sharing_plan`. It names the modules, their intervals and ranks."
    )
    scale: str = setting(
        "fixed",
        "The factor of the update: fixed (lora_alpha / r), rank (lora_alpha / r_k), sqrt_rank (lora_alpha / √r_k).",
        partial(choice, options=SCALES),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank_pattern", "layers_to_transform", "exclude_modules"):
            if getattr(self, name):
                raise ValueError(f"`{name}` has no effect beside a sharing plan: leave it out.")
        if isinstance(self.plan, Mapping):
            self.plan = SharingPlan.from_dict(self.plan)
        if self.plan is None:
            return
        if self.plan.r != self.r:
            raise ValueError(f"r={self.r}, but the plan was made with r={self.plan.r}: give both the same.")
        if self.target_modules is None:
            self.target_modules = as_set(list(self.plan.ranks))
        elif self.target_modules != "all-linear":
            left = next((name for name in self.plan.ranks if not check_target_module_exists(self, name)), None)
            if left is not None:
                raise ValueError(
                    f"`target_modules` has no {left}, which is in the plan: unset it, the plan names them."
                )


class E2Layer(SharedLayer):
    """A layer whose tensors belong to an interval or a module type of the plan."""

    def scale(self, config: Any, **place: Any) -> float:
        alpha, rank = place["lora_alpha"], place["r"]
        by = {"fixed": config.r, "rank": rank, "sqrt_rank": math.sqrt(rank)}
        return float(alpha / by[config.scale])


class E2LoraLayer(E2Layer):
    """ΔW = s · B A, where A and B belong to the layer's interval."""

    title = "E²LoRA"
    adapter_layer_names: tuple[str, ...] = ("lora_A", "lora_B")

    def owned(self, adapter_name: str, config: Any, **place: Any) -> dict[str, Owned]:
        r, interval = place["r"], place["interval"]
        return {
            "lora_A": Owned(interval, (r, self.in_features), kaiming),
            "lora_B": Owned(interval, (self.out_features, r)),
        }


class E2Model(SharedModel):
    """A tuner whose layers share parameters as a sharing plan says.

    Raises:
        ValueError: the configuration has no plan, or the plan is of another model.
    """

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if self.peft_config[adapter_name].plan is None:
            raise ValueError(
                f"{self.title} needs a sharing plan: make it with plan = flexlora.sharing_plan(model, batches, r=8), "
                "and pass plan=plan."
            )
        self._places = _places(self.peft_config[adapter_name].plan)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        finally:
            del self._places

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        planned = self._places.get(name)
        if planned is None:
            raise ValueError(f"{name} is not in the sharing plan, which was made for another model: make a new plan.")
        return {**super().place(adapter_name, config, name), **planned}

    def check_target(self, target: nn.Module, name: str) -> None:
        super().check_target(target, name)
        kind = self._places[name]["kind"]
        shape = getattr(target, "in_features", kind.in_features), getattr(target, "out_features", kind.out_features)
        if shape != (kind.in_features, kind.out_features):
            raise ValueError(
                f"{name} is {shape[0]} × {shape[1]}, but {kind.in_features} × {kind.out_features} in the sharing plan, "
                "which was made for another model: make a new plan."
            )


class E2LoraModel(E2Model, name="e2lora", config=E2LoraConfig, layer=E2LoraLayer):
    """E²LoRA on a pretrained model, made by `peft.get_peft_model(model, E2LoraConfig(plan=plan))`."""


def _places(plan: SharingPlan) -> dict[str, dict[str, Any]]:
    """What a layer is told about its place in the plan, by the name of its module."""
    return {
        module: {
            "r": interval.rank,
            "interval": (number, position),
            "kind": kind,
            "kind_number": number,
            "largest": max(held.rank for held in kind.intervals),
        }
        for number, kind in enumerate(plan.types)
        for position, interval in enumerate(kind.intervals)
        for module in interval.modules
    }
