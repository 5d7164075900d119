"""Measure how stable a rank allocation is: scores from event to event, reversed moves, agreement between seeds."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from flexlora.report.allocation import Allocation, Array
from flexlora.report.bootstrap import spearman


@dataclass(frozen=True)
class Stability:
    """The stability over the runs of one method, variant and task.

    Correlations are Spearman's over the matrices. A correlation that is not defined is NaN.

    Attributes:
        following: for each run, the correlation of an event's scores with the next event's, averaged over its events.
        lowest: for each run, the lowest of these correlations.
        ends: for each run, the correlation of the first event's scores with the last event's.
        taken_back: the number of rank moves that reverse the same matrix's previous move, and the number of moves
            that have a previous move.
        between_seeds: for each pair of seeds, the correlation of their final ranks.
    """

    following: list[float]
    lowest: list[float]
    ends: list[float]
    taken_back: tuple[int, int]
    between_seeds: list[float]


def stability(seeds: Sequence[Allocation]) -> Stability:
    """Measure the stability over these runs. There is at least one run, and all runs have the same matrices."""
    agreements = [[_agreement(a, b) for a, b in itertools.pairwise(one.scores)] for one in seeds]
    told = [[value for value in values if np.isfinite(value)] for values in agreements]
    moves = [_taken_back(one.ranks) for one in seeds]
    return Stability(
        following=[float(np.mean(values)) if values else np.nan for values in told],
        lowest=[min(values, default=np.nan) for values in told],
        ends=[_agreement(one.scores[0], one.scores[-1]) if len(one.scores) > 1 else np.nan for one in seeds],
        taken_back=(sum(back for back, _ in moves), sum(of for _, of in moves)),
        between_seeds=[_agreement(a.ranks[-1], b.ranks[-1]) for a, b in itertools.combinations(seeds, 2)],
    )


def _agreement(one: Array, other: Array) -> float:
    """Return the correlation over the matrices that have both values.

    It is NaN if fewer than three matrices have both, or if one side is constant.
    """
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 3 or np.ptp(one[both]) == 0 or np.ptp(other[both]) == 0:
        return float("nan")
    return float(spearman(one[both][None], other[both][None])[0])


def _taken_back(ranks: Array) -> tuple[int, int]:
    """Count the moves that reverse the same matrix's previous move, and all moves that have a previous move."""
    back = of = 0
    for steps in np.diff(ranks, axis=0).T:
        signs = np.sign(steps[steps != 0])
        back += int((signs[1:] != signs[:-1]).sum())
        of += max(0, len(signs) - 1)
    return back, of


def as_text(groups: Sequence[tuple[str, Stability]]) -> str:
    """Return the text that lists the figures of each group below its name."""
    lines = []
    for name, found in groups:
        back, of = found.taken_back
        share = f" ({back / of:.0%})" if of else ""
        lines += [
            name,
            "",
            f"  scores, one event and the next    {_mean(found.following)}, lowest {_mean(found.lowest)}",
            f"  scores, the first and the last    {_mean(found.ends)}",
            f"  moves that take back the last     {back:,} of {of:,}{share}",
            f"  final ranks, two seeds            {_mean(found.between_seeds)}",
            "",
        ]
    return "\n".join(lines)


def _mean(values: Iterable[float]) -> str:
    """Return the mean of the defined values as text, with their number if there are several."""
    told = [value for value in values if np.isfinite(value)]
    if not told:
        return "–"
    return f"{np.mean(told):+.2f}" + (f" (mean of {len(told)})" if len(told) > 1 else "")
