"""Pure functions that decide which matrices lose or gain a direction at a rank event (Section 3.3, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Reallocation:
    """The indices of the matrices that lose a direction and of those that gain one."""

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
    """Prune the matrices with the lowest scores and grow those with the highest (Section 3.3).

    Matrices are ordered by (score, index). The k lowest prunable matrices (rank > 1) lose a direction, and the k
    highest growable ones (rank < limit) gain one. k ≤ `budget` is the largest number with disjoint sets.
    With `selection="overlapping"` the sets are chosen independently, as in the released code. 'prune_only' and
    'expand_only' take up to `budget` matrices from their end of the order.

    Args:
        scores: importance of each matrix; None excludes a matrix, +inf lets it grow first.
        ranks: current rank of each matrix.
        limits: the rank limit of each matrix.
        budget: b(t).
        direction: 'both', 'prune_only' or 'expand_only'.
        selection: 'disjoint' or 'overlapping'.
        may_grow: whether each matrix may grow; None means that all may grow.
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
    """Decide as `decide`, but count the budget in parameters. Their total never exceeds that at the start.

    The order is that of `decide`. An event may prune the number of parameters that b(t) directions have on average over
    all matrices (one direction always fits), starting with the lowest matrices. The freed parameters and those that
    earlier events left over (`spare`) pay for growing the highest matrices, in order, until the next one is too
    expensive. The rest becomes spare again. Fewer matrices are pruned if the two sets would overlap, and none if no
    other matrix can grow.

    Args:
        costs: the number of parameters of one direction of each matrix, in + out + 1.
        spare: the number of parameters at the start minus that of the active ones now.
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
    """Whether each energy reaches the quantile of all M energies. If they differ, ⌊quantile · M⌋ (< M) do not."""
    threshold = sorted(energies)[min(math.floor(quantile * len(energies) + 1e-9), len(energies) - 1)]
    return [energy >= threshold for energy in energies]


def _in_line(
    scores: Sequence[float | None], ranks: Sequence[int], limits: Sequence[int], may_grow: Sequence[bool] | None
) -> tuple[list[int], list[int]]:
    """List the matrices that may be pruned, lowest first, and those that may grow, highest first."""
    order = [index for _, index in sorted((score, i) for i, score in enumerate(scores) if score is not None)]
    growable = (i for i in reversed(order) if ranks[i] < limits[i])
    return [i for i in order if ranks[i] > 1], [i for i in growable if may_grow is None or may_grow[i]]


def _affordable(
    line: Sequence[int], costs: Sequence[int], means: float, *, first_always: bool = False
) -> tuple[int, ...]:
    """Take matrices from the start of `line` until the next direction costs more than the rest of `means`."""
    taken: list[int] = []
    for i in line:
        means -= costs[i]
        if means < 0 and not (first_always and not taken):
            break
        taken.append(i)
    return tuple(taken)
