"""One row against another over the seeds that both have: paired, as runs of one seed share their data order."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Paired:
    """Mean difference over `n` shared seeds, in points, and the two-sided `p` of a paired t test.

    `p` is None where it is not defined: for one seed, and where all differences are the same.
    """

    difference: float
    n: int
    p: float | None
    interval: tuple[float, float] | None = None
    """Of a difference in one seed, in points, over the examples, where it was asked for."""


def paired(ours: Mapping[int, float], reference: Mapping[int, float]) -> Paired | None:
    """Our figures by seed less the reference's; None where no seed is shared."""
    seeds = sorted(ours.keys() & reference.keys())
    if not seeds:
        return None
    differences = [ours[seed] - reference[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    if len(seeds) == 1 or statistics.stdev(differences) < 1e-9:
        return Paired(mean, len(seeds), None)
    # Here, as most reports do without them. The test is scipy.stats.ttest_rel, which takes a second to import.
    import numpy as np
    from scipy.special import stdtr

    points = np.array(differences)
    n, variance = len(points), points.var() * (len(points) / (len(points) - 1))
    t = points.mean() / np.sqrt(variance / n)
    return Paired(mean, len(seeds), float(2 * stdtr(n - 1, -np.abs(t))))
