"""The configuration of FlexLoRA: the paper's settings under PEFT's (AdaLoRA's) names where they mean the same."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .base_config import LowRankConfig, setting
from .budget import BUDGET_SCHEDULES, budget, event_steps
from .checks import choice, number, whole
from .importance import METRICS

# Also those that others have registered: both are read when a configuration is made.
CHOICES: dict[str, Iterable[str]] = {
    "importance": METRICS,
    "spectrum": ("lambda", "exact"),
    "rank_one": ("grow", "keep"),
    "all_zero": ("keep", "grow"),
    "direction": ("both", "prune_only", "expand_only"),
    "selection": ("disjoint", "overlapping"),
    "prune_by": ("magnitude", "signed", "entropy_contribution"),
    "growth_init": ("zero_impact", "small", "zero", "orthogonal"),
    "growth_state": ("zeros", "surviving_second_moment"),
    "vector_init": ("gaussian", "orthonormal"),
    "budget_schedule": BUDGET_SCHEDULES,
    "budget_by": ("schedule", "spread"),
    "budget_unit": ("rank", "parameters"),
}


@dataclass
class FlexLoraConfig(LowRankConfig):
    """Configuration of a [`FlexLoraModel`]: ΔW = s · P diag(λ) Q, with ranks that move during training.

    The update of a linear (out × in) is held at a fixed capacity `max_rank`: P (out × max_rank), λ (max_rank),
    Q (max_rank × in) and a mask of active directions. The scale s = `lora_alpha` / `r` is fixed for life
    (rescaling by the current rank would change the output at every event).

    Steps count completed optimizer steps. There is a rank event at step t iff `tinit` < t < `total_step` - `tfinal`
    and (t - `tinit`) is a multiple of `deltaT`; see [`flexlora.tuner.budget`] for b(t) and
    [`flexlora.tuner.allocator`] for what one event does.

    Raises:
        ValueError: a setting is out of range, `total_step` is missing, no rank event could ever fire
            (set `init_b=0` for fixed ranks), or `max_rank` is below `r`.
    """

    r: int = setting(8, "Rank every adapted matrix starts with (r₀ of the paper).")
    lora_alpha: float = setting(16, "Scale: s = lora_alpha / r, whatever the current rank.")
    fan_in_fan_out: bool = setting(False, "True where the base stores (in × out), as Conv1D does; set by itself.")
    bias: str = setting(
        "none", "Biases that train: 'none', 'all' or 'flexlora_only'.", choice, options=("none", "all", "flexlora_only")
    )
    rank_pattern: dict[str, int] = setting(
        dict, "Module name → rank it starts with, where not `r`; saving writes the live ranks here."
    )
    init_weights: bool = setting(True, "λ = 0, so that ΔW = 0 at the start. False draws λ too (for tests).")
    vector_init: str = setting(
        "gaussian", "Starting vectors: 'gaussian' N(0, init_std²), the paper's, or 'orthonormal' (QR of them)."
    )
    init_std: float = setting(0.02, "Standard deviation of the starting vectors.", number, above=0)

    max_rank: int | None = setting(
        None,
        "Per-module rank limit and capacity. Default: min(r + number of events, 4r), rounded up to a multiple of 8.",
        whole,
        or_none=True,
    )
    total_step: int | None = setting(None, "Optimizer steps of the whole training (T).", whole, or_none=True)
    tinit: int = setting(0, "Steps before the first event may happen (t_warmup).", whole, at_least=0)
    tfinal: int = setting(0, "Steps at the end in which ranks are frozen (t_final).", whole, at_least=0)
    deltaT: int = setting(1, "Steps between two events (ΔT).", whole)
    init_b: int = setting(
        4, "b₀: how many matrices an event may prune and grow at first; 0 keeps ranks fixed.", whole, at_least=0
    )
    budget_schedule: str = setting(
        "cubic", "b(t) over p ∈ [0, 1]: 'cubic' b₀(1 - p³), 'cubic_early' b₀(1 - p)³, linear, exponential, constant."
    )
    budget_by: str = setting(
        "schedule",
        "b(t): 'schedule', or the share of it that the 'spread' of the scores (standard deviation over mean) is of "
        "the widest spread at an event so far.",
    )
    budget_unit: str = setting(
        "rank", "What b(t) counts and an event keeps the total of: 'rank', or 'parameters' (in + out + 1 a direction)."
    )
    direction: str = setting("both", "'both', 'prune_only' or 'expand_only' (Table 5).")
    importance: str = setting(
        "entropy", "Score of a matrix: a name that `flexlora.tuner.importance` knows (Tables 4, 15)."
    )
    spectrum: str = setting("lambda", "Singular values of a score: 'lambda' takes |λ|, 'exact' those of P diag(λ) Q.")
    rank_one: str = setting(
        "grow", "Entropy of one value is 0/0: 'grow' puts rank-1 matrices first in line, 'keep' leaves them alone."
    )
    all_zero: str = setting(
        "keep", "Entropy of all λ = 0 is 0/0: 'keep' leaves such a matrix alone, 'grow' as the released code."
    )
    selection: str = setting(
        "disjoint", "'disjoint': a matrix is pruned or grown in an event; 'overlapping' may do both, as released."
    )
    prune_by: str = setting(
        "magnitude", "The direction pruned: smallest |λ|, smallest 'signed' λ (as released), 'entropy_contribution'."
    )
    growth_energy_quantile: float = setting(
        0.0,
        "A matrix whose energy Σλ² is below this quantile of all matrices' may not grow; 0: all may.",
        number,
        at_least=0,
        below=1,
    )
    growth_init: str = setting(
        "zero_impact", "A new direction: 'zero_impact', 'small', 'zero' or 'orthogonal' (Table 6)."
    )
    growth_std: float | None = setting(
        None,
        "Standard deviation of new vectors; default init_std. The released code has 1.0.",
        number,
        above=0,
        or_none=True,
    )
    growth_lambda: float = setting(0.01, "λ of a new direction under growth_init='small'.", number)
    growth_state: str = setting(
        "zeros", "Optimizer state of a new direction: 'zeros', or the 'surviving_second_moment' of its matrix."
    )
    orth_reg_weight: float = setting(
        0.1, "Weight of R(P, Q), Eq. 2. Not in the paper; AdaLoRA's scripts use 0.1 to 0.5.", number, at_least=0
    )
    orth_reg_power: int = setting(
        1,
        "1: Frobenius norms, as released; its gradient keeps norm 2 however small the error, so that an adaptive "
        "optimizer never comes to rest. 2: squared norms, as in AdaLoRA's paper.",
        choice,
        options=(1, 2),
    )
    beta1: float = setting(0.85, "Smoothing of the sensitivity (importance='sensitivity').", number, above=0, below=1)
    beta2: float = setting(0.85, "Smoothing of its uncertainty (importance='sensitivity').", number, above=0, below=1)
    lambda_lr_ratio: float = setting(
        1.0, "Learning rate of λ over that of P and Q, read by `parameter_groups`.", number, above=0
    )
    seed: int = setting(0, "Seeds new directions and importance='random', with step and module.", whole, at_least=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, options in CHOICES.items():
            choice(self, name, options)
        highest = max([self.r, *self.rank_pattern.values()])
        if self.max_rank is not None and self.max_rank < highest:
            raise ValueError(
                f"`max_rank` ({self.max_rank}) is below the starting rank ({highest}): raise it, or lower r."
            )
        self._check_schedule()

    def _check_schedule(self) -> None:
        if self.init_b == 0:
            return
        if self.total_step is None:
            raise ValueError(
                "`total_step` is missing: FlexLoRA plans its rank events, and its capacity, over the whole training. "
                "Set it to the number of optimizer steps, or init_b=0 for fixed ranks."
            )
        if not any(self.budget(step) for step in self.event_steps()):
            raise ValueError(
                f"no rank event can fire: with total_step={self.total_step}, tinit={self.tinit}, tfinal={self.tfinal}, "
                f"deltaT={self.deltaT}, init_b={self.init_b} there is no step t with tinit < t < total_step - tfinal, "
                f"(t - tinit) a multiple of deltaT and b(t) ≥ 1. Lower tinit, tfinal or deltaT, train longer, "
                f"or set init_b=0 for fixed ranks."
            )

    def event_steps(self) -> range:
        """The steps at which ranks may move: t with `tinit` < t < `total_step` - `tfinal`, every `deltaT`."""
        if self.init_b == 0 or self.total_step is None:
            return range(0)
        return event_steps(self.total_step, self.tinit, self.tfinal, self.deltaT)

    def budget(self, step: int, share: float = 1.0) -> int:
        """b(t) of Eq. 4 at `step`: how many matrices may be pruned, and how many grown, at most."""
        if self.init_b == 0 or self.total_step is None:
            return 0
        return budget(step, self.init_b, self.total_step, self.tinit, self.tfinal, self.budget_schedule, share)

    def resolved_max_rank(self) -> int:
        """`max_rank`, or its default: min(r + number of events, 4r), rounded up to a multiple of 8."""
        if self.max_rank is not None:
            return self.max_rank
        start = max([self.r, *self.rank_pattern.values()])
        growths = 0 if self.direction == "prune_only" else len(self.event_steps())
        return 8 * math.ceil(min(start + growths, 4 * start) / 8)
