"""Intervals of neighbouring layers that share one adapter (E²LoRA's layer-wise sharing, LSS)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from random import Random

TOLERANCE = 1e-12
"""Similarities that differ by less are equal: the mean of equal numbers can differ from them in the last digit."""

Matrix = Sequence[Sequence[float]]


def thresholds(similarities: Matrix) -> list[float]:
    """Return τ_m, the mean similarity of layer m to all other layers; 0 for the only layer of a type."""
    count = len(similarities)
    return [
        math.fsum(value for j, value in enumerate(row) if j != i) / max(1, count - 1)
        for i, row in enumerate(similarities)
    ]


def greedy(similarities: Matrix) -> list[tuple[int, int]]:
    """Return the intervals [start, stop) of the paper's partition.

    An interval that starts at s takes s + 1, s + 2, … as long as their similarity to s is at least τ_s. The next
    interval starts at the first layer whose similarity is less.
    """
    limits, starts = thresholds(similarities), [0]
    for layer in range(1, len(similarities)):
        start = starts[-1]
        if similarities[start][layer] < limits[start] - TOLERANCE:
            starts.append(layer)
    return _intervals(starts, len(similarities))


def dynamic_programming(similarities: Matrix) -> list[tuple[int, int]]:
    """Return the intervals with the largest sum of similarity(s, j) - τ_s over all layers j after the first, s, of
    their interval. Of equal sums the one with fewer intervals counts, then the one whose first intervals are longer.

    The summary of the paper names dynamic programming as an alternative without its objective. This objective is ours:
    it is the greedy rule's margin, summed.
    """
    count, limits = len(similarities), thresholds(similarities)
    # By the first layer that is not covered yet: (sum, minus the number of intervals) of the rest, and where to stop.
    best: list[tuple[float, int]] = [(0.0, 0)] * (count + 1)
    stops = [count] * (count + 1)
    for start in range(count - 1, -1, -1):
        found: tuple[float, int] | None = None
        margin = 0.0
        for stop in range(start + 1, count + 1):
            if stop > start + 1:
                margin += similarities[start][stop - 1] - limits[start]
            candidate = margin + best[stop][0], best[stop][1] - 1
            if found is None or _is_better(candidate, found):
                found, stops[start] = candidate, stop
        assert found is not None
        best[start] = found
    starts = [0]
    while stops[starts[-1]] < count:
        starts.append(stops[starts[-1]])
    return _intervals(starts, count)


PARTITION = {"greedy": greedy, "dynamic_programming": dynamic_programming}


def shuffled(intervals: Sequence[tuple[int, int]], random: Random) -> list[tuple[int, int]]:
    """Return intervals with the same sizes in a random order: does it matter where the borders are?"""
    sizes = [stop - start for start, stop in intervals]
    random.shuffle(sizes)
    starts = list(accumulate([0, *sizes]))
    return _intervals(starts[:-1], starts[-1])


def _is_better(candidate: tuple[float, int], found: tuple[float, int]) -> bool:
    """Return whether a candidate wins. A later candidate has a longer first interval, so it wins a draw."""
    gap = candidate[0] - found[0]
    return gap > TOLERANCE or (abs(gap) <= TOLERANCE and candidate[1] >= found[1])


def _intervals(starts: Sequence[int], count: int) -> list[tuple[int, int]]:
    return list(zip(starts, [*starts[1:], count], strict=True)) if count else []
