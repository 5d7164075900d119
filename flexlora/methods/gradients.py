"""The gradients of frozen weights on a task's first batches, for methods that are set up from them."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import nn

from flexlora.errors import UserError
from flexlora.methods.base import Batch
from flexlora.sharing.gradients import mean_gradients


def task_gradients(
    method: str,
    model: nn.Module,
    weights: Mapping[str, torch.Tensor],
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], torch.Tensor],
    count: int,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and the gradient of each weight, the mean over the first `count` batches of every process.

    Args:
        method: the method's name, for messages.
        model, weights, loss: as in `mean_gradients`.
        batches: the batches of this process.
        count: the number of batches to take.

    Raises:
        UserError: a weight is quantised, there is no batch, or a gradient is missing or not finite.
    """
    if not all(weight.is_floating_point() for weight in weights.values()):
        raise UserError(f"method={method} needs gradients of the backbone: set model.quantization=null")
    taken = list(itertools.islice(batches, count))
    try:
        for name, gradient in mean_gradients(model, weights, taken, loss):
            if not gradient.isfinite().all():
                raise ValueError(f"the gradient of {name} is not finite: set model.dtype=float32, or check the data.")
            yield name, gradient
    except ValueError as error:
        raise UserError(f"method={method}: {error}") from error
