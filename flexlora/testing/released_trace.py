"""Read the recording of a training by the released code of FlexLoRA: a folder with three files.

`settings.json` has the numbers of the training. Its windows are counted as in this package. `tensors.safetensors` has
the tensors. `trace.json` has everything else and refers to a tensor as `{"tensor": KEY}`. In the recording Q, λ and P
are `lora_A` (r × in), `lora_E` (r × 1) and `lora_B` (out × r).
"""

import json
from dataclasses import dataclass, fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flexlora.errors import UserError, one_line
from flexlora.paths import existing_folder

FACTORS = {"lora_A": "Q", "lora_E": "lambda", "lora_B": "P"}


@dataclass(frozen=True)
class TraceSettings:
    """The content of `settings.json`. Other keys of the file describe the training and are not read."""

    r: int
    lora_alpha: float
    target_modules: list[str]
    modules_to_save: list[str]
    b: int
    """b(t). It is the same at every event."""
    weight_decay: float
    max_grad_norm: float
    steps: int
    learning_rate: float
    warmup_steps: int
    tinit: int
    tfinal: int
    deltaT: int
    orth_reg_coef: float
    """The weight of the orthogonality penalty, which is a part of the loss."""


@dataclass(frozen=True)
class Move:
    """The change of one matrix in an event."""

    gone: list[int]
    """The positions of the directions that the matrix loses, counted from the oldest."""
    grown: int
    """The number of directions that the matrix gains: 0 or 1."""
    q: torch.Tensor | None
    """The row of Q of the new direction, or None if there is no new direction."""
    p: torch.Tensor | None
    """The column of P of the new direction, or None if there is no new direction."""


@dataclass(frozen=True)
class TraceEvent:
    """A rank event of the recording.

    Attributes:
        step: the number of completed optimizer steps, as this package counts them.
        budget: b(t).
        moves: the change of each matrix that changes, by the module's name.
        ranks: the rank of every matrix after the event.
    """

    step: int
    budget: int
    moves: dict[str, Move]
    ranks: dict[str, int]


@dataclass(frozen=True)
class Trace:
    """The recording of one training.

    Attributes:
        settings: the numbers of the training.
        batches: the batch of each step, in the form that the model takes.
        losses: the loss of each step.
        events: the rank events, by their step.
        start: every trained parameter before the first step, by its name.
        end: every trained parameter after the last step, by its name.
    """

    settings: TraceSettings
    batches: list[dict[str, torch.Tensor]]
    losses: list[float]
    events: dict[int, TraceEvent]
    start: dict[str, torch.Tensor]
    end: dict[str, torch.Tensor]

    @property
    def num_labels(self) -> int:
        """The number of outputs of the model: the number of rows of the last trained weight."""
        return [value.shape[0] for name, value in self.start.items() if name.endswith(".weight")][-1]

    @property
    def final_ranks(self) -> dict[str, int]:
        return {
            name.removesuffix(".lora_E"): values.numel()
            for name, values in self.end.items()
            if name.endswith(".lora_E")
        }


def read_trace(path: str) -> Trace:
    """Read a recording.

    Raises:
        UserError: there is no such folder, a file is missing, or a file does not have the content of a recording.
    """
    folder = existing_folder("FOLDER", path)
    try:
        return _trace(
            json.loads((folder / "settings.json").read_text(encoding="utf-8")),
            json.loads((folder / "trace.json").read_text(encoding="utf-8")),
            load_file(folder / "tensors.safetensors"),
        )
    except KeyError as error:
        raise UserError(f"{folder} is not a whole recording: {error} is missing") from error
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"{folder} is not a recording of the released code: {one_line(error)}") from error


def _trace(given: dict[str, Any], content: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Trace:
    settings = TraceSettings(**{field.name: given[field.name] for field in fields(TraceSettings)})
    recorded = _with_tensors(content, tensors)
    steps = recorded["steps"]
    if len(steps) != settings.steps:
        raise ValueError(f"trace.json has {len(steps)} steps, but settings.json has {settings.steps}")
    return Trace(
        settings=settings,
        batches=[
            {
                "input_ids": step["ids"],
                "attention_mask": step["mask"],
                "token_type_ids": step["tt"],
                "labels": step["labels"],
            }
            for step in steps
        ],
        losses=[float(step["loss"]) for step in steps],
        events={event.step: event for event in map(_event, recorded["events"])},
        start=recorded["init"],
        end=recorded["final"],
    )


def _event(recorded: dict[str, Any]) -> TraceEvent:
    moves = {
        name: Move(gone=move["gone"], grown=move["grown"], q=move["a"], p=move["b"])
        for name, move in recorded["moves"].items()
    }
    # `g` counts the steps that were completed before the event's own step.
    return TraceEvent(recorded["g"] + 1, recorded["b"], moves, recorded["ranks"])


def _with_tensors(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """Return `value` with every `{"tensor": KEY}` replaced by that tensor."""
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        return {name: _with_tensors(item, tensors) for name, item in value.items()}
    return [_with_tensors(item, tensors) for item in value] if isinstance(value, list) else value
