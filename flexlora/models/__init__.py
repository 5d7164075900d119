"""Backbones, from the hub or from a folder. One file a kind of model; `model.kind` names it."""

from dataclasses import dataclass
from typing import Any

from flexlora.plugins import load_plugin

__all__ = ["Backbone", "load_backbone", "model_name"]


@dataclass
class Backbone:
    """A pretrained model with its preprocessing, and what a method has to know of it."""

    model: Any
    """A torch module that takes a batch as keywords and returns an object with `logits`."""
    processor: Any
    """Its tokenizer."""
    target_modules: str
    head_modules: list[str]
    task_type: str | None
    revision: str | None
    """The hub's commit it came from; None for a folder."""


def load_backbone(settings: Any, num_labels: int) -> Backbone:
    """The backbone that `settings` (`model.*`) describes, with a fresh head of `num_labels` outputs.

    Raises:
        UserError: no such kind, folder or hub model, or not a model of this kind.
    """
    return load_plugin("flexlora.models", settings.kind, "model.kind", "load")(settings, num_labels)


def model_name(settings: Any) -> str:
    """The model's name in the folder of a run: `model.name`, or the name of the folder it is loaded from."""
    return settings.name or (settings.path or "").rstrip("/").rpartition("/")[2] or "unnamed"
