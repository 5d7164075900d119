"""The learning rate over a run: linear warmup, then a fall to zero."""

import math
from collections.abc import Callable

from flexlora.settings import LrScheduler


def warmup_and_decay(total_steps: int, warmup: int, kind: LrScheduler) -> Callable[[int], float]:
    """A factor on the learning rate: up over `warmup` steps, then down to 0 at `total_steps`, by a line or a cosine.

    For torch's own scheduler, to be stepped once per optimizer step; accelerate's would step once per process.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        left = max(0.0, (total_steps - step) / max(1, total_steps - warmup))
        return left if kind is LrScheduler.linear else 0.5 * (1 - math.cos(math.pi * left))

    return factor
