"""The outcome of a training, and the error of a training that diverged."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from flexlora.results.record import check_types

REMEDY = "lower training.learning_rate, or take training.precision=fp32 or bf16, and model.dtype=float32"


SKIPS = 20
"""The number of steps in a row that a gradient scaler may skip. Each halves the loss scale, from 65,536 to below 1."""


class Diverged(Exception):
    """A loss or the gradients are not finite. The message says where, and which settings to change."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where}: {REMEDY}")


@dataclass
class Outcome:
    """The outcome of a training so far. It is valid whenever the training stops."""

    status: str = "failed"
    error: str | None = "the training did not reach its end"
    steps: int = 0
    skipped_steps: int = 0
    """The number of these steps that the gradient scaler skipped, because a gradient was not finite in fp16."""
    skipped_in_a_row: int = 0
    """The skipped steps since the last step that changed the parameters."""
    train_loss: float | None = None
    last: dict[str, Any] | None = None
    """The last evaluation."""
    best: dict[str, Any] | None = None
    """The first evaluation with the highest main metric."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """All evaluations."""
    train_seconds: float = 0.0
    """The time in training steps, in seconds. Evaluations and logging are not included."""
    eval_seconds: float = 0.0
    flops: int | None = None
    """The floating point operations of the first step, if counted. The time of that step is then in no clock."""
    tokens: dict[str, int] | None = None
    """Tokens trained on until the last evaluation, on all processes: `real` without padding, `padded` with it."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """All rank events."""
    resumed_at: list[int] = field(default_factory=list)
    """The steps after which the training continued from a checkpoint."""
    sessions: list[dict[str, Any]] = field(default_factory=list)
    """The processes that trained a part of the run (`environment.session`). The last one is this process."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """The logged losses: (step, mean training loss since the previous entry)."""

    def count_step(self, skipped: bool) -> None:
        """Count a step. `skipped`: the gradient scaler skipped it, so it changed no parameter."""
        self.steps += 1
        self.skipped_steps += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0

    def check_skips(self, total_steps: int) -> None:
        """Check that the gradient scaler does not skip every step.

        Raises:
            Diverged: the last `SKIPS` steps were skipped, or all `total_steps` were.
        """
        if self.skipped_in_a_row >= min(SKIPS, total_steps):
            raise Diverged(f"the gradients are not finite: the last {self.skipped_in_a_row} steps were skipped")

    def add_evaluation(self, result: dict[str, Any], metric: str) -> bool:
        """Add an evaluation; return whether it is the best one by `metric`."""
        self.history.append(result)
        self.last = result
        is_best = self.best is None or result[metric] > self.best[metric]
        if is_best:
            self.best = result
        return is_best

    def kept(self) -> dict[str, Any]:
        """Return the fields that a checkpoint holds: all except `IN_FILES`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in IN_FILES}

    def take(self, kept: Mapping[str, Any]) -> None:
        """Set all fields to their values in `kept`, which the method `kept` returned.

        Raises:
            KeyError: a value is missing.
            ValueError: a value has the wrong type, or a number is negative, not finite or impossibly large.
        """
        values = {f.name: kept[f.name] for f in fields(self) if f.name not in IN_FILES}
        check_types(Outcome, values)
        for name in ("steps", "skipped_steps", "skipped_in_a_row", "train_seconds", "eval_seconds"):
            if not 0 <= values[name] < 2**63:
                raise ValueError(f"its {name!r} cannot be {values[name]}")
        in_a_row = values["skipped_in_a_row"]
        if not in_a_row <= values["skipped_steps"] <= values["steps"] or in_a_row >= SKIPS:
            raise ValueError(f"its 'skipped_steps' cannot be {values['skipped_steps']}, {in_a_row} of them in a row")
        for name, value in values.items():
            setattr(self, name, value)


IN_FILES = ("history", "events", "losses")
"""The fields that `metrics.jsonl` and `ranks.jsonl` hold too. Checkpoints omit them, so that their size stays small."""
