"""GoRA: gradient-driven adaptive low-rank adaptation (He et al., NeurIPS 2025, arXiv 2502.12171).

    I_l = mean |W_l ∘ G_l|,    r_l = round(I_l / Σ I · Σ √(m + n) r / √(m_l + n_l)), from min_rank to max_rank
    ΔW_l = s_l B_l A_l,    s_l = lora_alpha / √r_l,    B₀ = -ξ G Aᵀ (A Aᵀ)⁻¹,    ξ = γ √(n_l / r_l) / s_l

G is the mean gradient of W (m × n) over the first `batches` batches. A is Kaiming uniform (√5), and B₀ A is the best
approximation of -ξ G within the rows of A: training begins with one step of gradient descent, whose length is about γ
times ‖G‖. So the output at the start is not the backbone's. W does not change, and what is trained and saved is a plain
LoRA (PEFT's) with a rank for each linear.

Formulas and ranges are the paper's, as far as descriptions and the authors' code (hhnqqq/MyTransformers 4037d4d,
gora.py) give them. The code differs in three points. Its scripts count a unit of rank as m + n (`width=sum`; the paper
has the root), it rounds down, and B₀ has no minus sign there. Here A has `max_rank` rows when the gradient passes by,
and a linear takes the first r_l: so one pass is enough, and no gradient is kept. The authors' scripts train B with 16
times the rate of A, as LoRA+ does (`lr_ratio`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from flexlora.baselines.low_rank import kaiming
from flexlora.methods.base import Method, RunContext
from flexlora.methods.chosen_ranks import Choice, ChosenRanksMethod, RankFields, allocate_ranks, importance
from flexlora.methods.fields import take
from flexlora.methods.peft import peft_config
from flexlora.methods.residual import ADAPTER
from flexlora.tuner.base_config import setting
from flexlora.tuner.checks import number
from flexlora.tuner.names import plain_name


@dataclass
class GoraFields(RankFields):
    """The fields that `LoraConfig` does not have."""

    gamma: float = setting(0.05, "The length of the first step, relative to the gradient; 0: B starts at 0.", number)
    lr_ratio: float = setting(1.0, "The learning rate of B divided by that of A.", number, above=0)


class GoraMethod(ChosenRanksMethod):
    """LoRA whose ranks and whose B come from gradients."""

    title = "gora"
    config: LoraConfig

    def __init__(self, config: LoraConfig, schedule: dict[str, Any] | None, fields: GoraFields) -> None:
        super().__init__(config, schedule)
        self.fields = fields
        self._starts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def batches(self) -> int:
        return self.fields.batches

    def measure(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> Choice:
        """Return the importance, and keep A and G Aᵀ for the start."""
        a = torch.empty(self.fields.max_rank, gradient.shape[1], dtype=gradient.dtype)
        kaiming(a)
        a = a.to(gradient.device)
        self._starts[name] = (a, gradient @ a.T)
        return {"importance": importance(weight, gradient)}

    def choose(self, measured: dict[str, Choice], shapes: Mapping[str, tuple[int, int]]) -> None:
        allocate_ranks(measured, shapes, self.config.r, self.fields)

    def wrap(self, model: nn.Module) -> nn.Module:
        wrapped = super().wrap(model)
        for name, layer in wrapped.named_modules():
            if isinstance(layer, LoraLayer) and plain_name(name) in self._starts:
                self._start(layer, *self._starts[plain_name(name)])
        self._starts = {}
        return wrapped

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for name, p in trained if ".lora_B." not in name], "lr": learning_rate},
            {"params": [p for name, p in trained if ".lora_B." in name], "lr": learning_rate * self.fields.lr_ratio},
        ]
        return groups if self.fields.lr_ratio != 1 else super().parameter_groups(model, learning_rate)

    @torch.no_grad()
    def _start(self, layer: LoraLayer, a: torch.Tensor, compressed: torch.Tensor) -> None:
        """Set A and B of a layer. `compressed` is G Aᵀ."""
        into = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        if into[0].device.type == "meta":
            return
        r = len(into[0])
        rows = a[:r].double()
        step = self.fields.gamma * math.sqrt(rows.shape[1] / r) / layer.scaling[ADAPTER]
        b = -step * torch.linalg.solve(rows @ rows.T, compressed[:, :r].double().T).T
        into[0].copy_(rows)
        into[1].copy_(b)


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """Build GoRA from LoRA's fields and its own.

    Raises:
        UserError: PEFT does not have the type, the type does not have a field, or a value is invalid.
    """
    fields = dict(fields)
    own = take(GoraFields, fields)
    config, schedule = peft_config(fields, context)
    assert isinstance(config, LoraConfig)
    return GoraMethod(config, schedule, own)
