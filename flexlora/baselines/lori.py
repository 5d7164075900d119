"""LoRI: LoRA with reduced interference (Zhang et al., COLM 2025, arXiv 2504.07448).

    ΔW = s · (M ∘ B) A

A is random (Kaiming uniform, √5) and is not trained. B trains where the mask M is 1: on the 1 - `sparsity` = 10 % of
the entries with the largest |B| after a calibration, over all matrices together. B = 0, so ΔW = 0 at the start.

The authors calibrate by a complete training of the dense B (LoRI-D), take the masks, and train again from B = 0
(LoRI-S). Here every method has the same number of steps: the first `tinit` optimizer steps calibrate (10 % of
`total_step` by default). Then B and its optimizer state are reset to 0, and the masked B trains for the remaining
steps. sparsity = 0 gives LoRI-D.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict

from flexlora.tuner.checks import number, whole
from flexlora.tuner.optimizer_state import start_again

from .low_rank import Factors, LowRankConfig, LowRankLayer, LowRankModel, Shapes, kaiming, setting


@dataclass
class LoriConfig(LowRankConfig):
    """Configuration of a [`LoriModel`].

    Raises:
        ValueError: as [`LowRankConfig`], or the training ends before the masks are taken.
    """

    sparsity: float = setting(
        0.9, "Share of B's entries that are masked after the calibration.", number, at_least=0, below=1
    )
    tinit: int | None = setting(
        None, "Optimizer steps of the calibration; 10 % of total_step by default.", whole, or_none=True
    )
    total_step: int | None = setting(None, "Optimizer steps of the whole training.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity == 0:
            return
        if self.tinit is None:
            if self.total_step is None:
                raise ValueError(
                    "`total_step` is missing: LoRI's calibration takes 10 % of it. Set total_step, tinit or sparsity=0."
                )
            self.tinit = max(1, self.total_step // 10)
        if self.total_step is not None and self.tinit >= self.total_step:
            raise ValueError(
                f"tinit={self.tinit} leaves no step after the calibration: the training has {self.total_step} steps."
            )


class LoriLayer(LowRankLayer):
    """ΔW = s · (M ∘ B) A with a frozen A."""

    title = "LoRI"
    adapter_layer_names = ("lora_B",)
    buffer_names = ("lora_A", "lora_mask")
    lora_A: BufferDict
    lora_mask: BufferDict

    def shapes(self, r: int, config: Any) -> Shapes:
        return {"lora_B": (self.out_features, r)}

    def buffers_at_start(self, r: int, config: Any) -> dict[str, torch.Tensor]:
        return {
            "lora_A": torch.zeros(r, self.in_features, dtype=self._adapter_dtype()),
            "lora_mask": torch.ones(self.out_features, r, dtype=torch.bool),
        }

    def reset(self, adapter_name: str, config: Any) -> None:
        kaiming(self.lora_A[adapter_name])

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        left, right = super().product(adapter_name, training)
        return left * self.tensor("lora_mask", adapter_name), right

    def inactive_parameters(self, adapter_name: str) -> int:
        if adapter_name not in self.lora_mask:  # the mask belongs to another layer
            return 0
        mask = self.lora_mask[adapter_name]
        return 0 if mask.device.type == "meta" else int(mask.numel() - mask.count_nonzero())


class LoriModel(LowRankModel, name="lori", config=LoriConfig, layer=LoriLayer):
    """LoRI on a pretrained model: call `after_step` after every optimizer step."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any] | None:
        """Take the masks after step `tinit`."""
        for adapter_name, config in self.peft_config.items():
            if not config.inference_mode and config.sparsity > 0 and step == config.tinit:
                self.take_masks(adapter_name, optimizer)
        return None

    @torch.no_grad()
    def take_masks(self, adapter_name: str, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Select the largest |B| over all matrices, and restart from B = 0."""
        layers = [
            layer for _, name, layer, _ in self.trained() if name == adapter_name and adapter_name in layer.lora_B
        ]
        sizes = torch.cat([layer.lora_B[adapter_name].abs().flatten().cpu() for layer in layers])
        kept = max(1, round((1 - self.peft_config[adapter_name].sparsity) * sizes.numel()))
        mask = torch.zeros(sizes.numel(), dtype=torch.bool)
        mask[sizes.topk(kept).indices] = True  # exactly this number, also with ties
        left: set[str] = set()
        for layer, part in zip(
            layers, mask.split([layer.lora_B[adapter_name].numel() for layer in layers]), strict=True
        ):
            b = layer.lora_B[adapter_name]
            layer.lora_mask[adapter_name].copy_(part.view_as(b))
            b.zero_()
            if optimizer is not None:
                left |= start_again(optimizer, b)
        if left:
            warnings.warn(
                f"{type(optimizer).__name__} keeps {' and '.join(sorted(left))}: it is not reset where LoRI's B starts "
                "again from 0.",
                stacklevel=2,
            )
