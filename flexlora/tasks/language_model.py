"""Evaluate a causal language model: generate answers, or score given answers."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

IGNORED = -100


def token_loss(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Compute the mean next-token cross-entropy over all `labels` that are not -100, as transformers does.

    A batch without such labels has loss 0 instead of NaN.
    """
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    following = functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)
    total = functional.cross_entropy(
        logits.float().flatten(0, 1), following.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / (following != IGNORED).sum().clamp(min=1)


def answer_log_probabilities(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, scored: torch.Tensor
) -> torch.Tensor:
    """Sum the log-probabilities of each text's scored tokens, given the earlier tokens: (texts,).

    Args:
        model: a causal language model.
        ids: (texts, width), padded on the left.
        mask: (texts, width), 1 for real tokens, 0 for padding.
        scored: (texts, width), true for the tokens to score, which are at the end of each text.
    """
    last = int(scored.sum(dim=1).max())
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if "logits_to_keep" in inspect.signature(_innermost(model).forward).parameters:
        inputs["logits_to_keep"] = last + 1  # saves memory: each token's logits span the vocabulary
    logits = model(**inputs).logits[:, -last - 1 : -1].float()
    chosen = functional.log_softmax(logits, dim=-1).gather(2, ids[:, -last:, None]).squeeze(2)
    return (chosen * scored[:, -last:]).sum(dim=1)


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

    Args:
        model: a causal language model, with or without an adapter, with or without DDP or FSDP.
        ids: (rows, width), padded on the left.
        mask: (rows, width), 1 for real tokens, 0 for padding.
        tokenizer: the model's tokenizer.
        max_new_tokens: the largest number of new tokens; a row ends earlier at its end-of-sequence token.
        num_beams: 1 means greedy decoding.
        is_answer: a function of a row's number and its new text, called after every token. The row ends if it is true.
    """
    from transformers import GenerationConfig, StoppingCriteriaList

    model = _unwrapped(model)
    settings = GenerationConfig(
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    stopping = StoppingCriteriaList()
    if is_answer is not None:
        stopping.append(_Answered(tokenizer, ids.shape[1], is_answer))
    with _without_own_settings(model):
        return model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            stopping_criteria=stopping,
            synced_gpus=_is_sharded(model),
        )


class _Answered:
    """A stopping criterion for transformers: it stops each row whose new text contains an answer."""

    def __init__(self, tokenizer: Any, width: int, is_answer: Callable[[int, str], bool]) -> None:
        self.tokenizer = tokenizer
        self.width = width
        self.is_answer = is_answer
        self.done: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if self.done is None:
            self.done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        open_rows = (~self.done).nonzero().flatten().tolist()
        texts = self.tokenizer.batch_decode(input_ids[open_rows, self.width :], skip_special_tokens=True)
        answered = [row for row, text in zip(open_rows, texts, strict=True) if self.is_answer(row, text)]
        self.done[answered] = True
        return self.done


@contextmanager
def _without_own_settings(model: nn.Module) -> Iterator[None]:
    """Ignore the checkpoint's own generation settings, which would otherwise add sampling or penalties."""
    from transformers import GenerationConfig

    inner: Any = _innermost(model)
    kept, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = kept


def _unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DDP's wrapper."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _innermost(model: nn.Module) -> nn.Module:
    """Return the transformers model inside PEFT's and DDP's wrappers."""
    model = _unwrapped(model)
    base = getattr(model, "get_base_model", None)
    return model if base is None else base()


def _is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP shards the model. Every forward pass then needs all processes."""
    from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

    if not isinstance(model, FSDPModule):
        return False
    register_fsdp_forward_method(model, "generate")  # gathers the weights outside the blocks, as `forward` does
    return True
