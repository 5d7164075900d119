"""FlexLoRA: PEFT's way in, and our handle on the optimizer's steps."""

from typing import Any

import torch
from torch import nn

import flexlora
from flexlora.errors import UserError
from flexlora.methods.base import Method, PlannedEvents, RunContext
from flexlora.methods.peft import PeftMethod, peft_config
from flexlora.results.record import recorded_run
from flexlora.tuner.packing import specific_first


class FlexLoraMethod(PeftMethod):
    """`attach` hooks the optimizer's own step: it adds the penalty's gradient before and holds the events after."""

    _handle: Any = None
    _told = 0

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        ratio = getattr(self.config, "lambda_lr_ratio", 1.0)
        return flexlora.parameter_groups(model, learning_rate, lambda_lr_ratio=ratio)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._handle = flexlora.attach(model, optimizer, step=0)

    def planned_events(self) -> PlannedEvents | None:
        assert isinstance(self.config, flexlora.FlexLoraConfig)
        steps = self.config.event_steps()
        if not steps:
            return None
        first, last = ((step, self.config.budget(step)) for step in (steps[0], steps[-1]))
        return PlannedEvents(len(steps), first, last, steps.step if len(steps) > 1 else None)

    def ranks(self, model: nn.Module) -> dict[str, int]:
        return flexlora.module_ranks(model)

    def rank_events(self) -> list[dict[str, Any]]:
        fresh = self._handle.events[self._told :]
        self._told += len(fresh)
        return [event.to_dict() for event in fresh]

    def state_dict(self) -> dict[str, Any]:
        return self._handle.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._handle.load_state_dict(state)

    def finish(self, model: nn.Module) -> None:
        self._handle.remove()


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """FlexLoRA from the settings' fields."""
    return FlexLoraMethod(*peft_config(with_ranks(fields), context))


def with_ranks(fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` with the final ranks of the finished run in the folder `ranks_from` as fixed ones, where it is set.

    Is it the allocation that helps, or how it came about? The same ranks from the first step on answer that.

    Raises:
        UserError: there is no finished run, or its method has no ranks.
    """
    fields = dict(fields)
    folder = fields.pop("ranks_from", None)
    if folder is None:
        return fields
    record = recorded_run("method.ranks_from", folder)
    ranks = (record.rank_events or {}).get("final_ranks")
    if record.status != "done" or not ranks:
        raise UserError(f"method.ranks_from: {folder} is {record.status}, of {record.method}: no ranks to take over")
    return {**fields, "rank_pattern": specific_first(ranks), "init_b": 0}
