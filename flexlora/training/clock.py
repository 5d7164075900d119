"""The time that a training spends in its steps."""

import torch

from flexlora.training.outcome import Outcome
from flexlora.training.stopped_time import running_seconds


class TrainingClock:
    """Adds the time in training steps to `outcome.train_seconds`. Evaluations, checkpoints and stops do not count."""

    def __init__(self, outcome: Outcome, device: torch.device) -> None:
        self._outcome = outcome
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Wait until the device has finished its work, then count from now on. The time before is dropped."""
        self._wait()
        self._began = running_seconds()

    def seconds(self) -> float:
        """Return the time in training steps so far, in seconds."""
        return self._outcome.train_seconds + running_seconds() - self._began

    def pause(self) -> None:
        """Wait until the device has finished its work, then add the time so far to the outcome."""
        self._wait()
        self._outcome.train_seconds = self.seconds()
        self.restart()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
