"""The learning rate over a run: linear warmup, then linear decay to zero."""

from collections.abc import Callable

from flexlora.training.plan import warmup_steps


def linear_warmup_decay(total_steps: int, warmup_ratio: float) -> Callable[[int], float]:
    """A factor on the learning rate: up over ceil(warmup_ratio · total_steps) steps, down to 0 at `total_steps`.

    For torch's own scheduler, to be stepped once per optimizer step; accelerate's would step once per process.
    """
    warmup = warmup_steps(total_steps, warmup_ratio)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup))

    return factor
