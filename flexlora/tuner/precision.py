"""What trains is float32, whatever the type of the base.

transformers loads a model in the type of its checkpoint. In float16, AdamW's eps is 0 and the first step gives NaN. In
bfloat16, a step of 1e-3 vanishes near 1. Adapters are float32 by themselves. PEFT copies the `modules_to_save` in the
base's type, so they are converted here.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.utils._pytree import tree_map_only

HALF = (torch.float16, torch.bfloat16)


def train_in_float32(model: nn.Module, adapter_name: str = "default") -> None:
    """Convert the half-precision `modules_to_save` of an adapter to float32, once, after the adapter is added.

    They compute in float32. Their output has the base's type, as the modules after them expect.
    """
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper) and adapter_name in wrapper.modules_to_save:
            # The base's type comes from the original module: a tied copy shares parameters that are converted already.
            half = [p.dtype for p in wrapper.original_module.parameters() if p.dtype in HALF]
            if half:
                module = wrapper.modules_to_save[adapter_name].float()
                module.register_forward_pre_hook(_inputs_in_float32, with_kwargs=True)
                module.register_forward_hook(partial(_output_in, half[0]))


def train_in_base_dtype(model: nn.Module, adapter_name: str = "default") -> None:
    """Convert the `modules_to_save` of an adapter to the base's type: undo `train_in_float32`."""
    for wrapper in model.modules():
        if isinstance(wrapper, ModulesToSaveWrapper) and adapter_name in wrapper.modules_to_save:
            module = wrapper.modules_to_save[adapter_name]
            hooks = (module._forward_pre_hooks, module._forward_hooks)
            ours = [(held, key) for held in hooks for key, hook in held.items() if _is_conversion(hook)]
            for held, key in ours:
                del held[key]
            half = [p.dtype for p in wrapper.original_module.parameters() if p.dtype in HALF]
            if half:
                module.to(half[0])


def half_precision(named: Iterable[tuple[str, nn.Parameter]]) -> tuple[torch.dtype, str] | None:
    """Find the first trainable parameter in half precision, float16 before bfloat16.

    Returns:
        Its type, and the description "3 of 40 trainable parameters are float16 (the first: NAME)"; None if all
        trainable parameters are float32 or float64.
    """
    trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    for dtype in HALF:
        found = [name for name, parameter in trainable if parameter.dtype == dtype]
        if found:
            kind = str(dtype).removeprefix("torch.")
            return dtype, f"{len(found)} of {len(trainable)} trainable parameters are {kind} (the first: {found[0]})"
    return None


def _is_conversion(hook: Any) -> bool:
    return hook is _inputs_in_float32 or (isinstance(hook, partial) and hook.func is _output_in)


def _inputs_in_float32(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    def converted(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float() if tensor.dtype in HALF else tensor

    found: tuple[tuple, dict[str, Any]] = tree_map_only(torch.Tensor, converted, (args, kwargs))
    return found


def _output_in(dtype: torch.dtype, module: nn.Module, args: tuple, output: Any) -> Any:
    def converted(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if tensor.dtype == torch.float32 else tensor

    return tree_map_only(torch.Tensor, converted, output)
