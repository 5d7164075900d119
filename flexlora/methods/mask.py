"""Methods that add nothing and choose which of the backbone's own parameters train: linear probe and its kin."""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from flexlora.errors import UserError, did_you_mean
from flexlora.methods.base import Method, RunContext

SAVED = "trained.safetensors"


class MaskMethod(Method):
    """`requires_grad` for the head, and for parameters whose whole name one of `patterns` matches."""

    def __init__(self, patterns: list[str], head_modules: list[str]) -> None:
        self.patterns = [re.compile(pattern) for pattern in patterns]
        self.head_modules = head_modules

    def wrap(self, model: nn.Module) -> nn.Module:
        names = [name for name, _ in model.named_parameters()]
        for pattern in self.patterns:
            if not any(pattern.fullmatch(name) for name in names):
                near = did_you_mean(pattern.pattern, names)
                raise UserError(f"method.trainable: '{pattern.pattern}' is no parameter's whole name.{near}")
        for name, parameter in model.named_parameters():
            in_head = not set(self.head_modules).isdisjoint(name.split("."))
            parameter.requires_grad_(in_head or any(pattern.fullmatch(name) for pattern in self.patterns))
        return model

    def parameters(self, model: nn.Module) -> dict[str, int]:
        sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
        head = sum(size for name, size in sizes.items() if not set(self.head_modules).isdisjoint(name.split(".")))
        others = sum(sizes.values()) - head
        total = sum(parameter.numel() for parameter in model.parameters())
        return {"adapter_active": others, "adapter_allocated": others, "head": head, "total": total}

    def save(self, model: nn.Module, folder: Path) -> None:
        trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / SAVED)


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """A mask from `method.trainable`; the head's modules come from the backbone's architecture."""
    try:
        return MaskMethod(fields["trainable"], context.head_modules)
    except re.error as error:
        raise UserError(f"method.trainable: {error.pattern!r} is not a regular expression: {error}") from error
