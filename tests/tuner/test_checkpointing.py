"""Gradient checkpointing recomputes the forward pass; nothing of the result may change."""

from __future__ import annotations

import pytest
import torch
from training_helpers import (
    adapt_bert,
    assert_same,
    moves,
    state_of,
    text_batches,
    tiny_bert,
    train_bert,
    trainable,
)

from flexlora import attach


@pytest.mark.parametrize("importance", ["entropy", "sensitivity"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_equal_results(reentrant: bool, importance: str) -> None:
    def run(checkpointing: bool) -> tuple:
        model = adapt_bert(tiny_bert(), total_step=12, deltaT=2, importance=importance)
        calls = count_forwards(model)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()
        optimizer = torch.optim.AdamW(trainable(model), lr=0.02)
        attachment = attach(model, optimizer)
        losses = train_bert(model, optimizer, text_batches(12))
        return losses, moves(attachment.events), state_of(model), len(calls)

    plain, checkpointed = run(False), run(True)
    assert checkpointed[3] == 2 * plain[3], "checkpointing should have run the forward pass again"
    assert plain[0] == pytest.approx(checkpointed[0], rel=0, abs=1e-12)
    assert plain[1] == checkpointed[1]
    assert any(event[2] for event in plain[1])
    assert_same(plain[2], checkpointed[2], 1e-12)


def count_forwards(model: torch.nn.Module) -> list:
    """A list that grows with every forward pass of one adapted linear, recomputed ones included."""
    calls: list[int] = []
    layer = next(module for name, module in model.named_modules() if name.endswith("query"))
    layer.register_forward_pre_hook(lambda module, args: calls.append(1))
    return calls
