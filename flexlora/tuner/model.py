"""`FlexLoraModel`: the tuner as PEFT knows it."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from peft import NoMatchingPeftModuleError
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    get_quantization_kwargs,
    register_peft_method,
    resolve_quantization_backend,
)
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from .allocator import RankAllocator, RankEvent
from .config import FlexLoraConfig
from .layer import FlexLoraLayer, FlexLoraLinear
from .packing import pack_state_dict, plain_name, unpack_state_dict
from .parameters import count_parameters
from .peft_type import FLEXLORA
from .weighted import combine_adapters


class FlexLoraModel(BaseTuner):
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

    prefix = "flexlora_"
    tuner_layer_cls = FlexLoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    _rank_allocator: RankAllocator | None = None

    # --- creating ------------------------------------------------------------------------------------------------

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        names = [plain_name(name) for name, module in model.named_modules() if _is_linear(module)]
        wanted = config.target_modules
        if isinstance(wanted, set) and kwargs.get("state_dict") is None:
            # PEFT is content when one entry of several matches; the others are then silently not adapted. Checked
            # before anything is replaced, so that the base is as it was when the error is raised.
            present = [plain_name(name) for name, _ in model.named_modules()]
            unmatched = [
                entry
                for entry in sorted(wanted)
                if entry != "all-linear" and not any(name == entry or name.endswith(f".{entry}") for name in present)
            ]
            if unmatched:
                raise NoMatchingPeftModuleError(
                    f"target_modules: {', '.join(unmatched)} match no module. {_nearest(unmatched, names)}"
                )
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except NoMatchingPeftModuleError as error:
            raise NoMatchingPeftModuleError(f"{error} {_nearest(wanted, names)}") from None

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

    def _create_and_replace(
        self,
        peft_config: FlexLoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        ranks, alphas = peft_config.rank_pattern, peft_config.alpha_pattern
        r = ranks.get(get_pattern_key(list(ranks), current_key), peft_config.r)
        alpha = alphas.get(get_pattern_key(list(alphas), current_key), peft_config.lora_alpha)
        if isinstance(target, FlexLoraLayer):
            target.update_layer(adapter_name, r, alpha, config=peft_config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not _is_linear(base):
            raise ValueError(
                f"{current_key} is a {type(base).__name__}: FlexLoRA adapts nn.Linear, Conv1D and quantised linears "
                "only. Narrow target_modules."
            )
        peft_config.fan_in_fan_out |= isinstance(base, Conv1D)  # kept for an export to LoRA; a layer looks at its base
        layer = FlexLoraLinear(
            target, adapter_name, config=peft_config, r=r, lora_alpha=alpha, **get_quantization_kwargs(self)
        )
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # an additional adapter is not trainable by itself
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """Put `new_module` in its place: it shares the base layer, and has put its adapter on that one's device.

        PEFT's own also copies `weight`, which fails at unloading a module to save that has none itself (a pooler).
        """
        setattr(parent, child_name, new_module)

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


def _is_linear(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear | Conv1D):
        return True
    backend = resolve_quantization_backend(module) if hasattr(module, "weight") or hasattr(module, "qweight") else None
    return backend is not None and backend.layer_type == "linear"


def _nearest(wanted: Any, names: list[str]) -> str:
    """'Nearest names: …' for entries that match nothing: last parts and full names of the model's linears."""
    leaves = sorted({name.rpartition(".")[2] for name in names})
    entries = [wanted] if isinstance(wanted, str) else sorted(wanted or ())
    near: list[str] = []
    for entry in entries:
        tail = entry.rpartition(".")[2]
        near += difflib.get_close_matches(entry, names, n=2, cutoff=0.6) or difflib.get_close_matches(
            tail, leaves, n=3, cutoff=0.5
        )
    found = list(dict.fromkeys(near)) or leaves[:8]
    return (
        f"Nearest names of linears in this model: {', '.join(found)}." if found else "This model has no linear layer."
    )


if FLEXLORA not in PEFT_TYPE_TO_TUNER_MAPPING:
    register_peft_method(name="flexlora", config_cls=FlexLoraConfig, model_cls=FlexLoraModel, prefix="flexlora_")
