"""How long and with what batch a run was trained, and by what rules: equal for figures that mean the same."""

import json
from typing import Any

from flexlora.report.record_values import number, settings_of
from flexlora.results.record import RunRecord

# Settings of a task that other marks are about (its data and rows), that say where files are or what is allowed, or
# that set `training.*`.
ELSEWHERE = frozenset(
    {
        *("name", "family", "group", "folders", "epochs", "batch_size"),
        *("data_dir", "hub", "hub_path", "hub_name", "hub_revision", "tsv", "test_rows"),
        *("train_file", "train_sets", "test_sets"),
        *("test_file", "train_hub", "test_hub"),
        *("max_train_rows", "max_eval_rows", "validation_rows", "split", "token_cache", "image_cache"),
        "run_generated_code",
    }
)


def is_own(record: RunRecord) -> bool:
    """Whether a run was trained for the task's number of epochs and with its batch, as far as the record says."""
    task = settings_of(record, "task")
    (unit, length), batch = _length(record), _batch(record)
    own_batch = number(task.get("batch_size"))
    return (
        unit == "epochs"
        and (None in (length, task.get("epochs")) or length == task["epochs"])
        and (None in (batch, own_batch) or batch == own_batch)
    )


def protocol(record: RunRecord) -> str:
    """What must be equal in two runs of a task: length, examples in an optimizer step, the task's other settings."""
    task = {key: value for key, value in settings_of(record, "task").items() if key not in ELSEWHERE}
    return json.dumps([record.task, _length(record), _batch(record), task], sort_keys=True)


def _length(record: RunRecord) -> list[Any]:
    training = settings_of(record, "training")
    steps = training.get("max_steps")
    return ["epochs", training.get("epochs")] if steps is None else ["max_steps", steps]


def _batch(record: RunRecord) -> float | None:
    """The number of examples in an optimizer step, of all processes; None where it is not recorded."""
    training = settings_of(record, "training")
    size = number(training.get("batch_size"))
    if size is None:
        return None
    return size * (number(training.get("gradient_accumulation")) or 1) * (number(record.hardware.get("processes")) or 1)
