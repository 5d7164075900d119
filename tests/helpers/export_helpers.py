"""An adapted model for the tests of export and warm start."""

from __future__ import annotations

import copy

import torch
from builders import Chain, moving, scramble
from peft import (
    get_peft_model,
)

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))


def adapted(seed=0, base=None, **options):
    torch.manual_seed(1)
    base = base if base is not None else Chain()
    model = get_peft_model(copy.deepcopy(base), moving(**options))
    scramble(model, seed)
    return model, base
