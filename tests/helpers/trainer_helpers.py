"""The Trainer on a small model, in the order of a plain loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import SequentialSampler
from training_helpers import (
    adapt_bert,
    tiny_bert,
)
from transformers import Trainer, TrainingArguments

from flexlora import FlexLoraCallback

STEPS, CUT, SIZE = 24, 13, 4


class InOrder(Trainer):
    """A Trainer whose batches come in the order of the data, so that a loop can have the same ones."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


class OfLogits(InOrder):
    """For models that return a tensor."""

    def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, **kwargs: Any) -> Any:
        logits = model(inputs["x"])
        loss = nn.functional.cross_entropy(logits, inputs["labels"])
        return (loss, logits) if return_outputs else loss


def mean_of_items(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """The mean over a whole accumulated batch (BERT's own loss ignores how many micro-batches there are)."""
    loss = nn.functional.cross_entropy(outputs.logits, labels, reduction="sum")
    return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def rows_of(batches: list[dict]) -> list[dict]:
    return [{key: value[i] for key, value in batch.items()} for batch in batches for i in range(len(batch["labels"]))]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": SIZE,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "save_strategy": "no",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "optim": "adamw_torch",
        "seed": 0,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**(settings | changes))


def model_of(**changes: Any) -> PeftModel:
    return adapt_bert(tiny_bert(), **({"total_step": STEPS, "deltaT": 2, "tinit": 1} | changes))


def train_with_trainer(
    folder: Path, model: nn.Module, batches: list[dict], resume: str | None = None, **changes: Any
) -> tuple[Trainer, FlexLoraCallback]:
    callback = FlexLoraCallback()
    trainer = InOrder(
        model=model, args=arguments(folder, **changes), train_dataset=rows_of(batches), callbacks=[callback]
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, callback
