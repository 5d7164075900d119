"""The losses of a causal language model: of training texts, and of given answers."""

import inspect
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

    The arguments are those of `answer_tokens`.
    """
    return answer_tokens(model, ids, mask, scored)[0].sum(dim=1)


def answer_tokens(
    model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, scored: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the log-probability of each scored token given the earlier tokens, and whether it is the likeliest token.

    Both are (texts, most scored tokens of a text), with 0 and false for tokens that are not scored.

    Args:
        model: a causal language model.
        ids: (texts, width), padded on the left.
        mask: (texts, width), 1 for real tokens, 0 for padding.
        scored: (texts, width), true for the tokens to score, which are at the end of each text.
    """
    last = int(scored.sum(dim=1).max())
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    if "logits_to_keep" in inspect.signature(innermost(model).forward).parameters:
        inputs["logits_to_keep"] = last + 1  # saves memory: each token's logits span the vocabulary
    logits = model(**inputs).logits[:, -last - 1 : -1]
    # One text at a time: the float32 logits of a whole batch of long texts take gigabytes.
    chosen = torch.stack(
        [
            -functional.cross_entropy(one.float(), text, reduction="none")
            for one, text in zip(logits, ids[:, -last:], strict=True)
        ]
    )
    counted = scored[:, -last:]
    return chosen * counted, (logits.argmax(dim=-1) == ids[:, -last:]) & counted


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside DDP's wrapper."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def innermost(model: nn.Module) -> nn.Module:
    """Return the transformers model inside PEFT's and DDP's wrappers."""
    model = unwrapped(model)
    base = getattr(model, "get_base_model", None)
    return model if base is None else base()
