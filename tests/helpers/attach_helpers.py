"""Settings and an optimizer for the tests of `flexlora.attach`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from training_helpers import (
    trainable,
)

STEPS = 20


def settings(**changes: Any) -> dict[str, Any]:
    return {"total_step": STEPS, "deltaT": 3} | changes


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(trainable(model), lr=0.02)
