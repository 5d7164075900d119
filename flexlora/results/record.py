"""`result.json`: the record of one run. A value that was not measured is null."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from flexlora.errors import UserError
from flexlora.reading import read_text
from flexlora.results.files import to_json, write_text
from flexlora.results.stamps import FILE, FOLDER, is_stamp

SCHEMA_VERSION = 1
STATUSES = ("done", "failed", "interrupted", "diverged")

INPUTS = ("data", "images", "model", "adapter", "ranks")
"""The inputs of a run: files of data, folders of images, files of the model, an initial adapter, a source of ranks."""


class Ending(NamedTuple):
    """The end of a run: its status, and the reason if it failed. A command has more statuses than the record."""

    status: str
    reason: str | None = None


@dataclass
class RunRecord:
    """The settings and results of one run. Times are in seconds, sizes in bytes."""

    status: str
    error: str | None
    scale: str
    task: str
    model: str
    method: str
    variant: str
    seed: int
    data_seed: int
    config: dict[str, Any]
    config_hash: str

    overrides: list[str] | None = None
    """The overrides on the command line, which start the run again. Another order of them is the same run."""
    for_a_start: dict[str, str] = field(default_factory=dict)
    """The settings from a recipe row of another benchmark, which was not tuned for this data, with the row's name."""
    main_metric: str | None = None
    metrics: dict[str, Any] = field(default_factory=lambda: {"last": None, "best": None})
    """The `last` and the `best` evaluation, each with its own step, epoch, evaluation loss and metrics."""
    history: list[dict[str, Any]] = field(default_factory=list)
    train_loss: float | None = None
    """The mean training loss over the examples of the last epoch."""

    steps: int | None = None
    skipped_steps: int = 0
    """The number of these steps that changed no parameter, because a gradient was not finite in fp16."""
    total_steps: int | None = None
    resumed_at: list[int] = field(default_factory=list)
    """The steps of the checkpoints from which the run continued after it was interrupted or killed."""
    epochs: float | None = None
    subset: bool | None = None
    samples: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, int] | None = None
    """The tokens trained on until the last evaluation: `real` without padding, `padded` with it."""
    schedule: dict[str, Any] | None = None
    """The scaling of the method's windows to this run: the factor, and each window before and after."""

    configuration: dict[str, Any] | None = None
    """What the method chose from gradients before training, such as E²LoRA's sharing plan."""

    parameters: dict[str, int] = field(default_factory=dict)
    parameter_budget: dict[str, Any] | None = None
    """If a budget was set: the budget, the method's settings chosen for it, and their number of parameters."""
    adapter_bytes: int | None = None
    adapter_sha256: dict[str, str] = field(default_factory=dict)
    """The SHA-256 of each file of weights in `adapter/`, by name."""
    files: dict[str, Any] = field(default_factory=dict)
    """The stamp of each file of the folder that this record vouches for (flexlora/results/stamps.py), by its path in
    the folder."""
    inputs: dict[str, Any] = field(default_factory=dict)
    """The stamps of the files that the run read, by path, for each of `INPUTS`."""
    rank_events: dict[str, Any] | None = None
    """Events that moved a direction: number, first and last step; final ranks; alarms. `ranks.jsonl` has all events."""

    started: str | None = None
    total_seconds: float | None = None
    """The time of the process that wrote the record. `train_seconds` and `eval_seconds` are those of the whole run."""
    train_seconds: float | None = None
    eval_seconds: float | None = None
    peak_memory: dict[str, int | None] = field(default_factory=dict)
    flops: float | None = None
    """The floating point operations of the first optimizer step (`training.count_flops`) as torch counts them: products
    and convolutions of forward, backward and penalty. `train_seconds` then does not include that step."""

    data: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    """The processes that trained a part of this run: the first step, versions, commit and hardware of each."""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is not one of {', '.join(STATUSES)}")
        if (self.status == "done") != (self.error is None):
            raise ValueError(f"a run with the status {self.status!r} cannot have the error {self.error!r}")

    def write(self, path: Path) -> None:
        """Write the record to `path` in one move."""
        write_text(path, to_json(asdict(self), indent=2) + "\n")


def read_record(path: Path) -> RunRecord:
    """Read the record in a `result.json`. A key that an older version did not write has its default.

    Raises:
        ValueError: the file cannot be read, or is not a JSON object of this schema; the message names the file and the
            cause.
    """
    try:
        values = json.loads(read_text(path))
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        return record_of(values)
    except (ValueError, OSError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path} is not the record of a run: {reason}") from error


def recorded_run(key: str, folder: str) -> RunRecord:
    """Return the record of the run in `folder`, the value of the setting `key`.

    Raises:
        UserError: `folder` has no `result.json` that can be read.
    """
    try:
        return read_record(Path(folder).expanduser() / "result.json")
    except ValueError as error:
        raise UserError(f"{key}: {error}") from error


def record_of(values: dict[str, Any]) -> RunRecord:
    """Return the record with these values.

    Raises:
        ValueError: a key is missing or unknown, or a value has the wrong type; the message names the key.
    """
    required = {f.name for f in fields(RunRecord) if f.default is f.default_factory is MISSING}
    for name in sorted(required - set(values)):
        raise ValueError(f"it has no {name!r}")
    for name in sorted(set(values) - set(_types(RunRecord))):
        raise ValueError(f"{name!r} is not a key of schema {SCHEMA_VERSION}")
    check_types(RunRecord, values)
    _check_stamps(values)
    return RunRecord(**values)


def check_types(kind: type, values: Mapping[str, Any]) -> None:
    """Check the types of the values of fields of `kind`, a dataclass. Content of lists and dictionaries is not checked.

    Raises:
        ValueError: a value has the wrong type; the message names the field.
    """
    for name, value in values.items():
        if not isinstance(value, _types(kind)[name]):
            raise ValueError(f"its {name!r} cannot be {str(value)[:40]!r}")


def _check_stamps(values: Mapping[str, Any]) -> None:
    for name, value in values.get("files", {}).items():
        path = PurePosixPath(name)
        if not is_stamp(value) or path.is_absolute() or ".." in path.parts:
            raise ValueError(f"its 'files' has no valid stamp of {name[:40]!r}")
    for group, files in values.get("inputs", {}).items():
        if group not in INPUTS or not isinstance(files, dict):
            raise ValueError(f"its 'inputs' cannot have {group[:40]!r}")
        for name, value in files.items():
            if not is_stamp(value, FOLDER if group == "images" else FILE) or "\0" in name:
                raise ValueError(f"its 'inputs' has no valid stamp of {name[:40]!r}")


@cache
def _types(kind: type) -> dict[str, tuple[type, ...]]:
    """Return the types that the value of each field of a dataclass may have when read from JSON."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
        found[name] = (*kinds, int) if float in kinds else tuple(kinds)
    return found
