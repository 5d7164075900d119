"""`FlexLoraModel`: FlexLoRA as a PEFT tuner."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .adapter_parameters import LEAF
from .allocator import RankAllocator
from .attach import attach, detach, is_attached
from .config import FlexLoraConfig
from .events import PlannedEvents, RankEvent
from .history import History
from .layer import FlexLoraLayer
from .linear_tuner import LinearTuner
from .packing import FACTORS, flexlora_layers, pack_state_dict, unpack_state_dict
from .parameters import count_parameters, module_ranks, parameter_groups
from .watch import watch
from .weighted import combine_adapters


class FlexLoraModel(LinearTuner, name="flexlora", config=FlexLoraConfig, layer=FlexLoraLayer):
    """FlexLoRA on a pretrained model, made by `peft.get_peft_model(model, FlexLoraConfig(...))`.

    Ranks change only if the tuner learns about optimizer steps: call `flexlora.attach(model, optimizer)` once, or use
    [`FlexLoraCallback`] with the Hugging Face Trainer, or call `update_and_allocate` after every optimizer step.

    Args:
        model: the model to adapt.
        config: the adapter's configuration.
        adapter_name: the adapter's name.
        low_cpu_mem_usage: create empty weights on the meta device, for loading.

    Raises:
        NoMatchingPeftModuleError: an entry of `target_modules` matches no module (the nearest names are listed).
    """

    _rank_allocator: RankAllocator | None = None
    _told = 0

    # --- creating ------------------------------------------------------------------------------------------------

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # The weights of a copy are another adapter's: no training is forgotten that this adapter had.
        history = History(loaded=self.source_of(adapter_name) is not None)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        config = self.peft_config[adapter_name]
        layers = [layer for _, layer in flexlora_layers(model, adapter_name)]
        for layer in layers:
            layer.history[adapter_name] = history
        if config.event_steps() and not config.inference_mode:
            watch(layers[0], adapter_name)

    def _prepare_adapter_config(self, peft_config: FlexLoraConfig, model_config: dict) -> FlexLoraConfig:
        config = super()._prepare_adapter_config(peft_config, model_config)
        # Stored in the configuration, so that a saved adapter keeps its capacity if the defaults change.
        config.max_rank = config.resolved_max_rank()
        return config

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter. If its ranks move, the hooks of `flexlora.attach` are removed."""
        super().delete_adapter(adapter_name)
        if self._rank_allocator is not None and self._rank_allocator.adapter_name == adapter_name:
            self.finish()
            self._rank_allocator = None

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Count trainable and all parameters without inactive directions, which PEFT's count on PeftModel includes."""
        count = count_parameters(self.model)
        return count.trainable, count.total

    def print_trainable_parameters(self) -> None:
        """Like PEFT's method, but it counts active directions and also prints the allocated capacity."""
        count = count_parameters(self.model)
        print(
            f"trainable params: {count.trainable:,} || all params: {count.total:,} || "
            f"trainable%: {100 * count.trainable / count.total:.4f} || "
            f"adapter: {count.adapter_active:,} active of {count.adapter_allocated:,} allocated"
        )

    # --- training ------------------------------------------------------------------------------------------------

    @property
    def trainable_adapter_name(self) -> str:
        """The name of the adapter whose ranks change: the attached one, or else the first active trainable one.

        Raises:
            ValueError: all adapters are in inference mode.
        """
        trainable = [name for name, config in self.peft_config.items() if not config.inference_mode]
        if not trainable:
            raise ValueError("no adapter is trainable: load with is_trainable=True.")
        if self._rank_allocator is not None and is_attached(self._rank_allocator):
            return self._rank_allocator.adapter_name
        return next((name for name in trainable if name in self.active_adapters), trainable[0])

    @property
    def rank_allocator(self) -> RankAllocator:
        """The allocator of the trainable adapter, made by `flexlora.attach` or on first use."""
        name = self.trainable_adapter_name
        allocator, config = self._rank_allocator, self.peft_config[name]
        # A different configuration object means a different adapter, even under the same name.
        if allocator is None or allocator.adapter_name != name or allocator.config is not config:
            allocator = self._rank_allocator = RankAllocator(self.model, config, name)
        return allocator

    @rank_allocator.setter
    def rank_allocator(self, allocator: RankAllocator) -> None:
        self._rank_allocator = allocator

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The parameter groups of [`flexlora.parameter_groups`]: λ has its own learning rate."""
        return parameter_groups(self, learning_rate)

    def attach(self, optimizer: torch.optim.Optimizer, on_event: Callable[[RankEvent], None] | None = None) -> None:
        """Attach as [`flexlora.attach`] does: the optimizer's step adds the penalty's gradient and runs rank events."""
        self.rank_allocator = attach(self.model, optimizer, on_event=on_event).allocator

    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any] | None:
        """Return the rank event of the optimizer's step, if any. The hooks of `attach` have already done the work."""
        events = self.rank_allocator.events
        if len(events) == self._told:
            return None
        self._told = len(events)
        return events[-1].to_dict()

    def planned_events(self) -> PlannedEvents | None:
        config = self.peft_config[self.trainable_adapter_name]
        steps = config.event_steps()
        # b(t) never rises, so the events that can move a direction come first.
        count = bisect_left(steps, True, key=lambda step: config.budget(step) < 1)
        if count == 0:
            return None
        first, last = steps[0], steps[count - 1]
        every = config.deltaT if count > 1 else None
        return PlannedEvents(count, (first, config.budget(first)), (last, config.budget(last)), every)

    def ranks(self) -> dict[str, int]:
        return module_ranks(self.model)

    def training_state(self) -> dict[str, Any]:
        return self.rank_allocator.state_dict()

    def load_training_state(self, state: dict[str, Any]) -> None:
        self.rank_allocator.load_state_dict(state)

    def finish(self) -> None:
        """Remove the hooks of `flexlora.attach` from the optimizer."""
        if self._rank_allocator is not None:
            detach(self._rank_allocator)

    def add_orthogonality_gradient(self) -> None:
        """Add the gradient of `orth_reg_weight` · R(P, Q) to `.grad`: once per optimizer step, after clipping.

        `flexlora.attach` does this automatically. Call it only in a loop that uses `update_and_allocate`.
        """
        self.rank_allocator.regularise()

    def update_and_allocate(self, global_step: int, optimizer: torch.optim.Optimizer | None = None) -> RankEvent | None:
        """Run the rank event of `global_step`, if one is due. The method's name is that of PEFT's AdaLoRA.

        Call it in every training step after `optimizer.step()` and before `optimizer.zero_grad()`, or use
        `flexlora.attach` once instead. `tinit`, `tfinal` and `deltaT` are handled here.

        Args:
            global_step: the number of completed optimizer steps, this one included (1 after the first).
            optimizer: the optimizer; its state of changed directions is reset. Without it, a direction that grows in a
                used slot inherits that slot's moments.

        Returns:
            The event, or None if none was due.
        """
        allocator = self.rank_allocator
        if global_step < allocator.step:
            allocator.history.tell(
                "behind",
                f"update_and_allocate was called with step {global_step}, but the schedule is at step "
                f"{allocator.step}: no rank event happens before that. Count on from there.",
            )
        if global_step <= allocator.step:
            return None  # `attach` or an earlier call has handled this step
        allocator.observe_gradients()
        return allocator.advance(global_step, optimizer)

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
        _, layer = next(flexlora_layers(model, adapter_name))
        suffix = f".{FACTORS['lambda']}.{adapter_name}.{LEAF}"
        trained = any(bool(value.any()) for key, value in packed.items() if key.endswith(suffix))
        layer.history[adapter_name].check_saved(config, trained)
        return packed

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: FlexLoraConfig, adapter_name: str, state_dict: dict
    ) -> dict[str, torch.Tensor]:
        unpacked, config.rank_pattern = unpack_state_dict(model, state_dict, adapter_name)
        _, layer = next(flexlora_layers(model, adapter_name))
        layer.history[adapter_name].begin(loaded=True)
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
        """Add an adapter whose ΔW is Σ weight · ΔW of existing adapters. It is in inference mode until activated.

        Args:
            adapters: names of the adapters to combine.
            weights: one weight for each adapter; a negative weight subtracts.
            adapter_name: name of the new adapter.
            combination_type: 'cat' concatenates all directions, which is exact; 'svd' keeps the best approximation of
                rank `svd_rank`.
            svd_rank: rank of every module under 'svd'; the largest rank found in `adapters` by default.

        Raises:
            ValueError: an adapter does not exist, the new name is taken, the numbers of adapters and weights differ, or
                the combination type does not exist.
        """
        combine_adapters(self, adapters, weights, adapter_name, combination_type, svd_rank)
