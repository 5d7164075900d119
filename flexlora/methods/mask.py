"""Methods without an adapter. They choose the trainable parameters of the backbone: all, the biases, or the head."""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.methods.base import Method, RunContext
from flexlora.methods.fields import refuse_unknown, take
from flexlora.reading import regular
from flexlora.saved_adapter import log_kept_head

log = logging.getLogger("flexlora")

SAVED = "trained.safetensors"


@dataclasses.dataclass
class MaskFields:
    """The method's own field: regular expressions for the full names of parameters to train with the head."""

    trainable: list[str]


class MaskMethod(Method):
    """A method that trains the head and the parameters whose full name matches one of `patterns`."""

    def __init__(self, patterns: list[str], head_modules: list[str]) -> None:
        self.patterns = [re.compile(pattern) for pattern in patterns]
        self.head_modules = head_modules

    def wrap(self, model: nn.Module) -> nn.Module:
        """Set `requires_grad` of every parameter.

        Raises:
            UserError: a pattern matches no parameter, or no parameter would be trained.
        """
        names = [name for name, _ in model.named_parameters()]
        for pattern in self.patterns:
            if not any(pattern.fullmatch(name) for name in names):
                near = did_you_mean(pattern.pattern, names)
                raise UserError(
                    f"method.trainable: '{pattern.pattern}' does not match the full name of any parameter.{near}"
                )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._in_head(name) or any(pattern.fullmatch(name) for pattern in self.patterns))
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError("this method trains a fresh head, but this model has none: choose another method")
        return model

    def load(self, model: nn.Module, folder: Path) -> None:
        file = folder / SAVED
        if not file.is_file():
            raise UserError(
                f"adapter: {folder} has no {SAVED}: it is of another method, or it is a fully trained model "
                "(start from that with model=local model.path=DIR)"
            )
        try:
            saved = load_file(regular(file))
        except (OSError, SafetensorError) as error:
            raise UserError(f"adapter: cannot load {file}: {one_line(error)}") from error
        held = {name: p for name, p in model.named_parameters() if p.requires_grad}
        strange = sorted(saved.keys() ^ held.keys())
        if strange:
            raise UserError(f"adapter: {folder} is of another method or model: {strange[0]}")
        with torch.no_grad():
            for name, parameter in held.items():
                if saved[name].shape == parameter.shape:
                    parameter.copy_(saved[name])
                elif self._in_head(name):
                    log.info("adapter: %s has another shape in the saved adapter and is initialised again", name)
                else:
                    raise UserError(f"adapter: {folder} is of another model: the shape of {name} differs")
        log_kept_head(name for name, p in held.items() if self._in_head(name) and saved[name].shape == p.shape)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Save a fully trained model for `from_pretrained`. Otherwise save only the trained parameters."""
        if isinstance(model, PreTrainedModel) and all(parameter.requires_grad for parameter in model.parameters()):
            model.save_pretrained(folder)
            return
        trained = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / SAVED)

    def _in_head(self, name: str) -> bool:
        return not set(self.head_modules).isdisjoint(name.split("."))


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """Build a mask from `method.trainable`. The backbone's architecture names the head's modules.

    Raises:
        UserError: a field is not known, or `trainable` is not a list of regular expressions.
    """
    refuse_unknown(fields, [field.name for field in dataclasses.fields(MaskFields)], "a mask")
    own = take(MaskFields, dict(fields))
    try:
        return MaskMethod(own.trainable, context.head_modules)
    except re.error as error:
        raise UserError(f"method.trainable: {error.pattern!r} is not a regular expression: {error}") from error
