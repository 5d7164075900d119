"""The common parts of tuners whose layers share parameters.

A tensor of an adapter has an owner, such as a module type or an interval of layers. The first layer of an owner, in
module order, holds the tensor, and the other layers refer to that layer. So the tensor exists once: for the optimizer,
in a checkpoint, in the saved adapter and in the counts. Its gradient is the sum over the layers that use it. FSDP that
shards single layers does not work, because it would shard a tensor with its holder (`flexlora.shard_base` does).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flexlora.tuner.delta import LoraFactors

from .low_rank import LowRankLayer, LowRankModel


@dataclass(frozen=True)
class Owned:
    """A tensor of an adapter before it is made."""

    owner: Hashable
    """Layers with equal owners use one tensor."""
    shape: tuple[int, ...]
    fill: Callable[[torch.Tensor], Any] | None = None
    """Initialises the tensor in place. Without it the tensor is 0."""
    dtype: torch.dtype | None = None
    """The type of a buffer; the adapter's by default."""


Holders = dict[tuple[str, Hashable], "SharedLayer"]
"""The layer that holds a tensor, by the tensor's name and owner."""


class SharedLayer(LowRankLayer):
    """An adapted linear whose tensors may belong to other layers. A method names its tensors in `owned`."""

    kept = (*LowRankLayer.kept, "holders")
    holders: dict[str, dict[str, SharedLayer]]
    """For each adapter: the layers that hold the tensors that this layer does not, by the tensor's name. PyTorch does
    not register them, so a holder is not a child of this layer."""

    def owned(self, adapter_name: str, config: Any, **place: Any) -> dict[str, Owned]:
        """Name the parameters and buffers of a new adapter, with their owners."""
        raise NotImplementedError

    def scale(self, config: Any, **place: Any) -> float:
        """The factor s of the update."""
        found: float = place["lora_alpha"] / place["r"]
        return found

    def create(self, adapter_name: str, config: Any, **place: Any) -> None:
        self.start(adapter_name, place["r"], place["lora_alpha"], self.scale(config, **place), config.lora_dropout)
        self.holders[adapter_name] = {}
        holders: Holders = place["holders"]
        for name, made in self.owned(adapter_name, config, **place).items():
            holder = holders.setdefault((name, made.owner), self)
            if holder is not self:
                self.holders[adapter_name][name] = holder
            elif name in self.adapter_layer_names:
                fill = made.fill if made.fill or config.init_weights else _draw
                self.new_parameter(name, adapter_name, made.shape, fill)
            else:
                buffer = torch.zeros(made.shape, dtype=made.dtype or self._adapter_dtype())
                if made.fill is not None and buffer.device.type != "meta":
                    made.fill(buffer)
                getattr(self, name)[adapter_name] = buffer

    def tensor(self, name: str, adapter_name: str) -> torch.Tensor:
        """The tensor `name` of an adapter, on this layer's device."""
        held = getattr(self.holders[adapter_name].get(name, self), name)[adapter_name]
        device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        return held if device is None else held.to(device)

    def lora_factors(self, adapter_name: str) -> LoraFactors | None:
        return LoraFactors(*self.product(adapter_name))

    def holds(self, adapter_name: str) -> bool:
        return adapter_name in self.settings

    def trains(self, adapter_name: str) -> bool:
        return self.holds(adapter_name) and any(
            getattr(self.holders[adapter_name].get(name, self), name)[adapter_name].requires_grad
            for name in self.adapter_layer_names
        )


class SharedModel(LowRankModel):
    """A tuner whose layers share parameters."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        self._holders: Holders = {}
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        finally:
            del self._holders  # it would keep layers alive that are replaced later

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        return {**super().place(adapter_name, config, name), "name": name, "holders": self._holders}


def _draw(tensor: torch.Tensor) -> None:
    tensor.normal_(std=0.02)
