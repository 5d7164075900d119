"""The common parts of the low-rank baselines: layers and the PEFT tuner.

A method is one file: a config with its own fields, a layer that defines its parameters, their initial values and ΔW,
and a model that names both. Adapters are float32 for every base. Saving, loading (also with low_cpu_mem_usage),
merging, unmerging, disabling and several adapters come from PEFT and work for all methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from flexlora.tuner.base_config import LowRankConfig, setting
from flexlora.tuner.delta import DeltaLayer
from flexlora.tuner.linear_tuner import LinearTuner
from flexlora.tuner.names import plain_name

__all__ = ["Factors", "LowRankConfig", "LowRankLayer", "LowRankModel", "Shapes", "kaiming", "setting"]

Shapes = dict[str, tuple[int, ...]]
Factors = tuple[torch.Tensor, torch.Tensor]


class LowRankLayer(DeltaLayer):
    """One adapted linear: A (r × in), B (out × r) and a method's own parameters, by adapter name; ΔW = s B A here."""

    adapter_layer_names: tuple[str, ...] = ("lora_A", "lora_B")

    lora_A: nn.ParameterDict | BufferDict
    lora_B: nn.ParameterDict

    def create(self, adapter_name: str, config: Any, **place: Any) -> None:
        r, alpha = place["r"], place["lora_alpha"]
        self.start(adapter_name, r, alpha, alpha / r, config.lora_dropout)
        for name, shape in self.shapes(r, config).items():
            self.new_parameter(name, adapter_name, shape)
        for name, tensor in self.buffers_at_start(r, config).items():
            getattr(self, name)[adapter_name] = tensor
        if self.lora_B[adapter_name].device.type != "meta":
            with torch.no_grad():
                self.reset(adapter_name, config)
                if not config.init_weights:
                    self._draw_zeros(adapter_name)

    # --- defined by a method -------------------------------------------------------------------------------------

    def shapes(self, r: int, config: Any) -> Shapes:
        """The shapes of all trainable parameters."""
        return {"lora_A": (r, self.in_features), "lora_B": (self.out_features, r)}

    def buffers_at_start(self, r: int, config: Any) -> dict[str, torch.Tensor]:
        """The initial values of all buffers, before `reset`."""
        return {}

    def reset(self, adapter_name: str, config: Any) -> None:
        """Initialise A (Kaiming, √5) and B (zero) with torch's global generator, as every PEFT tuner does."""
        kaiming(self.lora_A[adapter_name])

    def tensor(self, name: str, adapter_name: str) -> torch.Tensor:
        """The parameter or buffer `name` of an adapter. It belongs to another layer if layers share it."""
        found: torch.Tensor = getattr(self, name)[adapter_name]
        return found

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        return self.tensor("lora_B", adapter_name), self.scaling[adapter_name] * self.tensor("lora_A", adapter_name)

    def rank(self, adapter_name: str) -> int:
        """The number of active directions."""
        return self.r[adapter_name]

    # --- for methods ---------------------------------------------------------------------------------------------

    def unused_directions(self, adapter_name: str) -> int:
        """Count the parameters of inactive directions: each has a column of B, a row of A and a coefficient."""
        return (self.r[adapter_name] - self.rank(adapter_name)) * (self.in_features + self.out_features + 1)

    def pretrained_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return W (out × in), detached, in `dtype` or the adapter's dtype."""
        weight = self.get_base_weight().detach()
        weight = weight.T if self.fan_in_fan_out else weight
        return weight.to(dtype or self._adapter_dtype())

    def _draw_zeros(self, adapter_name: str) -> None:
        for name in self.adapter_layer_names:
            parameter = getattr(self, name)[adapter_name]
            if not parameter.any():
                parameter.normal_(std=0.02)


def kaiming(matrix: torch.Tensor) -> None:
    """Draw from U(±1/√in): Kaiming with a = √5, as in `nn.Linear` and LoRA."""
    nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))


class LowRankModel(LinearTuner):
    """The tuner of a low-rank baseline.

    A method that changes parameters outside the optimizer's steps (SoRA, LoRA-Dash, LoRI, dynamic-rank DoRA) overrides
    `regularise` or `after_step`, which a training loop calls before and after every optimizer step.
    """

    prefix = "lora_"

    def trained(self) -> Iterator[tuple[str, str, Any, Any]]:
        """Yield (module, adapter, layer, config) for every layer of every adapter that is not in inference mode."""
        for adapter_name, config in self.peft_config.items():
            if not config.inference_mode:
                for name, module in self.model.named_modules():
                    if isinstance(module, LowRankLayer) and module.holds(adapter_name):
                        yield plain_name(name), adapter_name, module, config

    def ranks_in_use(self) -> dict[str, int]:
        """The number of active directions of every adapted module, by its name in the base model."""
        return {name: layer.rank(adapter_name) for name, adapter_name, layer, _ in self.trained()}
