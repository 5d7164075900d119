"""One adapted float64 linear of any low-rank baseline, and its tensors by name."""

from __future__ import annotations

import torch
from low_rank_helpers import METHODS, PLANNED, plan_for
from peft import get_peft_model
from torch import nn

from flexlora.baselines import LowRankLayer

ALPHA, RANK, OUT, IN = 6.0, 3, 5, 7


SCALE = ALPHA / RANK


Tensors = dict[str, torch.Tensor]


def single(method: str, linear: nn.Module | None = None, **settings) -> tuple[nn.Module, LowRankLayer]:
    """One adapted float64 linear (OUT × IN) with every parameter drawn, and its layer."""
    torch.manual_seed(3)
    model = nn.Sequential(linear if linear is not None else nn.Linear(IN, OUT, dtype=torch.float64))
    given = {"target_modules": ["0"], "r": RANK, "lora_alpha": ALPHA, "init_weights": False, **settings}
    if method in PLANNED:
        given["plan"] = plan_for(model, given.pop("target_modules"), RANK)
    if method == "e2_vera":
        del given["lora_alpha"]
    tuned = get_peft_model(model, METHODS[method](**given))
    layer = next(module for module in tuned.modules() if isinstance(module, LowRankLayer))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return tuned, layer


def held(layer: LowRankLayer) -> Tensors:
    """Every tensor of the adapter by its name without `lora_`, and W."""
    names = (*layer.adapter_layer_names, *layer.buffer_names)
    tensors = {name.removeprefix("lora_"): getattr(layer, name)["default"] for name in names}
    return {**tensors, "W": layer.base_layer.weight.detach()}


def outer(left: torch.Tensor, right: torch.Tensor, gains: list[torch.Tensor | float]) -> torch.Tensor:
    """Σ_i gain_i · left[:, i] right[i]ᵀ."""
    return sum(gain * torch.outer(left[:, i], right[i]) for i, gain in enumerate(gains))
