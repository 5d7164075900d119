"""Prompts and outputs as examples of a causal language model: whole texts to learn, and prompts to continue."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from flexlora.errors import UserError
from flexlora.tasks.base import Split, Task
from flexlora.tasks.language_model import IGNORED, token_loss
from flexlora.tasks.tokens import Examples, TokenCache, Tokens, pad, smallest

log = logging.getLogger("flexlora")

# A length limit for the tokenizer that cuts nothing.
WHOLE = 2**20

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{question}\n\n### Response:"
)
"""Alpaca's prompt. What follows must begin with a space: a tokenizer would join the colon and the next letter."""

Batch = dict[str, torch.Tensor]


class PromptedTask(Task):
    """A task of a causal LM that trains on texts: a prompt, and what follows it."""

    def padded_size(self, batch: dict[str, torch.Tensor]) -> int:
        return batch["input_ids"].shape[1]

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return token_loss(model, batch)


@dataclass(frozen=True)
class Pair:
    """A prompt, and the output that is learned or compared. The whole text is the one followed by the other."""

    prompt: str
    output: str

    @property
    def text(self) -> str:
        return self.prompt + self.output


def training_split(
    pairs: Sequence[Pair],
    cache: TokenCache,
    end: int,
    longest: int,
    *,
    train_on_inputs: bool,
    drop_long: bool = False,
    first: int | None = None,
    name: str = "train",
) -> Split:
    """Tokenise the whole texts: at most `longest` tokens, with the token `end` if it still fits.

    An example's label is the number of tokens at its start that the loss leaves out. With `drop_long`, texts of
    `longest` tokens or more are left out instead of cut. `first` limits the number of the remaining texts. `name` is
    that of the split.

    Raises:
        UserError: no text remains.
    """
    tokens = cache.tokens(([pair.text for pair in pairs],), longest)
    kept = list(range(len(pairs)))
    long = [i for i, length in enumerate(tokens.lengths) if length >= longest]
    if long:
        what = "left out" if drop_long else "cut at the end, where the answer is"
        log.info(
            "%d of %d %s texts reach task.max_length=%d tokens: they are %s",
            *(len(long), len(pairs), "training" if name == "train" else name, longest, what),
        )
    if drop_long:
        kept = sorted({*kept} - {*long})
        if not kept:
            raise UserError(f"task.max_length={longest} leaves no training text: raise it, or set task.drop_long=false")
    kept = kept[:first]
    tokens = with_end(tokens.pick(kept), end, longest)
    left_out = [0] * len(kept)
    if not train_on_inputs:
        left_out = cache.tokens(([pairs[i].prompt for i in kept],), longest).lengths
    return Split(name, Examples(tokens, left_out), tokens.lengths)


def with_end(tokens: Tokens, end: int, longest: int) -> Tokens:
    """Append the token `end` to each text that is shorter than `longest` and does not already end with it."""
    ids = tokens.columns["input_ids"]
    lengths = np.diff(tokens.offsets)
    last = ids[tokens.offsets[1:] - 1]
    wants = (lengths < longest) & (last != end)
    ids = smallest(np.insert(ids.astype(np.int64), tokens.offsets[1:][wants], end))
    return Tokens({"input_ids": ids}, np.concatenate([[0], np.cumsum(lengths + wants, dtype=np.int64)]))


def collate_training(examples: Sequence[dict[str, Any]], processor: Any) -> Batch:
    """Batch whole texts, padded on the left, with the labels of the tokens in the loss."""
    batch = pad(examples, processor)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    width = labels.shape[1]
    for row, example in zip(labels, examples, strict=True):
        start = width - len(example["input_ids"])
        row[start : start + example["labels"]] = IGNORED
    return {**batch, "labels": labels}


def collate_prompts(examples: Sequence[dict[str, Any]], processor: Any) -> Batch:
    """Batch the prompts `input_ids`, and as `text_ids` all `texts` to score, of which the first `start` tokens are not.

    `row` is the number of each text's example in the batch.
    """
    prompts = pad([{"input_ids": example["input_ids"]} for example in examples], processor)
    texts = pad([{"input_ids": text} for example in examples for text in example["texts"]], processor)
    counts = torch.tensor([len(example["texts"]) for example in examples])
    starts = torch.tensor([example["start"] for example in examples]).repeat_interleave(counts)
    # Texts are padded on the left. The scored tokens are at least `start` tokens after the first real token.
    place = texts["attention_mask"].cumsum(dim=1) - 1
    return {
        **prompts,
        "text_ids": texts["input_ids"],
        "text_mask": texts["attention_mask"],
        "scored": (place >= starts[:, None]) & (texts["attention_mask"] == 1),
        "row": torch.arange(len(examples)).repeat_interleave(counts),
    }
