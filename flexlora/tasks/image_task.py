"""A task whose input is an image and whose output is a class: what VTAB-1K and whole image sets share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from flexlora.cache import cache_dir, trusted
from flexlora.errors import UserError
from flexlora.settings import (
    ImageSetTask,
    ImageTask,
    Interpolation,
    Normalization,
    Resize,
    VtabTask,
    evaluates_held_out,
)
from flexlora.tasks.base import Split, Task
from flexlora.tasks.image_lists import ImageRows
from flexlora.tasks.images import RESAMPLING, Augmented, BadImages, Form, ImageCache, ImageExamples, augmentation
from flexlora.tasks.metrics import load_metric
from flexlora.tasks.rows import held_out

# The value of `task.image_cache` that selects the default folder.
DEFAULT_CACHE = "default"
# The largest number of unreadable images that an error message names.
NAMED = 20
# ImageNet's mean and standard deviation of values in [0, 1]. The VTAB-1K literature uses them with every backbone.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass
class ImageClassification(Task):
    """An image task: its rows as read and, after `preprocess`, its splits."""

    settings: VtabTask | ImageSetTask
    train_rows: ImageRows
    evaluation_rows: dict[str, ImageRows]
    provenance: dict[str, Any]
    subset: bool
    train: Split = field(init=False)
    evaluation: list[Split] = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.settings.name
        self.num_labels = self.settings.num_classes
        self._metric = load_metric(self.settings.metric if isinstance(self.settings, ImageSetTask) else "accuracy")
        self.main_metric = self._metric.scores[0]

    def preprocess(self, processor: Any) -> None:
        """Decode all images, or read them from the cache.

        Raises:
            UserError: the backbone does not take images, or some images cannot be read. The message names them.
        """
        if not hasattr(processor, "interpolation"):
            raise UserError(
                f"{self.name} is an image task: set model=vit_b16, or another model with model.kind=image_classifier"
            )
        self._form, mean, std = _preprocessing(self.settings, processor)
        # Mean and deviation are scaled to values up to 255 and shaped to broadcast with (rows, 3, height, width).
        self._mean = torch.tensor(mean).reshape(3, 1, 1) * 255
        self._std = torch.tensor(std).reshape(3, 1, 1) * 255
        self._dtype = processor.dtype
        self._augmentation = augmentation(self._form, self.settings.random_resized_crop, self.settings.horizontal_flip)
        cache = ImageCache(_cache_folder(self.settings.image_cache), self._form)
        splits, problems = {}, []
        for name, rows in {"train": self.train_rows, **self.evaluation_rows}.items():
            try:
                images, digest = cache.images(rows)
            except BadImages as error:
                problems += error.problems
                continue
            splits[name] = Split(name, ImageExamples(images, rows.labels), [1] * len(rows), rows.labels)
            self.provenance["sha256"][f"images of {name}"] = digest
        if problems:
            raise UserError(f"task.data_dir: {_listed(problems)} in {self.provenance['path']}")
        self.train = splits.pop("train")
        self.evaluation = list(splits.values())

    def image_files(self) -> Iterator[Path]:
        for rows in (self.train_rows, *self.evaluation_rows.values()):
            yield from (image for image in rows.images if isinstance(image, Path))

    def train_examples(self, seed: int, epoch: int) -> Sequence[dict[str, Any]]:
        if self._augmentation is None:
            return self.train.examples
        assert isinstance(self.train.examples, ImageExamples)
        return Augmented(self.train.examples, self._augmentation, seed, epoch)

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Stack the examples. Images stay uint8 until they are on the device: a quarter of the bytes of float32."""
        images = torch.from_numpy(np.stack([example["images"] for example in examples]))
        return {"images": images, "labels": torch.tensor([example["labels"] for example in examples])}

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(self._logits(model, batch), batch["labels"])

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._logits(model, batch)
        return functional.cross_entropy(logits, batch["labels"]), logits.argmax(dim=-1)

    def score(self, split: Split, predictions: Sequence[Any]) -> dict[str, float]:
        references = self.evaluation_rows[split.name].labels
        scores = self._metric.compute(predictions=list(predictions), references=references)
        assert scores is not None
        return {name: float(value) for name, value in scores.items()}

    def _logits(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        images = batch["images"]
        mean, std = self._mean.to(images.device), self._std.to(images.device)
        logits: torch.Tensor = model(images.float().sub_(mean).div_(std).to(self._dtype))
        return logits.float()


def image_task(
    settings: VtabTask | ImageSetTask, train: ImageRows, evaluation: dict[str, ImageRows], provenance: dict[str, Any]
) -> ImageClassification:
    """Make the task from these rows, cut to `max_train_rows` and `max_eval_rows`."""
    whole = [len(rows) for rows in (train, *evaluation.values())]
    if settings.validation_rows is not None:
        kept, held = held_out(settings.validation_rows, len(train))
        train, evaluation = train.pick(kept), {"validation": train.pick(held)}
    if evaluates_held_out(settings):
        provenance = provenance | {"held_out": sum(map(len, evaluation.values()))}
    train = train.first(settings.max_train_rows)
    evaluation = {name: rows.first(settings.max_eval_rows) for name, rows in evaluation.items()}
    kept_rows = [len(rows) for rows in (train, *evaluation.values())]
    return ImageClassification(settings, train, evaluation, provenance, subset=kept_rows != whole)


def _preprocessing(settings: ImageTask, processor: Any) -> tuple[Form, tuple[float, ...], tuple[float, ...]]:
    """Choose size and interpolation, and mean and standard deviation of values in [0, 1]."""
    interpolation = settings.interpolation.value
    if settings.interpolation is Interpolation.model:
        interpolation = processor.interpolation
        if interpolation not in RESAMPLING:
            raise UserError(
                f"task.interpolation=model: the model's interpolation '{interpolation}' is not supported: "
                "set task.interpolation to bicubic or bilinear"
            )
    means = {
        Normalization.imagenet: IMAGENET,
        Normalization.model: (processor.mean, processor.std),
        Normalization.none: ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    }
    height, width = processor.size
    crop = isinstance(settings, ImageSetTask) and settings.resize is Resize.center_crop
    return Form(height, width, interpolation, crop), *means[settings.normalization]


def _cache_folder(setting: str | None) -> Path | None:
    if setting is None:
        return None
    return cache_dir("images") if setting == DEFAULT_CACHE else trusted(Path(setting).expanduser())


def _listed(problems: list[str]) -> str:
    named = dict.fromkeys(problems)  # an image may be in two lists
    text = ", ".join(list(named)[:NAMED])
    more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
    return f"{len(named)} {'image' if len(named) == 1 else 'images'} cannot be read: {text}{more}"
