"""The interface between the training loop and a task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flexlora.plugins import load_plugin


@dataclass
class Split:
    """Examples that are ready to be batched.

    `lengths[i]` is the size of example i in the unit of padding: its number of tokens, or 1 for an image, which has no
    padding. Batches are formed by these lengths.
    """

    name: str
    examples: Sequence[dict[str, Any]]
    lengths: Sequence[int]
    labels: Sequence[Any] | None = None
    """The references of the predictions, one number for each example; None if there are none."""

    def __len__(self) -> int:
        return len(self.examples)


class Task:
    """Data, loss and score of one task. `preprocess` binds it to a backbone's processor. One file for each family."""

    name: str
    train: Split
    evaluation: list[Split]
    main_metric: str
    """The metric that selects the best checkpoint; higher is better."""
    num_labels: int | None
    """The number of outputs of a fresh head; None if the backbone brings its own head."""
    labels: Sequence[str] = ()
    """The names of the classes in the order of the head's outputs; empty if there are none."""
    provenance: dict[str, Any]
    """The source of the data, for the record."""
    subset: bool
    """Whether `max_train_rows` or `max_eval_rows` left rows out."""

    def preprocess(self, processor: Any) -> None:
        """Turn the raw rows into examples with the backbone's tokenizer or image settings; called once."""
        raise NotImplementedError

    def image_files(self) -> Iterator[Path]:
        """Yield the files of the splits whose hashes are not in `provenance`. Only image tasks have such files."""
        yield from ()

    def train_examples(self, seed: int, epoch: int) -> Sequence[dict[str, Any]]:
        """Return the training examples of epoch `epoch`. Augmentation is a function of (seed, epoch, index)."""
        return self.train.examples

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a padded batch of examples, ready for the model."""
        raise NotImplementedError

    def padded_size(self, batch: dict[str, torch.Tensor]) -> int:
        """Return the padded size of an example in this batch, in the unit of `Split.lengths`."""
        return 1

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute the batch's mean loss, a scalar on the model's device."""
        raise NotImplementedError

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the batch's mean loss and one number for each example, its prediction."""
        raise NotImplementedError

    def score(self, split: Split, predictions: Sequence[Any]) -> dict[str, float]:
        """Compute the split's metrics from one prediction for each example, in the split's order."""
        raise NotImplementedError

    def aggregate(self, scores: dict[str, float]) -> dict[str, float]:
        """Compute further metrics from those of all evaluation splits, such as their average."""
        return {}


def load_task(settings: Any) -> Task:
    """Load the task that `settings` (`task.*`) describes. Its rows are read but not yet preprocessed.

    Raises:
        UserError: the family does not exist, or the data is missing or broken.
    """
    return load_plugin(("flexlora.tasks", "flexlora.tiny.tasks"), settings.family, "task.family", "load")(settings)
