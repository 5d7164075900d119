"""Sums of the training loss, and the first step whose loss is not finite."""

import math
from typing import Any

import torch
from accelerate import Accelerator

from flexlora.training.outcome import Diverged

NEVER = 2**31 - 1


class RunningLoss:
    """Sums of the loss on the device, read only when a line is logged: a read at every step would synchronise it."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._since_line = torch.zeros((), device=accelerator.device)
        self._in_epoch = torch.zeros((), device=accelerator.device)
        self._bad_step = torch.full((), NEVER, dtype=torch.int64, device=accelerator.device)
        self._steps_since_line = 0
        self.grad_norm = torch.full((), math.nan, device=accelerator.device)
        """The norm of the gradients of the last step, before clipping."""

    def zero(self) -> torch.Tensor:
        """Return a zero on the device, to start a sum."""
        return torch.zeros_like(self._since_line)

    def add(self, loss: torch.Tensor, step: int) -> None:
        """Add the loss of optimizer step `step`."""
        self._bad_step = torch.where(torch.isfinite(loss), self._bad_step, self._bad_step.clamp(max=step))
        self._since_line += loss
        self._in_epoch += loss
        self._steps_since_line += 1

    def begin_epoch(self) -> None:
        self._in_epoch.zero_()

    def mean_of_line(self) -> float:
        """Return the mean over all processes and over the steps since the last call."""
        mean = self._mean(self._since_line / max(1, self._steps_since_line))
        self._since_line.zero_()
        self._steps_since_line = 0
        return mean

    def mean_of_epoch(self, steps: int) -> float:
        """Return the mean over all processes and over the `steps` of this epoch."""
        return self._mean(self._in_epoch / max(1, steps))

    def _mean(self, value: torch.Tensor) -> float:
        return float(self._accelerator.reduce(value, reduction="mean"))

    def check(self) -> None:
        """Check that all losses so far are finite, on all processes.

        Raises:
            Diverged: the loss of a step is not finite; the message names the first such step.
        """
        step = int(self._accelerator.gather(self._bad_step.reshape(1)).min())
        if step != NEVER:
            raise Diverged(f"the loss is not finite at step {step}")

    def state_dict(self) -> dict[str, Any]:
        return {
            "loss": self._since_line.cpu(),
            "epoch_loss": self._in_epoch.cpu(),
            "steps": self._steps_since_line,
            "grad_norm": self.grad_norm.cpu(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._since_line.copy_(state["loss"])
        self._in_epoch.copy_(state["epoch_loss"])
        self._steps_since_line = state["steps"]
        self.grad_norm = state["grad_norm"].to(self._accelerator.device)
