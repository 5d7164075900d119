"""A training that is not FlexLoRA's gets an error or one warning at the first moment that can know.

`silently` also shows that a right training has no warning.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from test_trainer import InOrder, arguments, model_of, rows_of
from torch import nn
from training_helpers import (
    adapt,
    adapted,
    make_net,
    moves,
    regression_batches,
    state_of,
    text_batches,
    train,
    trainable,
)

from flexlora import FlexLoraConfig, attach, convert_to_lora, module_ranks, save_as_lora, warm_start_from_lora
from flexlora.tuner import watch

STEPS = 12


def model_with(**changes: Any) -> Any:
    return adapt(make_net(), **({"total_step": STEPS, "deltaT": 2} | changes))


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(trainable(model), lr=0.02)


@pytest.fixture(autouse=True)
def forget_adapters_of_other_tests() -> None:
    """Another test of this process can still hold an adapter that was never attached, and the hook with it."""
    watch._watched.clear()
    watch.forget()


@contextlib.contextmanager
def told() -> Iterator[list[str]]:
    """The texts of the warnings in the block that FlexLoRA gives."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
        gc.collect()
    texts += [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


# --- attach forgotten ------------------------------------------------------------------------------------------------


def test_a_training_without_attach_is_told_at_its_second_step(tmp_path: Path) -> None:
    model = model_with()
    optimizer, at = adamw(model), []
    with told() as texts:
        train(model, optimizer, regression_batches(STEPS), lambda step: at.append(watch._handle is None))
        model.save_pretrained(tmp_path)
    (text,) = texts
    assert text.startswith("an optimizer trains this FlexLoRA adapter, but nothing counts its steps: 5 of 5 rank")
    assert "flexlora.attach(model, optimizer)" in text
    assert "FlexLoraCallback" in text
    assert at.index(True) == 2, "the hook on all optimizers goes at the step after the warning"


def test_a_trainer_without_the_callback_is_told(tmp_path: Path) -> None:
    trainer = InOrder(model=model_of(), args=arguments(tmp_path), train_dataset=rows_of(text_batches(24, size=4)))
    with told() as texts:
        trainer.train()
    assert len([text for text in texts if "FlexLoraCallback()" in text]) == 1


class Unseen(torch.optim.SGD):
    """An optimizer whose step torch's hooks do not see, as those of some libraries."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data -= group["lr"] * parameter.grad

    step.hooked = True  # torch then leaves it as it is


@pytest.mark.parametrize("way", ["save_pretrained", "save_as_lora", "convert_to_lora", "a copy"])
def test_saving_knows_where_no_step_was_seen(way: str, tmp_path: Path) -> None:
    model = model_with()
    with told() as texts:
        train(model, Unseen(trainable(model), lr=0.1), regression_batches(STEPS))
        for _ in range(2):
            if way == "convert_to_lora":
                convert_to_lora(model)
            elif way == "save_as_lora":
                save_as_lora(tmp_path, model)
            else:
                saved = copy.deepcopy(model) if way == "a copy" and not texts else model
                saved.save_pretrained(tmp_path)
                model = saved
    (text,) = texts
    assert text.startswith("0 of 5 rank events happened to the saved adapter, because nothing counted its optimizer")


def test_what_needs_no_schedule_is_silent(tmp_path: Path) -> None:
    """An untrained adapter, one that was loaded, fixed ranks, another tuner, and inference."""
    with told() as texts:
        fresh = model_with()
        fresh.save_pretrained(tmp_path / "fresh")
        train(model_with(init_b=0), adamw(fixed := model_with(init_b=0)), [])
        train(fixed, adamw(fixed), regression_batches(4))
        fixed.save_pretrained(tmp_path / "fixed")
        lora = get_peft_model(make_net(), LoraConfig(target_modules=["one"], r=2))
        train(lora, adamw(lora), regression_batches(4))
        lora.save_pretrained(tmp_path / "lora")
        started = model_with(target_modules=["one"])
        warm_start_from_lora(started, tmp_path / "lora")
        started.save_pretrained(tmp_path / "started")
        for trainable_again in (False, True):
            loaded = PeftModel.from_pretrained(
                make_net(), tmp_path / "started", is_trainable=trainable_again, autocast_adapter_dtype=False
            )
            loaded.save_pretrained(tmp_path / "again")
    assert texts == []


@pytest.mark.parametrize("how", ["attach", "update_and_allocate"])
def test_a_right_training_is_silent(how: str, tmp_path: Path) -> None:
    model = model_with()
    optimizer = adamw(model)
    with told() as texts:
        if how == "attach":
            attach(model, optimizer)
        after = None if how == "attach" else lambda step: model.base_model.update_and_allocate(step, optimizer)
        train(model, optimizer, regression_batches(STEPS), after)
        model.save_pretrained(tmp_path)
    assert texts == []


def test_the_hook_on_all_optimizers_goes_with_the_model() -> None:
    model = model_with()
    assert watch._handle is not None
    other = make_net()
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), regression_batches(3))
    assert watch._handle is not None
    attach(model, adamw(model))
    assert watch._handle is None


# --- total_step is not the number of steps -------------------------------------------------------------------------


@pytest.mark.parametrize(("total", "happened", "planned"), [(1000, 5, 499), (30, 5, 14)])
def test_total_step_far_above_the_steps_is_told_at_saving(
    total: int, happened: int, planned: int, tmp_path: Path
) -> None:
    model = model_with(total_step=total)
    attach(model, optimizer := adamw(model))
    with told() as texts:
        train(model, optimizer, regression_batches(STEPS - 1))
        model.save_pretrained(tmp_path)
        model.save_pretrained(tmp_path)
    (text,) = texts
    assert text.startswith(
        f"{happened} of {planned} rank events happened to the saved adapter: it is at optimizer step"
    )
    assert f"step 11 of total_step={total}" in text


def test_no_event_at_all_is_told_at_saving(tmp_path: Path) -> None:
    model = model_with(total_step=5360, tinit=1000, tfinal=1000, deltaT=200)
    attach(model, optimizer := adamw(model))
    with told() as texts:
        train(model, optimizer, regression_batches(STEPS))
        model.save_pretrained(tmp_path)
    assert len(texts) == 1
    assert texts[0].startswith("0 of 16 rank events happened to the saved adapter: it is at optimizer step 12")


def test_training_past_total_step_is_told_at_the_next_step(tmp_path: Path) -> None:
    model = model_with()
    attachment = attach(model, optimizer := adamw(model))
    with told() as texts:
        train(model, optimizer, regression_batches(STEPS))
    assert texts == []
    with told() as texts:
        train(model, optimizer, regression_batches(3))
        model.save_pretrained(tmp_path)
    (text,) = texts
    assert text.startswith("optimizer step 13 is beyond total_step=12: the schedule is over")
    assert len(attachment.events) == 5


def test_a_schedule_that_another_loop_has_used_is_told() -> None:
    model = model_with()
    optimizer = adamw(model)
    update = model.base_model.update_and_allocate
    train(model, optimizer, regression_batches(STEPS), lambda step: update(step, optimizer))
    with told() as texts:
        train(model, optimizer, regression_batches(4), lambda step: update(step, optimizer))
    (text,) = texts
    assert text.startswith("update_and_allocate was called with step 1, but the schedule is at step 12")


# --- a second attach -------------------------------------------------------------------------------------------------


def test_a_second_attach_with_a_second_optimizer_is_refused() -> None:
    model = model_with()
    first = attach(model, optimizer := adamw(model))
    train(model, optimizer, regression_batches(5))
    second = torch.optim.SGD(trainable(model), lr=0.1)
    with pytest.raises(ValueError, match=r"already attached to another optimizer \(AdamW\), at step 5: .*pass step=5"):
        attach(model, second)
    assert not second._optimizer_step_pre_hooks
    model.base_model.finish()
    assert not optimizer._optimizer_step_pre_hooks
    with told() as texts:
        attachment = attach(model, second, step=first.step)
        train(model, second, regression_batches(7))
    assert texts == []
    assert [event.step for event in first.events + attachment.events] == [2, 4, 6, 8, 10]


def test_an_optimizer_that_is_gone_does_not_count() -> None:
    model = model_with()
    optimizer = adamw(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    attach(model, optimizer)
    del optimizer, scheduler
    assert attach(model, adamw(model)).step == 0


def test_a_schedule_that_begins_anew_is_told_once() -> None:
    model = model_with()
    attachment = attach(model, optimizer := adamw(model))
    train(model, optimizer, regression_batches(5))
    attachment.remove()
    with told() as texts:
        attach(model, second := adamw(model))
        train(model, second, regression_batches(STEPS))
    (text,) = texts
    assert text.startswith("this adapter has trained for 5 optimizer steps, but its schedule starts at step 0: 2 rank")
    assert text.endswith("Pass step=5 to go on in the schedule.")


def test_training_on_after_remove_is_told() -> None:
    model = model_with()
    attachment = attach(model, optimizer := adamw(model))
    train(model, optimizer, regression_batches(5))
    attachment.remove()
    with told() as texts:
        train(model, optimizer, regression_batches(5))
    (text,) = texts
    assert "nothing counts its steps" in text


# --- merged or switched off ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["attach", "update_and_allocate"])
def test_a_step_while_the_adapter_is_merged_is_refused_before_it_changes_anything(how: str) -> None:
    model = model_with()
    optimizer = adamw(model)
    if how == "attach":
        attach(model, optimizer)
    after = None if how == "attach" else lambda step: model.base_model.update_and_allocate(step, optimizer)
    train(model, optimizer, regression_batches(3), after)
    base = {name: layer.base_layer.weight.detach().clone() for name, layer in adapted(model)}
    held = state_of(model)
    model.merge_adapter()
    step = optimizer.step if how == "attach" else model.base_model.add_orthogonality_gradient
    with pytest.raises(RuntimeError, match=r"is merged into the base.*call model.unmerge_adapter\(\) before"):
        step()
    model.unmerge_adapter()
    assert all(torch.equal(value, held[key]) for key, value in state_of(model).items())
    for name, layer in adapted(model):
        torch.testing.assert_close(layer.base_layer.weight, base[name], rtol=0, atol=1e-12)
    if how == "attach":
        train(model, optimizer, regression_batches(3))  # it goes on


def test_steps_of_an_adapter_that_is_switched_off_are_told_once() -> None:
    model = model_with()
    attach(model, optimizer := adamw(model))
    train(model, optimizer, regression_batches(3))
    with told() as texts:
        with model.disable_adapter():
            reference = [model(x) for x, _ in regression_batches(2)]
        assert reference
        train(model, optimizer, regression_batches(1))
    assert texts == []
    model.base_model.disable_adapter_layers()
    other = nn.Parameter(torch.zeros(()))
    with told() as texts:
        for _ in range(3):
            optimizer.step()
    assert other.grad is None
    (text,) = texts
    assert text.startswith("the FlexLoRA adapter 'default' is switched off, but its schedule goes on")


# --- one configuration for several models --------------------------------------------------------------------------


def test_a_configuration_may_be_used_for_a_second_model() -> None:
    """The first training's final ranks were the second one's initial ranks."""
    config = FlexLoraConfig(
        target_modules=["one", "two", "three", "four"], r=3, max_rank=6, total_step=STEPS, deltaT=2, init_std=0.3,
        budget_schedule="constant", init_b=2,
    )  # fmt: skip
    before, found = config.to_dict(), []
    for _ in range(2):
        torch.manual_seed(0)
        model = get_peft_model(make_net(), config)
        assert set(module_ranks(model).values()) == {3}
        attachment = attach(model, optimizer := adamw(model))
        with told() as texts:
            train(model, optimizer, regression_batches(STEPS))
        assert texts == []
        found.append(moves(attachment.events))
    assert found[0] == found[1]
    assert any(event.pruned for event in attachment.events)
    after = config.to_dict()
    assert {key for key in before if before[key] != after[key]} <= {"base_model_name_or_path", "max_rank"}
