"""Mean gradients of frozen weights from a few batches before training, and their statistics.

The gradients of all weights of a model can be as large as the model: those of q, k, v and o of LLaMA-3-8B take 5.4 GB
in float32. So each backward pass adds every gradient to its sum and frees it at once, and `passes` splits the weights
into groups that are treated one after the other: the sums of one group are in memory at a time. Every method that reads
gradients before training uses `mean_gradients`: E²LoRA's sharing plan, LoRA-GA, GoRA and RaLoRA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

SMALLEST_SIGMA = 1e-8

Loss = Callable[[nn.Module, Any], torch.Tensor]


@dataclass(frozen=True)
class GradientStatistics:
    """The mean gradient of a weight over some batches, as a Gaussian over its elements."""

    module: str
    """The module's name in the model."""
    elements: int
    mean: float
    squares: float
    """The sum of squared differences from the mean."""
    gradient: torch.Tensor | None = None
    """The gradient itself, float32 on the CPU; only for similarities of paired elements."""

    @property
    def sigma(self) -> float:
        """The unbiased standard deviation of the elements, at least 1e-8."""
        return max(SMALLEST_SIGMA, math.sqrt(self.squares / max(1, self.elements - 1)))

    def joined(self, other: GradientStatistics) -> GradientStatistics:
        """Return the statistics of both gradients concatenated."""
        elements = self.elements + other.elements
        gap = other.mean - self.mean
        return GradientStatistics(
            f"{self.module} and {other.module}",
            elements,
            self.mean + gap * other.elements / elements,
            self.squares + other.squares + gap**2 * self.elements * other.elements / elements,
        )


def statistics_of(module: str, gradient: torch.Tensor, keep: bool = False) -> GradientStatistics:
    """Return the statistics of a gradient, computed in float64.

    Raises:
        ValueError: an element is not finite.
    """
    values = gradient.detach().double()
    mean = values.mean()
    squares = (values - mean).square().sum()
    held_mean, held_squares = torch.stack([mean, squares]).tolist()
    if not (math.isfinite(held_mean) and math.isfinite(held_squares)):
        raise ValueError(f"the gradient of {module} is not finite: check the batches, or load the model in float32.")
    kept = gradient.detach().float().cpu() if keep else None
    return GradientStatistics(module, values.numel(), held_mean, held_squares, kept)


def gradient_statistics(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    batches: Sequence[Any],
    loss: Loss,
    *,
    passes: int = 1,
    keep: bool = False,
) -> dict[str, GradientStatistics]:
    """Return the statistics of the mean gradient of each weight.

    Args:
        model, weights, batches, loss, passes: as in `mean_gradients`.
        keep: whether to keep the gradients, which `similarity=cosine` needs.

    Raises:
        ValueError: `mean_gradients` raises it, or a gradient is not finite.
    """
    gradients = mean_gradients(model, weights, batches, loss, passes=passes)
    return {name: statistics_of(name, gradient, keep) for name, gradient in gradients}


def mean_gradients(
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    batches: Sequence[Any],
    loss: Loss,
    *,
    passes: int = 1,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and the mean gradient of each weight, over all batches and over all processes.

    A gradient is float32 (float64 for a float64 weight), on the weight's device, and freed when the caller drops it.
    Dropout is off during the passes. Which parameters train, and the mode of the model, are as before afterwards, also
    if the caller stops early. Between two gradients all parameters are frozen. Each process passes its own batches; all
    get the same gradients.

    Args:
        model: computes the loss.
        weights: the weights by the names of their modules.
        batches: at least one; each is passed to `loss`.
        loss: takes the model and a batch and returns the scalar loss, without a loss scale.
        passes: the number of groups into which the weights are split. More groups need less memory and more time. With
            more than one, the caller must not change the model's output between two gradients.

    Raises:
        ValueError: there is no batch, a weight is quantised, or the loss does not depend on a weight.
    """
    if not batches:
        raise ValueError("the gradients need at least one batch.")
    for name, weight in weights.items():
        if not weight.is_floating_point():
            raise ValueError(f"the weight of {name} is quantised, so it has no gradient: load the model without it.")
    names = list(weights)
    passes = max(1, min(passes, len(names)))
    size = math.ceil(len(names) / passes)
    with _only_backward(model):
        for start in range(0, len(names), size):
            group = {name: weights[name] for name in names[start : start + size]}
            sums = _summed(model, group, batches, loss)
            for name in group:
                gradient = sums.pop(name).div_(len(batches))
                if distributed.is_initialized():
                    distributed.all_reduce(gradient)
                    gradient /= distributed.get_world_size()
                yield name, gradient
                del gradient  # the caller alone holds it now


def _summed(
    model: nn.Module, weights: Mapping[str, torch.Tensor], batches: Sequence[Any], loss: Loss
) -> dict[str, torch.Tensor]:
    """Return the sums of the gradients over the batches. A gradient is freed as soon as it is added."""
    sums: dict[str, torch.Tensor] = {}

    def take(name: str, weight: torch.Tensor) -> None:
        assert weight.grad is not None
        if name in sums:
            sums[name] += weight.grad
        else:
            sums[name] = weight.grad.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        weight.grad = None

    def taker(name: str) -> Callable[[torch.Tensor], None]:
        return lambda weight: take(name, weight)

    hooks = []
    try:
        for name, weight in weights.items():
            weight.requires_grad_(True)
            hooks.append(weight.register_post_accumulate_grad_hook(taker(name)))
        for batch in batches:
            loss(model, batch).backward()
    finally:
        for hook in hooks:
            hook.remove()
        for weight in weights.values():
            weight.requires_grad_(False)
    missing = next((name for name in weights if name not in sums), None)
    if missing is not None:
        raise ValueError(f"the loss does not depend on {missing}: leave it out of target_modules.")
    return sums


@contextmanager
def _only_backward(model: nn.Module) -> Iterator[None]:
    """Freeze all parameters and switch dropout off; afterwards both, and the gradients, are as before."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    model.eval()
    for parameter, _, _ in trained:
        parameter.requires_grad_(False)
        parameter.grad = None
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, requires_grad, gradient in trained:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient
