"""What every tuner of linears has in common, FlexLoRA's and the baselines': which modules it replaces, and by what."""

from __future__ import annotations

import difflib
from typing import Any

from peft import NoMatchingPeftModuleError
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from .base import Tuner, unmatched_targets
from .names import plain_name


class LinearTuner(Tuner):
    """A tuner whose layers take `r` and `lora_alpha`. `rank_pattern` and `alpha_pattern` set them for single modules.

    Raises:
        NoMatchingPeftModuleError: an entry of `target_modules` matches no module (the nearest names are listed).
        ValueError: a target is no linear.
    """

    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        wanted = self.peft_config[adapter_name].target_modules
        sought = unmatched_targets(model, wanted) or wanted
        names = [plain_name(name) for name, module in model.named_modules() if is_linear(module)]
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except NoMatchingPeftModuleError as error:
            raise NoMatchingPeftModuleError(f"{error} {_nearest(sought, names)}") from None

    def place(self, adapter_name: str, config: Any, name: str) -> dict[str, Any]:
        ranks, alphas = config.rank_pattern, config.alpha_pattern
        return {
            "r": ranks.get(get_pattern_key(list(ranks), name), config.r),
            "lora_alpha": alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha),
            **get_quantization_kwargs(self),
        }

    def check_target(self, target: nn.Module, name: str) -> None:
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not is_linear(base):
            raise ValueError(
                f"{name} is a {type(base).__name__}: {self.title} adapts nn.Linear, Conv1D and quantised linears only. "
                "Narrow target_modules."
            )


def is_linear(module: nn.Module) -> bool:
    """Whether a low-rank update can adapt the module: a linear, a Conv1D or a quantised linear supported by PEFT."""
    if isinstance(module, nn.Linear | Conv1D):
        return True
    backend = resolve_quantization_backend(module) if hasattr(module, "weight") or hasattr(module, "qweight") else None
    return backend is not None and backend.layer_type == "linear"


def _nearest(wanted: Any, names: list[str]) -> str:
    """Make the hint 'Nearest names: …' for entries without a match, from the names of the model's linears."""
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
