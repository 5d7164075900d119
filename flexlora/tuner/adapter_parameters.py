"""The parameters of a layer by adapter name, with names as PEFT's clients expect them.

Clients of PEFT find an adapter's parameters by `.NAME.`: TRL copies every parameter whose name has `.default.` to that
with `.ref.` and trains against this reference model. In an `nn.ParameterDict` a name ends in `.default`, so nothing is
copied, in silence. Here each parameter has a module of its own: `lora_A.default.tensor`. Its name is not `weight`,
because PEFT's policy for FSDP wraps modules with a `weight`, whose parameters are whole only in their own forward.

Files of saved adapters have no adapter name and are the same as before: `lora_A`.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import nn

LEAF = "tensor"


class AdapterParameter(nn.Module):
    """One parameter."""

    tensor: nn.Parameter


class AdapterParameters(nn.ParameterDict):
    """An `nn.ParameterDict` whose parameters are named `KEY.tensor`."""

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key).tensor

    def __setitem__(self, key: str, value: Any) -> None:
        if key not in self._keys:
            self.add_module(key, AdapterParameter())
            self._keys[key] = None
        elif not isinstance(value, nn.Parameter):
            value = nn.Parameter(value.detach(), self[key].requires_grad)
        setattr(getattr(self, key), LEAF, nn.Parameter(value) if not isinstance(value, nn.Parameter) else value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Also take a state dict of version 0.2.0 and before, whose names end in the adapter's."""
        for key in self._keys:
            if prefix + key in state_dict:
                state_dict[f"{prefix}{key}.{LEAF}"] = state_dict.pop(prefix + key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def current_names(tensors: Mapping[str, torch.Tensor], known: Container[str]) -> dict[str, torch.Tensor]:
    """Return `tensors` under the names in `known`, which version 0.2.0 and before wrote without the last part."""
    return {f"{name}.{LEAF}" if f"{name}.{LEAF}" in known else name: tensor for name, tensor in tensors.items()}
