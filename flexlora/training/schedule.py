"""The learning rate of a run: a linear warmup, then a decay to zero."""

import math
from collections.abc import Callable

from flexlora.settings import LrScheduler


def warmup_and_decay(total_steps: int, warmup: int, kind: LrScheduler) -> Callable[[int], float]:
    """Return a function from a step to the factor on the learning rate.

    The factor rises over `warmup` steps. It then falls to 0 at `total_steps`, on a line or a cosine. The function is
    for torch's own scheduler, which steps once per optimizer step. Accelerate's scheduler would step once per process.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        left = max(0.0, (total_steps - step) / max(1, total_steps - warmup))
        return left if kind is LrScheduler.linear else 0.5 * (1 - math.cos(math.pi * left))

    return factor
