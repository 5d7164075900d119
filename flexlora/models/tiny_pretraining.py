"""A minute's pretraining of a small encoder: words to fill in, and words out of place to find."""

import itertools
from collections.abc import Iterator, Sequence
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
    steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 3e-3
    warmup_steps: int = 60
    weight_decay: float = 0.01
    masked: float = 0.2
    """Share of the words to fill in, in the half of the texts that have such."""
    retold: float = 0.5
    """Share of the pairs among those in which it is the second sentence's content that is to be filled in."""
    misplaced: float = 0.7
    """Share of the other half's texts in which a word, or a pair of words, is out of place."""


def pretrain(
    encoder: nn.Module, tokenizer: Any, texts: Sequence[tuple[str, ...]], settings: Pretraining
) -> list[float]:
    """Train `encoder` in place on `texts` of one or two sentences, with heads that are then thrown away.

    Returns:
        The loss of every step.
    """
    losses = []
    draw = Random(settings.seed)
    reader = _Reader(tokenizer)
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
    for chosen in _batches(rows, settings, draw):
        ids, missing, misplaced = reader.batch(chosen, settings, draw)
        hidden = encoder(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).last_hidden_state
        to_fill = missing != IGNORED
        guess = fill(hidden[to_fill]) @ words.T
        filled = functional.cross_entropy(guess, missing[to_fill])
        to_judge = misplaced != IGNORED
        verdict = find(hidden[to_judge]).squeeze(-1)
        found = functional.binary_cross_entropy_with_logits(verdict, misplaced[to_judge].float())
        loss = filled + found
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    encoder.eval()
    return losses


def _batches(rows: list[list[int]], settings: Pretraining, draw: Random) -> Iterator[list[list[int]]]:
    """A batch a step, of texts of similar length: drawn sixteen at a time, sorted, and cut."""
    size = settings.batch_size
    waiting: list[list[list[int]]] = []
    for _ in range(settings.steps):
        if not waiting:
            drawn = sorted(draw.choices(rows, k=16 * size), key=len)
            waiting = [drawn[start : start + size] for start in range(0, len(drawn), size)]
            draw.shuffle(waiting)
        yield waiting.pop()


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
            spoiled = self._mask(row, settings, draw) if draw.random() < 0.5 else self._misplace(row, settings, draw)
            for column, values, filler in zip(columns, spoiled, (self.pad, IGNORED, IGNORED), strict=True):
                column.append(values + [filler] * (length - len(values)))
        return tuple(torch.tensor(column) for column in columns)

    def _mask(self, row: list[int], settings: Pretraining, draw: Random) -> tuple[list[int], ...]:
        """Words to fill in: of two sentences all that the second is about, which the first tells, or any."""
        second = row.index(self.end) + 1
        if self._is_pair(row) and draw.random() < settings.retold:
            gaps = [i >= second and word in self.kinds for i, word in enumerate(row)]
        else:
            gaps = [word not in self.special and draw.random() < settings.masked for word in row]
        ids = [self.mask if gap else word for word, gap in zip(row, gaps, strict=True)]
        return ids, [word if gap else IGNORED for word, gap in zip(row, gaps, strict=True)], [IGNORED] * len(row)

    def _misplace(self, row: list[int], settings: Pretraining, draw: Random) -> tuple[list[int], ...]:
        """A word in a wrong form, rather in one sentence; or two of one sentence exchanged, rather in a pair."""
        ids = list(row)
        if draw.random() < settings.misplaced:
            if draw.random() < (0.2 if self._is_pair(row) else 0.8):
                place = draw.choice([i for i, word in enumerate(row) if self.forms[word]] or [0])
                ids[place] = draw.choice(self.forms[row[place]] or [row[place]])
            else:
                one, other = draw.choice(self._exchanges(row) or [(0, 0)])
                ids[one], ids[other] = row[other], row[one]
        judged = [IGNORED if word in self.special else int(word != now) for word, now in zip(row, ids, strict=True)]
        return ids, [IGNORED] * len(row), judged

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
