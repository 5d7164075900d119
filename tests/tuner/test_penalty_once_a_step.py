"""The penalty's gradient per optimizer step is weight · ∇R by autograd, whatever happens to the loss.

Under SGD with learning rate 1 the change of a parameter is its gradient: so a step shows the penalty's share as the
difference to what the loss alone gives, which the tests take from autograd.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from training_helpers import (
    adapt,
    adapt_bert,
    adapted,
    make_net,
    masks,
    moves,
    penalty,
    regression_batches,
    text_batches,
    tiny_bert,
    trainable,
)
from transformers import Trainer, TrainingArguments

from flexlora import FlexLoraCallback, attach

WEIGHT = 0.3


def warmed(steps: int = 8, **settings: Any) -> Any:
    """An adapted network that trained a little, with λ away from 0, slots apart and no further events."""
    model = adapt(make_net(), orth_reg_weight=WEIGHT, **({"total_step": 8, "deltaT": 2, "tinit": 0} | settings))
    attachment = attach(model, optimizer := torch.optim.SGD(trainable(model), lr=0.3))
    for x, y in regression_batches(steps, seed=11):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    attachment.remove()
    optimizer.zero_grad()
    model.peft_config["default"].init_b = 0
    assert len({len(slots) for slots in masks(model).values()}) > 1, "ranks should differ by now"
    return model


def gradients(model: nn.Module, value: torch.Tensor) -> list[torch.Tensor]:
    parameters = trainable(model)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def expected_change(model: nn.Module, value: torch.Tensor, power: int = 1, limit: float | None = None) -> list:
    """-(∇loss, clipped to `limit`, + weight · ∇R), everything by autograd."""
    of_loss = gradients(model, value)
    if limit is not None:
        norm = torch.stack([g.norm() for g in of_loss]).norm()
        assert norm > limit, "the clipping must bite"
        of_loss = [g * limit / (norm + 1e-6) for g in of_loss]
    of_penalty = gradients(model, WEIGHT * penalty(model, power))
    assert sum(g.abs().sum() for g in of_penalty) > 0
    return [-(a + b) for a, b in zip(of_loss, of_penalty, strict=True)]


def changes(model: nn.Module, before: list[torch.Tensor]) -> list[torch.Tensor]:
    return [p.detach() - old for p, old in zip(trainable(model), before, strict=True)]


def copies(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainable(model)]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-13) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_plain_loop(power: int, accumulation: int) -> None:
    model = warmed(orth_reg_power=power)
    before = copies(model)
    batches = regression_batches(accumulation, seed=3)
    total = sum(nn.functional.mse_loss(model(x), y) for x, y in batches) / accumulation
    expected = expected_change(model, total, power)
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    attachment = attach(model, optimizer)
    for x, y in batches:
        (nn.functional.mse_loss(model(x), y) / accumulation).backward()
    optimizer.step()
    assert attachment.step == 1
    assert_close(changes(model, before), expected)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_accelerate(accumulation: int) -> None:
    """The wrapped optimizer's `step` is called in every micro-batch, and is a step in the last one only."""
    model = warmed()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    wrapped, wrapped_optimizer = accelerator.prepare(model, optimizer)
    attachment = attach(wrapped, wrapped_optimizer)
    assert attachment.optimizer is optimizer
    batches = regression_batches(2 * accumulation, seed=3)
    for real_step in (1, 2):
        before = copies(model)
        part = batches[(real_step - 1) * accumulation : real_step * accumulation]
        total = sum(nn.functional.mse_loss(model(x), y) for x, y in part) / accumulation
        expected = expected_change(model, total)
        for x, y in part:
            with accelerator.accumulate(wrapped):
                accelerator.backward(nn.functional.mse_loss(wrapped(x), y))
                wrapped_optimizer.step()
                wrapped_optimizer.zero_grad()
        assert attachment.step == real_step
        assert_close(changes(model, before), expected)


def test_after_clipping() -> None:
    """Clipping applies to the loss's gradient only; the complete penalty is added afterwards."""
    model = warmed()
    (x, y) = regression_batches(1, seed=3)[0]
    expected = expected_change(model, nn.functional.mse_loss(model(x), y), limit=1e-3)
    before = copies(model)
    attach(model, optimizer := torch.optim.SGD(trainable(model), lr=1.0))
    nn.functional.mse_loss(model(x), y).backward()
    norm = nn.utils.clip_grad_norm_(trainable(model), 1e-3)
    optimizer.step()
    assert norm > 1e-3
    assert_close(changes(model, before), expected)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_gradient_scaler(fused: bool, clip: bool) -> None:
    """A fused optimizer unscales inside its step: at the pre-hook its gradients still carry the scale."""
    model = warmed()
    (x, y) = regression_batches(1, seed=3)[0]
    expected = expected_change(model, nn.functional.mse_loss(model(x), y), limit=1e-3 if clip else None)
    before = copies(model)
    optimizer = torch.optim.SGD(trainable(model), lr=1.0, fused=fused)
    attachment = attach(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
    if clip:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(trainable(model), 1e-3)
    scaler.step(optimizer)
    scaler.update()
    assert attachment.step == 1
    assert_close(changes(model, before), expected)


@pytest.mark.parametrize("importance", ["entropy", "sensitivity"])
@pytest.mark.parametrize("fused", [False, True])
def test_a_scaled_training_with_overflows_equals_an_unscaled_one(fused: bool, importance: str) -> None:
    """AdamW under a gradient scaler, every third gradient infinite: neither penalty, nor count, nor event for those."""

    def run(scaled: bool) -> tuple[Any, Any]:
        model = adapt(make_net(), orth_reg_weight=WEIGHT, total_step=20, deltaT=3, importance=importance)
        optimizer = torch.optim.AdamW(trainable(model), lr=0.01, fused=fused and scaled)
        attachment = attach(model, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3, enabled=scaled)
        for number, (x, y) in enumerate(regression_batches(20, seed=3)):
            if scaled and number % 3 == 1:
                before, events, step = copies(model), len(attachment.events), attachment.step
                optimizer.zero_grad()
                scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
                trainable(model)[2].grad[0] = torch.inf
                scaler.step(optimizer)
                scaler.update()
                assert all(torch.equal(p, old) for p, old in zip(trainable(model), before, strict=True))
                assert (len(attachment.events), attachment.step) == (events, step)
            optimizer.zero_grad()
            scaler.scale(nn.functional.mse_loss(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()
        assert attachment.step == 20
        return model, attachment

    plain, plain_attachment = run(scaled=False)
    scaled, scaled_attachment = run(scaled=True)
    assert moves(scaled_attachment.events) == moves(plain_attachment.events)
    assert len(plain_attachment.events) == 6
    assert any(event.pruned for event in plain_attachment.events)
    assert_close(copies(scaled), copies(plain), 1e-8)
    if importance == "sensitivity":
        smoothed = scaled_attachment.state_dict()["sensitivity"]
        for key, value in plain_attachment.state_dict()["sensitivity"].items():
            torch.testing.assert_close(smoothed[key], value, rtol=1e-5, atol=1e-12)


def test_accelerate_with_a_scaler() -> None:
    """Accelerate's wrapper swaps the optimizer's `step` while it scales; the hooks must still see the step once."""
    model = warmed()
    (x, y) = regression_batches(1, seed=3)[0]
    expected = expected_change(model, nn.functional.mse_loss(model(x), y))
    before = copies(model)
    accelerator = Accelerator(cpu=True)
    wrapped, optimizer = accelerator.prepare(model, torch.optim.SGD(trainable(model), lr=1.0))
    optimizer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    inner = optimizer.optimizer
    optimizer._accelerate_step_called = False
    optimizer._optimizer_original_step_method = inner.step
    optimizer._optimizer_patched_step_method = _patched(optimizer, inner.step)
    attachment = attach(wrapped, optimizer)
    optimizer.scaler.scale(nn.functional.mse_loss(wrapped(x), y)).backward()
    optimizer.step()
    assert attachment.step == 1
    assert not optimizer.step_was_skipped
    assert_close(changes(model, before), expected)


def _patched(optimizer: Any, method: Any) -> Any:
    from accelerate.optimizer import patch_optimizer_step

    return patch_optimizer_step(optimizer, method)


def test_a_schedulers_wrapper_around_step_changes_nothing() -> None:
    model = warmed()
    (x, y) = regression_batches(1, seed=3)[0]
    expected = expected_change(model, nn.functional.mse_loss(model(x), y))
    before = copies(model)
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    attachment = attach(model, optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()
    scheduler.step()
    assert attachment.step == 1
    assert_close(changes(model, before), expected)


def test_a_model_whose_output_is_a_tensor() -> None:
    """timm's models return logits, so there is no loss that could contain the penalty."""
    import timm

    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=4
    ).double()
    model = adapt(vit, target_modules=["qkv", "fc1"], modules_to_save=["head"], orth_reg_weight=WEIGHT)
    x, y = torch.randn(4, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    expected = expected_change(model, nn.functional.cross_entropy(model(x), y))
    before = copies(model)
    attach(model, optimizer := torch.optim.SGD(trainable(model), lr=1.0))
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert_close(changes(model, before), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_trainer(accumulation: int, smoothing: float, tmp_path: Any) -> None:
    """In the Trainer: the step has the penalty once, and the reported loss does not have it at all.

    Compared with the same step at weight 0, so that the Trainer's own scaling of the loss does not matter.
    """
    rows = [{key: value[0] for key, value in batch.items()} for batch in text_batches(2 * accumulation, size=1)]

    def run(weight: float) -> tuple[list[torch.Tensor], float, float]:
        model = adapt_bert(tiny_bert(), orth_reg_weight=weight, init_b=0)
        before = copies(model)
        args = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulation,
            label_smoothing_factor=smoothing,
            max_grad_norm=0.0,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            seed=0,
            lr_scheduler_type="constant",
        )
        optimizer = torch.optim.SGD(trainable(model), lr=1.0)
        trainer = Trainer(
            model=model, args=args, train_dataset=rows, optimizers=(optimizer, None), callbacks=[FlexLoraCallback()]
        )
        result = trainer.train()
        return changes(model, before), result.training_loss, float(trainer.state.log_history[0]["loss"])

    moved, loss, logged = run(WEIGHT)
    moved_without, loss_without, logged_without = run(0.0)
    assert (loss, logged) == (loss_without, logged_without)
    assert any(change.any() for change in moved_without)
    fresh = adapt_bert(tiny_bert(), init_b=0)
    assert WEIGHT * penalty(fresh).item() > 0.1
    expected = gradients(fresh, -WEIGHT * penalty(fresh))
    assert_close([a - b for a, b in zip(moved, moved_without, strict=True)], expected)


def test_every_process_adds_it_to_averaged_gradients() -> None:
    """The penalty's gradient depends on parameters alone: what the loss's gradients were averaged over is no matter."""
    model = warmed()
    optimizer = torch.optim.SGD(trainable(model), lr=1.0)
    attach(model, optimizer)
    expected = gradients(model, -WEIGHT * penalty(model))
    before = copies(model)
    optimizer.zero_grad()
    optimizer.step()  # no gradient at all
    assert_close(changes(model, before), expected)


def test_none_for_inactive_slots_and_frozen_factors() -> None:
    model = warmed()
    frozen = next(layer for name, layer in adapted(model) if name == "two")
    frozen.flexlora_P["default"].requires_grad_(False)
    optimizer = torch.optim.SGD([*trainable(model), frozen.flexlora_P["default"]], lr=1.0)
    before = frozen.flexlora_P["default"].detach().clone()
    attach(model, optimizer)
    optimizer.step()
    assert torch.equal(frozen.flexlora_P["default"], before)
    for name, layer in adapted(model):
        spare = ~layer.flexlora_active["default"]
        assert not layer.flexlora_P["default"][:, spare].any(), name
        assert not layer.flexlora_Q["default"][spare].any(), name


def test_weight_zero_adds_nothing() -> None:
    model = adapt(make_net(), orth_reg_weight=0.0)
    before = copies(model)
    attach(model, optimizer := torch.optim.SGD(trainable(model), lr=1.0))
    optimizer.step()
    assert_close(changes(model, before), [torch.zeros_like(p) for p in before], 0.0)
