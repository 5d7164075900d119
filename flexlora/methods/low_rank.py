"""The low-rank baselines whose parameters change beside the optimizer's steps (flexlora/baselines/low_rank.py)."""

from typing import Any

import torch
from peft import PeftModel
from torch import nn

from flexlora.baselines import LowRankModel
from flexlora.methods.base import Method, RunContext
from flexlora.methods.peft import PeftMethod, peft_config

# Of FlexLoRA's `RankEvent`, by which ranks.jsonl and the alarms are written: signs that mean nothing here.
NOT_HERE: dict[str, Any] = {
    "energy": {},
    "orthogonality_error": None,
    "at_limit": None,
    "regrown": None,
    "budget_conserved": None,
    "skipped": None,
}


class LowRankMethod(PeftMethod):
    """Gives the tuner its two calls a step. Steps are counted here: one that a gradient scaler skipped is none.

    What they change lies in parameters and buffers, so that a checkpoint has it; beside them there is the step.
    """

    _tuner: LowRankModel

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._step = 0
        self._events: list[dict[str, Any]] = []

    def wrap(self, model: nn.Module) -> nn.Module:
        wrapped = super().wrap(model)
        assert isinstance(wrapped, PeftModel)
        assert isinstance(wrapped.base_model, LowRankModel)
        self._tuner = wrapped.base_model
        return wrapped

    def regularise(self, model: nn.Module) -> None:
        self._tuner.regularise(self._step + 1)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        self._step += 1
        event = self._tuner.after_step(self._step, optimizer)
        if event is not None:
            self._events.append({**NOT_HERE, **event})

    def ranks(self, model: nn.Module) -> dict[str, int]:
        return self._tuner.ranks()

    def rank_events(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """A low-rank baseline from the settings' fields."""
    return LowRankMethod(*peft_config(fields, context))
