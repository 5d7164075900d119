"""R(P, Q) of Eq. 2, which keeps the directions orthonormal, and its gradient in closed form.

R is the mean of ‖PᵀP - I‖_F^p and ‖QQᵀ - I‖_F^p over all adapted matrices, restricted to their active directions. The
formula is reconstructed because the paper's text lost it: the released code has p = 1, AdaLoRA's paper p = 2. The
gradient is
2 P (PᵀP - I) / ‖PᵀP - I‖_F for p = 1 and 4 P (PᵀP - I) for p = 2, and likewise for Q.

The gradient is added once per optimizer step, directly to `.grad`. Inside the loss the penalty would be multiplied by
the accumulation steps, skipped under label smoothing, and missing for models whose output has no loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

Factors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # P (out × C), Q (C × in), active (C)
Member = tuple[torch.Tensor, torch.Tensor]  # P or Q, active (C)

# From this number of entries of P or Q on, a CPU is faster without stacking the matrices.
LARGE_ON_CPU = 2**15


def orthogonality_error(factors: Sequence[Factors], power: int = 1) -> torch.Tensor:
    """Compute R(P, Q), differentiable: a scalar, the mean over the 2 · len(factors) Gram errors.

    It is used to log the error, and tests compare the closed form with it.
    """
    norms = []
    for p, q, active in factors:
        for gram in (p.mT @ p, q @ q.mT):
            # The gradient of torch's norm at zero error is 0, while that of sqrt(sum(x²)) is NaN.
            norms.append(torch.linalg.norm(_error(gram, active)))
    return torch.stack([norm.to(norms[0].device) for norm in norms]).pow(power).mean()


def add_orthogonality_gradient(
    factors: Sequence[Factors], weight: float, power: int = 1, scale: float | torch.Tensor = 1.0
) -> None:
    """Add `scale` · `weight` · ∇R to the gradients of every P and Q. `scale` is a loss scale still in the gradients.

    All matrices of the same shape go through one batched product. Large matrices on a CPU are the exception: stacking
    them costs more than it saves (measured by `scripts/bench_penalty.py`). There is no host synchronisation.
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
    """Group the trainable P and Q by shape, dtype and device. The flag is true if directions are columns (P)."""
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
    """Add the gradient to one matrix after the other."""
    for tensor, active in members:
        _gradient_of(tensor).add_(_closed_form(columns, tensor, active, coefficient, power, scale))


def add_batched(
    columns: bool, members: Sequence[Member], coefficient: float, power: int, scale: float | torch.Tensor
) -> None:
    """Add the gradient to all matrices of one shape at once."""
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
    """Compute Gram - I on the active directions and 0 elsewhere; shapes (..., C, C) and (..., C)."""
    both = active.unsqueeze(-1) & active.unsqueeze(-2)
    return torch.where(both, gram, 0.0) - torch.diag_embed(active.to(gram.dtype))


def _weighted_error(
    gram: torch.Tensor, active: torch.Tensor, coefficient: float, power: int, scale: float | torch.Tensor
) -> torch.Tensor:
    error = _error(gram, active)
    if isinstance(scale, torch.Tensor):
        scale = scale.to(error)  # a float32 scale would round the coefficient, and it may be on another device
    if power == 2:
        return error * (4.0 * coefficient * scale)
    norm = torch.linalg.norm(error, dim=(-2, -1), keepdim=True)
    return error * torch.where(norm > 0, 2.0 * coefficient * scale / norm, 0.0)
