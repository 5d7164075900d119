"""The state of a new direction is that of a new optimizer, for every optimizer of torch, timm and transformers.

A state that is no moment (a copy of the parameter, a step size) is known by name, or it is left alone and named.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm.optim
import torch
import transformers
from peft import get_peft_model
from torch import nn
from training_helpers import adapt, adapted, make_net, masks, regression_batches, train, trainable

from flexlora import FlexLoraConfig, attach, parameter_groups

# LBFGS is refused, SparseAdam needs sparse gradients, Muon takes no vectors, Adahessian needs second derivatives, and
# Kron draws its probes at random and needs a compiler.
NOT_SWEPT = {"Optimizer", "LBFGS", "SparseAdam", "Muon", "Adahessian", "Kron"}
STEPS = 6


def torch_optimizers() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    found = {"transformers.Adafactor": lambda p, lr: transformers.Adafactor(p, lr=lr, relative_step=False)}
    for name, cls in vars(torch.optim).items():
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and name not in NOT_SWEPT:
            found[f"torch.{name}"] = cls
    found["torch.Adagrad from 0.1"] = lambda p, lr: torch.optim.Adagrad(p, lr=lr, initial_accumulator_value=0.1)
    found["torch.AMSGrad"] = lambda p, lr: torch.optim.Adam(p, lr=lr, amsgrad=True)
    found["torch.RMSprop centered"] = lambda p, lr: torch.optim.RMSprop(p, lr=lr, centered=True, momentum=0.9)
    return found


def timm_optimizers() -> dict[str, Callable[..., torch.optim.Optimizer]]:
    """One optimizer of every class: the names differ in options that have no state of their own."""
    found: dict[str, Callable[..., torch.optim.Optimizer]] = {}
    for name in timm.optim.list_optimizers(exclude_filters=["bnb*", "fused*"]):  # timm asks for CUDA there
        cls = timm.optim.get_optimizer_class(name, bind_defaults=False)
        if cls.__name__ not in NOT_SWEPT and "timm" in cls.__module__ and f"timm.{cls.__name__}" not in found:
            found[f"timm.{cls.__name__}"] = lambda p, lr, name=name: timm.optim.create_optimizer_v2(
                p, opt=name, lr=lr, weight_decay=0.0
            )
    found["timm.Lookahead"] = lambda p, lr: timm.optim.create_optimizer_v2(
        p, opt="lookahead_adamw", lr=lr, weight_decay=0.0
    )
    return found


OPTIMIZERS = torch_optimizers() | timm_optimizers()
NOT_ELEMENT_WISE = {"torch.Adafactor", "transformers.Adafactor"}


def states(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The parameter's state, also in the optimizer that Lookahead wraps."""
    inner = getattr(optimizer, "_base_optimizer", optimizer)
    return dict(inner.state.get(parameter, {}))


def in_a_new_optimizer(make: Callable[..., torch.optim.Optimizer], parameter: nn.Parameter) -> dict[str, Any]:
    """The state after one step over zero gradients, which moves no parameter."""
    copy = nn.Parameter(parameter.detach().clone())
    copy.grad = torch.zeros_like(copy)
    optimizer = make([copy], lr=0.01)
    optimizer.step()
    return states(optimizer, copy)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_new_direction_has_the_state_of_a_new_optimizer(name: str) -> None:
    make = OPTIMIZERS[name]
    model = adapt(make_net(), total_step=STEPS + 2, deltaT=2)
    optimizer = make(trainable(model), lr=0.01)
    before, compared = masks(model), 0

    def check(event: Any) -> None:
        nonlocal before, compared
        after = masks(model)
        for module, layer in adapted(model):
            for slot in set(after[module]) - set(before[module]):
                for part, dim in (("P", 1), ("lambda", 0), ("Q", 0)):
                    parameter = getattr(layer, f"flexlora_{part}")["default"]
                    fresh = in_a_new_optimizer(make, parameter)
                    for key, value in states(optimizer, parameter).items():
                        if torch.is_tensor(value) and value.shape == parameter.shape:
                            # Lookahead makes its copy of the parameter later.
                            row = value.select(dim, slot)
                            expected = fresh.get(key, parameter.detach()).select(dim, slot)
                            # RMSpropTF's mean square starts at 1 and decays to 0.9 in the new optimizer's step.
                            torch.testing.assert_close(row, expected, rtol=0.12, atol=1e-7, msg=f"{part}: {key}")
                            compared += 1
        before = after

    attach(model, optimizer, on_event=check)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, regression_batches(STEPS))
    messages = [str(warning.message) for warning in caught if "keeps" in str(warning.message)]
    assert bool(messages) == (name in NOT_ELEMENT_WISE), messages
    has_state = any(
        torch.is_tensor(v) and v.numel() > 1 for p in trainable(model) for v in states(optimizer, p).values()
    )
    assert compared > 0 or not has_state or messages


def test_a_direction_keeps_learning_where_zeros_would_stop_it() -> None:
    """Rprop's step size and the copy in an averaging optimizer were set to 0, so a new direction never moved."""
    model = adapt(make_net(), total_step=40, deltaT=2)
    optimizer = torch.optim.Rprop(trainable(model), lr=0.01)
    attachment = attach(model, optimizer)
    train(model, optimizer, regression_batches(10))
    assert any(event.grown for event in attachment.events)
    for _, layer in adapted(model):
        sizes = optimizer.state[layer.flexlora_lambda["default"]]["step_size"]
        assert (sizes[layer.flexlora_active["default"]] > 0).all()


class Averaging(torch.optim.SGD):
    """An optimizer with a state of its own under a name that nobody knows."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if "ema_of_weights" not in state:
                    state["ema_of_weights"] = torch.ones_like(parameter)


def test_an_unknown_state_is_left_alone_and_named_once() -> None:
    model = adapt(make_net(), total_step=12, deltaT=2)
    torch.optim.SGD(trainable(model), lr=0.05)  # from the first object on, torch calls hooks around SGD's step too
    optimizer = Averaging(trainable(model), lr=0.05)
    attachment = attach(model, optimizer)
    with pytest.warns(UserWarning, match="ema_of_weights") as caught:
        train(model, optimizer, regression_batches(12))
    assert attachment.step == 12, "torch calls the hooks again for the base class's step"
    assert [str(warning.message) for warning in caught] == [
        "Averaging keeps 'ema_of_weights', which FlexLoRA does not know: outputs stay exact at rank events, but the "
        "optimizer state of changed directions is not reset."
    ]
    assert all((optimizer.state[p]["ema_of_weights"] == 1).all() for p in trainable(model))


class Subclass(torch.Tensor):
    """As torchao's 8-bit states are: of the parameter's shape, and without plain numbers."""


def test_a_quantised_subclass_of_a_tensor_is_left_alone() -> None:
    model = adapt(make_net(), total_step=12, deltaT=2)
    optimizer = torch.optim.SGD(trainable(model), lr=0.05)
    for parameter in trainable(model):
        optimizer.state[parameter]["exp_avg"] = torch.ones_like(parameter).detach().as_subclass(Subclass)
    attach(model, optimizer)
    with pytest.warns(UserWarning, match="not element-wise"):
        train(model, optimizer, regression_batches(12))
    assert all((optimizer.state[p]["exp_avg"] == 1).all() for p in trainable(model))


def test_schedule_free() -> None:
    schedulefree = pytest.importorskip("schedulefree")
    model = adapt(make_net(), total_step=12, deltaT=2)
    optimizer = schedulefree.AdamWScheduleFree(trainable(model), lr=0.01)
    optimizer.train()

    def check(event: Any) -> None:
        for _, layer in adapted(model):
            values = layer.flexlora_lambda["default"]
            spare = ~layer.flexlora_active["default"]
            assert torch.equal(optimizer.state[values]["z"][spare], values[spare])

    attach(model, optimizer, on_event=check)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, regression_batches(12))


def test_bitsandbytes_in_32_bits() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = adapt(make_net(dtype=torch.float32), total_step=12, deltaT=2)
    optimizer = bitsandbytes.optim.AdamW(trainable(model), lr=0.01)
    attachment = attach(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, regression_batches(12, dtype=torch.float32))
    assert any(event.grown for event in attachment.events)


# --- Muon ----------------------------------------------------------------------------------------------------------


def test_muon_for_the_matrices_alone_is_refused_with_what_to_do() -> None:
    model = adapt(make_net(), total_step=12, deltaT=2)
    matrices = [parameter for parameter in trainable(model) if parameter.dim() == 2]
    with pytest.raises(ValueError, match=r"trains P and Q, but not λ, of 4 of 4 .*timm.optim.Muon.*or AdamW for the"):
        attach(model, torch.optim.Muon(matrices))


def test_what_the_refusal_says_works() -> None:
    model = adapt(make_net(), total_step=12, deltaT=2)
    optimizer = timm.optim.Muon(parameter_groups(model, 0.01))
    attachment = attach(model, optimizer)
    train(model, optimizer, regression_batches(12))
    assert any(event.grown for event in attachment.events)

    both = get_peft_model(make_net(), FlexLoraConfig(target_modules=["one", "two"], total_step=12, deltaT=2))
    head = both.base_model.model.four.weight.requires_grad_()
    muon = torch.optim.Muon([head])
    adamw = torch.optim.AdamW([parameter for parameter in trainable(both) if parameter is not head])
    attachment = attach(both, adamw)
    for x, y in regression_batches(12):
        for optimizer in (muon, adamw):
            optimizer.zero_grad()
        nn.functional.mse_loss(both(x), y).backward()
        for optimizer in (muon, adamw):
            optimizer.step()
    assert len(attachment.events) == 5
