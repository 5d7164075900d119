"""What the loop may ask of a task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from flexlora.plugins import load_plugin


@dataclass
class Split:
    """Examples that are ready to be batched.

    `lengths[i]` is the size of example i in the unit that padding is counted in, for batches by length: its tokens; 1
    for an image, which has no padding.
    """

    name: str
    examples: Sequence[dict[str, Any]]
    lengths: Sequence[int]
    labels: Sequence[Any] | None = None
    """What the predictions are scored by, one number an example, to be kept beside them; None where there is none."""

    def __len__(self) -> int:
        return len(self.examples)


class Task:
    """Data, loss and score of one task, for the backbone whose processor it was loaded with. One file a family."""

    name: str
    train: Split
    evaluation: list[Split]
    main_metric: str
    """The metric that "best" is chosen by; more is better."""
    num_labels: int | None
    """Outputs of a fresh head; None where the backbone brings its own."""
    provenance: dict[str, Any]
    """Where the data came from, for the record."""
    subset: bool
    """Whether rows were left out by `max_train_rows` or `max_eval_rows`."""

    def preprocess(self, processor: Any) -> None:
        """Turn the raw rows into examples by the backbone's tokenizer or image settings, once."""
        raise NotImplementedError

    def train_examples(self, seed: int, epoch: int) -> Sequence[dict[str, Any]]:
        """The training examples as epoch `epoch` sees them: augmentation is a function of (seed, epoch, index)."""
        return self.train.examples

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """A padded batch of examples, ready for the model."""
        raise NotImplementedError

    def padded_size(self, batch: dict[str, torch.Tensor]) -> int:
        """The size of each of a batch's examples with its padding, in the unit of `Split.lengths`."""
        return 1

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The batch's mean loss, a scalar on the model's device."""
        raise NotImplementedError

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch's mean loss and one prediction an example, a number."""
        raise NotImplementedError

    def score(self, split: Split, predictions: Sequence[Any]) -> dict[str, float]:
        """The split's metrics from one prediction an example, in the split's order."""
        raise NotImplementedError

    def aggregate(self, scores: dict[str, float]) -> dict[str, float]:
        """Further figures from those of all evaluation splits together, such as their average."""
        return {}


def load_task(settings: Any) -> Task:
    """The task that `settings` (`task.*`) describes; its rows are read, not yet preprocessed.

    Raises:
        UserError: no such family, or the data is missing or broken.
    """
    return load_plugin(("flexlora.tasks", "flexlora.tiny.tasks"), settings.family, "task.family", "load")(settings)
