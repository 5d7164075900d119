"""Pretraining of a small language model: next-word prediction, mainly of words that follow from the earlier text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from flexlora.tasks.language_model import IGNORED

Text = list[tuple[str, str | None]]
"""A text as a list of pieces. Where the next word follows from the earlier text, the piece names it as its target."""

Corpus = Callable[[int, int], Sequence[Text]]
"""Generates texts: `corpus(stage, count)`."""


@dataclass(frozen=True)
class Pretraining:
    """How the small language model is pretrained. Every field is part of its cached name."""

    seed: int = 0
    texts: int = 16_000
    """Different texts in each stage of the curriculum."""
    steps: tuple[int, ...] = (1300, 500)
    """Steps of each stage."""
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    cooldown_steps: int = 600
    weight_decay: float = 0.01
    other_words: float = 0.1
    """Weight of the loss of the words that do not follow from the earlier text."""


def pretrain(model: nn.Module, tokenizer: Any, settings: Pretraining, corpus: Corpus) -> list[float]:
    """Train the language model `model` in place on the stages of `corpus`, one after the other.

    Returns:
        The loss of every step over the words that follow from the earlier text.
    """
    draw = Random(settings.seed)
    stages = [[_read(tokenizer, text) for text in corpus(i, settings.texts)] for i in range(len(settings.steps))]
    total = sum(settings.steps)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / settings.warmup_steps, 1, (total - step) / settings.cooldown_steps)
    )
    model.train()
    losses = []
    for texts in [texts for texts, steps in zip(stages, settings.steps, strict=True) for _ in range(steps)]:
        ids, wanted, follows = _batch(draw.choices(texts, k=settings.batch_size), tokenizer.pad_token_id)
        logits = model(input_ids=ids, use_cache=False).logits
        each = functional.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=IGNORED, reduction="none")
        loss = each[follows].mean()
        (loss + settings.other_words * each[~follows & (wanted != IGNORED)].mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


Read = tuple[list[int], list[int], list[bool]]
"""A text's tokens, the target after each token (-100 after the last), and whether that target follows from the text."""


def _read(tokenizer: Any, text: Text) -> Read:
    ids: list[int] = [tokenizer.bos_token_id]
    said: list[str | None] = [None]
    for piece, after in text:
        new = tokenizer(piece, add_special_tokens=False)["input_ids"]
        ids += new
        said += [None] * (len(new) - 1) + [after]
    ids.append(tokenizer.eos_token_id)
    said.append(None)
    wanted = [
        following if after is None else tokenizer.convert_tokens_to_ids(after)
        for after, following in zip(said, [*ids[1:], IGNORED], strict=True)
    ]
    return ids, wanted, [after is not None for after in said]


def _batch(texts: Sequence[Read], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Stack the texts into padded tensors: each is (texts, longest)."""
    ids, wanted, follows = (
        nn.utils.rnn.pad_sequence([torch.tensor(text[i]) for text in texts], batch_first=True, padding_value=fill)
        for i, fill in enumerate((pad, IGNORED, False))
    )
    return ids, wanted, follows
