"""The Hugging Face Trainer with `FlexLoraCallback`: the ranks and weights of a hand-written loop with `attach`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from trainer_helpers import (
    SIZE,
    STEPS,
    InOrder,
    OfLogits,
    arguments,
    mean_of_items,
    model_of,
    rows_of,
    train_with_trainer,
)
from training_helpers import (
    adapt,
    assert_same,
    moves,
    state_of,
    text_batches,
    tiny_bert,
    trainable,
)
from transformers import TrainerCallback

from flexlora import FlexLoraCallback, attach, module_ranks


@pytest.mark.parametrize("importance", ["entropy", "sensitivity"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_equals_a_loop(accumulation: int, smoothing: float, importance: str, tmp_path: Path) -> None:
    """Same batches, same clipping: the same events and weights, whatever the accumulation and the smoothing."""
    batches = text_batches(STEPS * accumulation, size=SIZE)
    loop = model_of(importance=importance)
    optimizer = torch.optim.AdamW(trainable(loop), lr=0.02, weight_decay=0.0)
    attachment = attach(loop, optimizer)
    loop.train()
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        total = 0.0
        for batch in batches[step * accumulation : (step + 1) * accumulation]:
            logits = loop(**batch).logits
            loss = nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=smoothing) / accumulation
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(trainable(loop), 1.0)
        optimizer.step()
        losses.append(total)

    model, callback = model_of(importance=importance), FlexLoraCallback()
    trainer = InOrder(
        model=model,
        args=arguments(tmp_path, gradient_accumulation_steps=accumulation, label_smoothing_factor=smoothing),
        train_dataset=rows_of(batches),
        callbacks=[callback],
        compute_loss_func=None if smoothing else mean_of_items,
    )
    trainer.train()
    assert moves(callback.events) == moves(attachment.events)
    assert len(callback.events) == 11
    assert sum(bool(event.pruned) for event in callback.events) >= 6
    # The Trainer reduces its loss in float32 on the way; the weights are those of the loop all the same.
    tolerance = 1e-5 if smoothing else 1e-9
    assert_same(state_of(model), state_of(loop), tolerance)
    logged = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    assert logged == pytest.approx(losses, abs=1e-3), "the reported loss must be the loss alone"


def test_a_timm_model(tmp_path: Path) -> None:
    import timm

    def make() -> PeftModel:
        torch.manual_seed(0)
        vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3
        ).double()
        return adapt(vit, target_modules=["qkv", "fc1"], modules_to_save=["head"], total_step=STEPS, deltaT=2)

    generator = torch.Generator().manual_seed(3)
    images = torch.randn(STEPS * SIZE, 3, 16, 16, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (STEPS * SIZE,), generator=generator)
    loop = make()
    optimizer = torch.optim.AdamW(trainable(loop), lr=0.02, weight_decay=0.0)
    attachment = attach(loop, optimizer)
    loop.train()
    for x, y in zip(images.split(SIZE), labels.split(SIZE), strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(loop(x), y).backward()
        nn.utils.clip_grad_norm_(trainable(loop), 1.0)
        optimizer.step()

    model, callback = make(), FlexLoraCallback()
    rows = [{"x": x, "labels": y} for x, y in zip(images, labels, strict=True)]
    OfLogits(model=model, args=arguments(tmp_path), train_dataset=rows, callbacks=[callback]).train()
    assert moves(callback.events) == moves(attachment.events)
    assert any(event.pruned for event in callback.events)
    assert_same(state_of(model), state_of(loop), 1e-9)


def test_load_best_model_at_end(tmp_path: Path) -> None:
    """The best checkpoint's ranks, masks and weights are in the model afterwards, not a mixture with the last ones."""
    evaluations = iter(range(100))
    model = model_of()
    batches = text_batches(STEPS, size=SIZE)
    trainer = InOrder(
        model=model,
        args=arguments(
            tmp_path,
            save_strategy="steps",
            save_steps=6,
            eval_strategy="steps",
            eval_steps=6,
            load_best_model_at_end=True,
            metric_for_best_model="lateness",
            greater_is_better=False,
            save_total_limit=4,
        ),
        train_dataset=rows_of(batches),
        eval_dataset=rows_of(batches[:1]),
        compute_metrics=lambda prediction: {"lateness": next(evaluations)},
        callbacks=[callback := FlexLoraCallback()],
    )
    trainer.train()
    best = tmp_path / "checkpoint-6"
    assert trainer.state.best_model_checkpoint == str(best)
    ranks_at_best = [event for event in callback.events if event.step <= 6][-1].ranks
    assert callback.events[-1].ranks != ranks_at_best
    assert module_ranks(model) == ranks_at_best
    fresh = PeftModel.from_pretrained(tiny_bert(), best)
    assert_same(state_of(model), state_of(fresh))
    model.save_pretrained(tmp_path / "again")
    patterns = [json.loads((f / "adapter_config.json").read_text())["rank_pattern"] for f in (best, tmp_path / "again")]
    assert patterns[0] == patterns[1]


def test_another_number_of_steps_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="total_step=100, but this training takes 24 steps") as caught:
        _, callback = train_with_trainer(tmp_path, model_of(total_step=100), text_batches(STEPS, size=SIZE))
    assert len([w for w in caught if "total_step=" in str(w.message)]) == 1
    assert callback.events


def test_the_right_number_of_steps_does_not(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*total_step.*")
        train_with_trainer(tmp_path, model_of(), text_batches(STEPS, size=SIZE))


def test_a_schedule_beyond_the_training_is_an_error(tmp_path: Path) -> None:
    model = model_of(total_step=1000, tinit=100)
    trainer = InOrder(
        model=model,
        args=arguments(tmp_path),
        train_dataset=rows_of(text_batches(STEPS, size=SIZE)),
        callbacks=[FlexLoraCallback()],
    )
    with pytest.raises(ValueError, match=r"takes 24 steps.*plans events from step 102.*Set total_step=24"):
        trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_fixed_ranks_train_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(total_step|rank event).*")
        _, callback = train_with_trainer(tmp_path, model_of(init_b=0, total_step=None), text_batches(STEPS, size=SIZE))
    assert callback.events == []


def test_training_twice_attaches_once_at_a_time(tmp_path: Path) -> None:
    model, callback = model_of(), FlexLoraCallback()
    trainer = InOrder(
        model=model,
        args=arguments(tmp_path),
        train_dataset=rows_of(text_batches(STEPS, size=SIZE)),
        callbacks=[callback],
    )
    for _ in range(2):
        trainer.train()
        assert [event.step for event in callback.events] == list(range(3, STEPS, 2))
        assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks


def test_a_training_that_breaks_off_can_be_repeated(tmp_path: Path) -> None:
    class Breaks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 5:
                raise KeyboardInterrupt

    model, callback, breaks = model_of(), FlexLoraCallback(), Breaks()
    trainer = InOrder(
        model=model,
        args=arguments(tmp_path),
        train_dataset=rows_of(text_batches(STEPS, size=SIZE)),
        callbacks=[callback, breaks],
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(breaks)
    trainer.train()
    assert [event.step for event in callback.events] == list(range(3, STEPS, 2))


def test_a_model_without_the_adapter_is_refused(tmp_path: Path) -> None:
    trainer = InOrder(
        model=tiny_bert(),
        args=arguments(tmp_path),
        train_dataset=rows_of(text_batches(STEPS, size=SIZE)),
        callbacks=[FlexLoraCallback()],
    )
    with pytest.raises(ValueError, match="no trainable FlexLoRA adapter"):
        trainer.train()


def test_logged_ranks(tmp_path: Path) -> None:
    """What trackers get with the loss; they come before users' callbacks in the Trainer's order."""
    seen: list[dict] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            seen.append(dict(logs))

    trainer = InOrder(
        model=model_of(),
        args=arguments(tmp_path),
        train_dataset=rows_of(text_batches(STEPS, size=SIZE)),
        callbacks=[FlexLoraCallback(), Tracker()],
    )
    trainer.train()
    assert "rank_min" not in seen[0]
    assert seen[-2]["rank_min"] <= seen[-2]["rank_max"]
