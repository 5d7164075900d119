"""The records of rank events: the plan before a training, and each event that took place."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

# Neutral values of `RankEvent`'s diagnostic fields, for methods without them: ranks.jsonl and the alarms need them.
NO_SIGNS: dict[str, Any] = {
    "energy": {},
    "orthogonality_error": None,
    "at_limit": None,
    "regrown": None,
    "budget_conserved": None,
    "empty": False,
    "skipped": None,
}


@dataclass(frozen=True)
class PlannedEvents:
    """The planned rank events of a training that can move a direction, which need b(t) ≥ 1."""

    count: int
    first: tuple[int, int]
    """The step, and b(t) or the rank budget at that step."""
    last: tuple[int, int]
    every: int | None
    """The number of steps between two events; None if there is only one event."""


@dataclass
class RankEvent:
    """The record of one rank event.

    The ranks are those after the event. Scores, energy, singular values and orthogonality error are those before it.

    Attributes:
        step: the number of completed optimizer steps.
        budget: b(t); with `budget_by="spread"` it depends on this event's scores.
        pruned: modules that lost a direction.
        grown: modules that gained one.
        ranks: rank of every module.
        scores: importance of every module. None means undefined, and the module was not changed. 1e308 stands for +inf.
        energy: Σ λ² of every module.
        singular_values: |λ| of every module's active directions, largest first, to six digits. They are the singular
            values of ΔW / s if P and Q are orthonormal.
        active_parameters: parameters of the active directions: rank · (out + in + 1), summed.
        total_rank: sum of the ranks. With direction='both' it is conserved exactly, but the parameter count is not.
            With `budget_unit="parameters"` the parameter count is limited, and the total rank may change.
        orthogonality_error: R(P, Q) with p = 1, unweighted; None if it is not a number.
        rank_one: modules with rank 1 before the event, to which the setting `rank_one` applied.
        all_zero: modules whose λ were all 0 before the event.
        at_limit: modules at their rank limit.
        regrown: modules that grew in this event and had been pruned before.
        budget_conserved: whether the total rank is unchanged. With `budget_unit="parameters"`: whether the parameters
            do not exceed those at the start. None for direction='prune_only' and 'expand_only'.
        empty: whether nothing moved: b(t) = 0, no matrix may change, or the event was skipped. A run's record does not
            count such an event.
        skipped: the reason for an event without changes: λ or an input of the scores is not finite. There are then no
            scores.
    """

    step: int
    budget: int
    pruned: list[str]
    grown: list[str]
    ranks: dict[str, int]
    scores: dict[str, float | None]
    energy: dict[str, float | None]
    singular_values: dict[str, list[float | None]]
    active_parameters: int
    total_rank: int
    orthogonality_error: float | None
    rank_one: int
    all_zero: int
    at_limit: int
    regrown: int
    budget_conserved: bool | None
    empty: bool
    skipped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the values in JSON-ready form."""
        return asdict(self)


def json_number(value: float | None) -> float | None:
    """Convert `value` for JSON: ±1e308 replaces an infinite value, None replaces NaN."""
    if value is None or math.isnan(value):
        return None
    return value if math.isfinite(value) else math.copysign(1e308, value)
