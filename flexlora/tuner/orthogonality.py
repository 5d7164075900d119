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

    On a CPU a loop of small products beats stacking them; on a GPU kernel launches dominate and all matrices of one
    shape go through one batched product (measured: `scripts/bench_step.py --penalty`). No host synchronisation.
    """
    if not factors or weight == 0.0:
        return
    coefficient = weight / (2 * len(factors))
    add = _add_looped if factors[0][0].device.type == "cpu" else _add_batched
    with torch.no_grad():
        add(factors, coefficient, power, scale)


def _add_looped(factors: Sequence[Factors], coefficient: float, power: int, scale: float | torch.Tensor) -> None:
    for p, q, active in factors:
        if p.requires_grad:
            _accumulate(p, p @ _weighted_error(p.mT @ p, active, coefficient, power, scale))
        if q.requires_grad:
            _accumulate(q, _weighted_error(q @ q.mT, active, coefficient, power, scale) @ q)


def _add_batched(factors: Sequence[Factors], coefficient: float, power: int, scale: float | torch.Tensor) -> None:
    groups: dict[tuple, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for p, q, active in factors:
        for side, tensor in (("P", p), ("Q", q)):
            if tensor.requires_grad:
                groups.setdefault((side, tensor.shape, tensor.dtype, tensor.device), []).append((tensor, active))
    for (side, *_), members in groups.items():
        tensors = [tensor for tensor, _ in members]
        stacked = torch.stack(tensors)
        active = torch.stack([mask for _, mask in members])
        if side == "P":
            gradient = stacked @ _weighted_error(stacked.mT @ stacked, active, coefficient, power, scale)
        else:
            gradient = _weighted_error(stacked @ stacked.mT, active, coefficient, power, scale) @ stacked
        gradients = []
        for tensor in tensors:
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
            gradients.append(tensor.grad)
        torch._foreach_add_(gradients, list(torch.unbind(gradient)))


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


def _accumulate(parameter: torch.Tensor, gradient: torch.Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient
    else:
        parameter.grad.add_(gradient)
