"""The two tasks of newborn.py: digits with a small MLP, and CoLA with an encoder from a folder."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

Batch = Any


class Task:
    """A model to adapt, its training batches and its held-out loss.

    Attributes:
        targets: the linears to adapt.
        heads: the modules that are trained fully, together with the adapter.
    """

    targets: Sequence[str]
    heads: Sequence[str]

    def model(self, seed: int) -> nn.Module:
        raise NotImplementedError

    def batches(self, seed: int) -> Iterator[Batch]:
        """Yield an endless sequence of batches, shuffled by `seed`."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        raise NotImplementedError

    def held_out(self) -> list[Batch]:
        raise NotImplementedError


class Digits(Task):
    """The digits task: an MLP trained on scikit-learn's digits is adapted to the digits rotated by 90 degrees."""

    targets = ("0", "2", "4", "6")
    heads = ("8",)

    def __init__(self) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32) / 16.0
        labels = torch.tensor(digits.target)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        images, labels = images[order], labels[order]
        self.upright = images.flatten(1)
        self.turned = torch.rot90(images, 1, (1, 2)).flatten(1)
        self.labels = labels
        self.split = 1200
        self.pretrained: dict[int, nn.Module] = {}

    def model(self, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        widths = [64, 96, 96, 96, 96, 10]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        model = nn.Sequential(*layers[:-1])
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(300):
            index = torch.randint(0, self.split, (64,), generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(self.upright[index]), self.labels[index]).backward()
            optimizer.step()
        return model

    def batches(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(1000 + seed)
        while True:
            index = torch.randint(0, self.split, (32,), generator=generator)
            yield self.turned[index], self.labels[index]

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def held_out(self) -> list[Batch]:
        return [(self.turned[self.split :], self.labels[self.split :])]


class Cola(Task):
    """CoLA from the classic GLUE folder, with a local BERT-like encoder."""

    targets = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
    heads = ("classifier", "pooler")

    def __init__(self, encoder: Path, glue: Path, size: int = 32, length: int = 64) -> None:
        from transformers import AutoTokenizer

        self.encoder, self.size, self.length = encoder, size, length
        self.tokenizer = AutoTokenizer.from_pretrained(encoder)
        self.rows = {name: self._read(glue / "CoLA" / f"{name}.tsv") for name in ("train", "dev")}

    @staticmethod
    def _read(file: Path) -> list[tuple[str, int]]:
        with file.open(encoding="utf-8", newline="") as lines:
            return [(row[3], int(row[1])) for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]

    def model(self, seed: int) -> nn.Module:
        from transformers import AutoModelForSequenceClassification

        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(self.encoder, num_labels=2, dtype=torch.float32)

    def _batch(self, rows: list[tuple[str, int]]) -> Batch:
        texts = self.tokenizer(
            [text for text, _ in rows], padding=True, truncation=True, max_length=self.length, return_tensors="pt"
        )
        return dict(texts) | {"labels": torch.tensor([label for _, label in rows])}

    def batches(self, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(1000 + seed)
        while True:
            order = torch.randperm(len(self.rows["train"]), generator=generator).tolist()
            for start in range(0, len(order) - self.size + 1, self.size):
                yield self._batch([self.rows["train"][i] for i in order[start : start + self.size]])

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return model(**batch).loss

    def held_out(self) -> list[Batch]:
        rows = self.rows["dev"][:256]
        return [self._batch(rows[start : start + 128]) for start in range(0, len(rows), 128)]
