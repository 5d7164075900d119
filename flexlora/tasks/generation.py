"""Continue prompts with a causal language model: beam search, greedy decoding, or samples that a seed decides."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from flexlora.tasks.language_model import innermost, unwrapped

# The number of newest tokens that are decoded after each step to find the end of a text. Decoding the whole text after
# each step would take more time than the model for texts of some hundred tokens.
WINDOW = 32


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. A draw depends on the seed and on the row's key only, not on the other rows of its batch.

    The same rows therefore get the same samples in batches of another size, and on another number of processes.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    """Tokens are drawn from the smallest set of most likely tokens whose probabilities add up to at least this."""

    def uniforms(self, keys: Sequence[Sequence[int]], count: int) -> torch.Tensor:
        """Draw `count` numbers in [0, 1) for each row: (rows, count). A key is a row's own list of whole numbers."""
        rows = [np.random.default_rng([self.seed, *key]).random(count, dtype=np.float32) for key in keys]
        return torch.from_numpy(np.stack(rows))


def continuations(
    model: nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    tokenizer: Any,
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    keys: Sequence[Sequence[int]] = (),
    is_complete: Callable[[str], bool] | None = None,
) -> list[str]:
    """Continue the prompts, greedily or by `sampling`, and return the new text of each row.

    A text ends before its end-of-sequence token, or with the token that completes it.

    Args:
        model: a causal language model, with or without an adapter, with or without DDP or FSDP.
        ids: (rows, width), padded on the left.
        mask: (rows, width), 1 for real tokens, 0 for padding.
        tokenizer: the model's tokenizer.
        max_new_tokens: the largest number of new tokens of a row.
        sampling: how tokens are drawn; None means greedy decoding.
        keys: the key of each row for `Sampling`, such as the row's number in its data set and the sample's number.
        is_complete: a search in the newest part of a row's text, called after every token. The row ends if it is true.
    """
    width = ids.shape[1]
    stopping = []
    if is_complete is not None:
        stopping.append(_Ending(tokenizer, width, lambda row, text: is_complete(text)))
    drawn = [] if sampling is None else [_Drawn(sampling, keys, width, max_new_tokens)]
    made = _generate(model, ids, mask, tokenizer, max_new_tokens, stopping=stopping, processors=drawn)
    # After its end a row has padding tokens, which can be a real word, such as "!" in LLaMA3.
    lengths = stopping[0].lengths if stopping else {}
    texts = []
    for row, tokens in enumerate(made[:, width:].tolist()):
        end = tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else len(tokens)
        texts.append(tokens[: min(end, lengths.get(row, end))])
    decoded: list[str] = tokenizer.batch_decode(texts, skip_special_tokens=True)
    return decoded


def generate(
    model: nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    tokenizer: Any,
    *,
    max_new_tokens: int,
    num_beams: int = 1,
    is_answer: Callable[[int, str], bool] | None = None,
) -> torch.Tensor:
    """Continue the prompts by beam search or greedily: (rows, width + new tokens), prompts included.

    The arguments are those of `continuations`, and:

    Args:
        num_beams: 1 means greedy decoding.
        is_answer: a function of a row's number and the newest part of its text, called after every token. The row ends
            if it is true.
    """
    stopping = [] if is_answer is None else [_Ending(tokenizer, ids.shape[1], is_answer)]
    return _generate(model, ids, mask, tokenizer, max_new_tokens, num_beams=num_beams, stopping=stopping)


def _generate(
    model: nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    tokenizer: Any,
    max_new_tokens: int,
    *,
    num_beams: int = 1,
    stopping: Sequence[Any] = (),
    processors: Sequence[Any] = (),
) -> torch.Tensor:
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    model = unwrapped(model)
    settings = GenerationConfig(
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        do_sample=False,  # `_Drawn` draws: transformers would draw from the process's generator, for the whole batch
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with _without_own_settings(model):
        return model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            stopping_criteria=StoppingCriteriaList(stopping),
            logits_processor=LogitsProcessorList(processors),
            synced_gpus=_is_sharded(model),
        )


class _Ending:
    """A stopping criterion for transformers: it stops each row whose newest text ends the row."""

    def __init__(self, tokenizer: Any, width: int, ends: Callable[[int, str], bool]) -> None:
        self.tokenizer = tokenizer
        self.width = width
        self.ends = ends
        self.lengths: dict[int, int] = {}
        """The number of new tokens of each row that has ended."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        length = input_ids.shape[1] - self.width
        open_rows = [row for row in range(len(input_ids)) if row not in self.lengths]
        newest = input_ids[open_rows, -min(length, WINDOW) :]
        texts = self.tokenizer.batch_decode(newest, skip_special_tokens=True)
        self.lengths |= {row: length for row, text in zip(open_rows, texts, strict=True) if self.ends(row, text)}
        done = [row in self.lengths for row in range(len(input_ids))]
        return torch.tensor(done, device=input_ids.device)


class _Drawn:
    """A logits processor for transformers that draws each row's next token, and leaves only that token possible."""

    def __init__(self, sampling: Sampling, keys: Sequence[Sequence[int]], width: int, max_new_tokens: int) -> None:
        self.sampling = sampling
        self.width = width
        self.uniforms = sampling.uniforms(keys, max_new_tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drawn = draw(scores, self.uniforms[:, input_ids.shape[1] - self.width].to(scores.device), self.sampling)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


def draw(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Draw one token for each row: (rows, 1).

    Args:
        logits: (rows, vocabulary).
        uniforms: (rows,), a number in [0, 1) for each row.
        sampling: the temperature and the share of the probability that may be drawn.
    """
    logits = logits.float()
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / sampling.temperature  # a tiny temperature gives no infinity
    chances, order = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = chances.cumsum(dim=-1) - chances
    kept = (before < sampling.top_p) & (chances > 0)
    sums = (chances * kept).cumsum(dim=-1)
    place = torch.searchsorted(sums, uniforms[:, None] * sums[:, -1:], right=True)
    last = kept.sum(dim=-1, keepdim=True) - 1  # rounding could draw the token after the last one
    return order.gather(1, place.minimum(last))


@contextmanager
def _without_own_settings(model: nn.Module) -> Iterator[None]:
    """Ignore the checkpoint's own generation settings, which would otherwise add sampling or penalties."""
    from transformers import GenerationConfig

    inner: Any = innermost(model)
    kept, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = kept


def _is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP shards the model. Every forward pass then needs all processes."""
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    if not isinstance(model, FSDPModule):
        return False
    register_fsdp_forward_method(model, "generate")  # gathers the weights outside the blocks, as `forward` does
    return True
