"""Preconditioned descent on A and B (Zhang & Pilanci, ICML 2024, arXiv 2402.02347): PEFT's optimizer around AdamW.

gA ← (BᵀB + reg·I)⁻¹ gA and gB ← gB (AAᵀ + reg·I)⁻¹ before AdamW's step. The head's gradients do not change.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.optimizers import create_riemannian_optimizer
from torch import nn

from flexlora.methods.base import Method, RunContext
from flexlora.methods.fields import take
from flexlora.methods.peft import PeftMethod, peft_config
from flexlora.tuner.base_config import Checked, setting
from flexlora.tuner.checks import number


@dataclass
class Preconditioning(Checked):
    """The method's own setting."""

    reg: float = setting(1e-2, "Value added to the diagonals before the inversion.", number, above=0)


class RiemannianMethod(PeftMethod):
    """A method that trains a tuner with LoRA's A and B by the preconditioned optimizer."""

    _model: PeftModel

    def __init__(self, config: PeftConfig, schedule: dict[str, Any] | None, reg: float) -> None:
        super().__init__(config, schedule)
        self.reg = reg

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        assert isinstance(model, PeftModel)
        self._model = model
        return super().parameter_groups(model, learning_rate)

    def optimizer(
        self, groups: list[dict[str, Any]], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """Make PEFT's optimizer for the same parameters in one group."""
        return create_riemannian_optimizer(
            self._model, torch.optim.AdamW, lr=learning_rate, reg=self.reg, weight_decay=weight_decay
        )


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """Build a preconditioned method from the settings' fields: `reg`, and the tuner's fields.

    Raises:
        UserError: PEFT does not have the type, the type does not have a field, or a value is invalid.
    """
    fields = dict(fields)
    own = take(Preconditioning, fields)
    return RiemannianMethod(*peft_config(fields, context), own.reg)
