"""Compare two rows over the seeds that both have. The test is paired: runs of one seed share their data order."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

LEVEL = 0.05


@dataclass(frozen=True)
class Paired:
    """The mean difference over `n` shared seeds, in points, and the two-sided `p` of a paired t test.

    `p` is None if it is not defined: there is only one seed, or all differences are the same.
    """

    difference: float
    n: int
    p: float | None
    is_sure: bool = False
    """Whether `p` is below `LEVEL` with Holm's correction for all `p` of the table."""
    interval: tuple[float, float] | None = None
    """The interval over the examples, in points. Only a difference in one seed has it, and only with `--intervals`."""


def paired(ours: Mapping[int, float], reference: Mapping[int, float]) -> Paired | None:
    """Return our figures less the reference's, seed by seed, or None if no seed is shared."""
    seeds = sorted(ours.keys() & reference.keys())
    if not seeds:
        return None
    differences = [ours[seed] - reference[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    if len(seeds) == 1 or statistics.stdev(differences) < 1e-9:
        return Paired(mean, len(seeds), None)
    # These imports are here because most reports do not need them. The test equals scipy.stats.ttest_rel, which takes a
    # second to import.
    import numpy as np
    from scipy.special import stdtr

    points = np.array(differences)
    n, variance = len(points), points.var() * (len(points) / (len(points) - 1))
    t = points.mean() / np.sqrt(variance / n)
    return Paired(mean, len(seeds), float(2 * stdtr(n - 1, -np.abs(t))))
