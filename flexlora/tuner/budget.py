"""The steps of the rank events and the budget b(t) of Eq. 4.

Steps count completed optimizer steps. The paper's text lost the formula. `cubic` is reconstructed from the released
code; `cubic_early` fits the paper's words better ("aggressive early, then gradual stabilisation").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

# The fraction of b₀ that remains at progress p ∈ [0, 1] through the window of rank events.
BUDGET_SCHEDULES: dict[str, Callable[[float], float]] = {
    "cubic": lambda p: 1.0 - p**3,
    "cubic_early": lambda p: (1.0 - p) ** 3,
    "linear": lambda p: 1.0 - p,
    "exponential": lambda p: math.exp(-5.0 * p),
    "constant": lambda p: 1.0,
}


def event_steps(total_step: int, tinit: int, tfinal: int, deltaT: int) -> range:
    """The steps t with `tinit` < t < `total_step` - `tfinal` and (t - `tinit`) mod `deltaT` = 0."""
    return range(tinit + deltaT, total_step - tfinal, deltaT)


def scaled_windows(windows: Mapping[str, int], factor: float) -> dict[str, int]:
    """Return `tinit`, `tfinal` and `deltaT` for a training that is `factor` times as long."""
    scaled = {name: round(value * factor) for name, value in windows.items()}
    return {name: max(1, value) if name == "deltaT" else value for name, value in scaled.items()}


def budget(
    step: int, init_b: int, total_step: int, tinit: int, tfinal: int, schedule: str = "cubic", share: float = 1.0
) -> int:
    """b(t) = round(b₀ · f(p) · share), p = clamp((t - tinit) / (total_step - tfinal - tinit), 0, 1), ties rounded up.

    `share` ∈ [0, 1] is the factor of an adaptive budget.
    """
    window = total_step - tfinal - tinit
    if window <= 0:
        return 0
    progress = min(max((step - tinit) / window, 0.0), 1.0)
    return math.floor(init_b * BUDGET_SCHEDULES[schedule](progress) * share + 0.5)
