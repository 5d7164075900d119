"""The GLUE family: one or two texts in, a class or a number out. What sets its tasks apart is all in their YAML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flexlora.errors import UserError, did_you_mean, one_line
from flexlora.hub import hub_is_offline
from flexlora.settings import GlueTask
from flexlora.tasks.base import Split
from flexlora.tasks.glue_tsv import read_tsv
from flexlora.tasks.metrics import load_metric
from flexlora.tasks.rows import Rows, as_number, check_labels

# A row of eight lets a GPU's matrix units work on whole tiles.
PAD_TO_MULTIPLE_OF = 8


@dataclass
class Glue:
    """One GLUE task: rows as read, and once tokenised the splits a loop takes."""

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
        self._metric = load_metric(self.settings.metric)
        self._prefixes = {name: f"{name}_" if len(self.evaluation_rows) > 1 else "" for name in self.evaluation_rows}
        figures = [f"{prefix}{score}" for prefix in self._prefixes.values() for score in self._metric.scores]
        if self.main_metric not in figures:
            near = did_you_mean(self.main_metric, figures)
            raise UserError(
                f"task.main_metric: there is no '{self.main_metric}'.{near} This task has {', '.join(figures)}."
            )

    def tokenize(self, processor: Any) -> None:
        self.processor = processor
        self.train = self._split("train", self.train_rows)
        self.evaluation = [self._split(name, rows) for name, rows in self.evaluation_rows.items()]

    def _split(self, name: str, rows: Rows) -> Split:
        longest = min(self.settings.max_length, self.processor.model_max_length)
        encoded = self.processor(*rows.texts, truncation=True, max_length=longest)
        columns = {key: values for key, values in encoded.items() if key != "attention_mask"}
        examples = [
            {key: values[i] for key, values in columns.items()} | {"labels": label}
            for i, label in enumerate(rows.labels)
        ]
        return Split(name, examples, [len(ids) for ids in encoded["input_ids"]])

    def collate(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = [{key: value for key, value in example.items() if key != "labels"} for example in examples]
        # A dictionary of columns: given a list of rows, a fast tokenizer's `pad` warns of its own slowness.
        columns = {key: [row[key] for row in inputs] for key in inputs[0]}
        batch = self.processor.pad(
            columns, padding="longest", pad_to_multiple_of=PAD_TO_MULTIPLE_OF, return_tensors="pt"
        )
        labels = torch.tensor([example["labels"] for example in examples])
        return {**batch, "labels": labels}

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).loss

    def predict(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        output = model(**batch)
        logits = output.logits.float()
        return output.loss, logits.squeeze(-1) if self.num_labels == 1 else logits.argmax(dim=-1)

    def score(self, split: Split, predictions: Sequence[Any]) -> dict[str, float]:
        references = [example["labels"] for example in split.examples]
        scores = self._metric.compute(predictions=list(predictions), references=references)
        assert scores is not None
        return {f"{self._prefixes[split.name]}{name}": float(value) for name, value in scores.items()}


def load(settings: GlueTask) -> Glue:
    """Read a GLUE task's rows from `task.data_dir`, or from the hub.

    Raises:
        UserError: the folder, a file or a split is missing, a row is broken, the hub is out of reach.
    """
    check_labels(settings)
    if settings.data_dir is None:
        train, evaluation, provenance = _from_hub(settings)
    else:
        train, evaluation, provenance = _from_folder(settings, Path(settings.data_dir).expanduser())
    whole = [len(rows.labels) for rows in (train, *evaluation.values())]
    train = train.first(settings.max_train_rows)
    evaluation = {name: rows.first(settings.max_eval_rows) for name, rows in evaluation.items()}
    kept = [len(rows.labels) for rows in (train, *evaluation.values())]
    return Glue(settings, train, evaluation, provenance, subset=kept != whole)


def _from_folder(settings: GlueTask, root: Path) -> tuple[Rows, dict[str, Rows], dict[str, Any]]:
    if not root.is_dir():
        raise UserError(f"task.data_dir: there is no folder {root}")
    folder = next((f for f in (root / settings.tsv.folder, root) if (f / settings.tsv.train).is_file()), None)
    if folder is None:
        raise UserError(
            f"task.data_dir: neither {root / settings.tsv.folder} nor {root} has a {settings.tsv.train} "
            "(the classic GLUE download is expected)"
        )
    files = {"train": settings.tsv.train, **settings.tsv.evaluation}
    rows = {name: read_tsv(folder / file, settings) for name, file in files.items()}
    hashes = {file: sha256 for split in rows.values() for file, sha256 in split.sha256.items()}
    left_out = {file: lines for split in rows.values() for file, lines in split.left_out.items()}
    provenance = {"source": "folder", "path": str(folder), "revision": None, "sha256": hashes, "left_out": left_out}
    return rows.pop("train"), rows, provenance


def _from_hub(settings: GlueTask) -> tuple[Rows, dict[str, Rows], dict[str, Any]]:
    offline = hub_is_offline()
    import datasets

    datasets.utils.logging.disable_progress_bar()
    hub = settings.hub
    hint = f"task.data_dir=DIR takes the classic GLUE download (DIR/{settings.tsv.folder}/{settings.tsv.train})"
    try:
        loaded = datasets.load_dataset(hub.path, hub.name, revision=hub.revision)
    except (OSError, ValueError) as error:  # the hub's and the cache's errors derive from these
        if offline:
            raise UserError(
                f"{hub.path} ({hub.name}) is not in the local cache and the hub cannot be reached "
                f"(or HF_HUB_OFFLINE=1 is set): {hint}"
            ) from error
        raise UserError(f"cannot load {hub.path} ({hub.name}) from the hub: {one_line(error)}; {hint}") from error
    splits = {"train": hub.train, **hub.evaluation}
    for split in splits.values():
        if split not in loaded:
            raise UserError(f"{hub.path} ({hub.name}) has no split '{split}': it has {', '.join(loaded)}")
    rows = {name: _hub_rows(loaded[split], settings, split) for name, split in splits.items()}
    provenance = {"source": "hub", "path": f"{hub.path}/{hub.name}", "revision": hub.revision, "sha256": None}
    return rows.pop("train"), rows, provenance


def _hub_rows(split: Any, settings: GlueTask, name: str) -> Rows:
    for column in (*settings.text, "label"):
        if column not in split.column_names:
            raise UserError(f"split '{name}' has no column '{column}': it has {', '.join(split.column_names)}")
    labels = list(split["label"])
    if settings.num_labels == 1:
        numbers = [as_number(label, settings) for label in labels]
        wrong = next((i for i, number in enumerate(numbers) if isinstance(number, str)), None)
        if wrong is not None:
            raise UserError(f"split '{name}', row {wrong}: {numbers[wrong]}")
        labels = numbers
    else:
        wrong = next((i for i, label in enumerate(labels) if label not in range(settings.num_labels)), None)
        if wrong is not None:
            raise UserError(
                f"split '{name}', row {wrong}: label {labels[wrong]!r} is none of 0 to {settings.num_labels - 1}"
            )
    return Rows(tuple(list(split[column]) for column in settings.text), labels)
