"""The bottleneck W_u σ(W_d x + b_d) + b_u that the adapters of Houlsby and Pfeiffer and AdaptFormer share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from .base import BaselineConfig, BaselineLayer, BaselineModel, hint

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"relu": functional.relu, "gelu": functional.gelu}


@dataclass
class BottleneckConfig(BaselineConfig):
    """The fields of a bottleneck."""

    bottleneck: int = field(default=64, metadata=hint("Width of the bottleneck (m of the papers, h of VTAB's tables)."))
    non_linearity: str = field(default="relu", metadata=hint("σ: 'relu' or 'gelu' (the exact one)."))
    dropout: float = field(default=0.0, metadata=hint("Dropout on the bottleneck's activations."))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_whole("bottleneck")
        self.require(self.non_linearity in ACTIVATIONS, "non_linearity", f"one of {', '.join(ACTIVATIONS)}")
        self.require_dropout()


class BottleneckLayer(BaselineLayer):
    """A module with bottlenecks of its output's width: W_d (m × d), b_d (m), W_u (d × m), b_u (d)."""

    # In this order: W_d, b_d, W_u, b_u. A subclass puts its method's prefix before each.
    adapter_layer_names: tuple[str, str, str, str]
    other_param_names = ("settings",)
    settings: dict[str, Any]

    def update_layer(self, adapter_name: str, config: Any, **place: Any) -> None:
        self.settings[adapter_name] = config
        width, bottleneck = self.width(), config.bottleneck
        down, down_bias, up, up_bias = self.adapter_layer_names
        self.new_parameter(down, adapter_name, (bottleneck, width), lambda weight: self.fill_down(weight, config))
        self.new_parameter(down_bias, adapter_name, (bottleneck,))
        self.new_parameter(up, adapter_name, (width, bottleneck), lambda weight: self.fill_up(weight, config))
        self.new_parameter(up_bias, adapter_name, (width,))
        self.finish_update(adapter_name, config)

    def width(self) -> int:
        """d: features of the stream that the bottleneck reads and writes."""
        raise NotImplementedError

    def fill_down(self, weight: torch.Tensor, config: Any) -> None:
        """Start W_d."""
        raise NotImplementedError

    def fill_up(self, weight: torch.Tensor, config: Any) -> None:
        """Start W_u."""
        raise NotImplementedError

    def bottleneck(self, adapter_name: str, x: torch.Tensor) -> torch.Tensor:
        """W_u dropout(σ(W_d x + b_d)) + b_u: (..., d) → (..., d), in the adapter's dtype."""
        config = self.settings[adapter_name]
        down, down_bias, up, up_bias = (getattr(self, name)[adapter_name] for name in self.adapter_layer_names)
        hidden = ACTIVATIONS[config.non_linearity](functional.linear(self.branch_input(x, down), down, down_bias))
        hidden = functional.dropout(hidden, config.dropout, self.training)
        return functional.linear(hidden, up, up_bias)


@dataclass
class SerialBottleneckConfig(BottleneckConfig):
    """The fields of a bottleneck with a skip."""

    init_std: float = field(default=1e-3, metadata=hint("Standard deviation of W_d and W_u at the start."))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.init_std >= 0, "init_std", "at least 0")


class SerialBottleneckLayer(BottleneckLayer):
    """A linear followed by a bottleneck with a skip: h ← h + W_u σ(W_d h + b_d) + b_u, h the linear's output."""

    def width(self) -> int:
        return int(self.get_base_layer().out_features)  # type: ignore[arg-type]

    def fill_down(self, weight: torch.Tensor, config: Any) -> None:
        truncated_normal(weight, config.init_std)

    fill_up = fill_down

    def adapted(self, adapters: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        result = self.base_layer(x, *args, **kwargs)
        for adapter_name in adapters:
            result = result + self.bottleneck(adapter_name, result).to(result.dtype)
        return result


class SerialBottleneckModel(BaselineModel):
    """A bottleneck behind every linear that is targeted."""

    not_mergeable = "its bottleneck is not linear"

    def check_target(self, target: nn.Module, name: str) -> None:
        if not hasattr(target, "out_features"):
            raise ValueError(
                f"{name} is a {type(target).__name__}: {self.title} sits on linears. Narrow target_modules."
            )


def truncated_normal(weight: torch.Tensor, std: float) -> None:
    """N(0, std²), cut off at two standard deviations."""
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
