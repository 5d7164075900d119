"""The base class of linears with a low-rank update, FlexLoRA's and the baselines'.

y = W x + ΔW x, where ΔW (out × in) is the product of two thin matrices that a subclass computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import _get_in_out_features
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import nn
from transformers.pytorch_utils import Conv1D

from .adapter_layer import AdapterLayer


class LoraFactors(NamedTuple):
    """The update of one module as a LoRA: ΔW = scaling · left right, or a DoRA if there is a magnitude."""

    left: torch.Tensor
    """B, out × rank."""
    right: torch.Tensor
    """A, rank × in."""
    scaling: float = 1.0
    magnitude: torch.Tensor | None = None
    """DoRA's magnitude (out)."""


class DeltaLayer(AdapterLayer):
    """Forward, merge and unmerge for an `nn.Linear`, a transformers `Conv1D`, or a quantised linear supported by PEFT.

    A subclass names its parameters and buffers and computes ΔW in `product`.
    """

    # PEFT's, declared for the type checker.
    get_base_weight: Callable[[], torch.Tensor]
    set_base_weight: Callable[[torch.Tensor], None]

    dropouts = "lora_dropout"
    """Name of the `nn.ModuleDict` of dropouts on the adapter's input."""
    kept = (*AdapterLayer.kept, "r", "lora_alpha", "scaling")

    r: dict[str, int]
    lora_alpha: dict[str, float]
    scaling: dict[str, float]

    def look_at_base(self, **place: Any) -> None:
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=place.get("get_apply_tensor_subclass")
        )
        in_features, out_features = _get_in_out_features(self.get_base_layer())
        if in_features is None or out_features is None:
            raise TypeError(f"{self.title} adapts linear layers, not {type(self.get_base_layer()).__name__}.")
        self.in_features, self.out_features = in_features, out_features
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        setattr(self, self.dropouts, nn.ModuleDict({}))
        self.other_param_names = (*self.buffer_names, self.dropouts, *self.kept)

    def start(self, adapter_name: str, r: int, lora_alpha: float, scaling: float, dropout: float) -> None:
        """Store the rank, the scale and the dropout of a new adapter."""
        self.r[adapter_name], self.lora_alpha[adapter_name], self.scaling[adapter_name] = r, lora_alpha, scaling
        getattr(self, self.dropouts)[adapter_name] = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    # --- what a subclass gives -----------------------------------------------------------------------------------

    def product(self, adapter_name: str, training: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute L (out × k) and R (k × in) with ΔW = L R. `training` enables random parts such as dropout."""
        raise NotImplementedError

    def lora_factors(self, adapter_name: str) -> LoraFactors | None:
        """The update as a LoRA, for an export; None if the method's update is no LoRA."""
        return None

    def inactive_parameters(self, adapter_name: str) -> int:
        """The number of allocated adapter parameters that do not affect ΔW because their directions are inactive."""
        return 0

    # --- ΔW ------------------------------------------------------------------------------------------------------

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Compute ΔW in the base weight's orientation (out × in, or in × out for Conv1D), in the adapter's dtype."""
        left, right = self.product(adapter)
        delta = left @ right
        return delta.T if self.fan_in_fan_out else delta

    def base_output(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        return result

    def add(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        """Add ΔW x to the output, in its dtype: (..., in) → (..., out)."""
        left, right = self.product(adapter_name, training=self.training)
        hidden = F.linear(self._adapter_input(x, adapter_name, right.dtype), right)
        if result.dtype == hidden.dtype:
            # This takes one pass over the output instead of two.
            flat = torch.addmm(result.reshape(-1, self.out_features), hidden.reshape(-1, hidden.shape[-1]), left.T)
            return flat.view(result.shape)
        return (result + F.linear(hidden, left)).to(result.dtype)

    def _adapter_input(self, x: torch.Tensor, adapter_name: str, dtype: torch.dtype) -> torch.Tensor:
        """Convert x to the adapter's dtype and apply its dropout."""
        return getattr(self, self.dropouts)[adapter_name](self.branch_input(x, dtype))

    # --- merging -------------------------------------------------------------------------------------------------

    def fold(self, adapter_name: str, safe_merge: bool) -> None:
        """Add ΔW to the base weight."""
        weight = self._shifted_base_weight(adapter_name, +1)
        if safe_merge:
            self.refuse_not_finite(adapter_name, [weight])
        self.set_base_weight(weight)

    def unfold(self, adapter_name: str) -> None:
        """Subtract ΔW from the base weight. The result is exact up to the rounding of the base's dtype."""
        if self.holds(adapter_name):
            self.set_base_weight(self._shifted_base_weight(adapter_name, -1))

    @torch.no_grad()
    def _shifted_base_weight(self, adapter_name: str, sign: int) -> torch.Tensor:
        weight = self.get_base_weight()
        delta = self.get_delta_weight(adapter_name).to(weight.device)
        # The sum is computed in the adapter's dtype and rounded once.
        return (weight + sign * delta).to(weight.dtype)

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)
