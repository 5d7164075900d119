"""A rank (or a width, or a number of prompts) for which a method has as many active parameters as a budget allows."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from flexlora.errors import UserError, one_line
from flexlora.methods import build_method
from flexlora.methods.base import RunContext
from flexlora.settings import MethodSettings

# What the size of an adapter is called, in the order in which they are looked for.
SIZES = ("target_r", "r", "bottleneck", "num_tokens", "rank")
# Where a method starts that lowers its ranks to `target_r`.
STARTS = ("init_r", "r")


@dataclass(frozen=True)
class Fit:
    """The size that comes nearest to a budget."""

    budget: int
    """Active adapter parameters that were asked for."""
    changed: dict[str, int]
    """The method's settings that were chosen, by name."""
    active: int
    """Active adapter parameters with them; of a method that lowers its ranks those at the end, on average."""

    def __str__(self) -> str:
        chosen = ", ".join(f"method.{name}={value}" for name, value in self.changed.items())
        return f"{chosen} has {self.active:,} active adapter parameters, nearest to {self.budget:,}"


def fit_to_budget(method: MethodSettings, context: RunContext, model: nn.Module, budget: int) -> Fit:
    """The size of a method, as it would wrap `model`, for which its active parameters come nearest to `budget`.

    A method that lowers its ranks keeps the ratio of its start to `target_r`. `model` is not touched.

    Raises:
        UserError: the method has no size to choose, or the smallest one is above twice the budget.
    """
    fields = method.fields
    size = next((name for name in SIZES if isinstance(fields.get(name), int)), None)
    if size is None:
        raise UserError(f"parameter_budget: method {method.name} has no rank to choose: leave it out")

    def changed(value: int) -> dict[str, int]:
        if size != "target_r":
            return {size: value}
        start = next(name for name in STARTS if name in fields)
        return {"target_r": value, start: max(value + 1, round(value * fields[start] / fields["target_r"]))}

    def active(value: int) -> int:
        chosen = changed(value)
        count = _active(method.with_fields(**chosen), context, model)
        return count if len(chosen) == 1 else round(count * value / max(chosen.values()))

    low, below = 1, active(1)
    if below > 2 * budget:
        raise UserError(f"parameter_budget={budget:,}: method {method.name} has {below:,} at least, with {size}=1")
    high, above = low, below
    while above < budget:
        low, below = high, above
        high *= 2
        try:
            above = active(high)
        except UserError:  # no matrix has so high a rank
            high = low
            break
        if above == below:  # it grows no more
            break
    while high - low > 1:
        middle = (low + high) // 2
        count = active(middle)
        low, below, high, above = (middle, count, high, above) if count < budget else (low, below, middle, count)
    value, count = min(((low, below), (high, above)), key=lambda found: abs(found[1] - budget))
    return Fit(budget, changed(value), count)


def _active(method: MethodSettings, context: RunContext, model: nn.Module) -> int:
    """Active adapter parameters of the method on a copy of `model` that has shapes and no weights."""
    try:
        return count_on_shapes(method, context, model)["adapter_active"]
    except NotImplementedError as error:
        raise UserError(f"parameter_budget: not known without training: {one_line(error)}") from error


def count_on_shapes(method: MethodSettings, context: RunContext, model: nn.Module) -> dict[str, int]:
    """`Method.parameters` of a method on a copy of `model` that has shapes and no weights.

    Raises:
        UserError: the method cannot adapt this model.
        NotImplementedError: it looks at the weights' values.
    """
    if not isinstance(method.fields.get("init_lora_weights", True), bool):
        method = method.with_fields(init_lora_weights=True)  # the others look at weights, and count the same
    shapes = copy.deepcopy(model, {id(p): _shape(p) for p in model.parameters()})
    built = build_method(method, context)
    return built.parameters(built.wrap(shapes))


def _shape(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
