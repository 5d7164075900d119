"""R(P, Q) of Eq. 2, which keeps the directions orthonormal, and its gradient in closed form.

R = mean over all P and Q of the adapted matrices of ‖PᵀP - I‖_F^p and ‖QQᵀ - I‖_F^p, over the active directions
(reconstructed: the paper's formula was lost; the released code has p = 1, AdaLoRA's paper p = 2). The gradient is
2 P (PᵀP - I) / ‖PᵀP - I‖_F for p = 1 and 4 P (PᵀP - I) for p = 2, and likewise for Q.

It is added once per optimizer step, straight into `.grad`. Inside the loss it would be multiplied by the accumulation
steps, bypassed by label smoothing, and missing for models whose output has no loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # P (out × C), Q (C × in), active (C)
Member = tuple[torch.Tensor, torch.Tensor]  # P or Q, active (C)

# Entries of a P or Q from which a CPU is faster without stacking.
LARGE_ON_CPU = 2**15


def orthogonality_error(factors: Sequence[Factors], power: int = 1) -> torch.Tensor:
    """R(P, Q) itself, differentiable: a scalar, the mean over the 2 · len(factors) Gram errors.

    Used to log the error and as the reference the closed form is tested against.
    """
    norms = []
    for p, q, active in factors:
        for gram in (p.mT @ p, q @ q.mT):
            # torch's own norm: its gradient at zero error is 0, that of sqrt(sum(x²)) is NaN.
            norms.append(torch.linalg.norm(_error(gram, active)))
    return torch.stack([norm.to(norms[0].device) for norm in norms]).pow(power).mean()


def add_orthogonality_gradient(
    factors: Sequence[Factors], weight: float, power: int = 1, scale: float | torch.Tensor = 1.0
) -> None:
    """Add `weight` · ∇R to the gradients of every P and Q, times `scale` (a loss scale still in the gradients).

    All matrices of one shape go through one batched product, except large ones on a CPU, where stacking costs more
    than the calls it saves (measured: `scripts/bench_penalty.py`). No host synchronisation.
    """
    if not factors or weight == 0.0:
        return
    coefficient = weight / (2 * len(factors))
    with torch.no_grad():
        for columns, members in by_shape(factors):
            first = members[0][0]
            large = first.device.type == "cpu" and first.numel() >= LARGE_ON_CPU
            (add_looped if large else add_batched)(columns, members, coefficient, power, scale)


def by_shape(factors: Sequence[Factors]) -> list[tuple[bool, list[Member]]]:
    """The trainable P and Q grouped by shape, dtype and device; the flag says that the directions are columns (P)."""
    groups: dict[tuple, list[Member]] = {}
    for p, q, active in factors:
        for columns, tensor in ((True, p), (False, q)):
            if tensor.requires_grad:
                key = (columns, tensor.shape, tensor.dtype, tensor.device)
                groups.setdefault(key, []).append((tensor, active))
    return [(key[0], members) for key, members in groups.items()]


def add_looped(
    columns: bool, members: Sequence[Member], coefficient: float, power: int, scale: float | torch.Tensor
) -> None:
    """One matrix after the other."""
    for tensor, active in members:
        _gradient_of(tensor).add_(_closed_form(columns, tensor, active, coefficient, power, scale))


def add_batched(
    columns: bool, members: Sequence[Member], coefficient: float, power: int, scale: float | torch.Tensor
) -> None:
    """All matrices of one shape at once."""
    stacked = torch.stack([tensor for tensor, _ in members])
    active = torch.stack([mask for _, mask in members])
    gradient = _closed_form(columns, stacked, active, coefficient, power, scale)
    torch._foreach_add_([_gradient_of(tensor) for tensor, _ in members], list(torch.unbind(gradient)))


def _closed_form(
    columns: bool, v: torch.Tensor, active: torch.Tensor, coefficient: float, power: int, scale: float | torch.Tensor
) -> torch.Tensor:
    if columns:
        return v @ _weighted_error(v.mT @ v, active, coefficient, power, scale)
    return _weighted_error(v @ v.mT, active, coefficient, power, scale) @ v


def _gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _error(gram: torch.Tensor, active: torch.Tensor) -> torch.Tensor:
    """Gram - I on the active directions, 0 elsewhere; shapes (..., C, C) and (..., C)."""
    both = active.unsqueeze(-1) & active.unsqueeze(-2)
    return torch.where(both, gram, 0.0) - torch.diag_embed(active.to(gram.dtype))


def _weighted_error(
    gram: torch.Tensor, active: torch.Tensor, coefficient: float, power: int, scale: float | torch.Tensor
) -> torch.Tensor:
    error = _error(gram, active)
    if isinstance(scale, torch.Tensor):
        scale = scale.to(error)  # a float32 scale would round the coefficient, and may live on another device
    if power == 2:
        return error * (4.0 * coefficient * scale)
    norm = torch.linalg.norm(error, dim=(-2, -1), keepdim=True)
    return error * torch.where(norm > 0, 2.0 * coefficient * scale / norm, 0.0)
