"""ShareLoRA (Song et al., 2024, arXiv 2406.10785), the paper's ShareA.

    ΔW_l = s · B_l A_type(l)

One A for all layers' linears of one type (query, key, ...), a B for each. B = 0, so ΔW = 0 at the start; A is Kaiming
uniform (√5). Type: the module's name without its numbers, and its number of inputs
(`encoder.layer.attention.self.query`, in 768). The first linear of a type, in module order, holds A; the others look at
it there, so that it is one parameter for the optimizer, in a checkpoint and on disk. Not with FSDP that shards single
layers: A would be sharded with its holder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft.utils.peft_types import PeftType
from torch import nn

from flexlora.baselines.low_rank import LowRankConfig, LowRankLayer, LowRankModel
from flexlora.tuner.packing import plain_name
from flexlora.tuner.peft_type import extend_peft_types, register_tuner

NAME = "SHARELORA"


@dataclass
class ShareLoraConfig(LowRankConfig):
    """Configuration of a [`ShareLoraModel`].

    Raises:
        ValueError: as [`LowRankConfig`], or `rank_pattern` is given: linears that share A have one rank.
    """

    type_name: ClassVar[PeftType] = extend_peft_types(NAME)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank_pattern:
            raise ValueError("ShareLoRA has one rank for all modules: leave `rank_pattern` out.")


class ShareLoraLayer(LowRankLayer):
    """ΔW = s · B A, with an A that may be another layer's."""

    method = "ShareLoRA"
    adapter_layer_names = ("lora_B", "lora_A")  # the first is what every layer holds
    settings = (*LowRankLayer.settings, "holders")
    lora_A: nn.ParameterDict

    def update_layer(self, adapter_name: str, r: int, lora_alpha: float, config: Any, **kwargs: Any) -> None:
        # A plain dictionary: PyTorch does not look into it, so the holder is not a child of this layer.
        self.holders: dict[str, ShareLoraLayer] = getattr(self, "holders", {})
        super().update_layer(adapter_name, r, lora_alpha, config=config, **kwargs)

    def look_at(self, holder: ShareLoraLayer, adapter_name: str) -> None:
        """Use the A of `holder` from now on."""
        del self.lora_A[adapter_name]
        self.holders[adapter_name] = holder

    def product(self, adapter_name: str, training: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        left = self.lora_B[adapter_name]
        shared = self.holders.get(adapter_name, self).lora_A[adapter_name]
        return left, self.scaling[adapter_name] * shared.to(left.device)


class ShareLoraModel(LowRankModel):
    """ShareLoRA on a pretrained model, made by `peft.get_peft_model(model, ShareLoraConfig(...))`."""

    tuner_layer_cls = ShareLoraLayer
    linear_cls = ShareLoraLayer

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        holders: dict[tuple[str, int], ShareLoraLayer] = {}
        for name, layer in model.named_modules():
            if isinstance(layer, ShareLoraLayer) and layer.holds(adapter_name):
                kind = ".".join(part for part in plain_name(name).split(".") if not part.isdigit())
                holder = holders.setdefault((kind, layer.in_features), layer)
                if holder is not layer:
                    layer.look_at(holder, adapter_name)


register_tuner(NAME, ShareLoraConfig, ShareLoraModel)
