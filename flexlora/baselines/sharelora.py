"""ShareLoRA (Song et al., 2024, arXiv 2406.10785), the paper's ShareA.

    ΔW_l = s · B_l A_type(l)

All linears of one type (query, key, ...) share one A, and each has its own B. B = 0, so ΔW = 0 at the start. A is
Kaiming uniform (√5). The type is the module's name without its numbers, together with its number of inputs
(`encoder.layer.attention.self.query`, in 768). The first linear of a type, in module order, holds A, and the others
refer to it, so that A is one parameter for the optimizer, in a checkpoint and on disk. FSDP that shards single layers
does not work, because it would shard A with its holder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from flexlora.tuner.names import plain_name

from .low_rank import Factors, LowRankConfig, LowRankLayer, LowRankModel


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


class ShareLoraLayer(LowRankLayer):
    """ΔW = s · B A, where A may belong to another layer."""

    title = "ShareLoRA"
    adapter_layer_names = ("lora_B", "lora_A")
    kept = (*LowRankLayer.kept, "holders")
    lora_A: nn.ParameterDict
    holders: dict[str, ShareLoraLayer]
    """The layer whose A an adapter uses. PyTorch does not register it, so the holder is not a child of this layer."""

    def look_at(self, holder: ShareLoraLayer, adapter_name: str) -> None:
        """Use the A of `holder`."""
        del self.lora_A[adapter_name]
        self.holders[adapter_name] = holder

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        left = self.lora_B[adapter_name]
        shared = self.holders.get(adapter_name, self).lora_A[adapter_name]
        return left, self.scaling[adapter_name] * shared.to(left.device)


class ShareLoraModel(LowRankModel, name="sharelora", config=ShareLoraConfig, layer=ShareLoraLayer):
    """ShareLoRA on a pretrained model, made by `peft.get_peft_model(model, ShareLoraConfig(...))`."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        holders: dict[tuple[str, int], ShareLoraLayer] = {}
        for name, layer in model.named_modules():
            if isinstance(layer, ShareLoraLayer) and layer.holds(adapter_name):
                kind = ".".join(part for part in plain_name(name).split(".") if not part.isdigit())
                holder = holders.setdefault((kind, layer.in_features), layer)
                if holder is not layer:
                    layer.look_at(holder, adapter_name)
