"""The optimizer's state of a direction that a rank event changed: it starts again as in a new optimizer.

Only tensors whose meaning is known by name are changed. A tensor of the parameter's shape can also be a copy of the
parameter or a step size, which 0 would ruin. State with another name or another layout is left alone and reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

# Averages, sums and maxima of squared gradients, element by element.
SECOND_MOMENTS = frozenset(
    {
        "exp_avg_sq", "max_exp_avg_sq", "exp_avg_var", "max_exp_avg_var", "exp_hessian_diag_sq", "exp_inf",
        "square_avg", "acc_delta", "sum", "grad_sum_sq", "variance", "state2",
    }
)  # fmt: skip
# Everything else that starts at 0: averages and sums of gradients, and the last gradient.
FIRST_MOMENTS = frozenset(
    {
        "exp_avg", "exp_avg_diff", "grad_avg", "momentum", "momentum_buffer", "s", "state1",
        "prev", "neg_pre_grad", "last_grad",
    }
)  # fmt: skip
# Copies of the parameter: averages, slow weights, starting points.
COPIES = frozenset({"ax", "z", "x0", "p0", "lookahead_slow_buff", "slow_buffer"})
STEP_SIZES = frozenset({"step_size"})
KNOWN = SECOND_MOMENTS | FIRST_MOMENTS | COPIES | STEP_SIZES

OTHER_LAYOUT = "state that is not element-wise (factored, quantised or flattened)"


def start_again(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    direction: tuple[int, int] | None = None,
    survivors: torch.Tensor | None = None,
) -> set[str]:
    """Give the state of a parameter, or of one direction in it, the values that it has in a new optimizer.

    Args:
        direction: the dimension of `parameter` that counts directions, and the direction's index; None: all of it.
        survivors: a mask of the other active directions, whose mean second moments the direction gets; None: it gets
            the starting values.

    Returns:
        What was left alone, in words. It is empty if the state is complete.
    """
    left: set[str] = set()
    for part in _parts(optimizer):
        left |= _start_part_again(part, parameter, direction, survivors)
    return left


def _start_part_again(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    direction: tuple[int, int] | None,
    survivors: torch.Tensor | None,
) -> set[str]:
    """Do `start_again` with the state that this optimizer itself keeps."""
    left: set[str] = set()
    missing = optimizer.state and parameter.requires_grad and parameter not in optimizer.state
    # The state is missing if there was no gradient yet, or if the optimizer works on flattened copies.
    if missing and _group_of(optimizer, parameter) is None:
        left.add(OTHER_LAYOUT)
    for name, value in optimizer.state.get(parameter, {}).items():
        if not any(tensor.numel() > 1 for tensor in _tensors(value)):
            continue  # a counter
        if not _is_element_wise(value, parameter):
            left.add(OTHER_LAYOUT)
            continue
        if name not in KNOWN:
            left.add(f"'{name}', which FlexLoRA does not know")
            continue
        row, own = (t if direction is None else t.select(*direction) for t in (value, parameter.detach()))
        if name in COPIES:
            row.copy_(own)
            continue
        row.fill_(_start(optimizer, parameter, name))
        if direction is not None and survivors is not None and name in SECOND_MOMENTS:
            dim = direction[0]
            shape = [1] * value.dim()
            shape[dim] = -1
            weight = survivors.to(value.dtype) / survivors.sum().clamp(min=1)
            row.copy_((value * weight.view(shape)).sum(dim))
    return left


def _start(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, name: str) -> float:
    """The value of the state `name` before the first step. It is 0 for nearly all."""
    group = _group_of(optimizer, parameter) or {}
    if name in STEP_SIZES:
        return float(group["lr"])
    if name == "sum":
        return float(group.get("initial_accumulator_value", 0.0))
    return 1.0 if name == "square_avg" and type(optimizer).__name__ == "RMSpropTF" else 0.0


def _parts(optimizer: torch.optim.Optimizer) -> Iterator[torch.optim.Optimizer]:
    """The optimizer and those that it wraps, as Lookahead does."""
    yield optimizer
    for inner in vars(optimizer).values():
        if isinstance(inner, torch.optim.Optimizer):
            yield from _parts(inner)


def _is_element_wise(value: Any, parameter: nn.Parameter) -> bool:
    """Whether a state has one number for each number of the parameter. A quantised subclass of Tensor has not."""
    plain = type(value) in (torch.Tensor, nn.Parameter)
    return plain and value.shape == parameter.shape and value.is_floating_point()


def _group_of(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> dict[str, Any] | None:
    return next((g for g in optimizer.param_groups if any(parameter is held for held in g["params"])), None)


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    """The tensors in a state, which is a tensor, a list of tensors, or something else."""
    if torch.is_tensor(value):
        return [value]
    return [item for item in value if torch.is_tensor(item)] if isinstance(value, list | tuple) else []
