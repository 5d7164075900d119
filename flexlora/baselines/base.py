"""What the tuners of this folder share: PEFT's contract around a wrapped module, whatever the method adds to it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft import NoMatchingPeftModuleError, PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import nn

from flexlora.tuner.linear_tuner import unmatched_targets
from flexlora.tuner.peft_type import extend_peft_types


def hint(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class BaselineConfig(PeftConfig):
    """The fields that every baseline has; a subclass gives `target_modules` its own default.

    Raises:
        ValueError: a value is out of range.
    """

    # The name of the method in PEFT's registry, and where it sits unless `target_modules` says otherwise.
    method: ClassVar[str]
    default_targets: ClassVar[str]

    target_modules: list[str] | str | None = field(
        default=None,
        metadata=hint("Names (suffixes) of the modules to adapt, or a regex; by default those the method is made for."),
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata=hint("Names (suffixes) or a regex of modules that stay as they are.")
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata=hint("Modules outside the adapter that train and are saved, e.g. the classifier.")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = extend_peft_types(self.method.upper())
        if self.target_modules is None:
            self.target_modules = self.default_targets
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))

    def require(self, holds: bool, name: str, what: str) -> None:
        """Refuse the value of the field `name`, which must be `what`, unless it `holds`."""
        if not holds:
            raise ValueError(f"`{name}` must be {what}, not {getattr(self, name)!r}.")

    def require_whole(self, *names: str) -> None:
        """Refuse fields that are no whole numbers of at least 1."""
        for name in names:
            value = getattr(self, name)
            self.require(type(value) is int and value >= 1, name, "a whole number of at least 1")

    def require_all_blocks(self) -> None:
        """Refuse a choice of modules, where prompts go through all blocks."""
        self.require(
            self.target_modules == self.default_targets and not self.exclude_modules,
            "exclude_modules" if self.exclude_modules else "target_modules",
            "left out: prompts go through all blocks",
        )

    def require_dropout(self, name: str = "dropout") -> None:
        """Refuse a probability that is none, or 1."""
        self.require(0 <= getattr(self, name) < 1, name, "a probability below 1")


class BaselineLayer(nn.Module, BaseTunerLayer):
    """A module of the backbone with a method's parameters beside it, by adapter name.

    A subclass names its `nn.ParameterDict`s in `adapter_layer_names` and everything else that is kept by adapter name
    in `other_param_names`, creates them in `update_layer`, and says in `adapted` what comes out.
    """

    # PEFT's, declared for the type checker, which takes nn.Module's __getattr__ for them otherwise.
    adapter_layer_names: tuple[str, ...] = ()
    other_param_names: tuple[str, ...] = ()
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    _get_available_adapters: Callable[[], set[str]]
    _cast_input_dtype: Callable[[torch.Tensor, torch.dtype], torch.Tensor]

    def __init__(self, base_layer: nn.Module, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict({}))
        for name in self.other_param_names:
            setattr(self, name, {})
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.merged_adapters: list[str] = []

    # --- creating ------------------------------------------------------------------------------------------------

    def update_layer(self, adapter_name: str, config: Any, **place: Any) -> None:
        """Create the adapter `adapter_name`, then hand over to `finish_update`.

        Args:
            place: what `BaselineModel.place` tells of this module and of the others.
        """
        raise NotImplementedError

    def finish_update(self, adapter_name: str, config: Any) -> None:
        """Bring a new adapter to where the base is, and set what trains."""
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def new_parameter(
        self, name: str, adapter_name: str, shape: tuple[int, ...], fill: Callable[[torch.Tensor], Any] | None = None
    ) -> None:
        """Add a parameter of `shape` to the dict `name`: zeros, or what `fill` writes into it in place.

        It is float32 over any half-precision or quantised base: a step of 1e-3 vanishes in bfloat16 near 1. Random
        numbers are those of torch's global generator, as with every PEFT tuner.
        """
        parameters = getattr(self, name)
        parameters[adapter_name] = nn.Parameter(torch.zeros(shape, dtype=self._adapter_dtype()))
        created = parameters[adapter_name]
        if fill is not None and created.device.type != "meta":  # PEFT's low_cpu_mem_usage: about to be loaded
            with torch.no_grad():
                fill(created)

    def _home(self) -> torch.Tensor | None:
        """A parameter of the base that tells where it is, and in what type; None where it has none."""
        return next((p for p in self.get_base_layer().parameters() if p.is_floating_point()), None)

    def _adapter_dtype(self) -> torch.dtype:
        home = self._home()
        return torch.float64 if home is not None and home.dtype == torch.float64 else torch.float32

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """As PEFT's, but the adapter keeps its own dtype: PEFT's would round loaded weights to a bfloat16 base's."""
        if device is None:
            home = next(self.get_base_layer().parameters(), None)
            device = None if home is None else home.device
        if device is None:
            return
        for name in self.adapter_layer_names:
            parameters = getattr(self, name)
            # Parameters that PEFT put on the meta device (low_cpu_mem_usage) are about to be loaded: leave them.
            if adapter_name in parameters and parameters[adapter_name].device.type != "meta":
                parameters[adapter_name] = parameters[adapter_name].to(device)

    # --- computing -----------------------------------------------------------------------------------------------

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.disable_adapters and self.merged:
            self.unmerge()
        held = self._get_available_adapters()
        adapters = [name for name in self.active_adapters if name in held]
        if self.disable_adapters or self.merged or not adapters:
            return self.base_layer(x, *args, **kwargs)
        return self.adapted(adapters, x, *args, **kwargs)

    def adapted(self, adapters: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the module gives with these adapters on it, in the base's own dtype."""
        raise NotImplementedError

    def branch_input(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """`x` in the dtype of `weight`; as it is under autocast, which chooses the dtype of products itself."""
        return x if torch.is_autocast_enabled(x.device.type) else self._cast_input_dtype(x, weight.dtype)

    # --- merging -------------------------------------------------------------------------------------------------

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the base's parameters, in the base's dtype.

        Args:
            safe_merge: look at the result first and refuse parameters that are not finite.
            adapter_names: adapters to merge; the active ones by default.

        Raises:
            ValueError: under `safe_merge`, the result is not finite, or the base is quantised; it is left as it was.
        """
        held = self._get_available_adapters()
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            if adapter_name in held:
                self._fold(adapter_name, safe_merge)
                self.merged_adapters.append(adapter_name)

    @torch.no_grad()
    def _fold(self, adapter_name: str, safe_merge: bool) -> None:
        base = self.get_base_layer()
        merged = self.merged_parameters(adapter_name)
        if not all(getattr(base, name).is_floating_point() for name in merged):
            raise ValueError(
                f"a quantised {type(base).__name__} takes no merged weights: load the backbone unquantised."
            )
        if safe_merge and not all(value.isfinite().all() for value in merged.values()):
            raise ValueError(f"merging adapter {adapter_name} would give weights that are not finite: it seems broken.")
        self.before_merge.append({name: getattr(base, name).detach().clone() for name in merged})
        for name, value in merged.items():
            getattr(base, name).copy_(value)  # rounded once, to the base's dtype

    def merged_parameters(self, adapter_name: str) -> dict[str, torch.Tensor]:
        """The base's parameters with this adapter in them, by name."""
        raise NotImplementedError

    @property
    def before_merge(self) -> list[dict[str, torch.Tensor]]:
        """What merging replaced, oldest first: unmerging gives the base back bit for bit."""
        return self.__dict__.setdefault("_before_merge", [])

    @torch.no_grad()
    def unmerge(self) -> None:
        """Give the base its own parameters back."""
        while self.merged_adapters:
            self.merged_adapters.pop()
            for name, value in self.before_merge.pop().items():
                getattr(self.get_base_layer(), name).copy_(value)

    def __repr__(self) -> str:
        return f"baselines.{super().__repr__()}"


class BaselineModel(BaseTuner):
    """A tuner that wraps every target in its `tuner_layer_cls`."""

    tuner_layer_cls: type[BaselineLayer]
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}
    prefix: str
    title: ClassVar[str]
    made_for: ClassVar[str]
    """Which modules of which backbones it adapts, for the line that says a model has none of them."""
    not_mergeable: ClassVar[str | None] = None
    """Why the adapter cannot be folded into the base; None where it can."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        # A copy: what is read off this model is not for the next one that the same configuration is given to.
        config = self.peft_config[adapter_name] = copy.copy(self.peft_config[adapter_name])
        if kwargs.get("state_dict") is None:
            unmatched = unmatched_targets(model, config.target_modules)
            if unmatched:
                raise NoMatchingPeftModuleError(f"target_modules: {', '.join(unmatched)} match no module.")
        self.prepare(model, config)
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except NoMatchingPeftModuleError as error:
            if config.target_modules != config.default_targets:
                raise
            raise NoMatchingPeftModuleError(
                f"{self.title} adapts {self.made_for}; {type(model).__name__} has none of them under the names known "
                "here. Name them in target_modules."
            ) from error

    def prepare(self, model: nn.Module, config: Any) -> None:
        """Look at the model before anything of it is replaced.

        Raises:
            ValueError: the method cannot work on it.
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
        layer = self.tuner_layer_cls(target, adapter_name)
        layer.update_layer(adapter_name, peft_config, **place)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # an additional adapter is not trainable by itself
        self._replace_module(parent, target_name, layer, target)

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        """What the layer that adapts the module `name` has to know beside its configuration."""
        return {}

    def check_target(self, target: nn.Module, name: str) -> None:
        """Refuse a module that this method cannot adapt.

        Raises:
            ValueError: it cannot.
        """

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put `new_module` in its place: it shares the base, and has put its adapter on that one's device."""
        setattr(parent, child_name, new_module)

    def _check_merge_allowed(self) -> None:
        if self.not_mergeable is not None:
            raise ValueError(f"{self.title} cannot be merged into the backbone: {self.not_mergeable}.")
        super()._check_merge_allowed()
