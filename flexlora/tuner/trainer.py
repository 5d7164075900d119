"""FlexLoRA in the Hugging Face Trainer: `Trainer(..., callbacks=[FlexLoraCallback()])`."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .attach import Attachment, attach
from .events import RankEvent

SCORES_FILE = "flexlora_state.safetensors"
"""The smoothed scores of importance='sensitivity', in the checkpoint's folder."""
SCORES = "scores_sha256"


class FlexLoraCallback(TrainerCallback, ExportableState):
    """Attaches FlexLoRA to the Trainer's optimizer when training begins. Checkpoints contain its state for resuming.

    The state is in the checkpoint's own `trainer_state.json`, so it comes from the checkpoint that is resumed, wherever
    that is. Only the smoothed scores of importance='sensitivity' are in a file beside it, found by its SHA-256.

    Args:
        checkpoint: the folder of the checkpoint to resume. It is needed only for importance='sensitivity' and a
            checkpoint outside the Trainer's `output_dir`: the Trainer does not tell callbacks the folder.

    Attributes:
        events: the rank events of the training, or since it was resumed, oldest first.

    Raises (when training begins):
        ValueError: the training has no step at which the configuration plans a rank event.
    """

    def __init__(self, checkpoint: str | Path | None = None) -> None:
        self.events: list[RankEvent] = []
        self._checkpoint = checkpoint
        self._attachment: Attachment | None = None
        self._scores: bytes | None = None

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
            self._restore(attachment, args, state)
        # The Trainer expects an entry, which a checkpoint without this callback does not have.
        _entries(state).setdefault(type(self).__name__, self.state())
        self._attachment = attachment
        self.events = attachment.events

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.events and isinstance(kwargs.get("logs"), dict) and "loss" in kwargs["logs"]:
            ranks = self.events[-1].ranks.values()
            kwargs["logs"] |= {"rank_min": min(ranks), "rank_max": max(ranks)}

    def state(self) -> dict[str, Any]:
        """Return what the Trainer writes into `trainer_state.json`. Smoothed scores are kept until `on_save`."""
        if self._attachment is None:
            return {"args": {"checkpoint": None}, "attributes": {}}
        found = self._attachment.state_dict()
        scores = found.pop("sensitivity", None)
        if scores is not None:
            self._scores = save({name: tensor.cpu() for name, tensor in scores.items()})
            found[SCORES] = hashlib.sha256(self._scores).hexdigest()
        return {"args": {"checkpoint": None}, "attributes": {"saved": found}}

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        scores, self._scores = self._scores, None
        if scores is None or not state.is_world_process_zero:
            return
        folder = _checkpoint_folder(args, state)
        if not folder.is_dir():
            warnings.warn(
                f"{folder} does not exist: the smoothed scores of FlexLoRA are not saved, and a training that is "
                "resumed from this checkpoint begins them at 0.",
                stacklevel=2,
            )
            return
        # An incomplete checkpoint must not look complete, so it is written to a temporary name and then renamed.
        temporary = folder / f".{SCORES_FILE}.tmp"
        temporary.write_bytes(scores)
        temporary.replace(folder / SCORES_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._detach()

    def _detach(self) -> None:
        self._scores = None
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None

    def _restore(self, attachment: Attachment, args: TrainingArguments, state: TrainerState) -> None:
        """Restore the state from the checkpoint that is resumed, or warn once about what it lacks."""
        entry = _entries(state).get(type(self).__name__, {})
        saved = (entry[-1] if isinstance(entry, list) else entry).get("attributes", {}).get("saved")
        if saved is None:
            warnings.warn(
                f"the checkpoint of step {state.global_step} was saved without FlexLoraCallback: rank events continue "
                f"from step {attachment.step}, without the earlier events and smoothed scores.",
                stacklevel=3,
            )
            return
        wanted = saved.get(SCORES)
        restored = {name: value for name, value in saved.items() if name != SCORES}
        if wanted is not None:
            folders = [self._checkpoint, args.resume_from_checkpoint, _checkpoint_folder(args, state)]
            files = [Path(folder) / SCORES_FILE for folder in folders if isinstance(folder, str | Path)]
            content = next((found for found in map(_read, files) if _is(found, wanted)), None)
            if content is None:
                warnings.warn(
                    f"{' and '.join(map(str, files))} does not exist or belongs to another checkpoint, so the smoothed "
                    "scores begin at 0: resume with FlexLoraCallback(checkpoint=FOLDER), the folder of the checkpoint.",
                    stacklevel=3,
                )
            else:
                restored["sensitivity"] = load(content)
        attachment.load_state_dict(restored)


def _entries(state: TrainerState) -> dict[str, Any]:
    """The states of callbacks by name. transformers declares them as the list that they are made of."""
    entries: Any = state.stateful_callbacks
    return entries


def _checkpoint_folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def _read(file: Path) -> bytes | None:
    """The content of a regular file; None if there is none."""
    return file.read_bytes() if file.is_file() else None


def _is(content: bytes | None, sha256: str) -> bool:
    return content is not None and hashlib.sha256(content).hexdigest() == sha256


def _check_schedule(attachment: Attachment, max_steps: int) -> None:
    """Compare the schedule with the Trainer's number of steps. After this, no other warning about it is needed.

    Raises:
        ValueError: no rank event would happen.
    """
    config = attachment.allocator.config
    attachment.allocator.history.told.add("schedule")
    if config.init_b == 0 or config.total_step == max_steps:
        return
    if not any(step <= max_steps for step in config.event_steps()[:1]):
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
