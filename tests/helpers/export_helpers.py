"""An adapted model for the tests of export and warm start."""

from __future__ import annotations

import copy

import torch
from builders import SHAPES, Chain, moving, scramble
from peft import LoraConfig, get_peft_model

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(9))


def adapted(seed=0, base=None, **options):
    torch.manual_seed(1)
    base = base if base is not None else Chain()
    model = get_peft_model(copy.deepcopy(base), moving(**options))
    scramble(model, seed)
    return model, base


def lora_folder(folder, base, seed=0, targets=tuple(SHAPES), **options):
    """A LoRA with random trained values on a copy of `base`, saved in `folder`."""
    torch.manual_seed(seed)
    settings = {"r": 3, "lora_alpha": 5, "target_modules": list(targets)} | options
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(**settings))
    with torch.no_grad():
        for parameter in lora.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))
    lora.save_pretrained(str(folder))
    return lora
