"""Which matrices lose a direction at a rank event and which gain one (Section 3.3, Algorithm 1): pure decisions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reallocation:
    """Indices of the matrices that lose a direction and of those that gain one."""

    pruned: tuple[int, ...] = ()
    grown: tuple[int, ...] = ()


def decide(
    scores: Sequence[float | None],
    ranks: Sequence[int],
    limits: Sequence[int],
    budget: int,
    *,
    direction: str = "both",
    selection: str = "disjoint",
    may_grow: Sequence[bool] | None = None,
) -> Reallocation:
    """Prune the lowest scores, grow the highest (Section 3.3).

    Matrices are ordered by (score, index). The k lowest prunable (rank > 1) lose a direction and the k highest growable
    (rank < limit) gain one, with k ≤ `budget` the largest number for which the two sets are disjoint; with
    `selection="overlapping"` they are chosen independently, as in the released code. One-sided directions take up to
    `budget` matrices from their end.

    Args:
        scores: importance of each matrix; None leaves a matrix alone, +inf puts it first in line to grow.
        ranks: current rank of each matrix.
        limits: the rank limit of each matrix.
        budget: b(t).
        direction: 'both', 'prune_only' or 'expand_only'.
        selection: 'disjoint' or 'overlapping'.
        may_grow: matrices that are growable at all; None: all.
    """
    prunable, growing = _in_line(scores, ranks, limits, may_grow)
    if direction == "prune_only":
        return Reallocation(pruned=tuple(prunable[:budget]))
    if direction == "expand_only":
        return Reallocation(grown=tuple(growing[:budget]))
    if selection == "overlapping":
        return Reallocation(pruned=tuple(prunable[:budget]), grown=tuple(growing[:budget]))
    k = min(budget, len(prunable), len(growing))
    while set(prunable[:k]) & set(growing[:k]):
        k -= 1
    return Reallocation(pruned=tuple(prunable[:k]), grown=tuple(growing[:k]))


def decide_by_parameters(
    scores: Sequence[float | None],
    ranks: Sequence[int],
    limits: Sequence[int],
    budget: int,
    *,
    costs: Sequence[int],
    spare: int = 0,
    direction: str = "both",
    selection: str = "disjoint",
    may_grow: Sequence[bool] | None = None,
) -> Reallocation:
    """The same with the budget counted in parameters: their total never rises above what it was at the start.

    The order is that of `decide`. An event may prune as many parameters as b(t) directions have on the average over
    all matrices (one direction always fits): the lowest matrices, as far as they do. What they free, with what earlier
    events left over (`spare`), pays for the highest matrices, in their order until the next cannot be paid for: the
    rest is spare again. Fewer are pruned where the two sets would meet, and none where no other matrix can grow.

    Args:
        costs: parameters of a direction of each matrix, in + out + 1.
        spare: parameters at the start less those that are active now.
    """
    prunable, growing = _in_line(scores, ranks, limits, may_grow)
    if budget == 0:
        return Reallocation()
    room = budget * sum(costs) / len(costs)
    low = _affordable(prunable, costs, room, first_always=True)
    if direction == "prune_only":
        return Reallocation(pruned=low)
    if direction == "expand_only":
        return Reallocation(grown=_affordable(growing, costs, room, first_always=True))
    for k in range(len(low), -1, -1):
        pruned = low[:k]
        high = _affordable(growing, costs, spare + sum(costs[i] for i in pruned))
        if selection == "overlapping" or (not set(pruned) & set(high) and (not pruned or set(growing) - set(pruned))):
            return Reallocation(pruned, high)
    raise AssertionError("nothing pruned meets nothing")


def above_energy_quantile(energies: Sequence[float], quantile: float) -> list[bool]:
    """Whether each energy reaches the quantile of all M: ⌊quantile · M⌋ of different ones do not, at most M - 1."""
    threshold = sorted(energies)[min(math.floor(quantile * len(energies) + 1e-9), len(energies) - 1)]
    return [energy >= threshold for energy in energies]


def _in_line(
    scores: Sequence[float | None], ranks: Sequence[int], limits: Sequence[int], may_grow: Sequence[bool] | None
) -> tuple[list[int], list[int]]:
    """Those that may be pruned, lowest first, and those that may grow, highest first."""
    order = [index for _, index in sorted((score, i) for i, score in enumerate(scores) if score is not None)]
    growable = (i for i in reversed(order) if ranks[i] < limits[i])
    return [i for i in order if ranks[i] > 1], [i for i in growable if may_grow is None or may_grow[i]]


def _affordable(
    line: Sequence[int], costs: Sequence[int], means: float, *, first_always: bool = False
) -> tuple[int, ...]:
    """The first of `line`, up to the one whose direction is too much for what is left of `means`."""
    taken: list[int] = []
    for i in line:
        means -= costs[i]
        if means < 0 and not (first_always and not taken):
            break
        taken.append(i)
    return tuple(taken)
