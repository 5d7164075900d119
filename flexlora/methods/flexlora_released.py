"""FlexLoRA with what its released code does to the optimizer and the schedule at every rank event.

Chongjie-Si/Subspace-Tuning at 2c63d06, NLU/src/transformers/trainer.py, lines 1112 to 1188. In every step: optimizer
step, schedule step, rank event. After an event the trainer makes `type(optimizer)(model.parameters(),
**optimizer.defaults)`: one group at the rate given at the start, whose weight decay is the class's default of 0, since
the real one was in the old groups only. The state it means to carry over is looked up by `id(p)` among the positions
0, 1, … of `state_dict()`, so none is. The schedule keeps driving the optimizer that is gone, and is stepped again.
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


@dataclass
class Behaviours:
    """What the released code does at a rank event, each behind one setting.

    Attributes:
        reset_moments: an event empties the optimizer's state of all parameters, the head's too, and its step count.
        drop_weight_decay: from the first event on no parameter decays.
        rate_to_peak: from the first event on the learning rate is its peak, and the schedule has no say.
        schedule_twice: the schedule takes a second step at every event. Seen only without `rate_to_peak`.
    """

    reset_moments: bool = True
    drop_weight_decay: bool = True
    rate_to_peak: bool = True
    schedule_twice: bool = True


BEHAVIOURS = tuple(field.name for field in fields(Behaviours))


class FlexLoraReleasedMethod(PeftMethod):
    """The optimizer is changed in place, with the same effect: whoever holds it (Accelerate, a scaler) still does."""

    def __init__(self, config: Any, schedule: dict[str, Any] | None, behaviours: Behaviours) -> None:
        super().__init__(config, schedule)
        self.behaviours = behaviours
        self._events_held = 0

    def parameter_groups(self, model: nn.Module, learning_rate: float) -> list[dict[str, Any]]:
        """As the Trainer has them: no weight decay for biases and LayerNorms."""
        norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
        spared = norms | {id(p) for name, p in model.named_parameters() if "bias" in name}
        groups = []
        for group in super().parameter_groups(model, learning_rate):
            decaying = [p for p in group["params"] if id(p) not in spared]
            others = [p for p in group["params"] if id(p) in spared]
            groups += [group | {"params": decaying}] if decaying else []
            groups += [group | {"params": others, "weight_decay": 0.0}] if others else []
        return groups

    def scheduler(self, optimizer: torch.optim.Optimizer, factor: Callable[[int], float]) -> LambdaLR:
        def released(step: int) -> float:
            if self.behaviours.rate_to_peak and self._events_held:
                return 1.0
            return factor(step + self._events_held if self.behaviours.schedule_twice else step)

        return LambdaLR(optimizer, released)

    def attach(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        assert self._tuner is not None
        self._tuner.attach(optimizer, on_event=lambda _: self._rebuild(optimizer))

    def _rebuild(self, optimizer: torch.optim.Optimizer) -> None:
        """At an event, inside the optimizer's step and before the schedule's, which then sets the rate."""
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
    """FlexLoRA from the settings' fields; the released code has no rank limit, so `max_rank=null` means none here."""
    given = dict(given)
    behaviours = take(Behaviours, given)
    config, schedule = peft_config(given, context)
    assert isinstance(config, flexlora.FlexLoraConfig)
    if config.max_rank is None:
        # A module gains at most one direction an event.
        config.max_rank = 8 * -(-(config.r + len(config.event_steps())) // 8)
    return FlexLoraReleasedMethod(config, schedule, behaviours)
