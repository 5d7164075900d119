"""The format of saved adapters: only the active directions, with the slot of each direction.

In the model a matrix has its full capacity (P: out × C, …, and a mask). On disk it has P (out × rank), λ (rank),
Q (rank × in) and `flexlora_slots` (rank). The slots restore the position of every direction, so that a resumed
optimizer state belongs to the right rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from .adapter_parameters import LEAF
from .config import FlexLoraConfig
from .layer import FlexLoraLayer
from .names import plain_name, specific_first

ACTIVE = "flexlora_active"
SLOTS = "flexlora_slots"
FACTORS = {"P": "flexlora_P", "lambda": "flexlora_lambda", "Q": "flexlora_Q"}


def flexlora_layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, FlexLoraLayer]]:
    """Yield (name, layer) of every linear with `adapter_name`, in module order, named as in `model.named_modules()`."""
    for name, module in model.named_modules():
        if isinstance(module, FlexLoraLayer) and adapter_name in module.flexlora_P:
            yield name, module


def flexlora_configs(model: nn.Module) -> Iterator[tuple[nn.Module, str, FlexLoraConfig]]:
    """Yield (owning module, adapter name, configuration) of every FlexLoRA adapter, outermost module first.

    PEFT stores the same configuration on the PeftModel, on the tuner and on the base model.
    """
    for module in model.modules():
        configs = getattr(module, "peft_config", None)
        for name, config in configs.items() if isinstance(configs, dict) else ():
            if isinstance(config, FlexLoraConfig):
                yield module, name, config


def adapted_root(model: nn.Module) -> nn.Module:
    """Find the module with the adapters' configurations inside wrappers such as DDP; `model` if there is none."""
    return next((module for module, _, _ in flexlora_configs(model)), model)


def pack_state_dict(
    state_dict: dict[str, torch.Tensor], adapter_name: str
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Drop inactive directions and convert masks to slots.

    Returns:
        The packed state dict, whose keys still contain the adapter name, and the rank of every module.
    """
    packed = dict(state_dict)
    ranks = {}
    suffix = f".{ACTIVE}.{adapter_name}"
    for key in [key for key in state_dict if key.endswith(suffix)]:
        module = key.removesuffix(suffix)
        active = packed.pop(key)
        index = active.nonzero().flatten()
        for name, select in (("P", (slice(None), index)), ("lambda", (index,)), ("Q", (index,))):
            factor = f"{module}.{FACTORS[name]}.{adapter_name}.{LEAF}"
            packed[factor] = state_dict[factor][select].contiguous()
        packed[f"{module}.{SLOTS}.{adapter_name}"] = index.to(torch.int32)
        ranks[plain_name(module)] = int(index.numel())
    return packed, specific_first(ranks)


def unpack_state_dict(
    model: nn.Module, state_dict: dict[str, torch.Tensor], adapter_name: str
) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """Restore full capacity and masks for the layers of `model`. Keys have no adapter name, as on disk.

    Returns:
        The unpacked state dict and the rank of every module found in it.

    Raises:
        ValueError: saved directions do not fit their module. The message names the module.
    """
    layers = {plain_name(name): layer for name, layer in flexlora_layers(model, adapter_name)}
    unpacked = dict(state_dict)
    ranks = {}
    suffix = f".{FACTORS['lambda']}"
    for key in [key for key in state_dict if key.endswith(suffix)]:
        module = key.removesuffix(suffix)
        layer = layers.get(plain_name(module))
        if layer is None:
            continue  # PEFT reports it as an unexpected key
        values = state_dict[key]
        # An adapter written by hand may have no slots. Its directions then take the first slots.
        slots = unpacked.pop(f"{module}.{SLOTS}", torch.arange(values.numel()))
        try:
            full = layer.unpack(
                adapter_name,
                state_dict[f"{module}.{FACTORS['P']}"],
                values,
                state_dict[f"{module}.{FACTORS['Q']}"],
                slots,
            )
        except KeyError as missing:
            raise ValueError(f"the saved adapter lacks {missing}, which belongs to {key}.") from None
        except ValueError as error:
            raise ValueError(f"{plain_name(module)}: {error}") from None
        for name, factor in FACTORS.items():
            unpacked[f"{module}.{factor}"] = full[name]
        unpacked[f"{module}.{ACTIVE}"] = full["active"]
        ranks[plain_name(module)] = int(values.numel())
    return unpacked, specific_first(ranks)
