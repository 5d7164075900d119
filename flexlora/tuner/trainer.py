"""FlexLoRA in the Hugging Face Trainer: `Trainer(..., callbacks=[FlexLoraCallback()])`."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .attach import Attachment, attach
from .events import RankEvent

STATE_FILE = "flexlora_state.safetensors"


class FlexLoraCallback(TrainerCallback):
    """Attaches FlexLoRA to the Trainer's optimizer when training begins. Checkpoints contain its state for resuming.

    Attributes:
        events: the rank events of the training, or since it was resumed, oldest first.

    Raises (when training begins):
        ValueError: the training has no step at which the configuration plans a rank event.
    """

    def __init__(self) -> None:
        self.events: list[RankEvent] = []
        self._attachment: Attachment | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._detach()
        attachment = attach(kwargs["model"], kwargs["optimizer"], step=state.global_step)
        try:
            _check_schedule(attachment, state.max_steps)
        except ValueError:
            attachment.remove()
            raise
        if state.global_step > 0:
            _restore(attachment, _checkpoint_folder(args, state))
        self._attachment = attachment
        self.events = attachment.events

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.events and isinstance(kwargs.get("logs"), dict) and "loss" in kwargs["logs"]:
            ranks = self.events[-1].ranks.values()
            kwargs["logs"] |= {"rank_min": min(ranks), "rank_max": max(ranks)}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = _checkpoint_folder(args, state)
        if self._attachment is not None and state.is_world_process_zero and folder.is_dir():
            _store(self._attachment, folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._detach()

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _check_schedule(attachment: Attachment, max_steps: int) -> None:
    config = attachment.allocator.config
    if config.init_b == 0 or config.total_step == max_steps:
        return
    if not any(step <= max_steps for step in config.event_steps()):
        raise ValueError(
            f"this training has no rank event: it takes {max_steps} steps, but FlexLoraConfig plans events from "
            f"step {config.event_steps().start} of total_step={config.total_step} on. "
            f"Set total_step={max_steps} and smaller windows."
        )
    warnings.warn(
        f"FlexLoraConfig has total_step={config.total_step}, but this training takes {max_steps} steps: rank events "
        "follow the configuration.",
        stacklevel=3,
    )


def _store(attachment: Attachment, folder: Path) -> None:
    state = attachment.state_dict()
    tensors: dict[str, torch.Tensor] = state.pop("sensitivity", {})
    # An incomplete checkpoint must not look complete, so it is written to a temporary name and then renamed.
    temporary = folder / f".{STATE_FILE}.tmp"
    save_file({key: value.cpu() for key, value in tensors.items()}, temporary, metadata={"state": json.dumps(state)})
    temporary.replace(folder / STATE_FILE)


def _restore(attachment: Attachment, folder: Path) -> None:
    file = folder / STATE_FILE
    if not file.is_file():
        warnings.warn(
            f"{file} does not exist: rank events continue from step {attachment.step}, without the earlier smoothed "
            "scores.",
            stacklevel=3,
        )
        return
    with safe_open(file, framework="pt") as archive:
        state = json.loads(archive.metadata()["state"])
        tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118 - no mapping
    if tensors:
        state["sensitivity"] = tensors
    attachment.load_state_dict(state)
