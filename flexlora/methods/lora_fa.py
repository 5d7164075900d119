"""LoRA-FA (Zhang et al., 2023, arXiv 2308.03303): LoRA with a frozen A, and PEFT's optimizer for it.

PEFT's optimizer is AdamW (eps 1e-6) on B's projected gradient, gB (AAᵀ)⁻¹ / s², which approximates a full step of W.
"""

from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.optimizers import create_lorafa_optimizer
from torch import nn

from flexlora.methods.base import Method, RunContext
from flexlora.methods.peft import PeftMethod, peft_config


class LoraFAMethod(PeftMethod):
    """LoRA with A frozen from the start, so that A is neither counted as trainable nor in a checkpoint."""

    _model: PeftModel

    def wrap(self, model: nn.Module) -> nn.Module:
        wrapped = super().wrap(model)
        for name, parameter in wrapped.named_parameters():
            if ".lora_A." in name:
                parameter.requires_grad_(False)
        return wrapped

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        assert isinstance(model, PeftModel)
        self._model = model
        return super().parameter_groups(model, learning_rate)

    def optimizer(
        self, groups: list[dict[str, Any]], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """Make PEFT's optimizer. It needs every A with its B, so it also gets the frozen parameters."""
        assert isinstance(self.config, LoraConfig)
        return create_lorafa_optimizer(
            self._model, r=self.config.r, lora_alpha=self.config.lora_alpha, lr=learning_rate, weight_decay=weight_decay
        )


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """Build LoRA-FA from LoRA's fields."""
    return LoraFAMethod(*peft_config(fields, context))
