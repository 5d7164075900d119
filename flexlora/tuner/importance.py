"""Scores of the adapted matrices: spectral energy entropy (Eq. 3) and the scores that the paper compares it with.

A score is one function, registered by `@importance("name")` and selected by `FlexLoraConfig(importance="name")`. It may
be in a module outside this package. All scores are pure functions, batched over the matrices (M) and padded over the
directions (C), in float64 on the CPU. `values` (M × C) are singular values, `active` (M × C) is a mask. Inactive
entries never count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

EPSILON = 1e-8

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Metric:
    """A registered importance.

    Attributes:
        score: (values, active) → (M); None if it is not a function of the spectrum and `RankAllocator` computes it.
        is_entropy: the score is undefined at rank 1 (log 1 = 0) and if all λ are 0 (0/0). The configuration's
            `rank_one` and `all_zero` then decide.
    """

    score: Score | None
    is_entropy: bool = False


METRICS: dict[str, Metric] = {"sensitivity": Metric(None), "random": Metric(None)}


def importance(name: str, *, is_entropy: bool = False) -> Callable[[Score], Score]:
    """Register a function (values, active) → (M) as the importance `name`: low scores are pruned, high ones grown.

    Args:
        name: the name in `FlexLoraConfig(importance=...)`.
        is_entropy: see [`Metric`].

    Raises:
        ValueError: another function has this name.
    """

    def register(score: Score) -> Score:
        known = METRICS.get(name)
        if known is not None and (known.score is None or known.score.__qualname__ != score.__qualname__):
            raise ValueError(f"an importance named '{name}' already exists: choose another name.")
        METRICS[name] = Metric(score, is_entropy)
        return score

    return register


def energy(values: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Compute Σ_i λ_i² of each matrix: (M × C) → (M)."""
    return (values.double().square() * active).sum(-1)


def shares(values: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Compute s_i = λ_i² / Σ_j λ_j², 0 for inactive directions or if all λ are 0: (M × C) → (M × C)."""
    # The values are first divided by the largest one, because squares of tiny or huge values under- or overflow.
    magnitude = values.double().abs() * active
    peak = magnitude.amax(-1, keepdim=True)
    square = (magnitude / torch.where(peak > 0, peak, 1.0)).square()
    total = square.sum(-1, keepdim=True)
    return square / torch.where(total > 0, total, 1.0)


def entropy_contributions(values: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """-s_i log(s_i + ε) of each direction: (M × C) → (M × C)."""
    s = shares(values, active)
    return -s * torch.log(s + EPSILON)


def _log_rank(active: torch.Tensor) -> torch.Tensor:
    """Compute log r of each matrix, or 1 if r ≤ 1, where the score is 0 and special (see `Metric.is_entropy`)."""
    rank = active.sum(-1).double()
    return torch.where(rank > 1, torch.log(rank.clamp(min=2.0)), 1.0)


@importance("entropy", is_entropy=True)
def spectral_entropy(values: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """I = -(1/log r) Σ_i s_i log(s_i + ε) ∈ [0, 1] (Eq. 3): (M × C) → (M). Low means redundant, high means rich."""
    return (entropy_contributions(values, active).sum(-1) / _log_rank(active)).clamp(0.0, 1.0)


@importance("inverted_entropy", is_entropy=True)
def inverted_entropy(values: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """1 - I: (M × C) → (M)."""
    return 1.0 - spectral_entropy(values, active)


@importance("nuclear")
def nuclear(values: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Σ_i |λ_i| / r (Table 4): (M × C) → (M)."""
    return (values.double().abs() * active).sum(-1) / active.sum(-1).clamp(min=1)


@importance("frobenius")
def frobenius(values: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """sqrt(Σ_i λ_i²) / r (Table 4): (M × C) → (M)."""
    return energy(values, active).sqrt() / active.sum(-1).clamp(min=1)


@importance("elementwise_energy_entropy", is_entropy=True)
def elementwise_energy_entropy(values: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Σ_i λ_i² · (-s_i log s_i) / log r (Eq. 10, reconstructed; Table 15): (M × C) → (M)."""
    contribution = values.double().square() * entropy_contributions(values, active)
    return (contribution.sum(-1) / _log_rank(active)).clamp(min=0.0)


@importance("matrixwise_energy_entropy", is_entropy=True)
def matrixwise_energy_entropy(values: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """(Σ_i λ_i²) · I (Eq. 11, reconstructed; Table 15): (M × C) → (M)."""
    return energy(values, active) * spectral_entropy(values, active)


def spread(scores: Sequence[float]) -> float:
    """Compute the coefficient of variation of the finite scores: standard deviation over |mean|.

    It does not depend on the scores' scale. It is 0 for equal scores, for fewer than two scores, and for mean 0.
    """
    finite = [score for score in scores if math.isfinite(score)]
    peak = max((abs(score) for score in finite), default=0.0)
    if len(finite) < 2 or peak == 0:
        return 0.0
    values = [score / peak for score in finite]  # the squares of huge or tiny values would over- or underflow
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return deviation / abs(mean) if mean != 0 else 0.0


def random_scores(matrices: int, generator: torch.Generator) -> torch.Tensor:
    """Draw uniform scores: the control experiment that shows whether an importance is better than chance."""
    return torch.rand(matrices, generator=generator, dtype=torch.float64)


def exact_spectrum(p: torch.Tensor, values: torch.Tensor, q: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Compute the singular values of P diag(λ) Q by two thin QRs and a C × C SVD.

    Shapes: p (... × out × C), values and active (... × C), q (... × C × in) → (... × C), descending. Values past the
    active rank are 0. |λ| are the singular values only if P and Q are orthonormal.
    """
    columns = active.to(p.dtype)
    _, left = torch.linalg.qr((p * columns.unsqueeze(-2)).double(), mode="r")
    _, right = torch.linalg.qr((q * columns.unsqueeze(-1)).mT.double(), mode="r")
    core = left * (values * columns).double().unsqueeze(-2) @ right.mT
    return torch.linalg.svdvals(core)
