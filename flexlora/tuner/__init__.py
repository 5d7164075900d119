"""The FlexLoRA tuner. It depends on torch and peft only, and on the YAML files with the recipes."""

from typing import TYPE_CHECKING, Any

# This import comes first: it triggers the import of the baselines, which use modules of this package.
import peft  # noqa: F401

from .allocator import RankAllocator
from .attach import Attachment, attach
from .config import FlexLoraConfig
from .events import RankEvent
from .layer import FlexLoraLayer
from .lora import convert_to_lora, save_as_lora, warm_start_from_lora
from .model import FlexLoraModel
from .parameters import ParameterCount, count_parameters, module_ranks, parameter_groups
from .reallocation import Reallocation, decide, decide_by_parameters
from .recipe import recipe
from .sharding import average_gradients, shard_base

if TYPE_CHECKING:
    from .trainer import FlexLoraCallback

__all__ = [
    "Attachment",
    "FlexLoraCallback",
    "FlexLoraConfig",
    "FlexLoraLayer",
    "FlexLoraModel",
    "ParameterCount",
    "RankAllocator",
    "RankEvent",
    "Reallocation",
    "attach",
    "average_gradients",
    "convert_to_lora",
    "count_parameters",
    "decide",
    "decide_by_parameters",
    "module_ranks",
    "parameter_groups",
    "recipe",
    "save_as_lora",
    "shard_base",
    "warm_start_from_lora",
]


def __getattr__(name: str) -> Any:
    # Only the callback needs transformers' Trainer. Importing that imports PEFT, and so this package in a circle.
    if name == "FlexLoraCallback":
        from .trainer import FlexLoraCallback

        return FlexLoraCallback
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
