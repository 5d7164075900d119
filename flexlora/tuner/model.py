"""`FlexLoraModel`: the tuner as PEFT knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .allocator import RankAllocator
from .attach import Attachment, attach
from .config import FlexLoraConfig
from .events import PlannedEvents, RankEvent
from .layer import FlexLoraLayer
from .linear_tuner import LinearTuner
from .packing import pack_state_dict, unpack_state_dict
from .parameters import count_parameters, module_ranks, parameter_groups
from .weighted import combine_adapters


class FlexLoraModel(LinearTuner, name="flexlora", config=FlexLoraConfig, layer=FlexLoraLayer):
    """FlexLoRA on a pretrained model, made by `peft.get_peft_model(model, FlexLoraConfig(...))`.

    Ranks move only if somebody counts steps: call `flexlora.attach(model, optimizer)` once, or use
    [`FlexLoraCallback`] with the Hugging Face Trainer, or call `update_and_allocate` after every optimizer step.

    Args:
        model: the model to adapt.
        config: the adapter's configuration.
        adapter_name: the adapter's name.
        low_cpu_mem_usage: create empty weights on the meta device (for loading).

    Raises:
        NoMatchingPeftModuleError: an entry of `target_modules` matches no module (the nearest names are listed).
        ValueError: a second trainable adapter is added: ranks move for one adapter only.
    """

    _rank_allocator: RankAllocator | None = None
    _attachment: Attachment | None = None
    _told = 0

    # --- creating ------------------------------------------------------------------------------------------------

    def _prepare_adapter_config(self, peft_config: FlexLoraConfig, model_config: dict) -> FlexLoraConfig:
        config = super()._prepare_adapter_config(peft_config, model_config)
        # Written down, so that a saved adapter keeps its capacity whatever the defaults become.
        config.max_rank = config.resolved_max_rank()
        return config

    def _check_new_adapter_config(self, config: FlexLoraConfig) -> None:
        super()._check_new_adapter_config(config)
        trainable = [name for name, other in self.peft_config.items() if not other.inference_mode]
        if len(trainable) > 1:
            raise ValueError(
                f"FlexLoRA moves the ranks of one adapter, but {', '.join(trainable)} would all be trainable: "
                "set inference_mode=True for all but one."
            )

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Trainable and all parameters, inactive directions left out; PEFT's own count on the PeftModel has them."""
        count = count_parameters(self.model)
        return count.trainable, count.total

    def print_trainable_parameters(self) -> None:
        """As PEFT's, but of the active directions, with the allocated capacity beside them."""
        count = count_parameters(self.model)
        print(
            f"trainable params: {count.trainable:,} || all params: {count.total:,} || "
            f"trainable%: {100 * count.trainable / count.total:.4f} || "
            f"adapter: {count.adapter_active:,} active of {count.adapter_allocated:,} allocated"
        )

    # --- training ------------------------------------------------------------------------------------------------

    @property
    def trainable_adapter_name(self) -> str:
        """The one adapter whose ranks move.

        Raises:
            ValueError: all adapters are in inference mode.
        """
        for name, config in self.peft_config.items():
            if isinstance(config, FlexLoraConfig) and not config.inference_mode:
                return name
        raise ValueError("no adapter is trainable: load with is_trainable=True.")

    @property
    def rank_allocator(self) -> RankAllocator:
        """The allocator of the trainable adapter: the one `flexlora.attach` made, or else made on first use."""
        name = self.trainable_adapter_name
        allocator, config = self._rank_allocator, self.peft_config[name]
        # Another configuration means another adapter, also where it was deleted and made again under the same name.
        if allocator is None or allocator.adapter_name != name or allocator.config is not config:
            allocator = self._rank_allocator = RankAllocator(self.model, config, name)
        return allocator

    @rank_allocator.setter
    def rank_allocator(self, allocator: RankAllocator) -> None:
        self._rank_allocator = allocator

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """λ at a rate of its own, as [`flexlora.parameter_groups`] has it."""
        return parameter_groups(self, learning_rate)

    def attach(self, optimizer: torch.optim.Optimizer, on_event: Callable[[RankEvent], None] | None = None) -> None:
        """As [`flexlora.attach`]: the optimizer's own step adds the penalty's gradient and holds the rank events."""
        self._attachment = attach(self.model, optimizer, on_event=on_event)
        self._rank_allocator = self._attachment.allocator

    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any] | None:
        """The rank event that the optimizer's step held, if any: the hooks of `attach` have done the rest."""
        events = self.rank_allocator.events
        if len(events) == self._told:
            return None
        self._told = len(events)
        return events[-1].to_dict()

    def planned_events(self) -> PlannedEvents | None:
        config = self.peft_config[self.trainable_adapter_name]
        steps = config.event_steps()
        if not steps:
            return None
        first, last = ((step, config.budget(step)) for step in (steps[0], steps[-1]))
        return PlannedEvents(len(steps), first, last, steps.step if len(steps) > 1 else None)

    def ranks(self) -> dict[str, int]:
        return module_ranks(self.model)

    def training_state(self) -> dict[str, Any]:
        return self.rank_allocator.state_dict()

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.rank_allocator.load_state_dict(state)

    def finish(self) -> None:
        """Take the hooks off the optimizer."""
        if self._attachment is not None:
            self._attachment.remove()

    def add_orthogonality_gradient(self) -> None:
        """Add the gradient of `orth_reg_weight` · R(P, Q) to `.grad`: once per optimizer step, after clipping.

        `flexlora.attach` does it by itself; call it only in a loop that uses `update_and_allocate`.
        """
        self.rank_allocator.regularise()

    def update_and_allocate(self, global_step: int, optimizer: torch.optim.Optimizer | None = None) -> RankEvent | None:
        """Hold the rank event that belongs to `global_step`, if any: PEFT's AdaLoRA call.

        Call it in every training step after `optimizer.step()` and before `optimizer.zero_grad()`, or use
        `flexlora.attach` once instead. `tinit`, `tfinal` and `deltaT` are handled here.

        Args:
            global_step: completed optimizer steps, this one included (1 after the first).
            optimizer: whose state of moved directions is set; without it a direction that is grown in a slot used
                before inherits that slot's moments.

        Returns:
            The event, or None where none was due.
        """
        if global_step <= self.rank_allocator.step:
            return None  # seen already, by `attach` or an earlier call
        self.rank_allocator.observe_gradients()
        return self.rank_allocator.advance(global_step, optimizer)

    # --- saving and loading --------------------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: FlexLoraConfig,
        adapter_name: str,
        state_dict: dict,
        unwanted_adapter_names: list,
    ) -> dict[str, torch.Tensor]:
        selected = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        packed, config.rank_pattern = pack_state_dict(selected, adapter_name)
        return packed

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: FlexLoraConfig, adapter_name: str, state_dict: dict
    ) -> dict[str, torch.Tensor]:
        unpacked, config.rank_pattern = unpack_state_dict(model, state_dict, adapter_name)
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, unpacked)

    # --- combining -----------------------------------------------------------------------------------------------

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: str = "cat",
        svd_rank: int | None = None,
    ) -> None:
        """Add an adapter whose ΔW is Σ weight · ΔW of existing ones; it is in inference mode until made active.

        Args:
            adapters: names of the adapters to combine.
            weights: one weight each; negative ones subtract.
            adapter_name: name of the new adapter.
            combination_type: 'cat' puts all directions side by side, which is exact; 'svd' keeps the best
                approximation of rank `svd_rank`.
            svd_rank: rank of every module under 'svd'; the largest rank found in `adapters` by default.

        Raises:
            ValueError: an adapter is unknown, the name is taken, lengths differ, or the type is not offered.
        """
        combine_adapters(self, adapters, weights, adapter_name, combination_type, svd_rank)
