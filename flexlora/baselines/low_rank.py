"""What the low-rank baselines share: fields, parameters by adapter name, and the tuner that PEFT knows.

A method is one file: a config with its own fields, a layer that says which parameters it holds, how they start and what
ΔW is, and a model that names both. Adapters are float32 over any base; save, load (also with low_cpu_mem_usage), merge,
unmerge, disable and several adapters are PEFT's and work for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners._buffer_dict import BufferDict
from peft.utils.peft_types import PeftType
from torch import nn

from flexlora.tuner.delta import DeltaLayer
from flexlora.tuner.linear_tuner import LinearTuner
from flexlora.tuner.packing import plain_name


def hint(text: str) -> dict[str, str]:
    """A field's help, as PEFT's configs carry it."""
    return {"help": text}


@dataclass
class LowRankConfig(PeftConfig):
    """Fields of every low-rank baseline, by LoRA's names.

    Raises:
        ValueError: a value is out of range, or two of them exclude each other.
    """

    type_name: ClassVar[PeftType]

    r: int = field(default=8, metadata=hint("Rank of every adapted matrix."))
    target_modules: list[str] | str | None = field(
        default=None, metadata=hint("Names (suffixes) of the linears to adapt, a regex, or 'all-linear'.")
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata=hint("Names (suffixes) or a regex of modules that stay as they are.")
    )
    lora_alpha: float = field(default=16, metadata=hint("Scale: s = lora_alpha / r."))
    lora_dropout: float = field(default=0.0, metadata=hint("Dropout on the adapter's input."))
    modules_to_save: list[str] | None = field(
        default=None, metadata=hint("Modules outside the adapter that train and are saved, e.g. the classifier.")
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata=hint("Indices of the layers to adapt; all of them by default.")
    )
    layers_pattern: list[str] | str | None = field(
        default=None, metadata=hint("Name of the layer list that `layers_to_transform` counts in.")
    )
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata=hint("Module name → its rank, where not `r`."))
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata=hint("Module name → its lora_alpha, where not `lora_alpha`.")
    )
    init_weights: bool = field(
        default=True, metadata=hint("As published. False draws what starts at 0, too (for tests).")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = self.type_name
        self.target_modules = _as_set(self.target_modules)
        self.exclude_modules = _as_set(self.exclude_modules)
        if self.layers_pattern and not self.layers_to_transform and self.layers_to_transform != 0:
            raise ValueError("`layers_pattern` does nothing without `layers_to_transform`: set both or neither.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                "`layers_to_transform` cannot be used when `target_modules` is a string: put it in the regex."
            )
        for rank in (self.r, *self.rank_pattern.values()):
            require_count("r", rank)
        for alpha in (self.lora_alpha, *self.alpha_pattern.values()):
            require_number("lora_alpha", alpha, above=0)
        require_number("lora_dropout", self.lora_dropout, at_least=0, below=1)


def require_count(name: str, value: Any, at_least: int = 1) -> None:
    """Raise ValueError unless `value` is a whole number of at least `at_least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ValueError(f"`{name}` must be a whole number of at least {at_least}, not {value!r}.")


def require_number(
    name: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Raise ValueError unless `value` is a finite number, ≥ `at_least`, > `above` and < `below`."""
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (finite and value >= at_least and above < value < below):
        bounds = [(f"at least {at_least}", at_least), (f"above {above}", above), (f"below {below}", below)]
        said = " and ".join(text for text, bound in bounds if math.isfinite(bound)) or "finite"
        raise ValueError(f"`{name}` must be a number {said}, not {value!r}.")


def _as_set(value: Any) -> Any:
    return set(value) if isinstance(value, list | tuple) else value


class LowRankLayer(DeltaLayer):
    """One adapted linear: A (r × in), B (out × r) and a method's own parameters, by adapter name; ΔW = s B A here."""

    dropouts = "lora_dropout"
    adapter_layer_names: tuple[str, ...] = ("lora_A", "lora_B")
    buffer_names: tuple[str, ...] = ()
    """Names of a method's tensors that do not train but are saved and resumed with what does."""
    settings: tuple[str, ...] = ("lora_dropout", "r", "lora_alpha", "scaling")

    lora_A: nn.ParameterDict | BufferDict
    lora_B: nn.ParameterDict

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: Any, r: int, lora_alpha: float, **kwargs: Any
    ) -> None:
        super().__init__(base_layer, **kwargs)
        for name in self.adapter_layer_names:
            setattr(self, name, nn.ParameterDict({}))
        for name in self.buffer_names:
            setattr(self, name, BufferDict({}, persistent=True))
        self.other_param_names = (*self.buffer_names, *self.settings)
        self.lora_dropout = nn.ModuleDict({})
        self.r: dict[str, int] = {}
        self.lora_alpha: dict[str, float] = {}
        self.scaling: dict[str, float] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config=config)

    def update_layer(self, adapter_name: str, r: int, lora_alpha: float, config: Any, **kwargs: Any) -> None:
        """Create the adapter `adapter_name` of rank `r`."""
        self.r[adapter_name] = r
        self.lora_alpha[adapter_name] = lora_alpha
        self.scaling[adapter_name] = lora_alpha / r
        self.lora_dropout[adapter_name] = nn.Dropout(config.lora_dropout) if config.lora_dropout > 0 else nn.Identity()
        device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())
        on_meta = device is not None and device.type == "meta"
        with torch.device("meta" if on_meta else "cpu"):
            for name, shape in self.shapes(r, config).items():
                getattr(self, name)[adapter_name] = nn.Parameter(torch.zeros(shape, dtype=self._adapter_dtype()))
            for name, tensor in self.buffers_at_start(r, config).items():
                getattr(self, name)[adapter_name] = tensor
        if self.lora_B[adapter_name].device.type != "meta":
            with torch.no_grad():
                self.reset(adapter_name, config)
                if not config.init_weights:
                    self._draw_zeros(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    # --- what a method gives -------------------------------------------------------------------------------------

    def shapes(self, r: int, config: Any) -> dict[str, tuple[int, ...]]:
        """Shape of every trainable parameter."""
        return {"lora_A": (r, self.in_features), "lora_B": (self.out_features, r)}

    def buffers_at_start(self, r: int, config: Any) -> dict[str, torch.Tensor]:
        """Every buffer as it is before `reset`."""
        return {}

    def reset(self, adapter_name: str, config: Any) -> None:
        """Starting values, from torch's global generator as every PEFT tuner draws them: A Kaiming (√5), B zero."""
        kaiming(self.lora_A[adapter_name])

    def product(self, adapter_name: str, training: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        return self.lora_B[adapter_name], self.scaling[adapter_name] * self.lora_A[adapter_name]

    def rank(self, adapter_name: str) -> int:
        """Directions that are in use."""
        return self.r[adapter_name]

    # --- for methods ---------------------------------------------------------------------------------------------

    def pretrained_weight(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """W (out × in), detached, in `dtype` or the adapter's."""
        weight = self.get_base_weight().detach()
        weight = weight.T if self.fan_in_fan_out else weight
        return weight.to(dtype or self._adapter_dtype())

    def _draw_zeros(self, adapter_name: str) -> None:
        for name in self.adapter_layer_names:
            parameter = getattr(self, name)[adapter_name]
            if not parameter.any():
                parameter.normal_(std=0.02)


def kaiming(matrix: torch.Tensor) -> None:
    """Uniform on ±1/√in: Kaiming's with a = √5, as `nn.Linear` and LoRA start."""
    nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))


class LowRankModel(LinearTuner):
    """The tuner of a low-rank baseline.

    A method whose parameters change beside the optimizer's steps (SoRA, LoRA-Dash, LoRI, dynamic-rank DoRA) needs two
    calls in a training loop: `regularise` before and `after_step` after every optimizer step. Both do nothing where a
    method has no use for them.
    """

    prefix = "lora_"
    tuner_layer_cls = LowRankLayer

    def regularise(self, step: int) -> None:
        """Add a penalty's gradient to `.grad`, once before optimizer step `step` (counted from 1), after clipping."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any] | None:
        """Act after optimizer step `step` (counted from 1).

        Args:
            step: completed optimizer steps, this one included.
            optimizer: whose state of parameters that were started anew is set to zero.

        Returns:
            What happened to the ranks, JSON-ready, where anything did.
        """
        return None

    def trained(self) -> Iterator[tuple[str, str, Any, Any]]:
        """(module, adapter, layer, config) of every layer of every adapter that is not in inference mode."""
        for adapter_name, config in self.peft_config.items():
            if not config.inference_mode:
                for name, module in self.model.named_modules():
                    if isinstance(module, LowRankLayer) and module.holds(adapter_name):
                        yield plain_name(name), adapter_name, module, config

    def ranks(self) -> dict[str, int]:
        """Rank in use of every adapted module, by its name in the base model."""
        return {name: layer.rank(adapter_name) for name, adapter_name, layer, _ in self.trained()}
