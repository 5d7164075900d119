"""The base class of all adapter layers, FlexLoRA's and the baselines': it implements PEFT's tuner-layer contract."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from .adapter_parameters import AdapterParameters


class AdapterLayer(nn.Module, BaseTunerLayer):
    """A module of the backbone together with a method's parameters, stored by adapter name.

    A subclass names its parameters and buffers, creates them in `create`, and computes the output in `add`, or in
    `adapted` if the adapter changes more than the module's output.
    """

    # PEFT defines these. They are declared for the type checker, which would otherwise use nn.Module's __getattr__.
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool
    other_param_names: tuple[str, ...]
    get_base_layer: Callable[[], nn.Module]
    set_adapter: Callable[..., None]
    _get_available_adapters: Callable[[], set[str]]
    _cast_input_dtype: Callable[[torch.Tensor, torch.dtype], torch.Tensor]

    title: ClassVar[str] = ""
    """The name of the method in messages."""
    adapter_layer_names: tuple[str, ...] = ()
    """The names of the trainable parameters; each is an `AdapterParameters`."""
    buffer_names: tuple[str, ...] = ()
    """The names of tensors that are saved and resumed but not trained; each is a `BufferDict`."""
    kept: tuple[str, ...] = ("settings",)
    """The names of all other attributes that are stored by adapter name; each is a plain dictionary."""

    settings: dict[str, Any]
    """The configuration of every adapter."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any, **place: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.merged_adapters: list[str] = []
        for name in self.adapter_layer_names:
            setattr(self, name, AdapterParameters())
        for name in self.buffer_names:
            setattr(self, name, BufferDict({}, persistent=True))
        for name in self.kept:
            setattr(self, name, {})
        self.other_param_names = (*self.buffer_names, *self.kept)
        self.look_at_base(**place)
        self.update_layer(adapter_name, config, **place)

    # --- what a subclass gives -----------------------------------------------------------------------------------

    def look_at_base(self, **place: Any) -> None:
        """Read the facts about the base layer that this layer needs, before the first adapter is created."""

    def create(self, adapter_name: str, config: Any, **place: Any) -> None:
        """Create the parameters and buffers of the adapter `adapter_name`.

        Args:
            place: the facts about this and other modules that `Tuner.place` returns.
        """
        raise NotImplementedError

    def add(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        """Compute the module's output with this adapter from `result`, the output without it, in the base's dtype."""
        raise NotImplementedError

    def adapted(self, adapters: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's output with these adapters, in the base's dtype."""
        result = self.base_output(x, *args, **kwargs)
        for adapter_name in adapters:
            result = self.add(result, x, adapter_name)
        return result

    def base_output(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute the module's output without adapters."""
        return self.base_layer(x, *args, **kwargs)

    def fold(self, adapter_name: str, safe_merge: bool) -> None:
        """Merge the adapter into the base's parameters."""
        raise NotImplementedError

    def unfold(self, adapter_name: str) -> None:
        """Remove the most recently merged adapter from the base's parameters."""
        raise NotImplementedError

    # --- creating ------------------------------------------------------------------------------------------------

    def update_layer(self, adapter_name: str, config: Any, **place: Any) -> None:
        """Create the adapter `adapter_name`, move it to the base's device and set `requires_grad`."""
        self.settings[adapter_name] = config
        device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        on_meta = device is not None and device.type == "meta"
        with torch.device("meta" if on_meta else "cpu"):
            self.create(adapter_name, config, **place)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def new_parameter(
        self, name: str, adapter_name: str, shape: tuple[int, ...], fill: Callable[[torch.Tensor], Any] | None = None
    ) -> None:
        """Add a parameter of `shape` to the dictionary `name`. It is zero unless `fill` initialises it in place.

        Its type is float32 for any half-precision or quantised base, because a step of 1e-3 vanishes in bfloat16 near
        1. Random numbers come from torch's global generator, as in every PEFT tuner.
        """
        parameters = getattr(self, name)
        parameters[adapter_name] = nn.Parameter(torch.zeros(shape, dtype=self._adapter_dtype()))
        created = parameters[adapter_name]
        if fill is not None and created.device.type != "meta":  # with low_cpu_mem_usage values are loaded later
            with torch.no_grad():
                fill(created)

    def take_buffers(self, adapter_name: str, source: str) -> None:
        """Copy the buffers of the adapter `source` (a mask, fixed factors) to those of `adapter_name`."""
        for name in self.buffer_names:
            buffers = getattr(self, name)
            if adapter_name in buffers and source in buffers and buffers[adapter_name].device.type != "meta":
                buffers[adapter_name].copy_(buffers[source])

    def holds(self, adapter_name: str) -> bool:
        """Whether this layer has the adapter `adapter_name`."""
        return any(adapter_name in getattr(self, name) for name in self.adapter_layer_names)

    def trains(self, adapter_name: str) -> bool:
        """Whether a parameter of the adapter `adapter_name` trains."""
        held = [getattr(self, name) for name in self.adapter_layer_names]
        return any(parameters[adapter_name].requires_grad for parameters in held if adapter_name in parameters)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        """Like PEFT's method, which reads a linear's weight. Without a weight, the first parameter decides."""
        device, dtype = BaseTunerLayer._get_base_layer_device_and_dtype(self, base_layer)
        first = next(base_layer.parameters(), None)
        return (device, dtype) if device is not None or first is None else (first.device, first.dtype)

    def _adapter_dtype(self) -> torch.dtype:
        """The adapter's dtype: float32 for a half-precision or quantised base (8e-4 vanishes in bfloat16 near 1)."""
        _, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        return torch.float64 if dtype == torch.float64 else torch.float32

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Like PEFT's method, but the adapter keeps its dtype: PEFT would round loaded weights to a bfloat16 base's."""
        if device is None:
            device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        if device is None:
            return
        for name in (*self.adapter_layer_names, *self.buffer_names):
            held = getattr(self, name)
            # Tensors on the meta device (PEFT's low_cpu_mem_usage) are loaded later, so they are left alone.
            if adapter_name in held and held[adapter_name].device.type != "meta":
                held[adapter_name] = held[adapter_name].to(device)

    def take_base_dtype(self, adapter_name: str) -> None:
        """Convert the adapter to the base's type, unless that is no floating-point type."""
        _, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        if dtype is None or not dtype.is_floating_point:
            return
        for name in (*self.adapter_layer_names, *self.buffer_names):
            held = getattr(self, name)
            if adapter_name in held and held[adapter_name].is_floating_point():  # a mask is not
                held[adapter_name] = held[adapter_name].detach().to(dtype)

    # --- computing -----------------------------------------------------------------------------------------------

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute the output with the active adapters, or the base's output if none is active or all are merged.

        `adapter_names` names the adapter of each row of the batch instead of the active ones; `__base__` names none.
        """
        of_rows: list[str] | None = kwargs.pop("adapter_names", None)
        if of_rows is not None:
            self._check_rows(of_rows, x)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if self.disable_adapters or self.merged:
            return self.base_layer(x, *args, **kwargs)
        if of_rows is not None:
            return self._mixed(of_rows, x, *args, **kwargs)
        adapters = [name for name in self.active_adapters if self.holds(name)]
        if not adapters:
            return self.base_layer(x, *args, **kwargs)
        return self.adapted(adapters, x, *args, **kwargs)

    def _mixed(self, of_rows: list[str], x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Compute the output of a batch whose rows have different adapters."""
        plain = self.base_output(x, *args, **kwargs)
        result = plain.clone()
        for adapter_name in dict.fromkeys(of_rows):
            if self.holds(adapter_name):
                rows = [row for row, name in enumerate(of_rows) if name == adapter_name]
                result[rows] = self.add(plain[rows], x[rows], adapter_name)
        return result

    def _check_rows(self, of_rows: list[str], x: torch.Tensor) -> None:
        """Check that a batch can mix adapters here.

        Raises:
            ValueError: the method cannot mix adapters, the number of names is not that of the rows, or an adapter is
                merged.
        """
        if type(self).add is AdapterLayer.add:
            raise ValueError(
                f"{self.title} does not mix adapters in one batch (`adapter_names`): run one adapter per batch."
            )
        if len(of_rows) != len(x):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(of_rows)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first."
            )

    def branch_input(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Convert `x` to `dtype`, except under autocast, which chooses the dtype of matrix products itself."""
        return x if torch.is_autocast_enabled(x.device.type) else self._cast_input_dtype(x, dtype)

    # --- merging -------------------------------------------------------------------------------------------------

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge adapters into the base's parameters, in the base's dtype.

        Args:
            safe_merge: check the result first and refuse parameters that are not finite.
            adapter_names: the adapters to merge; the active ones by default.

        Raises:
            ValueError: `safe_merge` is set and the result is not finite. The base is then unchanged.
            ValueError, TypeError: the base is quantised in a way that cannot be merged.
        """
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            if self.holds(adapter_name):
                self.fold(adapter_name, safe_merge)
                self.merged_adapters.append(adapter_name)

    def unmerge(self) -> None:
        """Remove every merged adapter from the base, the last one first."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            self.unfold(self.merged_adapters.pop())

    def refuse_not_finite(self, adapter_name: str, merged: Iterable[torch.Tensor]) -> None:
        """Check that merged parameters are finite, for `safe_merge`.

        Raises:
            ValueError: one of the merged parameters is not finite.
        """
        if not all(bool(parameter.isfinite().all()) for parameter in merged):
            raise ValueError(
                f"merging adapter {adapter_name} would give weights that are not finite: check the adapter."
            )

    def __repr__(self) -> str:
        return f"{type(self).__module__.partition('.')[0]}.{super().__repr__()}"
