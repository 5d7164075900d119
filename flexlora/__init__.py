"""FlexLoRA (ICLR 2026) as a PEFT tuner, and the runner that reproduces its benchmarks.

Importing the package registers the tuner and the baselines with PEFT, so that plain PEFT code can load their saved
adapters. Importing the package does not import PEFT or torch, so that `flexlora-run` reports a typing error quickly.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .import_hook import call_after_import

if TYPE_CHECKING:
    from .baselines.e2_dora import E2DoraConfig
    from .baselines.e2_lori import E2LoriConfig
    from .baselines.e2_sharelora import E2ShareLoraConfig
    from .baselines.e2_vera import E2VeraConfig
    from .baselines.e2lora import E2LoraConfig
    from .sharing import SharingPlan, sharing_plan
    from .tuner import (
        FlexLoraCallback,
        FlexLoraConfig,
        FlexLoraModel,
        ParameterCount,
        RankEvent,
        attach,
        average_gradients,
        convert_to_lora,
        count_parameters,
        module_ranks,
        parameter_groups,
        recipe,
        save_as_lora,
        shard_base,
        warm_start_from_lora,
    )

__version__ = "0.2.0"

__all__ = [
    "E2DoraConfig",
    "E2LoraConfig",
    "E2LoriConfig",
    "E2ShareLoraConfig",
    "E2VeraConfig",
    "FlexLoraCallback",
    "FlexLoraConfig",
    "FlexLoraModel",
    "ParameterCount",
    "RankEvent",
    "SharingPlan",
    "attach",
    "average_gradients",
    "convert_to_lora",
    "count_parameters",
    "module_ranks",
    "parameter_groups",
    "recipe",
    "save_as_lora",
    "shard_base",
    "sharing_plan",
    "warm_start_from_lora",
]


def _tuner() -> Any:
    return importlib.import_module("flexlora.tuner")


def _register() -> None:
    _tuner()
    importlib.import_module("flexlora.baselines")


def __getattr__(name: str) -> Any:
    if name in ("SharingPlan", "sharing_plan"):
        return getattr(importlib.import_module("flexlora.sharing"), name)
    if name in __all__ and name.startswith("E2"):
        return getattr(importlib.import_module("flexlora.baselines"), name)
    if name in __all__:
        return getattr(_tuner(), name)
    raise AttributeError(f"module 'flexlora' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "peft" in sys.modules:
    _register()
else:
    call_after_import("peft", _register)
