"""RaSA: rank-sharing low-rank adaptation (He et al., ICLR 2025, arXiv 2503.12576).

    ΔW_l = [B_l, B_S] diag(d_l) [A_l; A_S]

Each of the L linears of a type (query, key, ...) gives k of its r directions to a pool. The pool's k L directions are
one pair (A_S, B_S) for all L linears, and each linear weights its r - k + k L directions by its own d_l. So the rank is
r - k + k L with nearly LoRA's number of parameters. A and A_S are Kaiming uniform (√5), B = B_S = 0, so ΔW = 0 at the
start. d_l starts at ½ lora_alpha / (r - k) on the linear's own directions and at ½ lora_alpha / (k L) on the pool's.
There is no other scale. The authors' k is r / 8.

As in the authors' code (zwhe99/RaSA a32c965), A_S has as many rows as there are linears of the type. The authors read
the type from the names of decoder blocks (`layers.<number>.<type>`); here it is the module's name without its numbers,
together with the shape, as in ShareLoRA. A type with one linear has a pool of its own. The authors' code cannot be
merged; this one can.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _get_in_out_features,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from torch import nn

from flexlora.tuner.checks import whole
from flexlora.tuner.linear_tuner import is_linear
from flexlora.tuner.names import without_numbers

from .low_rank import Factors, LowRankConfig, kaiming, setting
from .shared import Owned, SharedLayer, SharedModel


@dataclass
class RasaConfig(LowRankConfig):
    """Configuration of a [`RasaModel`].

    Raises:
        ValueError: as [`LowRankConfig`], `k` is not below `r`, or `rank_pattern` is set.
    """

    k: int = setting(1, "Directions that each linear gives to the pool of its type; below r.", whole)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_pattern:
            raise ValueError("RaSA has one rank for all modules: leave `rank_pattern` out.")
        if self.k >= self.r:
            raise ValueError(f"`k` must be below r={self.r}, not {self.k}: a linear needs a direction of its own.")


class RasaLayer(SharedLayer):
    """ΔW = [B, B_S] diag(d) [A; A_S], where A_S and B_S belong to the layer's type."""

    title = "RaSA"
    adapter_layer_names = ("lora_A", "lora_B", "lora_d", "lora_shared_A", "lora_shared_B")
    lora_d: nn.ParameterDict

    def owned(self, adapter_name: str, config: Any, **place: Any) -> dict[str, Owned]:
        name, kind, alpha = place["name"], place["kind"], place["lora_alpha"]
        own, pool = config.r - config.k, config.k * place["linears"]

        def weigh(d: torch.Tensor) -> None:
            d[:own], d[own:] = 0.5 * alpha / own, 0.5 * alpha / pool

        return {
            "lora_A": Owned(name, (own, self.in_features), kaiming),
            "lora_B": Owned(name, (self.out_features, own)),
            "lora_d": Owned(name, (own + pool,), weigh),
            "lora_shared_A": Owned(kind, (pool, self.in_features), kaiming),
            "lora_shared_B": Owned(kind, (self.out_features, pool)),
        }

    def scale(self, config: Any, **place: Any) -> float:
        return 1.0

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        a, b, d, pool_a, pool_b = (self.tensor(name, adapter_name) for name in self.adapter_layer_names)
        return torch.cat([b, pool_b], dim=1), d.unsqueeze(1) * torch.cat([a, pool_a])


class RasaModel(SharedModel, name="rasa", config=RasaConfig, layer=RasaLayer):
    """RaSA on a pretrained model, made by `peft.get_peft_model(model, RasaConfig(...))`."""

    def _prepare_model(self, peft_config: Any, model: nn.Module) -> None:
        """Count the linears of each type before PEFT replaces the first one."""
        super()._prepare_model(peft_config, model)
        config = _maybe_include_all_linear_layers(copy.copy(peft_config), model)
        self._kinds: dict[str, Hashable] = {}
        for name, module in model.named_modules():
            base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            if is_linear(base) and check_target_module_exists(config, name):
                self._kinds[name] = (without_numbers(name), *_get_in_out_features(base))
        self._linears = Counter(self._kinds.values())

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        kind = self._kinds.get(name)  # None if the target is no linear, which is refused next
        return {**super().place(adapter_name, config, name), "kind": kind, "linears": self._linears[kind]}
