"""What a training came to, and the error of one that diverged."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from flexlora.results.record import check_types

REMEDY = "lower training.learning_rate, or take training.precision=fp32 or bf16, and model.dtype=float32"


class Diverged(Exception):
    """A loss is not finite. The message says where, and what to change."""

    def __init__(self, where: str) -> None:
        super().__init__(f"{where}: {REMEDY}")


@dataclass
class Outcome:
    """What a training came to so far. It is valid whenever the training stops."""

    status: str = "failed"
    error: str | None = "the training did not reach its end"
    steps: int = 0
    train_loss: float | None = None
    last: dict[str, Any] | None = None
    """The last evaluation."""
    best: dict[str, Any] | None = None
    """The first evaluation with the highest main metric."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """All evaluations."""
    train_seconds: float = 0.0
    """Time in steps alone: evaluations and logging are not in it."""
    eval_seconds: float = 0.0
    flops: int | None = None
    """Floating point operations of the first step, where they were counted; its time is then in no clock."""
    tokens: dict[str, int] | None = None
    """Trained on until the last evaluation, on all processes: `real` ones, and `padded` with their padding."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """All rank events."""
    resumed_at: list[int] = field(default_factory=list)
    """Steps after which the training went on from a checkpoint."""
    sessions: list[dict[str, Any]] = field(default_factory=list)
    """The processes that trained a part of the run (`environment.session`), the last one is this process."""
    losses: list[tuple[int, float]] = field(default_factory=list)
    """(step, mean training loss since the one before), as logged."""

    def add_evaluation(self, result: dict[str, Any], metric: str) -> bool:
        """Add an evaluation; whether it is the best one by `metric`."""
        self.history.append(result)
        self.last = result
        is_best = self.best is None or result[metric] > self.best[metric]
        if is_best:
            self.best = result
        return is_best

    def kept(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it: all but `IN_FILES`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in IN_FILES}

    def take(self, kept: Mapping[str, Any]) -> None:
        """Take over what `kept` returned.

        Raises:
            KeyError: a value is missing.
            ValueError: a value has the wrong type, or a number is negative or not finite.
        """
        values = {f.name: kept[f.name] for f in fields(self) if f.name not in IN_FILES}
        check_types(Outcome, values)
        for name in ("steps", "train_seconds", "eval_seconds"):
            if not 0 <= values[name] < math.inf:
                raise ValueError(f"its {name!r} cannot be {values[name]}")
        for name, value in values.items():
            setattr(self, name, value)


IN_FILES = ("history", "events", "losses")
"""What `metrics.jsonl` and `ranks.jsonl` hold too. A checkpoint leaves it out, so that its size does not grow."""
