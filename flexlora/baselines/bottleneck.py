"""The bottleneck W_u σ(W_d x + b_d) + b_u that the adapters of Houlsby and Pfeiffer and AdaptFormer share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from flexlora.tuner.checks import choice, number, probability, whole

from .base import BaselineConfig, BaselineLayer, BaselineModel, setting

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"relu": functional.relu, "gelu": functional.gelu}


@dataclass
class BottleneckConfig(BaselineConfig):
    """The fields of a bottleneck."""

    bottleneck: int = setting(64, "Width of the bottleneck (m in the papers, h in VTAB's tables).", whole)
    non_linearity: str = setting("relu", "σ: 'relu' or 'gelu' (the exact one).", choice, options=ACTIVATIONS)
    dropout: float = setting(0.0, "Dropout on the bottleneck's activations.", probability)


class BottleneckLayer(BaselineLayer):
    """A module with bottlenecks of its output's width: W_d (m × d), b_d (m), W_u (d × m), b_u (d)."""

    adapter_layer_names: tuple[str, str, str, str]

    def create(self, adapter_name: str, config: Any, **place: Any) -> None:
        width, bottleneck = self.width(), config.bottleneck
        down, down_bias, up, up_bias = self.adapter_layer_names
        self.new_parameter(down, adapter_name, (bottleneck, width), lambda weight: self.fill_down(weight, config))
        self.new_parameter(down_bias, adapter_name, (bottleneck,))
        self.new_parameter(up, adapter_name, (width, bottleneck), lambda weight: self.fill_up(weight, config))
        self.new_parameter(up_bias, adapter_name, (width,))

    def width(self) -> int:
        """d, the number of features that the bottleneck reads and writes."""
        raise NotImplementedError

    def fill_down(self, weight: torch.Tensor, config: Any) -> None:
        """Initialise W_d."""
        raise NotImplementedError

    def fill_up(self, weight: torch.Tensor, config: Any) -> None:
        """Initialise W_u."""
        raise NotImplementedError

    def bottleneck(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        """Compute W_u dropout(σ(W_d x + b_d)) + b_u: (..., d) → (..., d), in the adapter's dtype."""
        config = self.settings[adapter_name]
        down, down_bias, up, up_bias = (getattr(self, name)[adapter_name] for name in self.adapter_layer_names)
        hidden = ACTIVATIONS[config.non_linearity](functional.linear(self.branch_input(x, down.dtype), down, down_bias))
        hidden = functional.dropout(hidden, config.dropout, self.training)
        return functional.linear(hidden, up, up_bias)


@dataclass
class SerialBottleneckConfig(BottleneckConfig):
    """The fields of a bottleneck with a skip."""

    init_std: float = setting(1e-3, "Initial standard deviation of W_d and W_u.", number, at_least=0)


class SerialBottleneckLayer(BottleneckLayer):
    """A linear followed by a bottleneck with a skip: h ← h + W_u σ(W_d h + b_d) + b_u, where h is its output."""

    def width(self) -> int:
        return int(self.get_base_layer().out_features)  # type: ignore[arg-type]

    def fill_down(self, weight: torch.Tensor, config: Any) -> None:
        truncated_normal(weight, config.init_std)

    fill_up = fill_down

    def add(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        return result + self.bottleneck(adapter_name, result).to(result.dtype)


class SerialBottleneckModel(BaselineModel):
    """A bottleneck after every targeted linear."""

    not_mergeable = "its bottleneck is not linear"

    def check_target(self, target: nn.Module, name: str) -> None:
        if not hasattr(target, "out_features"):
            raise ValueError(
                f"{name} is a {type(target).__name__}: {self.title} works on linears only. Narrow target_modules."
            )


def bottleneck_names(prefix: str) -> tuple[str, str, str, str]:
    """Names of W_d, b_d, W_u and b_u."""
    return f"{prefix}_down", f"{prefix}_down_bias", f"{prefix}_up", f"{prefix}_up_bias"


def truncated_normal(weight: torch.Tensor, std: float) -> None:
    """Draw from N(0, std²), truncated at two standard deviations."""
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
