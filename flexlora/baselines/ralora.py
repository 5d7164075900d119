"""RaLoRA: rank-aligned LoRA ("Gradient Intrinsic Dimensionality Alignment", ICLR 2026, OpenReview kObvnQ6pUx).

    ΔW = s · diag(B_1 A_1, …, B_n A_n),    s = lora_alpha / r

ΔW is block-diagonal: inputs and outputs are divided into n equal parts, and part i has a LoRA of its own: A_i
(r × in/n) and B_i (out/n × r). So the rank is n r with LoRA's number of parameters, r (in + out). A_i is Kaiming
uniform (√5) for in/n inputs, and B = 0, so ΔW = 0 at the start. n = 1 is LoRA.

`block_pattern` has n for each linear; the method `ralora` chooses it from gradients (flexlora/methods/ralora.py). The
A_i are kept side by side as one A (r × in), and the B_i as one B (out × r). As in the authors' code
(hhnqqq/MyTransformers 4037d4d, ralora.py), r in s is the configuration's, also for a linear to which `rank_pattern`
gives another rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.utils.other import get_pattern_key

from flexlora.tuner.checks import whole

from .low_rank import Factors, LowRankConfig, LowRankLayer, LowRankModel, setting


@dataclass
class RaLoraConfig(LowRankConfig):
    """Configuration of a [`RaLoraModel`]."""

    block_pattern: dict[str, int] = setting(dict, "Module name → its number of blocks; 1 for all others.", whole)


class RaLoraLayer(LowRankLayer):
    """ΔW = s · diag(B_1 A_1, …, B_n A_n)."""

    title = "RaLoRA"
    kept = (*LowRankLayer.kept, "blocks")
    blocks: dict[str, int]

    def create(self, adapter_name: str, config: Any, **place: Any) -> None:
        blocks = self.blocks[adapter_name] = place["blocks"]
        if self.in_features % blocks or self.out_features % blocks:
            raise ValueError(
                f"RaLoRA cannot divide {self.in_features} inputs and {self.out_features} outputs into {blocks} equal "
                "blocks: change block_pattern."
            )
        super().create(adapter_name, config, **place)
        self.scaling[adapter_name] = place["lora_alpha"] / config.r

    def reset(self, adapter_name: str, config: Any) -> None:
        bound = (self.blocks[adapter_name] / self.in_features) ** 0.5
        self.lora_A[adapter_name].uniform_(-bound, bound)

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        left, right = super().product(adapter_name, training)
        blocks = self.blocks[adapter_name]
        if blocks == 1:
            return left, right
        return torch.block_diag(*left.chunk(blocks, dim=0)), torch.block_diag(*right.chunk(blocks, dim=1))

    def add(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        blocks = self.blocks[adapter_name]
        if blocks == 1:
            return super().add(result, x, adapter_name)
        left, right = super().product(adapter_name, self.training)
        parts = self._adapter_input(x, adapter_name, right.dtype).unflatten(-1, (blocks, -1))
        hidden = torch.einsum("...ni,rni->...nr", parts, right.unflatten(1, (blocks, -1)))
        moved = torch.einsum("...nr,nor->...no", hidden, left.unflatten(0, (blocks, -1))).flatten(-2)
        return (result + moved).to(result.dtype)


class RaLoraModel(LowRankModel, name="ralora", config=RaLoraConfig, layer=RaLoraLayer):
    """RaLoRA on a pretrained model, made by `peft.get_peft_model(model, RaLoraConfig(...))`."""

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        blocks = config.block_pattern.get(get_pattern_key(list(config.block_pattern), name), 1)
        return {**super().place(adapter_name, config, name), "blocks": blocks}
