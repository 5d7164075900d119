"""`result.json`: the record of one run. What was not measured is null, never a number that means so."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from flexlora.results.files import to_json, write_text

SCHEMA_VERSION = 1
STATUSES = ("done", "failed", "interrupted", "diverged")


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
    epochs: float | None = None
    subset: bool | None = None
    samples: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, int] | None = None
    """Trained on until the last evaluation: `real`, and `padded` with the padding that was computed along."""
    schedule: dict[str, Any] | None = None
    """How the method's windows were scaled to this run: factor, and each window before and after."""

    parameters: dict[str, int] = field(default_factory=dict)
    adapter_bytes: int | None = None
    rank_events: dict[str, Any] | None = None
    """Number of events, first and last step, final ranks, alarms; the events themselves are in `ranks.jsonl`."""

    started: str | None = None
    total_seconds: float | None = None
    train_seconds: float | None = None
    eval_seconds: float | None = None
    peak_memory: dict[str, int | None] = field(default_factory=dict)
    flops: float | None = None

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
    """The record in a `result.json`.

    Raises:
        ValueError: not JSON, not an object, or not of this schema; says which file and what.
    """
    import json

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(RunRecord)}
        if not isinstance(values, dict) or set(values) != known:
            raise ValueError(f"its keys are not those of schema {SCHEMA_VERSION}")
        return RunRecord(**values)
    except ValueError as error:
        raise ValueError(f"{path} is not the record of a run: {error}") from error
