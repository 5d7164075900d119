"""Situations for `decide`, and a brute-force reference that knows no sorting."""

from __future__ import annotations

import math

from hypothesis import strategies as st

score = st.one_of(st.none(), st.sampled_from([0.0, 0.25, 0.5, 1.0, math.inf]), st.floats(0, 1))


@st.composite
def situations(draw):
    n = draw(st.integers(0, 8))
    scores = draw(st.lists(score, min_size=n, max_size=n))
    limits = draw(st.lists(st.integers(1, 4), min_size=n, max_size=n))
    ranks = [draw(st.integers(1, limit)) for limit in limits]
    return scores, ranks, limits, draw(st.integers(0, 9))


def lowest(scores, candidates, k):
    """The k lowest by (score, index), lowest first, by repeated search."""
    left, taken = list(candidates), []
    for _ in range(k):
        best = left[0]
        for i in left[1:]:
            if scores[i] < scores[best] or (scores[i] == scores[best] and i < best):
                best = i
        taken.append(best)
        left.remove(best)
    return taken


def highest(scores, candidates, k):
    left, taken = list(candidates), []
    for _ in range(k):
        best = left[0]
        for i in left[1:]:
            if scores[i] > scores[best] or (scores[i] == scores[best] and i > best):
                best = i
        taken.append(best)
        left.remove(best)
    return taken


def candidates(scores, ranks, limits):
    defined = [i for i in range(len(scores)) if scores[i] is not None]
    return [i for i in defined if ranks[i] > 1], [i for i in defined if ranks[i] < limits[i]]
