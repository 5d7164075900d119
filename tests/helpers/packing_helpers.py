"""Adapters to save, and what makes two of them the same."""

from __future__ import annotations

import copy

import torch
from builders import Chain, adapters, moving, scramble
from peft import (
    get_peft_model,
)
from torch import nn

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))


def same_adapter(a: nn.Module, b: nn.Module, adapter_a: str = "default", adapter_b: str = "default") -> None:
    layers = list(zip(adapters(a, adapter_a), adapters(b, adapter_b), strict=True))
    assert layers
    for left, right in layers:
        for x, y in zip(left.factors(adapter_a), right.factors(adapter_b), strict=True):
            assert torch.equal(x, y)
            assert x.dtype == y.dtype
        assert torch.equal(left.flexlora_active[adapter_a], right.flexlora_active[adapter_b])
        assert left.scaling[adapter_a] == right.scaling[adapter_b]


def pair(seed: int = 0, **options):
    """An adapted model with scrambled ranks, and the same base without adapter."""
    torch.manual_seed(1)
    base = Chain()
    model = get_peft_model(copy.deepcopy(base), moving(**options))
    scramble(model, seed)
    return model, base
