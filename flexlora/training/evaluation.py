"""One evaluation of a model: the loss, the predictions and the metrics of every split."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from flexlora.tasks import Split, Task
from flexlora.training.loader import TaskLoader
from flexlora.training.outcome import Diverged


@dataclass(frozen=True)
class Evaluation:
    """The results of one evaluation."""

    losses: dict[str, float]
    """The mean loss of each split, by the split's name."""
    predictions: dict[str, list[Any]]
    """The predictions of each split in its order, by the split's name."""
    scores: dict[str, float]
    """The metrics of all splits, and the metrics over all splits together."""

    def check(self, step: int) -> None:
        """Check that the losses are finite: no training step shows the effect of the very last update.

        Raises:
            Diverged: a loss is not finite.
        """
        if not all(math.isfinite(loss) for loss in self.losses.values()):
            raise Diverged(f"the evaluation's loss is not finite after step {step}")


class Evaluator:
    """Evaluates `model` on all processes together; calls `before_batch` before each batch."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        loader: TaskLoader,
        accelerator: Accelerator,
        before_batch: Callable[[], None],
    ) -> None:
        self._model = model
        self._task = task
        self._loader = loader
        self._accelerator = accelerator
        self._before_batch = before_batch

    def evaluate(self) -> Evaluation:
        """Score every evaluation split with the model's current weights."""
        losses: dict[str, float] = {}
        predictions: dict[str, list[Any]] = {}
        scores: dict[str, float] = {}
        self._model.eval()
        for split in self._task.evaluation:
            losses[split.name], predictions[split.name] = self._predict(split)
            scores |= self._task.score(split, predictions[split.name])
        self._model.train()
        return Evaluation(losses, predictions, scores | self._task.aggregate(scores))

    @torch.no_grad()
    def _predict(self, split: Split) -> tuple[float, list[Any]]:
        """Return the split's mean loss, and its predictions in the split's order."""
        mine, batches = self._loader.evaluation_batches(split)
        losses, predictions = [], []
        for number, batch in enumerate(batches):
            self._before_batch()
            with self._accelerator.autocast():  # generation does not call the model's own forward
                loss, predicted = self._task.predict(self._model, self._loader.to_device(batch))
            if number < len(mine):
                losses.append(loss.float() * len(mine[number]))
                predictions.append(predicted)
        flat = [i for indices in mine for i in indices]
        values = torch.cat(predictions).tolist() if predictions else []
        pairs = gather_object(list(zip(flat, values, strict=True)))
        total_loss = sum(gather_object([float(torch.stack(losses).sum()) if losses else 0.0]))
        ordered = [value for _, value in sorted(pairs, key=lambda pair: pair[0])]
        return total_loss / len(split), ordered
