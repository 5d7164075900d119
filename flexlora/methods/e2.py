"""E²LoRA and E²X: a sharing plan from gradients of the first batches, then a tuner that shares as the plan says.

A method's fields are those of its config class (`E2LoraConfig`, …), those of `SharingOptions`, and `batches` and
`passes`. `parameter_budget` cannot be met, because the number of parameters is known only after the plan is made.
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flexlora.baselines.e2lora import E2LoraConfig
from flexlora.errors import UserError, one_line
from flexlora.methods.base import Batch, ConfiguredByData, Method, RunContext
from flexlora.methods.fields import take
from flexlora.methods.peft import PeftMethod, peft_config
from flexlora.saved_adapter import CONFIG, read_config
from flexlora.sharing import SharingOptions, SharingPlan, sharing_plan, unshared_plan
from flexlora.tuner.base_config import Checked, setting
from flexlora.tuner.checks import whole


@dataclass
class GradientFields(Checked):
    """The fields of the gradient pass."""

    batches: int = setting(8, "Number of batches per process over which gradients are averaged.", whole)
    passes: int = setting(1, "Number of groups of weights whose gradients are in memory at a time.", whole)


class E2Method(PeftMethod):
    """A method whose configuration has a sharing plan."""

    config: E2LoraConfig
    configures = True

    def __init__(self, config: E2LoraConfig, options: SharingOptions, gradients: GradientFields) -> None:
        super().__init__(config, schedule=None)
        self.options = options
        self.gradients = gradients

    def configure(
        self, model: nn.Module, batches: Iterable[Batch], loss: Callable[[nn.Module, Batch], torch.Tensor]
    ) -> None:
        first = itertools.islice(batches, self.gradients.batches)
        options = dataclasses.asdict(self.options)
        try:
            plan = sharing_plan(
                model, first, self._targets(), self.config.r, loss=loss, passes=self.gradients.passes, **options
            )
            self._take(plan)
        except ValueError as error:
            raise UserError(f"method: {one_line(error)}") from error

    def configuration(self) -> dict[str, Any]:
        return self._plan().as_dict()

    def take_configuration(self, values: Mapping[str, Any]) -> None:
        self._take(SharingPlan.from_dict(values))

    def configuration_of(self, folder: Path) -> Mapping[str, Any]:
        """Return the plan of a saved adapter: its tensors fit into no other plan."""
        try:
            values = read_config(folder)
        except ValueError as error:
            raise UserError(f"adapter: {error}") from error
        plan = values.get("plan")
        if not isinstance(plan, Mapping):
            raise UserError(f"adapter: {folder} has no sharing plan in its {CONFIG}")
        return plan

    def configuration_lines(self) -> list[str]:
        return str(self._plan()).splitlines()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Adapt `model`. Before there is a plan, each layer gets its own adapter, which shows what fits at most."""
        if self.config.plan is not None:
            return super().wrap(model)
        unplanned = self.config
        try:
            plan = unshared_plan(model, self._targets(), unplanned.r)
        except ValueError as error:
            raise UserError(f"method: {one_line(error)}") from error
        self.config = copy.deepcopy(unplanned)  # PEFT adds to its lists
        self._take(plan)
        wrapped = super().wrap(model)
        self.config = unplanned
        return wrapped

    def parameters(self, model: nn.Module) -> dict[str, int]:
        if self.config.plan is None:
            raise ConfiguredByData("the sharing plan is made from gradients of the data")
        return super().parameters(model)

    def _targets(self) -> str | list[str]:
        targets = self.config.target_modules
        assert targets is not None
        return targets if isinstance(targets, str) else sorted(targets)

    def _take(self, plan: SharingPlan) -> None:
        self.config = dataclasses.replace(self.config, plan=plan)

    def _plan(self) -> SharingPlan:
        assert isinstance(self.config.plan, SharingPlan)
        return self.config.plan


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """Build an E²X method.

    Raises:
        UserError: the method does not have a field, or a value is invalid.
    """
    fields = dict(fields)
    if fields.get("random_seed") is None:
        fields["random_seed"] = context.seed
    options, gradients = take(SharingOptions, fields), take(GradientFields, fields)
    config, _ = peft_config(fields, context)
    if not isinstance(config, E2LoraConfig):
        raise UserError(f"method.peft_type: {type(config).__name__} has no sharing plan: take kind: peft")
    return E2Method(config, options, gradients)
