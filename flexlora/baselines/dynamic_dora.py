"""Dynamic-rank DoRA (Mao et al., ACL 2024, arXiv 2405.17357). It is not weight-decomposed DoRA (PEFT's `use_dora`).

    ΔW = s · Σ_i c_i b_i a_iᵀ

LoRA's directions are rank-one components, each with a trainable coefficient. c = 0, so ΔW = 0 at the start. A and B are
Kaiming uniform (a = 0), and s = lora_alpha / r with the initial rank r.

A component's importance is its share of its matrix, ‖c_i b_i a_iᵀ‖_F / ‖ΔW‖_F, smoothed over steps (`beta`). From step
tinit on, every deltaT steps, the least important components of all matrices together are set to 0. Their number grows
as a cubic from 0; at step T - tfinal an average of `target_r` components per matrix remains. Until then zeroed
components keep training and may return. After that they stay 0. Until then a penalty, `dem_weight` times the mean
variance of the entries of the a_i and b_i, prevents components from relying on few entries.

Details that the paper does not specify follow the authors' code: r = 1.5 target_r, tinit = 0.15 T, tfinal = 0.5 T,
deltaT = 100, beta 0.9, dem_weight 0.1, and importances are computed after the optimizer's step. Two details differ from
the code. At step tinit nothing is set to 0, because the number is 0 there (the code takes one). Components are counted,
so that ties do not set more of them to 0. The penalty's gradient has closed form and is added after clipping.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from flexlora.tuner.checks import number, whole
from flexlora.tuner.events import NO_SIGNS

from .low_rank import Factors, LowRankConfig, LowRankLayer, LowRankModel, Shapes, setting

EPSILON = 1e-8


@dataclass
class DynamicDoraConfig(LowRankConfig):
    """Configuration of a [`DynamicDoraModel`].

    Raises:
        ValueError: as [`LowRankConfig`], `total_step` is missing, or the windows leave no step for lowering ranks.
    """

    r: int = setting(12, "Initial rank of every adapted matrix.")
    target_r: int = setting(8, "Average rank at the end.", whole)
    total_step: int | None = setting(None, "Optimizer steps of the whole training (T).", whole, or_none=True)
    tinit: int | None = setting(None, "Step of the first pruning; 0.15 T by default.", whole, at_least=0, or_none=True)
    tfinal: int | None = setting(
        None, "Steps at the end with fixed ranks; 0.5 T by default.", whole, at_least=0, or_none=True
    )
    deltaT: int = setting(100, "Steps between two prunings.", whole)
    beta: float = setting(0.9, "Smoothing of the importance.", number, at_least=0, below=1)
    dem_weight: float = setting(0.1, "Weight of the variance penalty until ranks are fixed.", number, at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_r > self.r:
            raise ValueError(f"target_r={self.target_r} must not be above r={self.r}: the sum of ranks only falls.")
        if self.total_step is None:
            raise ValueError("`total_step` is missing: the plan for lowering ranks covers the whole training.")
        if self.tinit is None:
            self.tinit = int(0.15 * self.total_step)
        if self.tfinal is None:
            self.tfinal = int(0.5 * self.total_step)
        if self.tinit >= self.last_event:
            raise ValueError(
                f"tinit={self.tinit} and tfinal={self.tfinal} leave no step for lowering the ranks: the training has "
                f"{self.total_step} steps."
            )

    @property
    def last_event(self) -> int:
        """The step after which ranks are fixed, T - tfinal."""
        assert self.total_step is not None
        assert self.tfinal is not None
        return self.total_step - self.tfinal

    def is_event(self, step: int) -> bool:
        """Whether components are set to 0 after `step`."""
        assert self.tinit is not None
        return step == self.last_event or (
            self.tinit < step < self.last_event and (step - self.tinit) % self.deltaT == 0
        )

    def left_out(self, step: int, components: int) -> int:
        """The number of components set to 0 at `step`: a cubic from 0 to all above `target_r` per matrix."""
        assert self.tinit is not None
        progress = (step - self.tinit) / (self.last_event - self.tinit)
        return int(components * (self.r - self.target_r) / self.r * progress**3)


class DynamicDoraLayer(LowRankLayer):
    """ΔW = s · B diag(c) A, with each component's importance and whether the latest pruning kept it."""

    title = "dynamic-rank DoRA"
    adapter_layer_names = ("lora_A", "lora_c", "lora_B")
    buffer_names = ("lora_importance", "lora_active")
    lora_c: nn.ParameterDict
    lora_importance: BufferDict
    lora_active: BufferDict

    def shapes(self, r: int, config: Any) -> Shapes:
        return {**super().shapes(r, config), "lora_c": (r,)}

    def buffers_at_start(self, r: int, config: Any) -> dict[str, torch.Tensor]:
        return {
            "lora_importance": torch.zeros(r, dtype=self._adapter_dtype()),
            "lora_active": torch.ones(r, dtype=torch.bool),
        }

    def reset(self, adapter_name: str, config: Any) -> None:
        nn.init.kaiming_uniform_(self.lora_A[adapter_name])
        nn.init.kaiming_uniform_(self.lora_B[adapter_name])

    def product(self, adapter_name: str, training: bool = False) -> Factors:
        left, right = super().product(adapter_name, training)
        return left, self.lora_c[adapter_name].unsqueeze(1) * right

    def rank(self, adapter_name: str) -> int:
        active = self.lora_active[adapter_name]
        return self.r[adapter_name] if active.device.type == "meta" else int(active.count_nonzero())

    inactive_parameters = LowRankLayer.unused_directions

    @torch.no_grad()
    def observe(self, adapter_name: str, beta: float) -> None:
        """Update the smoothed importances by the components' current shares of ‖ΔW‖_F, from r × r Gram matrices."""
        a, b, c = self.lora_A[adapter_name], self.lora_B[adapter_name], self.lora_c[adapter_name]
        gram = (b.T @ b) * (a @ a.T) * torch.outer(c, c)  # ⟨c_i b_i a_iᵀ, c_j b_j a_jᵀ⟩
        share = gram.diagonal().clamp(min=0).sqrt() / (gram.sum().clamp(min=0).sqrt() + EPSILON)
        self.lora_importance[adapter_name].mul_(beta).add_(share, alpha=1 - beta)


class DynamicDoraModel(LowRankModel, name="dynamic_dora", config=DynamicDoraConfig, layer=DynamicDoraLayer):
    """Dynamic-rank DoRA on a pretrained model: call `regularise` before and `after_step` after every optimizer step."""

    ranks = LowRankModel.ranks_in_use

    @torch.no_grad()
    def regularise(self, step: int) -> None:
        """Add the gradient of dem_weight · the mean (unbiased) variance of the entries of all a_i and b_i."""
        for adapter_name, config, layers in self._adapters():
            if step > config.last_event or config.dem_weight == 0:
                continue
            weight = config.dem_weight / (2 * len(layers) * config.r)
            for layer in layers.values():
                for vectors, dim in ((layer.lora_A[adapter_name], 1), (layer.lora_B[adapter_name], 0)):
                    spread = vectors - vectors.mean(dim, keepdim=True)
                    gradient = spread.mul_(2 * weight / max(1, vectors.shape[dim] - 1))
                    vectors.grad = gradient if vectors.grad is None else vectors.grad.add_(gradient)

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any] | None:
        """Update the importances, lower ranks if an event is due, and keep the finally removed components at 0."""
        event = None
        for adapter_name, config, layers in self._adapters():
            if step <= config.last_event:
                for layer in layers.values():
                    layer.observe(adapter_name, config.beta)
            if config.is_event(step):
                event = self._prune(step, adapter_name, config, layers)
            elif step > config.last_event:
                for layer in layers.values():
                    layer.lora_c[adapter_name].mul_(layer.lora_active[adapter_name])
        return event

    def _prune(
        self, step: int, adapter_name: str, config: DynamicDoraConfig, layers: dict[str, DynamicDoraLayer]
    ) -> dict[str, Any]:
        before = {name: layer.rank(adapter_name) for name, layer in layers.items()}
        scores = torch.cat([layer.lora_importance[adapter_name].cpu() for layer in layers.values()])
        number = config.left_out(step, scores.numel())
        active = torch.ones(scores.numel(), dtype=torch.bool)
        active[scores.sort(stable=True).indices[:number]] = False  # among equal scores the first in module order
        parts = active.split([layer.r[adapter_name] for layer in layers.values()])
        for layer, part in zip(layers.values(), parts, strict=True):
            layer.lora_active[adapter_name].copy_(part)
            layer.lora_c[adapter_name].mul_(layer.lora_active[adapter_name])
        ranks = {name: layer.rank(adapter_name) for name, layer in layers.items()}
        cost = {name: layer.in_features + layer.out_features + 1 for name, layer in layers.items()}
        return {
            **NO_SIGNS,
            "empty": number == 0,
            "step": step,
            "budget": scores.numel() - number,
            "pruned": [name for name in ranks if ranks[name] < before[name]],
            "grown": [name for name in ranks if ranks[name] > before[name]],
            "ranks": ranks,
            "active_parameters": sum(ranks[name] * cost[name] for name in ranks),
            "total_rank": sum(ranks.values()),
        }

    def _adapters(self) -> Iterator[tuple[str, DynamicDoraConfig, dict[str, DynamicDoraLayer]]]:
        """(adapter, config, its layers by name) of every adapter that is not in inference mode."""
        for adapter_name, config in self.peft_config.items():
            layers = {name: layer for name, adapter, layer, _ in self.trained() if adapter == adapter_name}
            if layers:
                yield adapter_name, config, layers
