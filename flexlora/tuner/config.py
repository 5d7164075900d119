"""The configuration of FlexLoRA: the paper's settings under PEFT's (AdaLoRA's) names where they mean the same."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig

from .budget import BUDGET_SCHEDULES, budget, event_steps
from .peft_type import FLEXLORA

IMPORTANCES = (
    "entropy",
    "sensitivity",
    "nuclear",
    "frobenius",
    "elementwise_energy_entropy",
    "matrixwise_energy_entropy",
    "random",
    "inverted_entropy",
)
CHOICES: dict[str, tuple[str, ...]] = {
    "importance": IMPORTANCES,
    "spectrum": ("lambda", "exact"),
    "rank_one": ("grow", "keep"),
    "all_zero": ("keep", "grow"),
    "direction": ("both", "prune_only", "expand_only"),
    "selection": ("disjoint", "overlapping"),
    "prune_by": ("magnitude", "signed", "entropy_contribution"),
    "growth_init": ("zero_impact", "small", "zero", "orthogonal"),
    "growth_state": ("zeros", "surviving_second_moment"),
    "vector_init": ("gaussian", "orthonormal"),
    "budget_schedule": tuple(BUDGET_SCHEDULES),
    "budget_by": ("schedule", "spread"),
    "budget_unit": ("rank", "parameters"),
}


def _hint(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class FlexLoraConfig(PeftConfig):
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

    r: int = field(default=8, metadata=_hint("Rank every adapted matrix starts with (r₀ of the paper)."))
    target_modules: list[str] | str | None = field(
        default=None, metadata=_hint("Names (suffixes) of the linears to adapt, a regex, or 'all-linear'.")
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata=_hint("Names (suffixes) or a regex of modules that stay as they are.")
    )
    lora_alpha: float = field(default=16, metadata=_hint("Scale: s = lora_alpha / r, whatever the current rank."))
    lora_dropout: float = field(default=0.0, metadata=_hint("Dropout on the adapter's input."))
    fan_in_fan_out: bool = field(
        default=False, metadata=_hint("True where the base stores (in × out), as Conv1D does; set by itself.")
    )
    bias: str = field(default="none", metadata=_hint("Biases that train: 'none', 'all' or 'flexlora_only'."))
    modules_to_save: list[str] | None = field(
        default=None,
        metadata=_hint("Modules outside the adapter that train and are saved, e.g. the classifier."),
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata=_hint("Indices of the layers to adapt; all of them by default.")
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata=_hint("Name of the layer list that `layers_to_transform` counts in.")
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict,
        metadata=_hint("Module name → rank it starts with, where not `r`; saving writes the live ranks here."),
    )
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata=_hint("Module name → lora_alpha, where not `lora_alpha`.")
    )
    init_weights: bool = field(
        default=True, metadata=_hint("λ = 0, so that ΔW = 0 at the start. False draws λ too (for tests).")
    )
    vector_init: str = field(
        default="gaussian",
        metadata=_hint("Starting vectors: 'gaussian' N(0, init_std²), the paper's, or 'orthonormal' (QR of them)."),
    )
    init_std: float = field(default=0.02, metadata=_hint("Standard deviation of the starting vectors."))

    max_rank: int | None = field(
        default=None,
        metadata=_hint(
            "Per-module rank limit and capacity. Default: min(r + number of events, 4r), rounded up to a multiple of 8."
        ),
    )
    total_step: int | None = field(default=None, metadata=_hint("Optimizer steps of the whole training (T)."))
    tinit: int = field(default=0, metadata=_hint("Steps before the first event may happen (t_warmup)."))
    tfinal: int = field(default=0, metadata=_hint("Steps at the end in which ranks are frozen (t_final)."))
    deltaT: int = field(default=1, metadata=_hint("Steps between two events (ΔT)."))
    init_b: int = field(
        default=4,
        metadata=_hint("b₀: how many matrices an event may prune and grow at first; 0 keeps ranks fixed."),
    )
    budget_schedule: str = field(
        default="cubic",
        metadata=_hint(
            "b(t) over p ∈ [0, 1]: 'cubic' b₀(1 - p³), 'cubic_early' b₀(1 - p)³, linear, exponential, constant."
        ),
    )
    budget_by: str = field(
        default="schedule",
        metadata=_hint(
            "b(t): 'schedule', or the share of it that the 'spread' of the scores (standard deviation over mean) is of "
            "the widest spread at an event so far."
        ),
    )
    budget_unit: str = field(
        default="rank",
        metadata=_hint(
            "What b(t) counts and an event keeps the total of: 'rank', or 'parameters' (in + out + 1 a direction)."
        ),
    )
    direction: str = field(default="both", metadata=_hint("'both', 'prune_only' or 'expand_only' (Table 5)."))
    importance: str = field(default="entropy", metadata=_hint("Score of a matrix, one of IMPORTANCES (Tables 4, 15)."))
    spectrum: str = field(
        default="lambda",
        metadata=_hint("Singular values of a score: 'lambda' takes |λ|, 'exact' those of P diag(λ) Q."),
    )
    rank_one: str = field(
        default="grow",
        metadata=_hint(
            "Entropy of one value is 0/0: 'grow' puts rank-1 matrices first in line, 'keep' leaves them alone."
        ),
    )
    all_zero: str = field(
        default="keep",
        metadata=_hint("Entropy of all λ = 0 is 0/0: 'keep' leaves such a matrix alone, 'grow' as the released code."),
    )
    selection: str = field(
        default="disjoint",
        metadata=_hint("'disjoint': a matrix is pruned or grown in an event; 'overlapping' may do both, as released."),
    )
    prune_by: str = field(
        default="magnitude",
        metadata=_hint(
            "The direction pruned: smallest |λ|, smallest 'signed' λ (as released), 'entropy_contribution'."
        ),
    )
    growth_energy_quantile: float = field(
        default=0.0,
        metadata=_hint("A matrix whose energy Σλ² is below this quantile of all matrices' may not grow; 0: all may."),
    )
    growth_init: str = field(
        default="zero_impact",
        metadata=_hint("A new direction: 'zero_impact', 'small', 'zero' or 'orthogonal' (Table 6)."),
    )
    growth_std: float | None = field(
        default=None,
        metadata=_hint("Standard deviation of new vectors; default init_std. The released code has 1.0."),
    )
    growth_lambda: float = field(default=0.01, metadata=_hint("λ of a new direction under growth_init='small'."))
    growth_state: str = field(
        default="zeros",
        metadata=_hint("Optimizer state of a new direction: 'zeros', or the 'surviving_second_moment' of its matrix."),
    )
    orth_reg_weight: float = field(
        default=0.1,
        metadata=_hint("Weight of R(P, Q), Eq. 2. Not in the paper; AdaLoRA's scripts use 0.1 to 0.5."),
    )
    orth_reg_power: int = field(
        default=1,
        metadata=_hint(
            "1: Frobenius norms, as released; its gradient keeps norm 2 however small the error, so that an adaptive "
            "optimizer never comes to rest. 2: squared norms, as in AdaLoRA's paper."
        ),
    )
    beta1: float = field(default=0.85, metadata=_hint("Smoothing of the sensitivity (importance='sensitivity')."))
    beta2: float = field(default=0.85, metadata=_hint("Smoothing of its uncertainty (importance='sensitivity')."))
    lambda_lr_ratio: float = field(
        default=1.0, metadata=_hint("Learning rate of λ over that of P and Q, read by `parameter_groups`.")
    )
    seed: int = field(default=0, metadata=_hint("Seeds new directions and importance='random', with step and module."))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = FLEXLORA
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        if self.layers_pattern and not self.layers_to_transform and self.layers_to_transform != 0:
            raise ValueError("`layers_pattern` does nothing without `layers_to_transform`: set both or neither.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                "`layers_to_transform` cannot be used when `target_modules` is a string: put it in the regex."
            )
        self._check_values()
        self._check_schedule()

    def _check_values(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"`{name}` is {value!r}; choose one of {', '.join(allowed)}.")
        for name in ("r", "deltaT"):
            if not _is_int(getattr(self, name)) or getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, not {getattr(self, name)!r}.")
        for name in ("init_b", "tinit", "tfinal"):
            if not _is_int(getattr(self, name)) or getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be a whole number of at least 0, not {getattr(self, name)!r}.")
        for name in ("init_std", "lambda_lr_ratio", "lora_alpha"):
            if not _positive(getattr(self, name)):
                raise ValueError(f"`{name}` must be a positive number, not {getattr(self, name)!r}.")
        if self.growth_std is not None and not _positive(self.growth_std):
            raise ValueError(f"`growth_std` must be a positive number, not {self.growth_std!r}.")
        if not (_is_number(self.lora_dropout) and 0.0 <= self.lora_dropout < 1.0):
            raise ValueError(f"`lora_dropout` must lie in [0, 1), not {self.lora_dropout!r}.")
        if not (_is_number(self.orth_reg_weight) and self.orth_reg_weight >= 0.0):
            raise ValueError(f"`orth_reg_weight` must be at least 0, not {self.orth_reg_weight!r}.")
        if not (_is_number(self.growth_energy_quantile) and 0.0 <= self.growth_energy_quantile < 1.0):
            raise ValueError(f"`growth_energy_quantile` must lie in [0, 1), not {self.growth_energy_quantile!r}.")
        if self.orth_reg_power not in (1, 2):
            raise ValueError(f"`orth_reg_power` must be 1 or 2, not {self.orth_reg_power!r}.")
        for name in ("beta1", "beta2"):
            if not (_is_number(getattr(self, name)) and 0.0 < getattr(self, name) < 1.0):
                raise ValueError(f"`{name}` must lie strictly between 0 and 1, not {getattr(self, name)!r}.")
        if not _is_number(self.growth_lambda):
            raise ValueError(f"`growth_lambda` must be a finite number, not {self.growth_lambda!r}.")
        if not _is_int(self.seed):
            raise ValueError(f"`seed` must be a whole number, not {self.seed!r}.")
        if self.bias not in ("none", "all", "flexlora_only"):
            raise ValueError(f"`bias` is {self.bias!r}; choose one of none, all, flexlora_only.")
        for name, rank in self.rank_pattern.items():
            if not _is_int(rank) or rank < 1:
                raise ValueError(f"`rank_pattern` has {rank!r} for {name}: a rank is a whole number of at least 1.")
        for name, alpha in self.alpha_pattern.items():
            if not _positive(alpha):
                raise ValueError(f"`alpha_pattern` has {alpha!r} for {name}: it must be a positive number.")
        highest = max([self.r, *self.rank_pattern.values()])
        if self.max_rank is not None and not _is_int(self.max_rank):
            raise ValueError(f"`max_rank` must be a whole number, not {self.max_rank!r}.")
        if self.max_rank is not None and self.max_rank < highest:
            raise ValueError(
                f"`max_rank` ({self.max_rank}) is below the starting rank ({highest}): raise it, or lower r."
            )

    def _check_schedule(self) -> None:
        if self.init_b == 0:
            return
        if self.total_step is None:
            raise ValueError(
                "`total_step` is missing: FlexLoRA plans its rank events, and its capacity, over the whole training. "
                "Set it to the number of optimizer steps, or init_b=0 for fixed ranks."
            )
        if not _is_int(self.total_step) or self.total_step < 1:
            raise ValueError(f"`total_step` must be a whole number of at least 1, not {self.total_step!r}.")
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


def _as_set(value: Any) -> Any:
    return set(value) if isinstance(value, list | tuple) else value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _is_number(value) and value > 0
