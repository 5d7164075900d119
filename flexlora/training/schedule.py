"""The learning rate of a run: a linear warmup, then a decay."""

import math
from collections.abc import Callable

from flexlora.settings import LrScheduler


def warmup_and_decay(total_steps: int, warmup: int, kind: LrScheduler, lowest: float = 0.0) -> Callable[[int], float]:
    """Return a function from a step to the factor on the learning rate.

    The factor rises from 0 to 1 over `warmup` steps. It then falls to `lowest` at `total_steps`, on a line or a cosine.
    The function is for torch's own scheduler, which steps once per optimizer step. Accelerate's scheduler would step
    once per process.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        left = max(0.0, (total_steps - step) / max(1, total_steps - warmup))
        fall = left if kind is LrScheduler.linear else 0.5 * (1 - math.cos(math.pi * left))
        return lowest + (1 - lowest) * fall

    return factor
