"""PEFT's own call `update_and_allocate` moves ranks as `flexlora.attach` does, and once a step."""

from __future__ import annotations

import pytest
from attach_helpers import STEPS, adamw, settings
from torch import nn
from training_helpers import (
    adapt,
    assert_same,
    make_net,
    moves,
    regression_batches,
    state_of,
    train,
)

from flexlora import attach, module_ranks


@pytest.mark.parametrize("importance", ["entropy", "nuclear", "random"])
def test_update_and_allocate_gives_the_same_ranks(importance: str) -> None:
    """The loop is that of PEFT's AdaLoRA, but a separate call adds the penalty, which AdaLoRA has in its loss."""
    changes = settings(importance=importance)
    reference = adapt(make_net(), **changes)
    attachment = attach(reference, optimizer := adamw(reference))
    batches = regression_batches(STEPS)
    train(reference, optimizer, batches)

    model = adapt(make_net(), **changes)
    optimizer, events = adamw(model), []
    for step, (x, y) in enumerate(batches, start=1):
        nn.functional.mse_loss(model(x), y).backward()
        model.base_model.add_orthogonality_gradient()
        optimizer.step()
        events.append(model.base_model.update_and_allocate(step, optimizer))
        optimizer.zero_grad()
    held = [event for event in events if event is not None]
    assert moves(held) == moves(attachment.events)
    assert_same(state_of(model), state_of(reference))


@pytest.mark.parametrize("importance", ["entropy", "sensitivity"])
def test_attach_and_update_and_allocate_change_ranks_once(importance: str) -> None:
    changes = settings(importance=importance)
    reference = adapt(make_net(), **changes)
    attachment = attach(reference, optimizer := adamw(reference))
    batches = regression_batches(STEPS)
    train(reference, optimizer, batches)

    model = adapt(make_net(), **changes)
    both = attach(model, optimizer := adamw(model))
    train(model, optimizer, batches, lambda step: model.base_model.update_and_allocate(step, optimizer))
    assert moves(both.events) == moves(attachment.events)
    assert_same(state_of(model), state_of(reference))


def test_repeated_update_and_allocate_changes_ranks_once() -> None:
    model = adapt(make_net(), **settings())
    optimizer = adamw(model)
    found = []
    for step, (x, y) in enumerate(regression_batches(4), start=1):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
        found.append([model.base_model.update_and_allocate(step, optimizer) is not None for _ in range(3)])
    assert found == [[False] * 3, [False] * 3, [True, False, False], [False] * 3]


def test_update_and_allocate_without_an_optimizer_moves_ranks() -> None:
    model = adapt(make_net(), **settings())
    optimizer = adamw(model)
    before = module_ranks(model)
    train(model, optimizer, regression_batches(STEPS), model.base_model.update_and_allocate)
    assert module_ranks(model) != before
