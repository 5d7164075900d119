"""What an event does to the state of optimizers: it resets what is element-wise, and warns of the rest."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attach_helpers import STEPS, adamw, settings
from torch import nn
from training_helpers import (
    TARGETS,
    adapt,
    adapted,
    make_net,
    masks,
    regression_batches,
    state_of,
    train,
    trainable,
)

from flexlora import attach


class Eight(torch.optim.Optimizer):
    """Like bitsandbytes' 8-bit Adam: a state of bytes and a code book, neither a plain moment."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["state1"] = torch.full(parameter.shape, 7, dtype=torch.uint8)
                    state["qmap1"] = torch.linspace(-1, 1, 256)
                parameter -= group["lr"] * parameter.grad


class Flattened(torch.optim.Optimizer):
    """An optimizer with flattened momentum, which keeps changing pruned directions. No output may change by it."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state["momentum"] = torch.zeros(2, parameter.numel(), dtype=parameter.dtype)
                    state["momentum"][0].mul_(0.9).add_(parameter.grad.flatten())
                    parameter -= group["lr"] * state["momentum"][0].view_as(parameter)


def transformers_adafactor(parameters: Any) -> torch.optim.Optimizer:
    from transformers import Adafactor

    return Adafactor(parameters, lr=0.02, scale_parameter=False, relative_step=False, warmup_init=False)


UNUSUAL = {
    "eight-bit": lambda parameters: Eight(parameters, lr=0.05),
    "flattened": lambda parameters: Flattened(parameters, lr=0.05),
    "adafactor": transformers_adafactor,
    "torch-adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.02),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_state_keeps_the_outputs_exact_and_warns_once(name: str) -> None:
    model = adapt(make_net(), **settings())
    optimizer = UNUSUAL[name](trainable(model))
    attachment = attach(model, optimizer)
    changes = watch_outputs(attachment, model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, regression_batches(STEPS))
    assert [str(w.message) for w in caught if "not element-wise" in str(w.message)] == [
        f"{type(optimizer).__name__} keeps state that is not element-wise (factored, quantised or flattened): "
        "outputs stay exact at rank events, but the optimizer state of changed directions is not reset."
    ]
    assert sum(len(event.pruned) for event in attachment.events) >= 4
    assert max(changes) <= 1e-12
    x = regression_batches(1, seed=98)[0][0]
    with torch.no_grad():
        found = model(x)
        left = 0.0
        for _, layer in adapted(model):  # whatever an inactive slot holds, it is not there
            spare = ~layer.flexlora_active["default"]
            left += layer.flexlora_lambda["default"][spare].abs().sum().item()
            layer.flexlora_lambda["default"][spare] = 0.0
        assert torch.equal(model(x), found)
    assert (left > 0) == (name == "flattened")


def watch_outputs(attachment: Any, model: nn.Module) -> list[float]:
    """How far each event changed the output beyond removing the pruned directions; filled as events happen."""
    x, found = regression_batches(1, seed=99)[0][0], []
    original = attachment.allocator.hold_event

    def spy(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            old_masks, old = masks(model), state_of(model)
            event = original(*args, **kwargs)
            after = model(x)
            new = state_of(model)
            for name, layer in adapted(model):  # by hand: the old directions but for the pruned ones
                for slot in set(old_masks[name]) - set(masks(model)[name]):
                    old[f"{name}.lambda"][slot] = 0.0
                for part in ("P", "lambda", "Q", "active"):
                    getattr(layer, f"flexlora_{part}")["default"].copy_(old[f"{name}.{part}"])
            expected = model(x)
            for name, layer in adapted(model):
                for part in ("P", "lambda", "Q", "active"):
                    getattr(layer, f"flexlora_{part}")["default"].copy_(new[f"{name}.{part}"])
            found.append((after - expected).abs().max().item())
        return event

    attachment.allocator.hold_event = spy
    return found


@pytest.mark.parametrize(
    "make",
    [
        adamw,
        lambda model: torch.optim.SGD(trainable(model), lr=0.1),
        lambda model: torch.optim.SGD(trainable(model), lr=0.1, momentum=0.9),
        lambda model: torch.optim.AdamW(trainable(model), lr=0.02, fused=True, amsgrad=True),
        lambda model: torch.optim.NAdam(trainable(model), lr=0.02),
        lambda model: torch.optim.RAdam(trainable(model), lr=0.02),
        lambda model: torch.optim.Adagrad(trainable(model), lr=0.02),
        lambda model: torch.optim.Adadelta(trainable(model)),
        lambda model: torch.optim.Adamax(trainable(model), lr=0.02),
        lambda model: torch.optim.ASGD(trainable(model), lr=0.1),
        lambda model: torch.optim.RMSprop(trainable(model), lr=0.005, momentum=0.9),
    ],
    ids=["adamw", "sgd", "momentum", "amsgrad", "nadam", "radam", "adagrad", "adadelta", "adamax", "asgd", "rmsprop"],
)
def test_element_wise_optimizers_are_reset_without_a_warning(make: Callable) -> None:
    model = adapt(make_net(), **settings())
    optimizer = make(model)
    attachment = attach(model, optimizer)
    changes = watch_outputs(attachment, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, regression_batches(STEPS))
    assert max(changes) <= 1e-12
    assert sum(len(event.pruned) for event in attachment.events) >= 4
    for _, layer in adapted(model):
        spare = ~layer.flexlora_active["default"]
        for part, dim in (("P", 1), ("lambda", 0), ("Q", 0)):
            parameter = getattr(layer, f"flexlora_{part}")["default"]
            for key, value in optimizer.state[parameter].items():
                if torch.is_tensor(value) and value.shape == parameter.shape:
                    left = value.index_select(dim, spare.nonzero().flatten())
                    assert not (left.abs() > 1e-7).any(), key  # Adamax keeps its eps there


class Unused(nn.Module):
    """A module that a forward pass never reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = make_net()
        self.five = nn.Linear(7, 7).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_module_without_gradients_is_no_unusual_state(weight: float) -> None:
    model = adapt(
        Unused(), target_modules=[*TARGETS, "five"], **settings(importance="random", orth_reg_weight=weight, init_b=4)
    )
    attachment = attach(model, optimizer := adamw(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, regression_batches(STEPS))
    assert any("five" in (*event.pruned, *event.grown) for event in attachment.events)


def test_a_diverged_training_changes_no_ranks_and_records_why() -> None:
    model = adapt(make_net(), **settings())
    attachment = attach(model, optimizer := adamw(model))
    batches = regression_batches(4)
    batches[2] = (batches[2][0] * torch.nan, batches[2][1])
    train(model, optimizer, batches)
    (event,) = attachment.events
    assert event.skipped == "λ or its sensitivity is not finite"
    assert not event.pruned
    assert not event.grown
    assert all(slots == [0, 1, 2] for slots in masks(model).values())
