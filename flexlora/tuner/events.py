"""What is told about rank events: before a training, and of each one that was held."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

# The signs of a `RankEvent` for a method to which they mean nothing: ranks.jsonl and the alarms have them of every one.
NO_SIGNS: dict[str, Any] = {
    "energy": {},
    "orthogonality_error": None,
    "at_limit": None,
    "regrown": None,
    "budget_conserved": None,
    "skipped": None,
}


@dataclass(frozen=True)
class PlannedEvents:
    """The rank events of a training to come."""

    count: int
    first: tuple[int, int]
    """Step, and b(t) or budget there."""
    last: tuple[int, int]
    every: int | None
    """Steps from the first to the second, None where there is no second."""


@dataclass
class RankEvent:
    """The record of one event. Ranks are those after it; scores, energy, singular values and the
    orthogonality error those before.

    Attributes:
        step: completed optimizer steps.
        budget: b(t), of this event's scores under `budget_by="spread"`.
        pruned: modules that lost a direction.
        grown: modules that gained one.
        ranks: rank of every module.
        scores: importance of every module; None where it is undefined and the module was left alone, 1e308 caps +inf.
        energy: Σ λ² of every module.
        singular_values: |λ| of every module's active directions, largest first, to six digits: the spectrum behind its
            entropy, whatever the importance is (its singular values where P and Q are orthonormal).
        active_parameters: parameters of the active directions: rank · (out + in + 1), summed.
        total_rank: sum of the ranks. Conserved exactly in `both`; the parameter count is not, unless the budget is
            counted in it (`budget_unit="parameters"`), when the total rank is not.
        orthogonality_error: R(P, Q) with p = 1, unweighted; None where it is not a number.
        rank_one: modules at rank 1 (before), to which `rank_one` applied.
        all_zero: modules whose λ are all 0 (before).
        at_limit: modules at their rank limit.
        regrown: modules grown now that had been pruned before.
        budget_conserved: whether the total rank stayed what it was, or the parameters no more than at the start where
            the budget is counted in them; None where the direction is one-sided.
        skipped: why nothing moved, where λ or what scores are made of was not finite; there are no scores then.
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
    skipped: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def json_number(value: float | None) -> float | None:
    """`value` as JSON can hold it: ±1e308 for an infinite one, None for one that is not a number."""
    if value is None or math.isnan(value):
        return None
    return value if math.isfinite(value) else math.copysign(1e308, value)
