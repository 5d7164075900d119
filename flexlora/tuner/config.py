"""The configuration of FlexLoRA. Settings that AdaLoRA also has keep PEFT's names."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .base_config import LowRankConfig, setting
from .budget import BUDGET_SCHEDULES, budget, event_steps, scaled_windows
from .checks import choice, number, number_or, whole
from .importance import METRICS

# These include registrations from other packages: both are read when a configuration is made.
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
    """Configuration of a [`FlexLoraModel`]: ΔW = s · P diag(λ) Q, with ranks that change during training.

    The update of a linear (out × in) has a fixed capacity `max_rank`: P (out × max_rank), λ (max_rank),
    Q (max_rank × in) and a mask of active directions. The scale s = `lora_alpha` / `r` never changes
    (rescaling by the current rank would change the output at every event).

    Steps count completed optimizer steps. There is a rank event at step t if `tinit` < t < `total_step` - `tfinal`
    and (t - `tinit`) is a multiple of `deltaT`. [`flexlora.tuner.budget`] describes b(t), and
    [`flexlora.tuner.allocator`] describes an event.

    Raises:
        ValueError: a setting is out of range, `total_step` is missing, no rank event is possible
            (set `init_b=0` for fixed ranks), or `max_rank` is below `r`.
    """

    r: int = setting(8, "Initial rank of every adapted matrix (r₀ of the paper).")
    lora_alpha: float = setting(16, "Scale: s = lora_alpha / r, whatever the current rank.")
    fan_in_fan_out: bool = setting(False, "True if the base stores (in × out), as Conv1D does; set automatically.")
    bias: str = setting(
        "none", "Trainable biases: 'none', 'all' or 'flexlora_only'.", choice, options=("none", "all", "flexlora_only")
    )
    rank_pattern: dict[str, int] = setting(
        dict, "Module name → its initial rank, if it differs from `r`; saving stores the current ranks here."
    )
    init_weights: bool = setting(True, "True: λ = 0, so that ΔW = 0 at the start. False also draws λ (for tests).")
    vector_init: str = setting(
        "gaussian", "Initial vectors: 'gaussian' N(0, init_std²) as in the paper, or 'orthonormal' (their QR)."
    )
    init_std: float = setting(0.02, "Standard deviation of the initial vectors.", number, above=0)

    max_rank: int | None = setting(
        None,
        "Per-module rank limit and capacity. Default: min(r + number of events, 4r), rounded up to a multiple of 8.",
        whole,
        or_none=True,
    )
    total_step: int | None = setting(None, "Optimizer steps of the whole training (T).", whole, or_none=True)
    tinit: int = setting(0, "Steps before the first event may happen (t_warmup).", whole, at_least=0)
    tfinal: int = setting(0, "Steps at the end with fixed ranks (t_final).", whole, at_least=0)
    deltaT: int = setting(1, "Steps between two events (ΔT).", whole)
    init_b: int = setting(
        4,
        "b₀: the initial number of matrices that an event may prune and grow; 0 keeps ranks fixed.",
        whole,
        at_least=0,
    )
    budget_schedule: str = setting(
        "cubic", "b(t) over p ∈ [0, 1]: 'cubic' b₀(1 - p³), 'cubic_early' b₀(1 - p)³, linear, exponential, constant."
    )
    budget_by: str = setting(
        "schedule",
        "b(t): 'schedule', or 'spread', which multiplies it by the scores' spread (standard deviation over mean) over "
        "the largest spread at an event so far.",
    )
    budget_unit: str = setting(
        "rank", "The unit of b(t) and of the conserved total: 'rank', or 'parameters' (in + out + 1 per direction)."
    )
    direction: str = setting("both", "'both', 'prune_only' or 'expand_only' (Table 5).")
    importance: str = setting(
        "entropy", "Score of a matrix: a name registered in `flexlora.tuner.importance` (Tables 4, 15)."
    )
    spectrum: str = setting("lambda", "Singular values for the score: 'lambda' uses |λ|, 'exact' those of P diag(λ) Q.")
    rank_one: str = setting(
        "grow", "At rank 1 the entropy is 0/0: 'grow' lets such a matrix grow first, 'keep' does not change it."
    )
    all_zero: str = setting(
        "keep", "If all λ are 0 the entropy is 0/0: 'keep' does not change the matrix, 'grow' is the released code's."
    )
    selection: str = setting(
        "disjoint", "'disjoint': an event prunes or grows a matrix; 'overlapping': it may do both (released code)."
    )
    prune_by: str = setting(
        "magnitude",
        "The direction to prune: smallest |λ|, smallest 'signed' λ (released code), 'entropy_contribution'.",
    )
    growth_energy_quantile: float = setting(
        0.0,
        "A matrix whose energy Σλ² is below this quantile over all matrices may not grow; 0 lets all grow.",
        number,
        at_least=0,
        below=1,
    )
    growth_init: str = setting(
        "zero_impact", "Initialisation of a new direction: 'zero_impact', 'small', 'zero' or 'orthogonal' (Table 6)."
    )
    growth_std: float | None = setting(
        None,
        "Standard deviation of new vectors; init_std by default. The released code has 1.0.",
        number,
        above=0,
        or_none=True,
    )
    growth_lambda: float = setting(0.01, "λ of a new direction with growth_init='small'.", number)
    growth_state: str = setting(
        "zeros", "Optimizer state of a new direction: 'zeros', or 'surviving_second_moment', the mean over its matrix."
    )
    orth_reg_weight: float = setting(
        0.1, "Weight of R(P, Q), Eq. 2. Not in the paper; AdaLoRA's scripts use 0.1 to 0.5.", number, at_least=0
    )
    orth_reg_power: int = setting(
        1,
        "1: Frobenius norms (released code). Their gradient has norm 2 however small the error is, so that an adaptive "
        "optimizer never converges. 2: squared norms (AdaLoRA's paper).",
        choice,
        options=(1, 2),
    )
    beta1: float = setting(0.85, "Smoothing of the sensitivity (importance='sensitivity').", number, above=0, below=1)
    beta2: float = setting(0.85, "Smoothing of its uncertainty (importance='sensitivity').", number, above=0, below=1)
    lambda_lr_ratio: float | str = setting(
        1.0,
        "Learning rate of λ divided by that of P and Q; `parameter_groups` uses it. 'auto': that of `lambda_rate`.",
        number_or,
        words=("auto",),
        above=0,
    )
    seed: int = setting(
        0, "Seed of new directions and of importance='random'; step and module also enter.", whole, at_least=None
    )

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

    @classmethod
    def for_training(cls, total_step: int, like: str, **fields: Any) -> FlexLoraConfig:
        """Make a configuration for a training of `total_step` optimizer steps.

        The windows `tinit`, `tfinal` and `deltaT` are those of a recipe, multiplied by `total_step` / (the steps of the
        recipe's training), as `flexlora-run` does it. Other numbers of the tuner in the recipe are used as they are.
        [`flexlora.recipe`] returns the recipe with its learning rate.

        Args:
            total_step: optimizer steps of the whole training.
            like: the task whose recipe counts: `glue/cola`, `commonsense170k`, `vtab/cifar100`, …
            fields: other fields of the configuration. They replace those of the recipe.

        Raises:
            ValueError: `like` names no recipe, `total_step` is not a whole number of at least 1, or a field is invalid.
        """
        from .recipe import recipe

        if not isinstance(total_step, int) or isinstance(total_step, bool) or total_step < 1:
            raise ValueError(f"`total_step` must be a whole number of at least 1, not {total_step!r}")
        row = recipe(like)
        numbers = {key.removeprefix("method."): value for key, value in row.items() if key.startswith("method.")}
        windows = {name: numbers[name] for name in ("tinit", "tfinal", "deltaT")}
        numbers |= scaled_windows(windows, total_step / row["paper_steps"])
        return cls(**(numbers | {"total_step": total_step} | fields))

    def _check_schedule(self) -> None:
        if self.init_b == 0:
            return
        if self.total_step is None:
            raise ValueError(
                "`total_step` is missing: FlexLoRA plans its rank events, and its capacity, over the whole training. "
                "Set it to the number of optimizer steps, or init_b=0 for fixed ranks."
            )
        if not any(self.budget(step) for step in self.event_steps()[:1]):  # b(t) never rises
            raise ValueError(
                f"no rank event is possible: with total_step={self.total_step}, tinit={self.tinit}, "
                f"tfinal={self.tfinal}, deltaT={self.deltaT}, init_b={self.init_b} there is no step t with "
                "tinit < t < total_step - tfinal, "
                f"(t - tinit) a multiple of deltaT and b(t) ≥ 1. Lower tinit, tfinal or deltaT, train longer, "
                f"or set init_b=0 for fixed ranks."
            )

    def event_steps(self) -> range:
        """The steps of the rank events: t with `tinit` < t < `total_step` - `tfinal`, every `deltaT`."""
        if self.init_b == 0 or self.total_step is None:
            return range(0)
        return event_steps(self.total_step, self.tinit, self.tfinal, self.deltaT)

    def budget(self, step: int, share: float = 1.0) -> int:
        """b(t) of Eq. 4 at `step`: the largest number of matrices that may be pruned, and that may be grown."""
        if self.init_b == 0 or self.total_step is None:
            return 0
        return budget(step, self.init_b, self.total_step, self.tinit, self.tfinal, self.budget_schedule, share)

    def lambda_rate(self, out_features: int, in_features: int) -> float:
        """The learning rate of λ in a linear, divided by that of P and Q.

        With `lambda_lr_ratio='auto'`, the first Adam step moves ΔW of this linear as far (in Frobenius norm) as LoRA's
        first step with the same learning rate, rank and `lora_alpha` does. LoRA's B moves by ±η in every entry, and its
        A is Kaiming uniform (√5), so that ΔW moves by s η √(r out / 3). λ moves by ±η in every entry, so that ΔW moves
        by s η √r ‖p‖‖q‖. The ratio is therefore √(out / 3) / (‖p‖‖q‖), where ‖p‖‖q‖ is init_std² √(out in) for Gaussian
        vectors and 1 for orthonormal ones. This project derived the rule; the paper has one rate for all parameters.
        """
        if self.lambda_lr_ratio != "auto":
            return float(self.lambda_lr_ratio)
        lengths = 1.0 if self.vector_init == "orthonormal" else self.init_std**2 * math.sqrt(out_features * in_features)
        return math.sqrt(out_features / 3) / lengths

    def resolved_max_rank(self) -> int:
        """`max_rank`, or its default: min(r + number of events, 4r), rounded up to a multiple of 8."""
        if self.max_rank is not None:
            return self.max_rank
        start = max([self.r, *self.rank_pattern.values()])
        growths = 0 if self.direction == "prune_only" else len(self.event_steps())
        return 8 * math.ceil(min(start + growths, 4 * start) / 8)
