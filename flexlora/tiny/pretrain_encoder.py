"""Pretraining of a small encoder by masked language modelling, as in BERT: about half a minute on one core."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from flexlora.tasks.language_model import IGNORED
from flexlora.tiny.english.words import other_forms

Text = tuple[str, ...]


@dataclass(frozen=True)
class Pretraining:
    """How the small encoders are pretrained. Every field is part of a cached encoder's name."""

    seed: int = 0
    texts: int = 24_000
    primer_steps: int = 500
    """Steps on the primer, the simple texts at the start. Without them pretraining takes several times longer."""
    steps: int = 1500
    """Steps of the whole pretraining, those on the primer included."""
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 250
    weight_decay: float = 0.01
    masked: float = 0.1
    """Share of the words that are masked."""
    masked_forms: float = 0.6
    """Share of the masked words among those with another form or an opposite. These depend on the rest of the text."""
    retold: float = 0.75
    """Share of the pairs in which all such words of the second sentence are masked, and no other word."""


def pretrain(
    encoder: nn.Module, tokenizer: Any, primer: Sequence[Text], texts: Sequence[Text], settings: Pretraining
) -> list[float]:
    """Train `encoder` in place on the primer, then on `texts`, with a head that is discarded afterwards.

    The encoder never sees an ungrammatical sentence. An encoder trained to find mistakes already knows CoLA, and then
    a linear probe scores as well as any adapter.

    Returns:
        The loss of every step.
    """
    losses = []
    draw = Random(settings.seed)
    reader = _Reader(tokenizer)
    simple = [tokenizer(*text)["input_ids"] for text in primer]
    rows = [tokenizer(*text)["input_ids"] for text in texts]
    words = encoder.get_input_embeddings().weight  # type: ignore[operator]
    size = words.shape[1]
    head = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size))
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / settings.warmup_steps, 1 - step / settings.steps),
    )
    encoder.train()
    for step in range(settings.steps):
        # Batches mix long and short texts: batches of one length would each hold one kind of text.
        chosen = draw.choices(simple if step < settings.primer_steps else rows, k=settings.batch_size)
        ids, missing = reader.batch(chosen, settings, draw)
        hidden = encoder(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).last_hidden_state
        gaps = missing != IGNORED
        logits = head(hidden[gaps]) @ words.T
        loss = functional.cross_entropy(logits, missing[gaps], reduction="sum") / gaps.sum().clamp(min=1)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    encoder.eval()
    return losses


class _Reader:
    """Masks words in texts of token ids."""

    def __init__(self, tokenizer: Any) -> None:
        words = tokenizer.get_vocab()
        self.mask, self.pad, self.end = tokenizer.mask_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id
        special = set(tokenizer.all_special_ids)
        self.words = {i for i in words.values() if i not in special}
        self.forms = {i for word, i in words.items() if other_forms(word)}

    def batch(self, rows: list[list[int]], settings: Pretraining, draw: Random) -> tuple[torch.Tensor, torch.Tensor]:
        """Make the masked texts and the masked words: each is (rows, length) int64."""
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.pad)
        missing = torch.full((len(rows), length), IGNORED)
        for number, row in enumerate(rows):
            whole = torch.tensor(row)
            gaps = torch.tensor(self._gaps(row, settings, draw))
            ids[number, : len(row)] = torch.where(gaps, self.mask, whole)
            missing[number, : len(row)] = torch.where(gaps, whole, IGNORED)
        return ids, missing

    def _gaps(self, row: list[int], settings: Pretraining, draw: Random) -> list[bool]:
        second = row.index(self.end) + 1
        if second < len(row) and draw.random() < settings.retold:
            return [i >= second and word in self.forms for i, word in enumerate(row)]
        shares = (settings.masked_forms if word in self.forms else settings.masked for word in row)
        return [word in self.words and draw.random() < share for word, share in zip(row, shares, strict=True)]
