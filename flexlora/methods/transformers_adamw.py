"""AdamW with the rule of transformers 4.4.2, which the released code of FlexLoRA uses."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


class TransformersAdamW(torch.optim.Optimizer):
    """AdamW that adds eps to √v before the bias correction, and decays the weights after the update.

    With m and v the moments and t the step count: θ ← θ - lr · √(1 - β₂ᵗ) / (1 - β₁ᵗ) · m / (√v + eps), and then
    θ ← θ - lr · weight_decay · θ. torch's AdamW divides by √(v / (1 - β₂ᵗ)) + eps. So at step t, eps is larger here by
    1 / √(1 - β₂ᵗ), a factor of 32 at the first step. eps decides the size of a step if gradients are as small as eps.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step. `closure`, if given, computes the gradients and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            if trained:
                self._update(trained, group["lr"], group["betas"], group["eps"], group["weight_decay"])
        return loss

    def _update(
        self, trained: list[torch.Tensor], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
    ) -> None:
        states = [self.state[parameter] for parameter in trained]
        for state, parameter in zip(states, trained, strict=True):
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
            state["step"] += 1
        (beta1, beta2), gradients = betas, [p.grad for p in trained if p.grad is not None]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        torch._foreach_mul_(means, beta1)
        torch._foreach_add_(means, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_add_(divisors, eps)
        sizes = [-lr * math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"]) for state in states]
        torch._foreach_addcdiv_(trained, means, divisors, sizes)
        if weight_decay:
            torch._foreach_add_(trained, trained, alpha=-lr * weight_decay)
