"""A minute's pretraining of a small encoder: words to fill in, and words out of place to find."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from flexlora.tasks.generator.words import KINDS, other_forms

IGNORED = -100


@dataclass(frozen=True)
class Pretraining:
    """How the small encoders are pretrained. Every field is part of a cached encoder's name."""

    seed: int = 0
    texts: int = 24_000
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 60
    weight_decay: float = 0.01
    masked: float = 0.2
    """Share of the words to fill in, in the half of the texts that have such."""
    misplaced: float = 0.7
    """Share of the other half's texts in which a word, or a pair of words, is out of place."""


def pretrain(encoder: nn.Module, tokenizer: Any, texts: Sequence[tuple[str, ...]], settings: Pretraining) -> None:
    """Train `encoder` in place on `texts` of one or two sentences, with heads that are then thrown away."""
    draw = Random(settings.seed)
    reader = _Reader(tokenizer)
    rows = [tokenizer(*text)["input_ids"] for text in texts]
    config: Any = encoder.config
    fill = nn.Sequential(nn.Linear(config.hidden_size, config.hidden_size), nn.GELU(), nn.LayerNorm(config.hidden_size))
    find = nn.Sequential(nn.Linear(config.hidden_size, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, 1))
    words = encoder.get_input_embeddings().weight  # type: ignore[operator]
    parameters = [*encoder.parameters(), *fill.parameters(), *find.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / settings.warmup_steps, 1 - step / settings.steps),
    )
    encoder.train()
    for _ in range(settings.steps):
        chosen = sorted((draw.choice(rows) for _ in range(settings.batch_size)), key=len)
        ids, missing, misplaced = reader.batch(chosen, settings, draw)
        hidden = encoder(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).last_hidden_state
        to_fill = missing != IGNORED
        guess = fill(hidden[to_fill]) @ words.T
        filled = functional.cross_entropy(guess, missing[to_fill])
        to_judge = misplaced != IGNORED
        verdict = find(hidden[to_judge]).squeeze(-1)
        found = functional.binary_cross_entropy_with_logits(verdict, misplaced[to_judge].float())
        (filled + found).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    encoder.eval()


class _Reader:
    """Spoils texts of token ids, and says where."""

    def __init__(self, tokenizer: Any) -> None:
        ids = tokenizer.get_vocab()
        self.mask, self.pad = tokenizer.mask_token_id, tokenizer.pad_token_id
        self.special = set(tokenizer.all_special_ids)
        self.forms = {i: [ids[form] for form in other_forms(word)] for word, i in ids.items()}
        self.kinds = {ids[word]: kind for word, kind in KINDS.items()}

    def batch(self, rows: list[list[int]], settings: Pretraining, draw: Random) -> tuple[torch.Tensor, ...]:
        """Ids, the missing words' ids, and 1 where a word is out of place: each (rows, length)."""
        length = max(map(len, rows))
        columns: tuple[list[list[int]], ...] = ([], [], [])
        for row in rows:
            spoiled = self._mask(row, settings, draw) if draw.random() < 0.5 else self._misplace(row, settings, draw)
            for column, values, filler in zip(columns, spoiled, (self.pad, IGNORED, IGNORED), strict=True):
                column.append(values + [filler] * (length - len(values)))
        return tuple(torch.tensor(column) for column in columns)

    def _mask(self, row: list[int], settings: Pretraining, draw: Random) -> tuple[list[int], ...]:
        missing = [word if word not in self.special and draw.random() < settings.masked else IGNORED for word in row]
        ids = [word if gone == IGNORED else self.mask for word, gone in zip(row, missing, strict=True)]
        return ids, missing, [IGNORED] * len(row)

    def _misplace(self, row: list[int], settings: Pretraining, draw: Random) -> tuple[list[int], ...]:
        ids = list(row)
        if draw.random() < settings.misplaced:
            places = [i for i, word in enumerate(row) if self.forms[word]]
            if draw.random() < 0.5 and places:
                place = draw.choice(places)
                ids[place] = draw.choice(self.forms[row[place]])
            else:
                movable = [i for i, word in enumerate(row) if word in self.kinds]
                one = draw.choice(movable)
                others = [i for i in movable if self.kinds[row[i]] == self.kinds[row[one]] and row[i] != row[one]]
                if others:
                    other = draw.choice(others)
                    ids[one], ids[other] = row[other], row[one]
        judged = [IGNORED if word in self.special else int(word != now) for word, now in zip(row, ids, strict=True)]
        return ids, [IGNORED] * len(row), judged
