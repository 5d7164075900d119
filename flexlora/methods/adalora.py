"""AdaLoRA (Zhang et al., 2023): PEFT's tuner, with its penalty once per optimizer step and its ranks recorded."""

from pathlib import Path
from typing import Any

import torch
from peft import AdaLoraConfig, PeftModel
from peft.tuners.adalora import AdaLoraModel
from peft.tuners.adalora.layer import AdaLoraLayer
from torch import nn

import flexlora
from flexlora.errors import UserError
from flexlora.methods.base import Method, PlannedEvents, RunContext
from flexlora.methods.fields import by_user_names
from flexlora.methods.peft import PeftMethod, peft_config, scale_windows
from flexlora.tuner.checks import number, whole
from flexlora.tuner.events import NO_SIGNS
from flexlora.tuner.orthogonality import add_orthogonality_gradient, orthogonality_error

ADAPTER = "default"
SMOOTHED = ("exp_avg_ipt", "exp_avg_unc")


class AdaLoraMethod(PeftMethod):
    """ΔW = s · B diag(E) A with s = lora_alpha / init_r. All directions compete for a total rank that falls.

    From step tinit on, the budget falls from init_r to target_r per module (cubic). Every deltaT steps E is set to 0
    for the least sensitive directions. They keep their gradients and may return until T - tfinal, when the mask is
    frozen. A module's rank here is the number of directions that the latest mask keeps.

    PEFT's RankAllocator does this. This class counts the steps. Steps that a gradient scaler skipped do not count.
    """

    _adalora: AdaLoraModel
    _layers: dict[str, AdaLoraLayer]

    def __init__(self, config: AdaLoraConfig, schedule: dict[str, Any] | None) -> None:
        super().__init__(config, schedule)
        self.config: AdaLoraConfig = config

    @property
    def _last_mask(self) -> int:
        """The step that freezes the mask."""
        return (self.config.total_step or 0) - self.config.tfinal

    def wrap(self, model: nn.Module) -> nn.Module:
        wrapped = super().wrap(model)
        assert isinstance(wrapped, PeftModel)
        assert isinstance(wrapped.base_model, AdaLoraModel)
        self._adalora = wrapped.base_model
        self._layers = {n: m for n, m in self._adalora.model.named_modules() if isinstance(m, AdaLoraLayer)}
        for layer in self._layers.values():
            # PEFT stores this constant as a parameter. Moving it to another device or type would make it trainable.
            layer.ranknum[ADAPTER].requires_grad_(False)
        # PEFT's forward adds the penalty to `.loss`: also in evaluations, once for every accumulated batch, and not at
        # all if the output has no loss. Here `regularise` adds the penalty's gradient instead.
        self._adalora.forward = self._adalora.model.forward
        return wrapped

    def load(self, model: nn.Module, folder: Path) -> None:
        """Refuse to load: masked directions are not saved, but AdaLoRA starts with all directions active."""
        raise UserError(f"adapter: AdaLoRA cannot start from a saved adapter ({folder}): set adapter=null")

    def regularise(self, model: nn.Module) -> None:
        # As in PEFT, the penalty includes masked directions, because they may return.
        add_orthogonality_gradient(self._factors(), self.config.orth_reg_weight)

    def after_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        self._step += 1
        self._allocate(self._step)

    def finish(self, model: nn.Module) -> None:
        if self._step < self._last_mask and self._adalora.rankallocator.exp_avg_ipt:  # a gradient scaler skipped steps
            self._allocate(self._last_mask)

    def ranks(self, model: nn.Module) -> dict[str, int]:
        pattern = {name.partition(".lora_E")[0]: sum(kept) for name, kept in (self.config.rank_pattern or {}).items()}
        return {name: pattern.get(name, self.config.init_r) for name in self._layers}

    def planned_events(self) -> PlannedEvents:
        """Return the planned steps with the total number of directions that the mask keeps. The last mask is frozen."""
        allocator, interval = self._adalora.rankallocator, self.config.deltaT
        # PEFT sets a mask at every multiple of deltaT after tinit.
        masks = range((self.config.tinit // interval + 1) * interval, self._last_mask, interval)
        last = (self._last_mask, allocator.target_bgt)
        first = (masks[0], allocator.budget_schedule(masks[0])[0]) if masks else last
        second = [*masks[1:2], self._last_mask][0]
        return PlannedEvents(len(masks) + 1, first, last, second - first[0] if masks else None)

    def parameters(self, model: nn.Module) -> dict[str, int]:
        """Count parameters. A module allocates init_r directions. The directions of the latest mask are active."""
        count = flexlora.count_parameters(model, self.head_modules)
        spare = count.adapter_allocated - self._active_parameters(self.ranks(model))
        ranknum = len(self._layers)  # one constant for each module
        return {
            "adapter_active": count.adapter_allocated - spare,
            "adapter_allocated": count.adapter_allocated,
            "head": count.head,
            "total": count.total - spare - ranknum,
        }

    def state_dict(self) -> dict[str, Any]:
        # PEFT makes new tensors at every step, so the tensors in this state do not change later.
        smoothed = {name: dict(getattr(self._adalora.rankallocator, name)) for name in SMOOTHED}
        return {"step": self._step, "rank_pattern": self.config.rank_pattern, **smoothed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        self.config.rank_pattern = state["rank_pattern"]
        allocator = self._adalora.rankallocator
        parameters = dict(self._adalora.model.named_parameters())
        for name in SMOOTHED:
            setattr(allocator, name, {key: score.to(parameters[key].device) for key, score in state[name].items()})
        # No later step reads the latest step's scores, but PEFT resets parameters that have no score.
        allocator.ipt = {key: torch.zeros_like(score) for key, score in allocator.exp_avg_ipt.items()}

    def _allocate(self, step: int) -> None:
        """Run PEFT's update at `step` with the current gradients, and record an event if it set a mask."""
        mask, before = self.config.rank_pattern, self.ranks(self._adalora)
        self._adalora.update_and_allocate(step)
        if self.config.rank_pattern is not mask:
            self._events.append(self._event(step, before))

    def _event(self, step: int, before: dict[str, int]) -> dict[str, Any]:
        """Describe the effect of the mask of `step`, with the field names of FlexLoRA's `RankEvent`."""
        ranks = self.ranks(self._adalora)
        with torch.no_grad():
            energies = [layer.lora_E[ADAPTER].square().sum() for layer in self._layers.values()]
            *energy, error = torch.stack([*energies, orthogonality_error(self._factors())]).tolist()
        return {
            # Diagnostic fields do not apply: modules start at init_r, masked directions may return, the total falls.
            **NO_SIGNS,
            "step": step,
            "budget": self._adalora.rankallocator.budget_schedule(step)[0],
            "pruned": [name for name, rank in ranks.items() if rank < before[name]],
            "grown": [name for name, rank in ranks.items() if rank > before[name]],
            "ranks": ranks,
            "energy": dict(zip(ranks, energy, strict=True)),
            "active_parameters": self._active_parameters(ranks),
            "total_rank": sum(ranks.values()),
            "orthogonality_error": error,
        }

    def _factors(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Return B (out × init_r), A (init_r × in) and a mask with all directions, for every module."""
        factors = [(layer.lora_B[ADAPTER], layer.lora_A[ADAPTER]) for layer in self._layers.values()]
        everything = torch.ones(self.config.init_r, dtype=torch.bool, device=factors[0][0].device)
        return [(b, a, everything) for b, a in factors]

    def _active_parameters(self, ranks: dict[str, int]) -> int:
        costs = {name: layer.in_features + layer.out_features + 1 for name, layer in self._layers.items()}
        return sum(rank * costs[name] for name, rank in ranks.items())


def build(fields: dict[str, Any], context: RunContext) -> Method:
    """Build AdaLoRA from the settings' fields.

    Raises:
        UserError: a setting is out of range, or the windows leave no step for lowering the ranks.
    """
    scaled = dict(fields)
    scale_windows(scaled, context)
    tinit, tfinal = scaled.get("tinit", 0), scaled.get("tfinal", 0)
    if tinit + tfinal >= context.total_steps:
        raise UserError(
            f"method.tinit={tinit} and method.tfinal={tfinal} leave no step for lowering the ranks: "
            f"the run has {context.total_steps} optimizer steps"
        )
    config, schedule = peft_config(fields, context)
    assert isinstance(config, AdaLoraConfig)
    with by_user_names():
        whole(config, "target_r")
        number(config, "beta1", "beta2", above=0, below=1)
    if config.target_r >= config.init_r:
        raise UserError(
            f"method.target_r={config.target_r} must be below method.init_r={config.init_r}: "
            "the sum of AdaLoRA's ranks only falls (method=lora has fixed ranks)"
        )
    return AdaLoraMethod(config, schedule)
