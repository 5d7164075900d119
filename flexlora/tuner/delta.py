"""What every linear with a low-rank update has in common, FlexLoRA's and the baselines': PEFT's tuner-layer contract.

y = W x + ΔW x, with ΔW (out × in) the product of two thin matrices that a subclass gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils import quantization_extra_repr, resolve_quantization_backend
from torch import nn
from transformers.pytorch_utils import Conv1D


class DeltaLayer(nn.Module, BaseTunerLayer):
    """Forward, merge and unmerge on an `nn.Linear`, a transformers `Conv1D`, or a quantised linear that PEFT knows.

    A subclass names its parameters and buffers (dictionaries by adapter name) in `adapter_layer_names` and
    `other_param_names`, as PEFT has it, and says what ΔW is in `product`.
    """

    # PEFT's, declared for the type checker, which takes nn.Module's __getattr__ for them otherwise.
    active_adapters: list[str]
    adapter_layer_names: tuple[str, ...]
    other_param_names: tuple[str, ...]
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    _get_base_layer_device_and_dtype: Callable[[nn.Module], tuple[torch.device | None, torch.dtype | None]]
    get_base_weight: Callable[[], torch.Tensor]
    set_base_weight: Callable[[torch.Tensor], None]
    _cast_input_dtype: Callable[[torch.Tensor, torch.dtype], torch.Tensor]

    method = ""
    """The method's name in messages."""
    dropouts = ""
    """Name of the `nn.ModuleDict` of dropouts on the adapter's input."""

    def __init__(self, base_layer: nn.Module, **kwargs: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        in_features, out_features = _get_in_out_features(self.get_base_layer())
        if in_features is None or out_features is None:
            raise TypeError(f"{self.method} adapts linear layers, not {type(self.get_base_layer()).__name__}.")
        self.in_features, self.out_features = in_features, out_features
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)

    # --- what a subclass gives -----------------------------------------------------------------------------------

    def holds(self, adapter_name: str) -> bool:
        """Whether this layer has the adapter `adapter_name`."""
        return adapter_name in getattr(self, self.adapter_layer_names[0])

    def product(self, adapter_name: str, training: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """L (out × k) and R (k × in) with ΔW = L R; `training` draws what is drawn anew in every training step."""
        raise NotImplementedError

    def inactive_parameters(self, adapter_name: str) -> int:
        """Allocated parameters of the adapter that take no part in ΔW now, by directions that are switched off."""
        return 0

    # --- where the adapter lives ---------------------------------------------------------------------------------

    def _adapter_dtype(self) -> torch.dtype:
        """float32 over any half-precision or quantised base (steps of 8e-4 vanish in bfloat16 near 1)."""
        _, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        return torch.float64 if dtype == torch.float64 else torch.float32

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """As PEFT's, but the adapter keeps its own dtype: PEFT's would round loaded weights to a bfloat16 base's."""
        if device is None:
            device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        if device is None:
            return
        for name in self.adapter_layer_names + self.other_param_names:
            held = getattr(self, name)
            # Parameters that PEFT put on the meta device (low_cpu_mem_usage) are about to be loaded: leave them.
            if isinstance(held, nn.ParameterDict) and adapter_name in held:
                if held[adapter_name].device.type != "meta":
                    held[adapter_name] = held[adapter_name].to(device)
            elif isinstance(held, BufferDict) and adapter_name in held:
                held[adapter_name] = held[adapter_name].to(device)

    # --- ΔW ------------------------------------------------------------------------------------------------------

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """ΔW in the base weight's own orientation (out × in, or in × out for Conv1D), in the adapter's dtype."""
        left, right = self.product(adapter)
        delta = left @ right
        return delta.T if self.fan_in_fan_out else delta

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Base output plus ΔW x of every active adapter, in the base output's dtype: (..., in) → (..., out)."""
        if kwargs.pop("adapter_names", None) is not None:
            raise ValueError(
                f"{self.method} does not mix adapters within a batch (`adapter_names`): run one adapter a batch."
            )
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for adapter_name in self.active_adapters:
            if self.holds(adapter_name):
                result = self._add_delta(result, x, adapter_name)
        return result

    def _add_delta(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        left, right = self.product(adapter_name, training=self.training)
        hidden = F.linear(self._adapter_input(x, adapter_name, right.dtype), right)
        if result.dtype == hidden.dtype:
            # One pass over the output instead of two.
            flat = torch.addmm(result.reshape(-1, self.out_features), hidden.reshape(-1, hidden.shape[-1]), left.T)
            return flat.view(result.shape)
        return (result + F.linear(hidden, left)).to(result.dtype)

    def _adapter_input(self, x: torch.Tensor, adapter_name: str, dtype: torch.dtype) -> torch.Tensor:
        """x as the adapter takes it: in its dtype, with its dropout."""
        if not torch.is_autocast_enabled(x.device.type):  # autocast chooses the dtype of the products itself
            x = self._cast_input_dtype(x, dtype)
        return getattr(self, self.dropouts)[adapter_name](x)

    # --- merging -------------------------------------------------------------------------------------------------

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add ΔW to the base weight, in the base's dtype.

        Args:
            safe_merge: merge a copy first and refuse non-finite weights.
            adapter_names: adapters to merge; the active ones by default.

        Raises:
            ValueError: under `safe_merge`, the merged weight is not finite; the base is left as it was.
            TypeError: the base is quantised in a way that cannot be merged.
        """
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            if not self.holds(adapter_name):
                continue
            weight = self._shifted_base_weight(adapter_name, +1)
            if safe_merge and not torch.isfinite(weight).all():
                raise ValueError(
                    f"merging adapter {adapter_name} would give weights that are not finite: it seems broken."
                )
            self.set_base_weight(weight)
            self.merged_adapters.append(adapter_name)

    def unmerge(self) -> None:
        """Subtract every merged ΔW from the base weight again (exact up to the base dtype's rounding)."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            adapter_name = self.merged_adapters.pop()
            if self.holds(adapter_name):
                self.set_base_weight(self._shifted_base_weight(adapter_name, -1))

    @torch.no_grad()
    def _shifted_base_weight(self, adapter_name: str, sign: int) -> torch.Tensor:
        weight = self.get_base_weight()
        delta = self.get_delta_weight(adapter_name).to(weight.device)
        # Summed in the adapter's dtype, rounded once.
        return (weight + sign * delta).to(weight.dtype)

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)

    def __repr__(self) -> str:
        return f"{self.method.lower()}." + super().__repr__()
