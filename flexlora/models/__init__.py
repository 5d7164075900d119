"""Backbones from the hub or from a folder. `model.kind` names the file of a kind of model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexlora.errors import UserError
from flexlora.plugins import load_module, load_plugin

if TYPE_CHECKING:
    import torch

__all__ = ["Backbone", "check_model", "load_backbone", "model_name", "on_hub", "outline", "sketch"]

KINDS = ("flexlora.models", "flexlora.tiny.models")
"""The packages whose modules `model.kind` names."""


@dataclass
class Backbone:
    """A pretrained model with its preprocessing, and the facts about it that a method needs."""

    model: Any
    processor: Any
    """The tokenizer or the image settings; None for an outline."""
    target_modules: str | None
    """The regular expression of the linears to adapt by default; None if it is not known for this architecture."""
    head_modules: list[str]
    task_type: str | None
    revision: str | None
    """The hub's commit of the model; None for a folder."""
    dropout: dict[str, float] = field(default_factory=dict, kw_only=True)
    """The dropout of the layers while training, by its names in the model's configuration."""

    def match_classes(self, labels: Sequence[str]) -> str | None:
        """Match a head of the checkpoint to the task's classes; return one line about it, or None for a new head.

        Args:
            labels: the names of the task's classes, in the order of the head's outputs; empty if they have none.
        """
        return None

    def facts(self) -> dict[str, Any]:
        """Return the facts about the loaded model for the record."""
        return {"dropout": self.dropout}

    def logits(self, model: Any, batch: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """Compute the logits of `model` (this backbone with an adapter) for a batch without labels."""
        logits: torch.Tensor = model(**batch).logits
        return logits

    def made_batch(self, rows: int, length: int) -> "dict[str, torch.Tensor]":
        """Make a batch without content, to measure sizes: `rows` texts of `length` tokens."""
        import torch

        ids = torch.ones(rows, length, dtype=torch.long, device="meta")
        return {"input_ids": ids, "attention_mask": ids}

    def weight_bytes(self) -> tuple[int, int]:
        """Return the bytes of the weights as loaded now, and as a run will hold them."""
        held = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return held, held

    def recompute_activations(self) -> None:
        """Enable gradient checkpointing: the backward pass recomputes activations. Call it before wrapping."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def check_model(settings: Any) -> None:
    """Check `model.kind` before anything is loaded.

    Raises:
        UserError: the kind does not exist, or has no small relative at scale=tiny.
    """
    if settings.scale == "tiny" and not settings.kind.startswith("tiny"):
        raise UserError(
            f"scale=tiny has no small model of kind {settings.kind}: set scale=paper, and model=local for your own"
        )
    load_plugin(KINDS, settings.kind, "model.kind", "load")


def load_backbone(settings: Any, num_labels: int | None) -> Backbone:
    """Load the backbone that `settings` (`model.*`) describes, with a fresh head of `num_labels` outputs if it has one.

    Raises:
        UserError: the kind, the folder or the hub's model does not exist, or the model is of another kind.
    """
    return load_plugin(KINDS, settings.kind, "model.kind", "load")(settings, num_labels)


def outline(settings: Any, num_labels: int | None) -> tuple[Backbone, str]:
    """Make a hub model on the meta device, without its processor. Also returns the source of its shapes.

    Raises:
        UserError: the hub cannot be reached and the shapes are not known here, or the architecture is not described.
    """
    return load_plugin(KINDS, settings.kind, "model.kind", "outline")(settings, num_labels)


def on_hub(settings: Any) -> bool:
    """Return whether `model.path` names a repository on the hub and not a folder."""
    if settings.path is None or settings.name is None:
        return False
    path = Path(settings.path).expanduser()
    return not path.is_dir() and not path.is_absolute()


def sketch(settings: Any, num_labels: int | None) -> Backbone | None:
    """Make the backbone on the meta device with its processor: like `load_backbone`, but without the weights.

    Return None if its kind does not support this, or if its files are not on this machine.
    """
    draw = getattr(load_module(KINDS, settings.kind, "model.kind", "load"), "sketch", None)
    return None if draw is None else draw(settings, num_labels)


def model_name(settings: Any) -> str:
    """Return the model's name in a run's path: `model.name`, or the name of the folder of the model."""
    return settings.name or (settings.path or "").rstrip("/").rpartition("/")[2] or "unnamed"
