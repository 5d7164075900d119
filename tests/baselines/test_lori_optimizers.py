"""Where LoRI's B starts again, so does its optimizer state, as in a new optimizer."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from peft import get_peft_model
from training_helpers import TARGETS, make_net, regression_batches, train, trainable

from flexlora.baselines import LoriConfig

MASKED_AT = 3


def trained(optimizer_class: Any, **options: Any) -> tuple[Any, torch.optim.Optimizer]:
    """A model and its optimizer right after the step that takes the masks."""
    model = get_peft_model(make_net(), LoriConfig(target_modules=TARGETS, r=3, tinit=MASKED_AT, total_step=10))
    optimizer = optimizer_class(trainable(model), lr=0.01, **options)
    after = lambda step: model.base_model.after_step(step, optimizer)  # noqa: E731
    train(model, optimizer, regression_batches(MASKED_AT), after)
    return model, optimizer


@pytest.mark.parametrize(
    ("optimizer_class", "name", "value"),
    [
        (torch.optim.AdamW, "exp_avg_sq", 0.0),
        (torch.optim.Rprop, "step_size", 0.01),
        (torch.optim.ASGD, "ax", 0.0),
        (torch.optim.Adagrad, "sum", 0.0),
    ],
)
def test_the_state_starts_again(optimizer_class: Any, name: str, value: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, optimizer = trained(optimizer_class)
    b = [p for key, p in model.named_parameters() if "lora_B" in key]
    assert len(b) == len(TARGETS)
    assert all((optimizer.state[p][name] == value).all() for p in b)


def test_a_factored_state_is_named_once() -> None:
    with pytest.warns(
        UserWarning, match="^Adafactor keeps state that is not element-wise .* LoRI's B starts"
    ) as caught:
        trained(torch.optim.Adafactor)
    assert len([w for w in caught if "Adafactor" in str(w.message)]) == 1
