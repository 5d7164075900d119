"""What the loop may ask of a method. The loop asks every method the same and knows none by name."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import flexlora
from flexlora.errors import UserError
from flexlora.settings import Schedule
from flexlora.tuner.events import PlannedEvents

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class RunContext:
    """What a method is told about the run before it wraps the model."""

    total_steps: int
    """Optimizer steps of the whole training."""
    schedule: Schedule
    paper_steps: int | None
    """Optimizer steps of the run that the method's windows were written for."""
    seed: int
    target_modules: str | None
    """Regular expression of the linears to adapt where the settings name none; None: not known."""
    head_modules: list[str] = field(default_factory=list)
    """Modules that train whole, where the settings name none: newly initialised ones."""
    task_type: str | None = None
    """PEFT's `task_type` of the model, kept with a saved adapter."""
    held_out: bool = True
    """Whether the evaluation is on rows held out of the training set; True where that is not known yet."""


class Method:
    """A way to fine-tune a model. Subclasses say how to wrap it and override the hooks they have a use for."""

    head_modules: Collection[str] = ()
    """Last names of the modules that are the head; `build_method` fills them in where a method has none."""
    schedule: dict[str, Any] | None = None
    """How the windows were scaled to this run, for the record; None where the method has no windows."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Adapt `model`, in place or around it, and return what is to be trained."""
        raise NotImplementedError

    def prepare(
        self, model: nn.Module, batches: Iterable[Batch], loss: Callable[[nn.Module, Batch], torch.Tensor]
    ) -> None:
        """Look at the data before the first step, e.g. for an initialisation from gradients of the task's `loss`."""

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """The optimizer's groups: everything that trains, in one."""
        return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": learning_rate}]

    def optimizer(
        self, groups: list[dict[str, Any]], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """The optimizer of this method; AdamW for all that do not need one of their own."""
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)

    def scheduler(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> LambdaLR:
        """The schedule, stepped once after every optimizer step: each group's rate times `factor`(steps taken)."""
        return LambdaLR(optimizer, factor)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Meet the real torch optimizer, before the first step; `model` is not wrapped for several processes."""

    def regularise(self, model: nn.Module) -> None:
        """Add a penalty's gradient, once per optimizer step, after clipping."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Act after optimizer step `step` (counted from 1), its gradients still there; not called for a skipped one."""

    def rank_events(self) -> list[dict[str, Any]]:
        """The rank events since this was last asked, JSON-ready."""
        return []

    def planned_events(self) -> PlannedEvents | None:
        """The rank events that are going to be held, None where there are none; known once the model is wrapped."""
        return None

    def ranks(self, model: nn.Module) -> dict[str, int]:
        """The current rank of every adapted module; empty where there is no such thing."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model's and the optimizer's state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""

    def search(self, model: nn.Module, score: Callable[[], float], keep: Callable[[], object]) -> None:
        """Choose, after the last step, among what was trained, before `finish`; all processes together.

        Args:
            score: evaluates `model` as it is, and gives the task's main metric.
            keep: keeps a checkpoint, so that a search that is stopped goes on from there.
        """

    def finish(self, model: nn.Module) -> None:
        """Clean up after the last step, before the last evaluation."""

    def parameters(self, model: nn.Module) -> dict[str, int]:
        """Trainable parameters: `adapter_active`, `adapter_allocated` and `head`; and `total`, frozen ones included.

        The first two are all that trains outside the head: of full fine-tuning the whole encoder, so that they mean the
        same for every method.
        """
        count = flexlora.count_parameters(model, self.head_modules)
        return {
            "adapter_active": count.adapter_active,
            "adapter_allocated": count.adapter_allocated,
            "head": count.head,
            "total": count.total,
        }

    def load(self, model: nn.Module, folder: Path) -> None:
        """Start from what `save` wrote into `folder`, in a model that `wrap` has adapted.

        A head of other shapes, of a task with another number of classes, is left as it is.

        Raises:
            UserError: there is no adapter, it is another method's or of another backbone, or this method cannot.
        """
        raise UserError(f"adapter: this method cannot start from a saved adapter ({folder})")

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what was trained into `folder`, which exists and is empty, as safetensors."""
        raise NotImplementedError
