"""The GLUE family: one or two texts in, a class or a number out. The tasks differ only in their YAML files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from flexlora.errors import UserError, did_you_mean
from flexlora.hub import load_splits
from flexlora.paths import existing_folder
from flexlora.settings import GlueTask
from flexlora.tasks.base import Split, Task
from flexlora.tasks.glue_columns import hub_rows, read_files
from flexlora.tasks.glue_files import find_train
from flexlora.tasks.glue_tsv import read_tsv
from flexlora.tasks.metrics import load_metric
from flexlora.tasks.rows import Rows, check_columns, check_labels, held_out
from flexlora.tasks.tokens import Examples, TokenCache, cache_folder, pad


@dataclass
class Glue(Task):
    """A GLUE task: its rows as read and, after `preprocess`, its splits."""

    settings: GlueTask
    train_rows: Rows
    evaluation_rows: dict[str, Rows]
    provenance: dict[str, Any]
    subset: bool
    train: Split = field(init=False)
    evaluation: list[Split] = field(init=False)
    processor: Any = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.settings.name
        self.main_metric = self.settings.main_metric
        self.num_labels = self.settings.num_labels
        self.labels = self.settings.labels
        self._metric = load_metric(self.settings.metric)
        fewest, most = self._metric.num_labels
        if not fewest <= self.num_labels <= most:
            raise UserError(f"task.metric: {self.settings.metric} does not work with task.num_labels={self.num_labels}")
        several = len(self.settings.tsv.evaluation) > 1
        self._prefixes = {name: f"{name}_" if several else "" for name in self.evaluation_rows}
        figures = [f"{prefix}{score}" for prefix in self._prefixes.values() for score in self._metric.scores]
        if self.main_metric not in figures:
            near = did_you_mean(self.main_metric, figures)
            raise UserError(
                f"task.main_metric: there is no metric '{self.main_metric}'.{near} There are: {', '.join(figures)}."
            )

    def preprocess(self, processor: Any) -> None:
        own = processor.num_special_tokens_to_add(pair=len(self.settings.text) == 2)
        if self.settings.max_length <= own:  # below this limit the tokenizer cuts nothing
            raise UserError(
                f"task.max_length={self.settings.max_length} is too small: "
                f"it must be larger than the {own} special tokens that this tokenizer adds"
            )
        self.processor = processor
        cache = TokenCache(cache_folder(self.settings.token_cache), processor)
        self.train = self._split("train", self.train_rows, cache)
        self.evaluation = [self._split(name, rows, cache) for name, rows in self.evaluation_rows.items()]

    def _split(self, name: str, rows: Rows, cache: TokenCache) -> Split:
        longest = min(self.settings.max_length, self.processor.model_max_length)
        tokens = cache.tokens(rows.texts, longest)
        return Split(name, Examples(tokens, rows.labels), tokens.lengths, rows.labels)

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = torch.tensor([example["labels"] for example in examples])
        return {**pad(examples, self.processor), "labels": labels}

    def padded_size(self, batch: dict[str, torch.Tensor]) -> int:
        return batch["input_ids"].shape[1]

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._loss(self._logits(model, batch), batch["labels"])

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._logits(model, batch)
        return self._loss(logits, batch["labels"]), logits if self.num_labels == 1 else logits.argmax(dim=-1)

    def _logits(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute the logits: (rows,) for a number, (rows, classes) for a class."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits: torch.Tensor = model(**inputs).logits.float()
        return logits.reshape(-1) if self.num_labels == 1 else logits

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Compute the task's loss. A model's own loss would follow the `problem_type` in its configuration."""
        if self.num_labels == 1:
            return functional.mse_loss(logits, labels.float())
        return functional.cross_entropy(logits, labels)

    def score(self, split: Split, predictions: Sequence[Any]) -> dict[str, float]:
        references = self.evaluation_rows[split.name].labels
        scores = self._metric.compute(predictions=list(predictions), references=references)
        assert scores is not None
        return {f"{self._prefixes[split.name]}{name}": float(value) for name, value in scores.items()}


def load(settings: GlueTask) -> Glue:
    """Read a GLUE task's rows from `task.data_dir` or from the hub.

    Raises:
        UserError: the folder, a file or a split is missing, a row is broken, or the hub cannot be reached.
    """
    check_columns(settings)
    check_labels(settings)
    if settings.data_dir is None:
        train, evaluation, provenance = _from_hub(settings)
    else:
        try:
            train, evaluation, provenance = _from_folder(settings, existing_folder("task.data_dir", settings.data_dir))
        except OSError as error:
            raise UserError(f"task.data_dir: cannot read {error.filename}: {error.strerror}") from error
    return glue(settings, train, evaluation, provenance)


def glue(
    settings: GlueTask,
    train: Rows,
    evaluation: dict[str, Rows],
    provenance: dict[str, Any],
    kind: type["Glue"] | None = None,
) -> Glue:
    """Make the task, of class `kind`, from these rows, cut to `max_train_rows` and `max_eval_rows`."""
    whole = [len(rows) for rows in (train, *evaluation.values())]
    if settings.validation_rows is not None:
        # The held-out rows replace the split of the main metric and take its name.
        first, *_ = evaluation
        split = next((name for name in evaluation if settings.main_metric.startswith(f"{name}_")), first)
        kept, held = held_out(settings.validation_rows, len(train))
        train, evaluation = train.pick(kept), {split: train.pick(held)}
        provenance = provenance | {"held_out": len(held)}
    train = train.first(settings.max_train_rows)
    evaluation = {name: rows.first(settings.max_eval_rows) for name, rows in evaluation.items()}
    kept = [len(rows) for rows in (train, *evaluation.values())]
    return (kind or Glue)(settings, train, evaluation, provenance, subset=kept != whole)


def _from_folder(settings: GlueTask, root: Path) -> tuple[Rows, dict[str, Rows], dict[str, Any]]:
    found = find_train(settings, root)

    def read(files: list[Path]) -> Rows:
        return read_tsv(files[0], settings) if found.classic else read_files(files, settings)

    names = settings.tsv.evaluation if found.classic else settings.hub.evaluation
    rows = {"train": read(found.train)}
    for name in names:
        rows[name] = read(found.evaluation(settings, name))
    provenance = {
        "source": "folder",
        "layout": "classic" if found.classic else "columns",
        "path": str(found.folder),
        "revision": None,
        "sha256": {file: sha256 for split in rows.values() for file, sha256 in split.sha256.items()},
        "left_out": {file: lines for split in rows.values() for file, lines in split.left_out.items()},
    }
    return rows.pop("train"), rows, provenance


def _from_hub(settings: GlueTask) -> tuple[Rows, dict[str, Rows], dict[str, Any]]:
    hub = settings.hub
    hint = f"task.data_dir=DIR takes the classic GLUE download (DIR/{settings.tsv.folder}/{settings.tsv.train})"
    loaded = load_splits(hub.path, hub.name, hub.revision, hint)
    splits = {"train": hub.train, **hub.evaluation}
    for split in splits.values():
        if split not in loaded:
            raise UserError(f"{hub.path} ({hub.name}) has no split '{split}'. It has: {', '.join(loaded)}")
    rows = {name: hub_rows(loaded[split], settings, split) for name, split in splits.items()}
    provenance = {
        "source": "hub",
        "path": f"{hub.path}/{hub.name}",
        "revision": hub.revision,
        "sha256": None,
        "content": {name: split.content() for name, split in rows.items()},
    }
    return rows.pop("train"), rows, provenance
