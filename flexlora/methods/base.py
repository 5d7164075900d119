"""The interface between the training loop and a method. The loop treats all methods in the same way."""

from collections.abc import Callable, Collection, Iterable, Mapping
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
from flexlora.tuner.precision import half_precision

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class RunContext:
    """The facts about the run that a method gets before it wraps the model."""

    total_steps: int
    """The number of optimizer steps of the whole training."""
    schedule: Schedule
    paper_steps: int | None
    """The number of optimizer steps of the run that the method's windows were written for, or None."""
    seed: int
    target_modules: str | None
    """The regular expression of the linears to adapt by default, or None if it is not known."""
    head_modules: list[str] = field(default_factory=list)
    """The modules to train fully by default: the newly initialised modules."""
    task_type: str | None = None
    """PEFT's `task_type` of the model. It is stored with a saved adapter."""
    held_out: bool = True
    """Whether the evaluation uses rows held out of the training set. It is True if that is not known yet."""


class ConfiguredByData(NotImplementedError):
    """The number of parameters is not known before the method has chosen its configuration from gradients."""


class Method:
    """A way to fine-tune a model. Subclasses implement `wrap` and `save`, and override the hooks they need."""

    head_modules: Collection[str] = ()
    """The last parts of the head modules' names. `build_method` sets them if the method does not."""
    schedule: dict[str, Any] | None = None
    """The scaling of the windows to this run, for the record, or None if the method has no windows."""

    configures: bool = False
    """Whether the method chooses its configuration from gradients, so that `configure` must come before `wrap`."""

    def configure(
        self, model: nn.Module, batches: Iterable[Batch], loss: Callable[[nn.Module, Batch], torch.Tensor]
    ) -> None:
        """Choose the configuration from gradients of the task's `loss` on the plain backbone, before `wrap`.

        Raises:
            UserError: the gradients do not allow a choice.
        """

    def configuration(self) -> dict[str, Any]:
        """Return what `configure` chose, in JSON-ready form. It is recorded, and a resumed run takes it."""
        return {}

    def take_configuration(self, values: Mapping[str, Any]) -> None:
        """Take what `configuration` returned, instead of calling `configure`.

        Raises:
            ValueError: the values are not what `configuration` returns.
        """

    def configuration_of(self, folder: Path) -> Mapping[str, Any] | None:
        """Return what `configure` chose for the saved adapter in `folder`, or None if this method can choose again.

        Raises:
            UserError: the folder has no adapter of this method.
        """
        return None

    def configuration_lines(self) -> list[str]:
        """Describe in a few lines what `configure` chose."""
        return []

    def wrap(self, model: nn.Module) -> nn.Module:
        """Adapt `model`, in place or by a wrapper, and return the model to train."""
        raise NotImplementedError

    def prepare(
        self, model: nn.Module, batches: Iterable[Batch], loss: Callable[[nn.Module, Batch], torch.Tensor]
    ) -> None:
        """Use the data before the first step, for example to initialise from gradients of the task's `loss`."""

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups. By default this is one group with all trainable parameters."""
        return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": learning_rate}]

    def optimizer(
        self, groups: list[dict[str, Any]], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        """Make the optimizer of this method. The default is AdamW."""
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)

    def scheduler(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> LambdaLR:
        """Make the learning-rate schedule. Each group's rate is its initial rate times `factor`(completed steps)."""
        return LambdaLR(optimizer, factor)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Attach to the torch optimizer before the first step. `model` is not wrapped by DDP or FSDP."""

    def regularise(self, model: nn.Module) -> None:
        """Add the penalty's gradient, once per optimizer step, after clipping."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Update after optimizer step `step` (counted from 1). Gradients still exist. A skipped step has no call."""

    def rank_events(self) -> list[dict[str, Any]]:
        """Return the rank events since the last call, in JSON-ready form."""
        return []

    def planned_events(self) -> PlannedEvents | None:
        """Return the planned rank events, or None if there are none. They are known after the model is wrapped."""
        return None

    def ranks(self, model: nn.Module) -> dict[str, int]:
        """Return the current rank of every adapted module. The result is empty if the method has no ranks."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for resuming a run, in addition to the model's and the optimizer's state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""

    def search(self, model: nn.Module, score: Callable[[], float], keep: Callable[[], object]) -> None:
        """Search for the best part of the trained model. All processes call it after the last step, before `finish`.

        Args:
            model: the trained model.
            score: evaluates `model` and returns the task's main metric.
            keep: writes a checkpoint. An interrupted search continues from it.
        """

    def finish(self, model: nn.Module) -> None:
        """Clean up after the last step, before the last evaluation."""

    def parameters(self, model: nn.Module) -> dict[str, int]:
        """Count parameters: `adapter_active`, `adapter_allocated`, `head`, and `total` including frozen parameters.

        The first two count all trainable parameters outside the head (for full fine-tuning the whole encoder), so that
        they mean the same for every method.
        """
        count = flexlora.count_parameters(model, self.head_modules)
        return {
            "adapter_active": count.adapter_active,
            "adapter_allocated": count.adapter_allocated,
            "head": count.head,
            "total": count.total,
        }

    def load(self, model: nn.Module, folder: Path) -> None:
        """Load the adapter that `save` wrote into `folder`, into a model that `wrap` has adapted.

        A saved head with other shapes, from a task with another number of classes, is ignored.

        Raises:
            UserError: the folder has no adapter, the adapter is of another method or backbone, or this method cannot
                start from an adapter.
        """
        raise UserError(f"adapter: this method cannot start from a saved adapter ({folder})")

    def save(self, model: nn.Module, folder: Path) -> None:
        """Save the trained parameters as safetensors in the existing, empty `folder`."""
        raise NotImplementedError


def refuse_half_precision(model: nn.Module) -> None:
    """Check that an adapted model trains float32 parameters only.

    Raises:
        UserError: a trainable parameter is float16 or bfloat16.
    """
    half = half_precision(model.named_parameters())
    if half is not None:
        raise UserError(
            f"{half[1]}, and small steps vanish in half precision: set model.dtype=float32 "
            "(training.precision=bf16 makes the computation equally fast)"
        )
