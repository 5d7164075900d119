"""Choose the rank (or width, or number of prompts) whose number of active parameters is nearest to a budget."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from flexlora.errors import UserError, one_line
from flexlora.methods import build_method
from flexlora.methods.base import RunContext
from flexlora.settings import MethodSettings

# The settings for the size of an adapter. The first one that a method has is used.
SIZES = ("target_r", "r", "bottleneck", "num_tokens", "rank")
# The settings for the initial rank of methods that lower their ranks to `target_r`.
STARTS = ("init_r", "r")


@dataclass(frozen=True)
class Fit:
    """The size whose number of parameters is nearest to a budget."""

    budget: int
    """The requested number of active adapter parameters."""
    changed: dict[str, int]
    """The chosen values of the method's settings, by name."""
    active: int
    """The number of active adapter parameters with these values. If ranks fall, it is the average at the end."""

    def __str__(self) -> str:
        chosen = ", ".join(f"method.{name}={value}" for name, value in self.changed.items())
        return f"{chosen} has {self.active:,} active adapter parameters, nearest to {self.budget:,}"


def fit_to_budget(method: MethodSettings, context: RunContext, model: nn.Module, budget: int) -> Fit:
    """Find the size of a method whose number of active parameters on `model` is nearest to `budget`.

    The size is the nearest one if the number of parameters grows with the size. RandLoRA's falls with its rank, and
    neighbouring ranks may be a little nearer. A method that lowers its ranks keeps the ratio of its initial rank to
    `target_r`. `model` does not change.

    Raises:
        UserError: the method has no setting for its size, or its smallest size needs more than twice the budget.
    """
    fields = method.fields
    size = next((name for name in SIZES if isinstance(fields.get(name), int)), None)
    if size is None:
        raise UserError(
            f"parameter_budget: method {method.name} has no setting for its size: leave out parameter_budget"
        )

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
    falls = below > 2 * budget and active(2) < below  # RandLoRA: with a smaller rank it needs more matrices

    def is_before(count: int) -> bool:
        return count > budget if falls else count < budget

    high, above = low, below
    while is_before(above):
        low, below = high, above
        high *= 2
        try:
            above = active(high)
        except UserError:  # the rank is larger than that of every matrix
            high = low
            break
        if above == below or (above < below) is not falls:  # the number does not come nearer to the budget any more
            high, above = low, below
            break
    while high - low > 1:
        middle = (low + high) // 2
        count = active(middle)
        low, below, high, above = (middle, count, high, above) if is_before(count) else (low, below, middle, count)
    value, count = min(((low, below), (high, above)), key=lambda found: abs(found[1] - budget))
    if count > 2 * budget:
        raise UserError(
            f"parameter_budget={budget:,}: method {method.name} has at least {count:,} parameters, with {size}={value}"
            ": raise parameter_budget"
        )
    return Fit(budget, changed(value), count)


def _active(method: MethodSettings, context: RunContext, model: nn.Module) -> int:
    """Count the method's active adapter parameters on a copy of `model` that has shapes but no weights."""
    try:
        return count_on_shapes(method, context, model)["adapter_active"]
    except NotImplementedError as error:
        raise UserError(f"parameter_budget: unknown before training: {one_line(error)}") from error


def count_on_shapes(method: MethodSettings, context: RunContext, model: nn.Module) -> dict[str, int]:
    """Compute `Method.parameters` on a copy of `model` that has shapes but no weights.

    Raises:
        UserError: the method cannot adapt this model.
        NotImplementedError: the method needs the values of the weights.
    """
    if not isinstance(method.fields.get("init_lora_weights", True), bool):
        method = method.with_fields(
            init_lora_weights=True
        )  # other initialisations need the weights, but their counts are equal
    shapes = copy.deepcopy(model, {id(p): _shape(p) for p in model.parameters()})
    built = build_method(method, context)
    with torch.device("meta"):  # for what the method creates: RandLoRA's random basis has 59 million numbers on LLaMA
        return built.parameters(built.wrap(shapes))


def _shape(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
