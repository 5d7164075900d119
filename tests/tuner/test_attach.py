"""`flexlora.attach` in any loop: invalid uses are refused, wrappers work, and only real steps count."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from attach_helpers import STEPS, adamw, settings
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn
from training_helpers import (
    TARGETS,
    adapt,
    adapted,
    assert_same,
    make_net,
    masks,
    moves,
    regression_batches,
    state_of,
    train,
    trainable,
    twin,
)

from flexlora import FlexLoraConfig, RankEvent, attach, parameter_groups


@pytest.fixture(scope="module")
def plain() -> tuple[list, dict[str, torch.Tensor]]:
    """(moves, final state) of the plain loop with attach, which the other ways must equal."""
    model = adapt(make_net(), **settings())
    attachment = attach(model, optimizer := adamw(model))
    train(model, optimizer, regression_batches(STEPS))
    assert len(attachment.events) == 6
    assert sum(len(event.pruned) for event in attachment.events) >= 4
    return moves(attachment.events), state_of(model)


# --- what it sees ------------------------------------------------------------------------------------------------


def test_events_follow_the_steps_and_reach_on_event(plain: tuple) -> None:
    model = adapt(make_net(), **settings())
    told: list[tuple[int, RankEvent]] = []
    optimizer = adamw(model)
    attachment = attach(model, optimizer, on_event=lambda event: told.append((attachment.step, event)))
    train(model, optimizer, regression_batches(STEPS))
    assert [step for step, _ in told] == [3, 6, 9, 12, 15, 18]
    assert [event for _, event in told] == attachment.events
    assert moves(attachment.events) == plain[0]
    assert attachment.step == STEPS


def test_an_event_comes_after_its_step() -> None:
    """Events see the parameters and the moments that the step left, not those before it."""
    model = adapt(make_net(), **settings())
    optimizer = adamw(model)
    batches = regression_batches(STEPS)
    without = twin(model)
    train(without, adamw(without), batches[:2], None)
    attachment = attach(model, optimizer)
    energies = {}

    def after(step: int) -> None:
        if step == 3:
            energies.update(attachment.events[0].energy)

    before: dict[str, float] = {}
    original = attachment.allocator.hold_event

    def spy(*args: Any, **kwargs: Any) -> Any:
        before.update(
            {name: layer.flexlora_lambda["default"].detach().square().sum().item() for name, layer in adapted(model)}
        )
        return original(*args, **kwargs)

    attachment.allocator.hold_event = spy
    train(model, optimizer, batches[:3], after)
    reference = adapt(make_net(), **settings(init_b=0))
    attach(reference, optimizer_of_reference := adamw(reference))
    train(reference, optimizer_of_reference, batches[:3])
    expected = {
        name: layer.flexlora_lambda["default"].detach().square().sum().item() for name, layer in adapted(reference)
    }
    assert before == expected
    assert energies == pytest.approx(expected, rel=1e-12)


def test_every_new_direction_has_its_own_random_vector() -> None:
    """The vector depends on seed, step and module, and differs from those of other seeds, events and modules."""
    drawn: list[torch.Tensor] = []
    for seed in (0, 1):
        model = adapt(make_net(), **settings(deltaT=1))
        model.peft_config["default"].seed = seed
        attachment = attach(model, optimizer := adamw(model))
        layers, held = dict(adapted(model)), masks(model)
        for x, y in regression_batches(STEPS):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            for name, slots in masks(model).items():
                drawn += [
                    layers[name].flexlora_P["default"][:7, s].detach().clone() for s in set(slots) - set(held[name])
                ]
            held = masks(model)
        assert len(attachment.events) == STEPS - 1
    assert len(drawn) >= 10
    assert len({tuple(vector.tolist()) for vector in drawn}) == len(drawn)


def test_accumulation_counts_steps_not_passes(plain: tuple) -> None:
    model = adapt(make_net(), **settings())
    attachment = attach(model, optimizer := adamw(model))
    for x, y in regression_batches(STEPS):
        optimizer.zero_grad()
        for half in (slice(0, 4), slice(4, 8)):
            (nn.functional.mse_loss(model(x[half]), y[half]) / 2).backward()
        optimizer.step()
    assert attachment.step == STEPS
    assert moves(attachment.events) == plain[0]
    assert_same(state_of(model), plain[1], 1e-10)


def test_removed_hooks_do_nothing() -> None:
    model = adapt(make_net(), **settings())
    attachment = attach(model, optimizer := adamw(model))
    batches = regression_batches(STEPS)
    train(model, optimizer, batches[:5])
    attachment.remove()
    reference = twin(model)
    optimizer_of_reference = adamw(reference)
    optimizer_of_reference.load_state_dict(twin(optimizer.state_dict()))
    train(model, optimizer, batches[5:])
    train(reference, optimizer_of_reference, batches[5:])
    assert attachment.step == 5
    assert len(attachment.events) == 1
    assert_same(state_of(model), state_of(reference))
    attachment.remove()  # twice is once


def test_attach_does_not_keep_the_model_alive() -> None:
    model = adapt(make_net(), **settings())
    attachment = attach(model, optimizer := adamw(model))
    train(model, optimizer, regression_batches(4))
    alive = weakref.ref(model)
    attachment.remove()
    del model, optimizer, attachment
    gc.collect()
    assert alive() is None


# --- what it accepts ---------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """A wrapper with the model as its attribute, like DistributedDataParallel."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


class Holder(nn.Module):
    """A user's own model, with an adapted one inside and a head that trains beside it."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(7, 7).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def test_through_a_wrapper(plain: tuple) -> None:
    model = Wrapper(adapt(make_net(), **settings()))
    attachment = attach(model, optimizer := adamw(model))
    train(model, optimizer, regression_batches(STEPS))
    assert moves(attachment.events) == plain[0]
    assert_same(state_of(model), plain[1])


def test_inside_a_users_module() -> None:
    torch.manual_seed(3)
    model = Holder(adapt(make_net(), **settings()))
    attachment = attach(model, optimizer := adamw(model))
    train(model, optimizer, regression_batches(STEPS))
    assert any(event.pruned for event in attachment.events)
    assert attachment.allocator.names == TARGETS


def test_an_injected_model(plain: tuple) -> None:
    """The model has no PeftModel around it, and the method must still work."""
    torch.manual_seed(1)
    config = dict(adapt(make_net(), **settings()).peft_config["default"].to_dict())
    torch.manual_seed(1)
    model = inject_adapter_in_model(FlexLoraConfig(**config), make_net_for_injection())
    attachment = attach(model, optimizer := adamw(model))
    train(model, optimizer, regression_batches(STEPS))
    assert moves(attachment.events) == plain[0]
    assert_same(state_of(model), plain[1])


def make_net_for_injection() -> nn.Module:
    net = make_net()
    torch.manual_seed(1)
    return net


def test_a_second_adapter_that_is_frozen_stays_as_it_is(plain: tuple) -> None:
    model = adapt(make_net(), **settings())
    frozen = model.peft_config["default"].to_dict() | {
        "inference_mode": True,
        "init_weights": False,
        "rank_pattern": {},
    }
    model.add_adapter("frozen", FlexLoraConfig(**frozen))
    model.set_adapter("default")
    before = {
        name: [getattr(layer, f"flexlora_{part}")["frozen"].clone() for part in ("P", "lambda", "Q", "active")]
        for name, layer in adapted(model)
    }
    attachment = attach(model, optimizer := adamw(model))
    train(model, optimizer, regression_batches(STEPS))
    assert attachment.allocator.adapter_name == "default"
    assert moves(attachment.events) == plain[0]
    assert_same(state_of(model), plain[1])
    for name, layer in adapted(model):
        for part, kept in zip(("P", "lambda", "Q", "active"), before[name], strict=True):
            assert torch.equal(getattr(layer, f"flexlora_{part}")["frozen"], kept), f"{name}.{part}"


def test_custom_parameter_groups_work(plain: tuple) -> None:
    model = adapt(make_net(), **settings())
    ours = [p for n, p in model.named_parameters() if p.requires_grad and "lambda" in n]
    others = [p for n, p in model.named_parameters() if p.requires_grad and "lambda" not in n]
    optimizer = torch.optim.AdamW([{"params": ours, "lr": 0.02}, {"params": others, "lr": 0.02}], lr=1.0)
    attachment = attach(model, optimizer)
    train(model, optimizer, regression_batches(STEPS))
    assert moves(attachment.events) == plain[0]


# --- what it refuses ---------------------------------------------------------------------------------------------


def test_an_optimizer_made_before_the_adapter_is_refused() -> None:
    net = make_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.02)
    model = adapt(net, **settings())
    with pytest.raises(ValueError, match=r"does not train 4 of 4 FlexLoRA modules .*make the optimizer after"):
        attach(model, optimizer)
    train(model, adamw(model), regression_batches(4))
    assert all(slots == [0, 1, 2] for slots in masks(model).values()), "a refused attach must leave no hook"


def test_an_optimizer_without_all_modules_is_refused() -> None:
    model = adapt(make_net(), **settings())
    some = [p for n, p in model.named_parameters() if p.requires_grad and "four" not in n]
    with pytest.raises(ValueError, match=r"does not train 1 of 4 FlexLoRA modules \(the first: .*four"):
        attach(model, torch.optim.AdamW(some, lr=0.02))


def test_a_model_without_an_adapter_is_refused() -> None:
    net = make_net()
    with pytest.raises(ValueError, match="no trainable FlexLoRA adapter: wrap it with get_peft_model"):
        attach(net, torch.optim.AdamW(net.parameters()))


def test_a_model_of_another_tuner_is_refused() -> None:
    from peft import LoraConfig

    model = get_peft_model(make_net(), LoraConfig(target_modules=TARGETS))
    with pytest.raises(ValueError, match="no trainable FlexLoRA adapter"):
        attach(model, adamw(model))


def test_a_frozen_adapter_is_refused(tmp_path: Any) -> None:
    adapt(make_net(), **settings()).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(make_net(), tmp_path)
    with pytest.raises(ValueError, match="is_trainable=True"):
        attach(model, torch.optim.AdamW(model.parameters()))


@pytest.mark.parametrize("thing", [None, object(), "adamw", nn.Linear(1, 1)])
def test_an_object_that_is_not_an_optimizer_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match=f"needs a torch optimizer, not {type(thing).__name__}"):
        attach(adapt(make_net(), **settings()), thing)


@pytest.mark.parametrize("keyword", [False, True], ids=["positional", "keyword"])
def test_a_closure_gives_the_same_step(keyword: bool) -> None:
    """The closure computes the gradients inside the step, as in Lightning. The penalty is added after that."""

    def trained(with_closure: bool) -> dict[str, torch.Tensor]:
        model = adapt(make_net(), **settings())
        attachment = attach(model, optimizer := adamw(model))
        for batch in regression_batches(12):

            def closure(batch: tuple[torch.Tensor, torch.Tensor] = batch) -> torch.Tensor:
                optimizer.zero_grad()
                loss = nn.functional.mse_loss(model(batch[0]), batch[1])
                loss.backward()
                return loss

            if with_closure:
                assert (optimizer.step(closure=closure) if keyword else optimizer.step(closure)) is not None
            else:
                closure()
                optimizer.step()
        assert attachment.step == 12
        assert attachment.events
        return state_of(model)

    assert_same(trained(True), trained(False))


def test_an_optimizer_of_several_evaluations_a_step_is_refused() -> None:
    model = adapt(make_net(), **settings())
    with pytest.raises(ValueError, match="LBFGS"):
        attach(model, torch.optim.LBFGS(trainable(model)))


@pytest.mark.parametrize(("ratio", "said"), [(5.0, "lambda_lr_ratio=5,"), ("auto", r"lambda_lr_ratio=\d+\.\d+,")])
def test_an_ignored_lambda_lr_ratio_gives_a_warning(ratio, said) -> None:
    model = adapt(make_net(), **settings(lambda_lr_ratio=ratio))
    with pytest.warns(UserWarning, match=said):
        attach(model, torch.optim.AdamW(trainable(model), lr=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3))
        # Warmup begins at a rate of 0: the groups' own rates count.
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 10, 1.0))
        attach(model, optimizer)


def test_attaching_twice_is_refused() -> None:
    """It would add the penalty twice and count every step twice."""
    model = adapt(make_net(), **settings())
    first = attach(model, optimizer := adamw(model))
    with pytest.raises(ValueError, match="already attached"):
        attach(model, optimizer)
    train(model, optimizer, regression_batches(4))
    assert (first.step, len(first.events)) == (4, 1)
    first.remove()
    second = attach(model, optimizer, step=4)
    train(model, optimizer, regression_batches(3))
    assert (second.step, len(second.events)) == (7, 1)


def test_two_adapted_models_in_one_are_refused() -> None:
    """The ranks of only one of them would change, so each must be attached separately."""
    two = nn.ModuleDict({"left": adapt(make_net(0), **settings()), "right": adapt(make_net(1), **settings())})
    optimizer = adamw(two)
    with pytest.raises(ValueError, match="attach each"):
        attach(two, optimizer)
    attachments = [attach(two["left"], optimizer), attach(two["right"], optimizer)]
    for x, y in regression_batches(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(two["left"](x) + two["right"](x), y).backward()
        optimizer.step()
    assert [attachment.step for attachment in attachments] == [STEPS, STEPS]
    assert all(any(event.pruned for event in attachment.events) for attachment in attachments)
