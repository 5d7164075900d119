"""What every tuner of linears has in common, FlexLoRA's and the baselines': which modules it replaces, and by what."""

from __future__ import annotations

import difflib
from typing import Any, ClassVar

from peft import NoMatchingPeftModuleError
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from .packing import plain_name


class LinearTuner(BaseTuner):
    """PEFT's tuner for layers made by `linear_cls(base, adapter_name, config=…, r=…, lora_alpha=…)`.

    Ranks and alphas of single modules are those of `rank_pattern` and `alpha_pattern`.

    Raises:
        NoMatchingPeftModuleError: an entry of `target_modules` matches no module (the nearest names are listed).
        ValueError: a target is no linear.
    """

    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    linear_cls: ClassVar[type[Any]]

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        names = [plain_name(name) for name, module in model.named_modules() if _is_linear(module)]
        wanted = config.target_modules
        if kwargs.get("state_dict") is None:
            # Before anything is replaced, so that the base is as it was when the error is raised.
            unmatched = unmatched_targets(model, wanted)
            if unmatched:
                raise NoMatchingPeftModuleError(
                    f"target_modules: {', '.join(unmatched)} match no module. {_nearest(unmatched, names)}"
                )
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except NoMatchingPeftModuleError as error:
            raise NoMatchingPeftModuleError(f"{error} {_nearest(wanted, names)}") from None

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        ranks, alphas = peft_config.rank_pattern, peft_config.alpha_pattern
        r = ranks.get(get_pattern_key(list(ranks), current_key), peft_config.r)
        alpha = alphas.get(get_pattern_key(list(alphas), current_key), peft_config.lora_alpha)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, r, alpha, config=peft_config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not _is_linear(base):
            raise ValueError(
                f"{current_key} is a {type(base).__name__}: {self.linear_cls.method} adapts nn.Linear, Conv1D and "
                "quantised linears only. Narrow target_modules."
            )
        layer = self.linear_cls(
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
