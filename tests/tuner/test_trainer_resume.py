"""A Trainer with the callback resumes from a checkpoint, and only with the state of that checkpoint."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
from safetensors.torch import load_file
from trainer_helpers import (
    CUT,
    SIZE,
    STEPS,
    InOrder,
    arguments,
    model_of,
    rows_of,
    train_with_trainer,
)
from training_helpers import (
    assert_same,
    state_of,
    text_batches,
)

from flexlora import FlexLoraCallback


@pytest.mark.parametrize("importance", ["entropy", "sensitivity"])
def test_a_resume_equals_never_having_stopped(importance: str, tmp_path: Path) -> None:
    batches = text_batches(STEPS, size=SIZE)
    model = model_of(importance=importance)
    _, straight = train_with_trainer(tmp_path, model, batches, save_strategy="steps", save_steps=CUT)
    checkpoint = tmp_path / f"checkpoint-{CUT}"
    slots = [v.tolist() for k, v in load_file(checkpoint / "adapter_model.safetensors").items() if "slots" in k]
    assert any(found != list(range(len(found))) for found in slots), "slots should have holes by now"

    again = model_of(importance=importance)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not exist.*")
        trainer, resumed = train_with_trainer(tmp_path, again, batches, resume=str(checkpoint), save_strategy="no")
    assert trainer.state.global_step == STEPS
    later = [event for event in straight.events if event.step > CUT]
    assert [event.to_dict() for event in resumed.events] == [event.to_dict() for event in later]
    assert any(event.pruned for event in later)
    assert_same(state_of(again), state_of(model))


def test_a_checkpoint_keeps_the_smoothed_scores_and_is_whole(tmp_path: Path) -> None:
    model = model_of(importance="sensitivity")
    _, callback = train_with_trainer(
        tmp_path, model, text_batches(STEPS, size=SIZE), save_strategy="steps", save_steps=CUT, save_total_limit=1
    )
    assert [p.name for p in tmp_path.iterdir()] == [f"checkpoint-{STEPS}"]
    files = [p.name for p in (tmp_path / f"checkpoint-{STEPS}").iterdir()]
    assert "flexlora_state.safetensors" in files
    assert not [name for name in files if name.endswith(".tmp")]
    assert len(callback.events) == 11


@pytest.mark.parametrize("importance", ["entropy", "sensitivity"])
def test_the_state_comes_from_the_checkpoint_that_is_resumed(importance: str, tmp_path: Path) -> None:
    """Another run's checkpoint of the same step is in `output_dir`, and the resumed one was moved away from there."""
    batches = text_batches(STEPS, size=SIZE)
    saving = {"save_strategy": "steps", "save_steps": CUT}
    model = model_of(importance=importance)
    _, straight = train_with_trainer(tmp_path / "a", model, batches, **saving)
    train_with_trainer(
        tmp_path / "b", model_of(importance=importance), text_batches(STEPS, size=SIZE, seed=6), **saving
    )
    checkpoint = tmp_path / "kept"
    shutil.move(tmp_path / "a" / f"checkpoint-{CUT}", checkpoint)
    again, callback = model_of(importance=importance), FlexLoraCallback(checkpoint=checkpoint)
    trainer = InOrder(model=again, args=arguments(tmp_path / "b"), train_dataset=rows_of(batches), callbacks=[callback])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(another checkpoint|FlexLoraCallback).*")
        trainer.train(resume_from_checkpoint=str(checkpoint))
    later = [event.to_dict() for event in straight.events if event.step > CUT]
    assert [event.to_dict() for event in callback.events] == later
    assert any(event["regrown"] for event in later)
    assert_same(state_of(again), state_of(model))


@pytest.mark.parametrize("what", ["missing", "of another run"])
def test_scores_of_another_checkpoint_are_refused_with_one_warning(what: str, tmp_path: Path) -> None:
    batches = text_batches(STEPS, size=SIZE)
    saving = {"save_strategy": "steps", "save_steps": CUT}
    train_with_trainer(tmp_path / "a", model_of(importance="sensitivity"), batches, **saving)
    file = tmp_path / "a" / f"checkpoint-{CUT}" / "flexlora_state.safetensors"
    file.unlink()
    if what == "of another run":
        others = text_batches(STEPS, size=SIZE, seed=6)
        train_with_trainer(tmp_path / "b", model_of(importance="sensitivity"), others, **saving)
        shutil.copy(tmp_path / "b" / f"checkpoint-{CUT}" / file.name, file)
    with pytest.warns(UserWarning, match="does not exist or belongs to another checkpoint") as caught:
        _, callback = train_with_trainer(
            tmp_path / "a", model_of(importance="sensitivity"), batches, resume=str(file.parent)
        )
    (message,) = [str(w.message) for w in caught if "FlexLora" in str(w.message)]
    assert message.startswith(str(file))
    assert "FlexLoraCallback(checkpoint=FOLDER)" in message
    assert callback.events[0].step == 15
    attached = callback.events[0].scores
    assert all(score is not None for score in attached.values())


def test_a_checkpoint_without_the_callbacks_state_warns_once_and_can_be_saved_again(tmp_path: Path) -> None:
    batches = text_batches(STEPS, size=SIZE)
    train_with_trainer(tmp_path, model_of(), batches, save_strategy="steps", save_steps=CUT)
    file = tmp_path / f"checkpoint-{CUT}" / "trainer_state.json"
    state = json.loads(file.read_text())
    assert state["stateful_callbacks"].pop("FlexLoraCallback")["attributes"]["saved"]["step"] == CUT
    file.write_text(json.dumps(state))
    with pytest.warns(UserWarning, match=f"step {CUT} was saved without FlexLoraCallback") as caught:
        train_with_trainer(
            tmp_path, model_of(), batches, resume=str(file.parent), save_strategy="steps", save_steps=STEPS
        )
    assert len([w for w in caught if "FlexLora" in str(w.message)]) == 1
    state = json.loads((tmp_path / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["FlexLoraCallback"]["attributes"]["saved"]["step"] == STEPS


def test_transformers_own_restoring_of_callbacks_works(tmp_path: Path) -> None:
    batches = text_batches(STEPS, size=SIZE)
    model = model_of()
    train_with_trainer(tmp_path, model, batches, save_strategy="steps", save_steps=CUT)
    again = model_of()
    train_with_trainer(
        tmp_path,
        again,
        batches,
        resume=str(tmp_path / f"checkpoint-{CUT}"),
        restore_callback_states_from_checkpoint=True,
    )
    assert_same(state_of(again), state_of(model))
