"""`result.json`: the record of one run. What was not measured is null, never a number that means so."""

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from flexlora.errors import UserError
from flexlora.results.files import to_json, write_text

SCHEMA_VERSION = 1
STATUSES = ("done", "failed", "interrupted", "diverged")


class Ending(NamedTuple):
    """How a run of a command ended, and why where that is not well; beside the record's statuses a command has more."""

    status: str
    reason: str | None = None


@dataclass
class RunRecord:
    """One run, from its settings to its figures. Times are seconds, sizes bytes."""

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

    main_metric: str | None = None
    metrics: dict[str, Any] = field(default_factory=lambda: {"last": None, "best": None})
    """`last` and `best` evaluation, each with its step, epoch, evaluation loss and metrics. Never mixed."""
    history: list[dict[str, Any]] = field(default_factory=list)
    train_loss: float | None = None
    """Mean over the last epoch, example by example."""

    steps: int | None = None
    total_steps: int | None = None
    resumed_at: list[int] = field(default_factory=list)
    """Steps after which an interrupted or killed run went on from a checkpoint."""
    epochs: float | None = None
    subset: bool | None = None
    samples: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, int] | None = None
    """Trained on until the last evaluation: `real`, and `padded` with the padding that was computed along."""
    schedule: dict[str, Any] | None = None
    """How the method's windows were scaled to this run: factor, and each window before and after."""

    parameters: dict[str, int] = field(default_factory=dict)
    parameter_budget: dict[str, Any] | None = None
    """Where one was set: the budget, the method's settings that were chosen for it, and what they come to."""
    adapter_bytes: int | None = None
    adapter_sha256: dict[str, str] = field(default_factory=dict)
    """Of the weights' files in `adapter/`, by name."""
    rank_events: dict[str, Any] | None = None
    """Number of events, first and last step, final ranks, alarms; the events themselves are in `ranks.jsonl`."""

    started: str | None = None
    total_seconds: float | None = None
    """Of the process that wrote this; times of training and evaluation are those of the whole run."""
    train_seconds: float | None = None
    eval_seconds: float | None = None
    peak_memory: dict[str, int | None] = field(default_factory=dict)
    flops: float | None = None
    """Floating point operations of the first optimizer step (`training.count_flops`), as torch counts them: products
    and convolutions of forward, backward and penalty. That step's time is then not in `train_seconds`."""

    data: dict[str, Any] = field(default_factory=dict)
    backbone: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status {self.status!r} is none of {', '.join(STATUSES)}")
        if (self.status == "done") != (self.error is None):
            raise ValueError(f"a run that is {self.status} cannot have the error {self.error!r}")

    def write(self, path: Path) -> None:
        """Write the record, whole or not at all."""
        write_text(path, to_json(asdict(self), indent=2) + "\n")


def read_record(path: Path) -> RunRecord:
    """The record in a `result.json`; what an older version did not write yet has its default.

    Raises:
        ValueError: not to be read, not JSON, not an object, or not of this schema; says which file and what.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is no JSON object")
        return record_of(values)
    except (ValueError, OSError, RecursionError) as error:
        raise ValueError(f"{path} is not the record of a run: {error}") from error


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
    """The record with these values.

    Raises:
        ValueError: they are not of this schema; says which.
    """
    required = {f.name for f in fields(RunRecord) if f.default is f.default_factory is MISSING}
    wrong = sorted(required - set(values)) or sorted(set(values) - set(_types()))
    if wrong:
        raise ValueError(f"its keys are not those of schema {SCHEMA_VERSION}: see {wrong[0]!r}")
    for name, value in values.items():
        if not isinstance(value, _types()[name]):
            raise ValueError(f"its {name!r} cannot be {str(value)[:40]!r}")
    return RunRecord(**values)


@cache
def _types() -> dict[str, tuple[type, ...]]:
    """What the value of each key may be, as JSON gives it."""
    found = {}
    for name, hint in get_type_hints(RunRecord).items():
        kinds = [get_origin(kind) or kind for kind in (get_args(hint) if isinstance(hint, UnionType) else (hint,))]
        found[name] = (*kinds, int) if float in kinds else tuple(kinds)
    return found
