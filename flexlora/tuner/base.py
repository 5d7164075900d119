"""What every tuner of this package has in common: how PEFT comes to know it, and what a training loop may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from peft import NoMatchingPeftModuleError
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from .adapter_layer import AdapterLayer
from .base_config import TunerConfig
from .events import PlannedEvents, RankEvent
from .names import plain_name
from .peft_type import register_tuner


class Tuner(BaseTuner):
    """PEFT's tuner, which replaces every target by its layer. A subclass registers itself by the keywords of its class:

        class MyModel(LowRankModel, name="mine", config=MyConfig, layer=MyLayer): ...

    Args:
        name: the tuner's name in PEFT's registry, in lower case.
        config: its configuration class.
        layer: what it makes of a module.

    Raises:
        NoMatchingPeftModuleError: an entry of `target_modules` matches no module.
        ValueError: the tuner cannot adapt this model or one of the targets, or PEFT has another tuner of this name.
    """

    tuner_layer_cls: type[AdapterLayer]
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    prefix: str

    def __init_subclass__(
        cls,
        name: str | None = None,
        config: type[TunerConfig] | None = None,
        layer: type[AdapterLayer] | None = None,
        **keywords: Any,
    ) -> None:
        super().__init_subclass__(**keywords)
        if layer is not None:
            cls.tuner_layer_cls = layer
        if name is not None and config is not None:
            cls.prefix = getattr(cls, "prefix", f"{name}_")
            register_tuner(name, config, cls)

    @property
    def title(self) -> str:
        """The method's name in messages."""
        return self.tuner_layer_cls.title

    # --- creating ------------------------------------------------------------------------------------------------

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("state_dict") is None:
            # Before anything is replaced, so that the base is as it was when the error is raised.
            unmatched = unmatched_targets(model, self.peft_config[adapter_name].target_modules)
            if unmatched:
                raise NoMatchingPeftModuleError(f"target_modules: {', '.join(unmatched)} match no module.")
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        """What the layer that adapts the module `name` has to know beside its configuration."""
        return {}

    def check_target(self, target: nn.Module, name: str) -> None:
        """Refuse a module that this method cannot adapt.

        Raises:
            ValueError: the module is of another kind.
        """

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        place = self.place(adapter_name, peft_config, current_key)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, **place)
            return
        self.check_target(target, current_key)
        layer = self.tuner_layer_cls(target, adapter_name, peft_config, **place)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # an additional adapter is not trainable by itself
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put `new_module` in its place: it shares the base layer, and has put its adapter on that one's device.

        PEFT's own also copies `weight`, which fails at unloading a module to save that has none itself (a pooler).
        """
        setattr(parent, child_name, new_module)

    # --- what a training loop may ask ----------------------------------------------------------------------------

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]] | None:
        """The optimizer's groups; None: everything that trains, in one."""
        return None

    def optimizer(self, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer | None:
        """An optimizer of the method's own, for everything that trains; None: the loop's."""
        return None

    def attach(self, optimizer: torch.optim.Optimizer, on_event: Callable[[RankEvent], None] | None = None) -> None:
        """Meet the optimizer before the first step; `on_event` is called inside its step at every rank event."""

    def regularise(self, step: int) -> None:
        """Add a penalty's gradient to `.grad`, once before optimizer step `step` (counted from 1), after clipping."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any] | None:
        """Act after optimizer step `step` (counted from 1).

        Args:
            step: completed optimizer steps, this one included; a step that a gradient scaler skipped is none.
            optimizer: whose state of parameters that were started anew is set to zero.

        Returns:
            What happened to the ranks, JSON-ready, where anything did.
        """
        return None

    def planned_events(self) -> PlannedEvents | None:
        """The rank events that are going to be held, None where there are none."""
        return None

    def ranks(self) -> dict[str, int]:
        """The current rank of every adapted module where ranks move; empty otherwise."""
        return {}

    def training_state(self) -> dict[str, Any]:
        """What a resumed training needs beside parameters, buffers, the optimizer's state and the step."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Take back what `training_state` gave."""

    def finish(self) -> None:
        """Clean up after the last step."""


def unmatched_targets(model: nn.Module, wanted: Any) -> list[str]:
    """Those entries of a set of target modules that match none of the model's.

    PEFT is content when one entry of several matches; the others are then silently not adapted.
    """
    if not isinstance(wanted, set):
        return []
    present = [plain_name(name) for name, _ in model.named_modules()]
    return [
        entry
        for entry in sorted(wanted)
        if entry != "all-linear" and not any(name == entry or name.endswith(f".{entry}") for name in present)
    ]
