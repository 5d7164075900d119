"""FlexLoRA (ICLR 2026) as a PEFT tuner, and the runner that reproduces its benchmarks.

Importing the package registers the tuner with PEFT, so that plain PEFT code loads adapters it saved.
"""

from .tuner import (
    FlexLoraCallback,
    FlexLoraConfig,
    FlexLoraModel,
    ParameterCount,
    RankEvent,
    attach,
    convert_to_lora,
    count_parameters,
    module_ranks,
    parameter_groups,
    save_as_lora,
    warm_start_from_lora,
)

__version__ = "0.1.0"

__all__ = [
    "FlexLoraCallback",
    "FlexLoraConfig",
    "FlexLoraModel",
    "ParameterCount",
    "RankEvent",
    "attach",
    "convert_to_lora",
    "count_parameters",
    "module_ranks",
    "parameter_groups",
    "save_as_lora",
    "warm_start_from_lora",
]
