"""AdaLoRA's importance: smoothed sensitivity |w · ∇w| times its uncertainty (arXiv 2303.10512, Eq. 8 to 11)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class Sensitivity:
    """The running sensitivity and uncertainty of every entry of P, λ and Q.

    Args:
        factors: (P, λ, Q) of every matrix, at full capacity.
        beta1: smoothing of the sensitivity.
        beta2: smoothing of its uncertainty.
    """

    def __init__(self, factors: Sequence[tuple[torch.Tensor, ...]], beta1: float, beta2: float) -> None:
        self.factors = factors
        self.beta1, self.beta2 = beta1, beta2
        self._parameters = [parameter for triple in factors for parameter in triple]
        self.average = [torch.zeros_like(parameter) for parameter in self._parameters]
        self.uncertainty = [torch.zeros_like(parameter) for parameter in self._parameters]

    @torch.no_grad()
    def update(self, scale: float | torch.Tensor = 1.0) -> None:
        """Update once, without a Python loop: Ī ← β₁ Ī + (1 - β₁) |w ∇w|, Ū ← β₂ Ū + (1 - β₂) | |w ∇w| - Ī |."""
        gradients = [(i, parameter.grad) for i, parameter in enumerate(self._parameters) if parameter.grad is not None]
        if not gradients:
            return
        average = [self.average[i] for i, _ in gradients]
        uncertainty = [self.uncertainty[i] for i, _ in gradients]
        now = torch._foreach_mul([self._parameters[i] for i, _ in gradients], [gradient for _, gradient in gradients])
        torch._foreach_abs_(now)
        if not (isinstance(scale, float) and scale == 1.0):
            torch._foreach_div_(now, scale)
        torch._foreach_lerp_(average, now, 1.0 - self.beta1)
        torch._foreach_sub_(now, average)
        torch._foreach_abs_(now)
        torch._foreach_lerp_(uncertainty, now, 1.0 - self.beta2)

    def per_direction(self) -> list[torch.Tensor]:
        """Compute S_i = s(λ_i) + mean_j s(P_ji) + mean_j s(Q_ij), s = Ī · Ū, for each matrix: a list of (C)."""
        score = torch._foreach_mul(self.average, self.uncertainty)
        return [score[i].mean(0) + score[i + 1] + score[i + 2].mean(1) for i in range(0, len(score), 3)]

    @torch.no_grad()
    def reset(self, matrix: int, slot: int) -> None:
        """Reset the values of the slot of a pruned or newly grown direction."""
        for offset, dim in ((0, 1), (1, 0), (2, 0)):
            for running in (self.average, self.uncertainty):
                running[3 * matrix + offset].select(dim, slot).zero_()

    def state_dict(self) -> dict[str, torch.Tensor]:
        state = {f"average.{i}": tensor for i, tensor in enumerate(self.average)}
        return state | {f"uncertainty.{i}": tensor for i, tensor in enumerate(self.uncertainty)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        for i in range(len(self.average)):
            self.average[i].copy_(state[f"average.{i}"])
            self.uncertainty[i].copy_(state[f"uncertainty.{i}"])
