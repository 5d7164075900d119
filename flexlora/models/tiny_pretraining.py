"""A minute's pretraining of a small encoder: words to fill in, and words out of place to find."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from flexlora.tasks.generator.words import KINDS, other_forms

IGNORED = -100

Text = tuple[str, ...]


@dataclass(frozen=True)
class Pretraining:
    """How the small encoders are pretrained. Every field is part of a cached encoder's name."""

    seed: int = 0
    texts: int = 24_000
    primer_steps: int = 500
    """Steps on the primer, the simple texts to begin with; without them the rest takes several times as long."""
    steps: int = 1500
    """Of the whole pretraining."""
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 250
    weight_decay: float = 0.01
    masked: float = 0.1
    """Share of the words to fill in."""
    masked_forms: float = 0.6
    """The same of words that have another form or an opposite: those that hang on the rest of the text."""
    retold: float = 0.5
    """Share of the pairs in which it is the second sentence's such words, and only they, that are to be filled in."""
    spoiled: float = 0.5
    """Share of the pairs that have nothing to fill in, but may have a word out of place to find."""
    misplaced: float = 0.7
    """Share of those that do have one, or two that are exchanged."""


def pretrain(
    encoder: nn.Module, tokenizer: Any, primer: Sequence[Text], texts: Sequence[Text], settings: Pretraining
) -> list[float]:
    """Train `encoder` in place on the primer, then on `texts`, with heads that are then thrown away.

    Words are filled in everywhere. Words out of place are looked for in pairs only: an encoder that looks for mistakes
    of grammar has learned CoLA already, and a linear probe of it would be as good as any adapter.

    Returns:
        The loss of every step.
    """
    losses = []
    draw = Random(settings.seed)
    reader = _Reader(tokenizer)
    simple = [tokenizer(*text)["input_ids"] for text in primer]
    rows = [tokenizer(*text)["input_ids"] for text in texts]
    config: Any = encoder.config
    fill = nn.Sequential(nn.Linear(config.hidden_size, config.hidden_size), nn.GELU(), nn.LayerNorm(config.hidden_size))
    find = nn.Sequential(nn.Linear(config.hidden_size, config.hidden_size), nn.GELU(), nn.Linear(config.hidden_size, 1))
    words = encoder.get_input_embeddings().weight  # type: ignore[operator]
    parameters = [*encoder.parameters(), *fill.parameters(), *find.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / settings.warmup_steps, 1 - step / settings.steps),
    )
    encoder.train()
    for step in range(settings.steps):
        # Long and short together: batches of one length would each be of one kind of text.
        chosen = draw.choices(simple if step < settings.primer_steps else rows, k=settings.batch_size)
        ids, missing, misplaced = reader.batch(chosen, settings, draw)
        hidden = encoder(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).last_hidden_state
        to_fill = missing != IGNORED
        guess = fill(hidden[to_fill]) @ words.T
        loss = functional.cross_entropy(guess, missing[to_fill], reduction="sum") / to_fill.sum().clamp(min=1)
        to_judge = misplaced != IGNORED
        judged, truth = find(hidden[to_judge]).squeeze(-1), misplaced[to_judge].float()
        found = functional.binary_cross_entropy_with_logits(judged, truth, reduction="sum")
        loss = loss + found / to_judge.sum().clamp(min=1)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    encoder.eval()
    return losses


class _Reader:
    """Spoils texts of token ids, and says where."""

    def __init__(self, tokenizer: Any) -> None:
        ids = tokenizer.get_vocab()
        self.mask, self.pad = tokenizer.mask_token_id, tokenizer.pad_token_id
        self.end = tokenizer.sep_token_id
        self.special = set(tokenizer.all_special_ids)
        self.forms = {i: [ids[form] for form in other_forms(word)] for word, i in ids.items()}
        self.kinds = {ids[word]: kind for word, kind in KINDS.items()}

    def batch(self, rows: list[list[int]], settings: Pretraining, draw: Random) -> tuple[torch.Tensor, ...]:
        """Ids, the missing words' ids, and 1 where a word is out of place: each (rows, length)."""
        length = max(map(len, rows))
        columns: tuple[list[list[int]], ...] = ([], [], [])
        for row in rows:
            to_find = self._is_pair(row) and draw.random() < settings.spoiled
            spoiled = self._misplace(row, settings, draw) if to_find else self._mask(row, settings, draw)
            for column, values, filler in zip(columns, spoiled, (self.pad, IGNORED, IGNORED), strict=True):
                column.append(values + [filler] * (length - len(values)))
        return tuple(torch.tensor(column) for column in columns)

    def _mask(self, row: list[int], settings: Pretraining, draw: Random) -> tuple[list[int], ...]:
        """Words to fill in: in a pair maybe just those of the second sentence that follow from the first."""
        second = row.index(self.end) + 1
        if self._is_pair(row) and draw.random() < settings.retold:
            gaps = [i >= second and bool(self.forms[word]) for i, word in enumerate(row)]
        else:
            gaps = [word not in self.special and draw.random() < self._share(word, settings) for word in row]
        ids = [self.mask if gap else word for word, gap in zip(row, gaps, strict=True)]
        return ids, [word if gap else IGNORED for word, gap in zip(row, gaps, strict=True)], [IGNORED] * len(row)

    def _misplace(self, row: list[int], settings: Pretraining, draw: Random) -> tuple[list[int], ...]:
        """A word for its other form or its opposite, or two words of one sentence exchanged."""
        ids = list(row)
        if draw.random() < settings.misplaced:
            if draw.random() < 0.7:
                place = draw.choice([i for i, word in enumerate(row) if self.forms[word]] or [0])
                ids[place] = draw.choice(self.forms[row[place]] or [row[place]])
            else:
                one, other = draw.choice(self._exchanges(row) or [(0, 0)])
                ids[one], ids[other] = row[other], row[one]
        judged = [int(word != now) if self._may_err(word) else IGNORED for word, now in zip(row, ids, strict=True)]
        return ids, [IGNORED] * len(row), judged

    def _share(self, word: int, settings: Pretraining) -> float:
        return settings.masked_forms if self.forms[word] else settings.masked

    def _may_err(self, word: int) -> bool:
        return bool(self.forms[word]) or word in self.kinds

    def _is_pair(self, row: list[int]) -> bool:
        return row.count(self.end) > 1

    def _exchanges(self, row: list[int]) -> list[tuple[int, int]]:
        """Places in one sentence whose words are of one kind and not the same."""
        end = row.index(self.end)
        movable = [(i, self.kinds[word], i > end) for i, word in enumerate(row) if word in self.kinds]
        return [
            (one[0], other[0])
            for one, other in itertools.combinations(movable, 2)
            if one[1:] == other[1:] and row[one[0]] != row[other[0]]
        ]
