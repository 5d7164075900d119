"""The base class of all tuners of this package: it registers them with PEFT and defines hooks for a training loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft import NoMatchingPeftModuleError
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from torch import nn

from .adapter_layer import AdapterLayer
from .adapter_parameters import LEAF
from .base_config import TunerConfig
from .events import PlannedEvents, RankEvent
from .mixed_batch import mixed_batch
from .names import plain_name
from .peft_type import register_tuner
from .precision import half_precision, train_in_base_dtype, train_in_float32


class Tuner(BaseTuner):
    """A PEFT tuner that replaces every target by its layer. A subclass registers itself by class keywords:

        class MyModel(LowRankModel, name="mine", config=MyConfig, layer=MyLayer): ...

    Args:
        name: the tuner's name in PEFT's registry, in lower case.
        config: its configuration class.
        layer: the class of the layers that replace modules.

    Raises:
        NoMatchingPeftModuleError: an entry of `target_modules` matches no module.
        ValueError: the tuner cannot adapt this model or a target, parameters of the base would train in half precision,
            or PEFT has another tuner with this name.
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
        """The name of the method in messages."""
        return self.tuner_layer_cls.title

    # --- creating ------------------------------------------------------------------------------------------------

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if adapter_name == LEAF:  # PEFT leaves out all tensors with another adapter's name in theirs
            raise ValueError(f"an adapter cannot be named '{LEAF}', as the parameters of all adapters are: rename it.")
        config, source = self.peft_config[adapter_name], self.source_of(adapter_name)
        if not config.inference_mode:
            # Copied, because ranks and values read from this model are written into it: another model must not get
            # them. A loaded configuration already has them.
            config = self.peft_config[adapter_name] = copy.copy(config)
        self.look_at(model, config)
        if kwargs.get("state_dict") is None:
            # Checked before anything is replaced, so that an error leaves the base unchanged.
            unmatched = unmatched_targets(model, config.target_modules)
            if unmatched:
                raise NoMatchingPeftModuleError(f"target_modules: {', '.join(unmatched)} match no module.")
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if source is not None:
            for module in model.modules():
                if isinstance(module, self.tuner_layer_cls):
                    module.take_buffers(adapter_name, source)
        train_in_float32(model, adapter_name)
        # An adapter of before may be in half precision, because its user chose it.
        added = {id(parameter) for parameter in _of_adapters(model)}
        half = half_precision((name, p) for name, p in model.named_parameters() if id(p) not in added)
        if half is not None and not self.peft_config[adapter_name].inference_mode:
            raise ValueError(f"{half[1]}: load the model with dtype=torch.float32, or take bias='none'.")

    def source_of(self, adapter_name: str) -> str | None:
        """The adapter whose configuration a new adapter was given; None if its configuration is its own.

        `model.add_adapter("ref", model.peft_config["default"])` makes room for a copy: a client then copies the
        parameters by name, as TRL does for a reference model. The buffers (a mask, fixed factors), which it does not
        copy, are copied here.
        """
        config = self.peft_config[adapter_name]
        return next((name for name, own in self.peft_config.items() if own is config and name != adapter_name), None)

    def look_at(self, model: nn.Module, config: Any) -> None:
        """Check the model before any of its modules is replaced.

        Raises:
            ValueError: the method does not support the model.
        """

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Map the name of a tensor in the model to its name in a file: `lora_A.default.tensor` → `lora_A`."""
        suffix = f".{adapter_name}.{LEAF}"
        if key.endswith(suffix):
            return key.removesuffix(suffix)
        name: str = super()._remove_adapter_name_from_key(key, adapter_name)
        return name

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        """The facts, beyond the configuration, that the layer for the module `name` needs."""
        return {}

    def check_target(self, target: nn.Module, name: str) -> None:
        """Check that this method can adapt the module.

        Raises:
            ValueError: the method cannot adapt this kind of module.
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
            layer.requires_grad_(False)  # an additional adapter is not trainable by default
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put `new_module` in place of `child`. It shares the base layer, and its adapter is on that layer's device.

        PEFT's own method also copies `weight`, which fails when a `modules_to_save` module without a weight (a pooler)
        is unloaded.
        """
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep what trains in float32. With `autocast_adapter_dtype=False` it gets the base's type, as in PEFT."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            for module in self.model.modules():
                if isinstance(module, AdapterLayer):
                    module.take_base_dtype(adapter_name)
            train_in_base_dtype(self.model, adapter_name)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Give every layer the `adapter_names` of the batch's rows while the model runs. PEFT calls it."""
        of_rows = kwargs.get("adapter_names")
        if of_rows is None:
            yield
        else:
            with mixed_batch(self, list(of_rows), kwargs.get("num_beams")):
                yield

    # --- what a training loop may ask ----------------------------------------------------------------------------

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]] | None:
        """The optimizer's parameter groups; None means one group with all trainable parameters."""
        return None

    def optimizer(self, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer | None:
        """The method's own optimizer for all trainable parameters; None means the loop's optimizer."""
        return None

    def attach(self, optimizer: torch.optim.Optimizer, on_event: Callable[[RankEvent], None] | None = None) -> None:
        """Attach to the optimizer before the first step. Its step calls `on_event` at every rank event."""

    def regularise(self, step: int) -> None:
        """Add the penalty's gradient to `.grad`, once before optimizer step `step` (counted from 1), after clipping."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any] | None:
        """Update the adapter after optimizer step `step` (counted from 1).

        Args:
            step: the number of completed optimizer steps, this one included. Steps that a gradient scaler skipped do
                not count.
            optimizer: the optimizer; its state of re-initialised parameters is set to zero.

        Returns:
            The rank event in JSON-ready form, or None if ranks did not change.
        """
        return None

    def planned_events(self) -> PlannedEvents | None:
        """The planned rank events; None if there are none."""
        return None

    def ranks(self) -> dict[str, int]:
        """The current rank of every adapted module; empty if ranks do not change."""
        return {}

    def training_state(self) -> dict[str, Any]:
        """The state for resuming a training, beyond parameters, buffers, the optimizer's state and the step."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Restore the state that `training_state` returned."""

    def finish(self) -> None:
        """Clean up after the last step."""


def _of_adapters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters that adapters have added to the model, in layers and as `modules_to_save`."""
    for module in model.modules():
        if isinstance(module, AdapterLayer):
            for name in module.adapter_layer_names:
                yield from getattr(module, name).values()
        elif isinstance(module, ModulesToSaveWrapper):
            yield from module.modules_to_save.parameters()


def unmatched_targets(model: nn.Module, wanted: Any) -> list[str]:
    """Find the entries of `target_modules` that match no module of the model.

    PEFT only requires that one of several entries matches, and silently ignores the others.
    """
    if not isinstance(wanted, set):
        return []
    present = [plain_name(name) for name, _ in model.named_modules()]
    return [
        entry
        for entry in sorted(wanted)
        if entry != "all-linear" and not any(name == entry or name.endswith(f".{entry}") for name in present)
    ]
