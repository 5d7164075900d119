"""FlexLoRA with the optimizer of its released code, and with that code's changes at rank events.

The code is Chongjie-Si/Subspace-Tuning at 2c63d06, NLU/src/transformers/trainer.py, lines 1112 to 1188. Every step is
an optimizer step, a schedule step and a rank event. There is no event at a step with b(t) = 0. After an event the
trainer makes `type(optimizer)(model.parameters(), **optimizer.defaults)`: one group with the initial rate and the
class's default weight decay of 0, because only the old groups had the real weight decay. The code looks up the old
state by `id(p)` among the positions 0, 1, … of `state_dict()`, so it copies no state. The schedule continues to change
the discarded optimizer, and it takes a second step.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import flexlora
from flexlora.methods.base import Method, RunContext
from flexlora.methods.fields import take
from flexlora.methods.peft import PeftMethod, peft_config
from flexlora.methods.transformers_adamw import TransformersAdamW


@dataclass
class Behaviours:
    """The optimizer's rule in the released code, and the effects of its rank events. Each has one setting.

    Attributes:
        eps_before_correction: the optimizer is [`TransformersAdamW`], not torch's AdamW.
        reset_moments: an event clears the optimizer's state and step count of all parameters, including the head's.
        drop_weight_decay: from the first event on, no parameter has weight decay.
        rate_to_peak: from the first event on, the learning rate is its peak and the schedule has no effect.
        schedule_twice: the schedule takes a second step at every event. It has an effect only without `rate_to_peak`.
    """

    eps_before_correction: bool = True
    reset_moments: bool = True
    drop_weight_decay: bool = True
    rate_to_peak: bool = True
    schedule_twice: bool = True


BEHAVIOURS = tuple(field.name for field in fields(Behaviours))


class FlexLoraReleasedMethod(PeftMethod):
    """FlexLoRA with these behaviours.

    It changes the optimizer in place, with the same effect, so that references to it (Accelerate's, a scaler's) stay
    valid.
    """

    def __init__(self, config: Any, schedule: dict[str, Any] | None, behaviours: Behaviours) -> None:
        super().__init__(config, schedule)
        self.behaviours = behaviours
        self._events_held = 0

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """Return the groups of the Trainer. Biases and LayerNorms have no weight decay."""
        norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
        spared = norms | {id(p) for name, p in model.named_parameters() if "bias" in name}
        groups = []
        for group in super().parameter_groups(model, learning_rate):
            decaying = [p for p in group["params"] if id(p) not in spared]
            others = [p for p in group["params"] if id(p) in spared]
            groups += [group | {"params": decaying}] if decaying else []
            groups += [group | {"params": others, "weight_decay": 0.0}] if others else []
        return groups

    def optimizer(
        self, groups: list[dict[str, Any]], learning_rate: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        if not self.behaviours.eps_before_correction:
            return super().optimizer(groups, learning_rate, weight_decay)
        return TransformersAdamW(groups, lr=learning_rate, weight_decay=weight_decay)

    def scheduler(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> LambdaLR:
        def released(step: int) -> float:
            if self.behaviours.rate_to_peak and self._events_held:
                return 1.0
            return factor(step + self._events_held if self.behaviours.schedule_twice else step)

        return LambdaLR(optimizer, released)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        assert isinstance(self._tuner, flexlora.FlexLoraModel)
        self._tuner.attach(optimizer, on_event=lambda _: self._rebuild(optimizer))
        self._tuner.rank_allocator.skips_zero_budget = True

    def _rebuild(self, optimizer: torch.optim.Optimizer) -> None:
        """Change the optimizer at an event. This runs inside its step, before the schedule's step sets the rate."""
        self._events_held += 1
        if self.behaviours.reset_moments:
            optimizer.state.clear()
        if self.behaviours.drop_weight_decay:
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "events_held": self._events_held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._events_held = state["events_held"]


def build(given: dict[str, Any], context: RunContext) -> Method:
    """Build FlexLoRA from the settings' fields. `max_rank=null` means no rank limit, as in the released code."""
    given = dict(given)
    behaviours = take(Behaviours, given)
    config, schedule = peft_config(given, context)
    assert isinstance(config, flexlora.FlexLoraConfig)
    if config.max_rank is None:
        # A module gains at most one direction per event.
        config.max_rank = 8 * -(-(config.r + len(config.event_steps())) // 8)
    return FlexLoraReleasedMethod(config, schedule, behaviours)
