"""What the loop may ask of a task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from flexlora.plugins import load_plugin


@dataclass
class Split:
    """Examples that are ready to be batched.

    `lengths[i]` is the size of example i in the unit that padding is counted in (tokens), for batches by length.
    """

    name: str
    examples: Sequence[dict[str, Any]]
    lengths: Sequence[int]

    def __len__(self) -> int:
        return len(self.examples)


class Task(Protocol):
    """Data, loss and score of one task, for the backbone whose processor it was loaded with."""

    name: str
    train: Split
    evaluation: list[Split]
    main_metric: str
    """The metric that "best" is chosen by; more is better."""
    num_labels: int
    provenance: dict[str, Any]
    """Where the data came from, for the record."""
    subset: bool
    """Whether rows were left out by `max_train_rows` or `max_eval_rows`."""

    def tokenize(self, processor: Any) -> None:
        """Turn the raw rows into examples, once."""

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A padded batch of examples, ready for the model."""

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The batch's mean loss, a scalar on the model's device."""

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch's mean loss and one prediction an example."""

    def score(self, split: Split, predictions: Sequence[Any]) -> dict[str, float]:
        """The split's metrics from one prediction an example, in the split's order."""


def load_task(settings: Any) -> Task:
    """The task that `settings` (`task.*`) describes; its rows are read, not yet tokenised.

    Raises:
        UserError: no such family, or the data is missing or broken.
    """
    return load_plugin("flexlora.tasks", settings.family, "task.family", "load")(settings)
