"""Backbones, from the hub or from a folder. One file a kind of model; `model.kind` names it."""

from collections.abc import Mapping
from dataclasses import dataclass
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
    """A pretrained model with its preprocessing, and what a method has to know of it."""

    model: Any
    processor: Any
    """Its tokenizer, or what it takes images as; None of an outline."""
    target_modules: str | None
    """Regular expression of the linears to adapt where the settings name none; None: of this architecture not known."""
    head_modules: list[str]
    task_type: str | None
    revision: str | None
    """The hub's commit it came from; None for a folder."""

    def logits(self, model: Any, batch: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
        """What `model`, this backbone adapted, answers to a batch without its labels."""
        logits: torch.Tensor = model(**batch).logits
        return logits

    def made_batch(self, rows: int, length: int) -> "dict[str, torch.Tensor]":
        """A batch of such a shape and no content, for sizes: `rows` texts of `length` tokens."""
        import torch

        ids = torch.ones(rows, length, dtype=torch.long, device="meta")
        return {"input_ids": ids, "attention_mask": ids}

    def weight_bytes(self) -> tuple[int, int]:
        """Bytes of the weights as they are here, and as a run will hold them."""
        held = sum(p.numel() * p.element_size() for p in self.model.parameters())
        return held, held

    def recompute_activations(self) -> None:
        """Keep no activations inside a block for the backward: they are computed there again (before it is wrapped)."""
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def check_model(settings: Any) -> None:
    """Refuse a `model.kind` that does not exist, or has no small relative at scale=tiny, before anything is loaded.

    Raises:
        UserError: there is none.
    """
    if settings.scale == "tiny" and not settings.kind.startswith("tiny"):
        raise UserError(
            f"scale=tiny has no small model of kind {settings.kind} yet: take scale=paper, with model=local"
        )
    load_plugin(KINDS, settings.kind, "model.kind", "load")


def load_backbone(settings: Any, num_labels: int | None) -> Backbone:
    """The backbone that `settings` (`model.*`) describes, with a fresh head of `num_labels` outputs where it takes one.

    Raises:
        UserError: no such kind, folder or hub model, or not a model of this kind.
    """
    return load_plugin(KINDS, settings.kind, "model.kind", "load")(settings, num_labels)


def outline(settings: Any, num_labels: int | None) -> tuple[Backbone, str]:
    """A hub model's shapes on the meta device, without its processor, and where they are from.

    Raises:
        UserError: neither the hub answers, nor are its shapes known here; or its architecture is not described.
    """
    return load_plugin(KINDS, settings.kind, "model.kind", "outline")(settings, num_labels)


def on_hub(settings: Any) -> bool:
    """Whether `model.path` names a repository of the hub, and no folder."""
    if settings.path is None or settings.name is None:
        return False
    path = Path(settings.path).expanduser()
    return not path.is_dir() and not path.is_absolute()


def sketch(settings: Any, num_labels: int | None) -> Backbone | None:
    """The backbone on the meta device with its processor, as `load_backbone` would load it but without its weights.

    None where its kind does not tell, or its files are not here yet.
    """
    draw = getattr(load_module(KINDS, settings.kind, "model.kind", "load"), "sketch", None)
    return None if draw is None else draw(settings, num_labels)


def model_name(settings: Any) -> str:
    """The model's name in the folder of a run: `model.name`, or the name of the folder it is loaded from."""
    return settings.name or (settings.path or "").rstrip("/").rpartition("/")[2] or "unnamed"
