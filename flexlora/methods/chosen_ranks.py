"""Methods that choose the rank of every linear from gradients, before the model is wrapped: GoRA and RaLoRA."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from flexlora.errors import UserError, one_line
from flexlora.methods.base import Batch, ConfiguredByData
from flexlora.methods.gradients import task_gradients
from flexlora.methods.peft import PeftMethod
from flexlora.saved_adapter import read_config
from flexlora.sharing.plan import Linear, adapted_linears, linear_shape, module_type
from flexlora.tuner.base_config import Checked, setting
from flexlora.tuner.checks import choice, is_whole, require, whole
from flexlora.tuner.names import specific_first

Choice = dict[str, Any]
"""What a method chose for one linear: its rank, and the values that led to it."""

WIDTHS: dict[str, Callable[[int, int], float]] = {"sqrt": lambda m, n: math.sqrt(m + n), "sum": lambda m, n: m + n}


@dataclass
class RankFields(Checked):
    """The fields of the choice.

    Raises:
        FieldError: a value is out of range.
    """

    batches: int = setting(8, "Number of batches per process over which gradients are averaged.", whole)
    min_rank: int = setting(4, "The lowest rank of a linear.", whole)
    max_rank: int = setting(32, "The highest rank of a linear.", whole)
    width: str = setting("sqrt", "What a unit of rank costs: sqrt (of inputs + outputs), or sum.")

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self, "width", WIDTHS)
        require(self, "max_rank", self.max_rank >= self.min_rank, f"at least min_rank={self.min_rank}")


class ChosenRanksMethod(PeftMethod):
    """A method whose `rank_pattern` has a rank for every linear. A subclass measures gradients and chooses."""

    configures = True
    title: str
    patterns: Mapping[str, str] = {"rank": "rank_pattern"}
    """The fields of the configuration that hold what was chosen, by their keys in a choice."""
    counts_before: bool = False
    """Whether the number of parameters is known before the choice."""

    def __init__(self, config: PeftConfig, schedule: dict[str, Any] | None) -> None:
        super().__init__(config, schedule)
        self.chosen: dict[str, Choice] | None = None
        for pattern in self.patterns.values():
            if getattr(config, pattern):
                raise UserError(f"method.{pattern}: {self.title} chooses it from gradients: leave it out")

    # --- what a subclass gives -----------------------------------------------------------------------------------

    def measure(self, name: str, weight: torch.Tensor, gradient: torch.Tensor) -> Choice:
        """Return the values of a linear that the choice needs, from its weight and its gradient (out × in)."""
        raise NotImplementedError

    def choose(self, measured: dict[str, Choice], shapes: Mapping[str, tuple[int, int]]) -> None:
        """Add to each linear's values what is chosen for it.

        Raises:
            ValueError: the values do not allow a choice.
        """
        raise NotImplementedError

    # --- the hooks -----------------------------------------------------------------------------------------------

    def configure(
        self, model: nn.Module, batches: Iterable[Batch], loss: Callable[[nn.Module, Batch], torch.Tensor]
    ) -> None:
        try:
            linears = adapted_linears(model, self.config)
            weights = {name: linear.weight for name, linear in linears.items()}
            measured = {
                name: self.measure(name, _oriented(linears[name], weights[name].detach()), _oriented(linears[name], g))
                for name, g in task_gradients(self.title, model, weights, batches, loss, self.batches)
            }
            self.choose(measured, {name: linear_shape(linear) for name, linear in linears.items()})
        except ValueError as error:
            raise UserError(f"method: {one_line(error)}") from error
        self._take(measured)

    @property
    def batches(self) -> int:
        """The number of batches of the gradient pass."""
        raise NotImplementedError

    def configuration(self) -> dict[str, Any]:
        return {"modules": self.chosen}

    def take_configuration(self, values: Mapping[str, Any]) -> None:
        chosen = values.get("modules")
        if not isinstance(chosen, dict) or not chosen or not all(map(self._is_choice, chosen.values())):
            raise ValueError(f"this is not what {self.title} chooses from gradients.")
        self._take(chosen)

    def configuration_of(self, folder: Path) -> Mapping[str, Any]:
        """Return what was chosen for a saved adapter: its tensors have these ranks."""
        try:
            values = read_config(folder)
        except ValueError as error:
            raise UserError(f"adapter: {error}") from error
        held = {key: values.get(pattern) or {} for key, pattern in self.patterns.items()}
        ranks = held["rank"]
        if not isinstance(ranks, dict) or not ranks:
            raise UserError(f"adapter: {folder} has no ranks of single modules, so {self.title} did not write it")
        return {"modules": {name: {key: pattern.get(name) for key, pattern in held.items()} for name in ranks}}

    def configuration_lines(self) -> list[str]:
        """Describe the choice by the types of linears, in the model's order."""
        kinds: dict[str, list[str]] = {}
        for name, found in (self.chosen or {}).items():
            kinds.setdefault(module_type(name), []).append("×".join(str(found[key]) for key in self.patterns))
        width = max(map(len, kinds), default=0)
        words = " × ".join(self.patterns)
        return [f"{kind:{width}}  {words} by layer: {' '.join(shown)}" for kind, shown in kinds.items()]

    def parameters(self, model: nn.Module) -> dict[str, int]:
        if self.chosen is None and not self.counts_before:
            raise ConfiguredByData("ranks are chosen from gradients of the data")
        return super().parameters(model)

    def _is_choice(self, found: Any) -> bool:
        return isinstance(found, dict) and all(is_whole(found.get(key)) and found[key] > 0 for key in self.patterns)

    def _take(self, chosen: dict[str, Choice]) -> None:
        self.chosen = chosen
        self.config = copy.deepcopy(self.config)
        for key, pattern in self.patterns.items():
            setattr(self.config, pattern, specific_first({name: found[key] for name, found in chosen.items()}))


def importance(weight: torch.Tensor, gradient: torch.Tensor) -> float:
    """Return the importance of a linear, mean |W ∘ G|."""
    return float((weight.to(gradient.dtype) * gradient).abs().mean())


def allocate_ranks(
    measured: dict[str, Choice], shapes: Mapping[str, tuple[int, int]], r: int, fields: RankFields
) -> None:
    """Give each linear a rank in proportion to its share of all importances.

    The budget is r times the width of all linears. A linear gets its share of the budget divided by its own width,
    rounded, from `min_rank` to `max_rank`, and not above the smaller side of the weight.

    Raises:
        ValueError: all importances are 0.
    """
    total = sum(found["importance"] for found in measured.values())
    if total == 0:
        raise ValueError("all gradients are 0: check the data.")
    widths = {name: WIDTHS[fields.width](*shapes[name]) for name in measured}
    budget = r * sum(widths.values())
    for name, found in measured.items():
        rank = round(budget * found["importance"] / total / widths[name])
        found["rank"] = min(max(rank, fields.min_rank), fields.max_rank, *shapes[name])


def _oriented(linear: Linear, tensor: torch.Tensor) -> torch.Tensor:
    """Return a weight or a gradient as out × in, as `nn.Linear` has it and Conv1D has not."""
    return tensor if isinstance(linear, nn.Linear) else tensor.T
