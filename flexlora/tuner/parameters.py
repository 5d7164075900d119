"""Parameters of an adapted model: optimizer groups, parameter counts and ranks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from .delta import DeltaLayer
from .layer import FlexLoraLayer
from .names import plain_name
from .packing import adapted_root, flexlora_configs


def parameter_groups(
    model: nn.Module, learning_rate: float, lambda_lr_ratio: float | None = None
) -> list[dict[str, Any]]:
    """Make the groups for a torch optimizer: all trainable parameters, with FlexLoRA's λ apart.

    The reason for the separate groups: with unit vectors, one Adam step on λ changes ΔW far less than one on LoRA's B,
    so the SVD form fits more slowly. The paper has one learning rate for all parameters.

    Args:
        model: the adapted model.
        learning_rate: the learning rate of all parameters except λ.
        lambda_lr_ratio: the learning rate of λ divided by `learning_rate`; by default that of the trainable adapter's
            configuration ([`FlexLoraConfig.lambda_rate`]).

    Returns:
        The group "others", and the group "lambda" if there is a λ. If the configuration has `lambda_lr_ratio="auto"`,
        there is a group "lambda ×RATIO" for each ratio. Each group has "params", "lr" and "name".

    Raises:
        ValueError: the learning rate is below 0, or the ratio is not positive.
    """
    config = next((c for _, _, c in flexlora_configs(model) if not c.inference_mode), None)
    if not learning_rate >= 0:  # torch checks only its default rate, not the rate of a group
        raise ValueError(f"`learning_rate` must not be negative, but is {learning_rate}.")
    if lambda_lr_ratio is not None and lambda_lr_ratio <= 0:
        raise ValueError(f"`lambda_lr_ratio` must be positive, not {lambda_lr_ratio}.")
    ratios: dict[int, float] = {}
    for module in model.modules():
        if isinstance(module, FlexLoraLayer):
            ratio = lambda_lr_ratio
            if ratio is None:
                ratio = 1.0 if config is None else config.lambda_rate(module.out_features, module.in_features)
            ratios |= {id(values): ratio for values in module.flexlora_lambda.values()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"name": "others", "params": [p for p in trainable if id(p) not in ratios], "lr": learning_rate}]
    different = sorted(set(ratios.values()))
    for ratio in different:
        params = [p for p in trainable if ratios.get(id(p)) == ratio]
        name = "lambda" if len(different) == 1 else f"lambda ×{ratio:.6g}"
        groups.append({"name": name, "params": params, "lr": learning_rate * ratio})
    return [group for group in groups if group["params"]]


@dataclass(frozen=True)
class ParameterCount:
    """Trainable parameters of a model.

    Attributes:
        adapter_active: the adapter's parameters without inactive directions; tables report this number.
        adapter_allocated: the adapter's parameters with inactive directions, which fill FlexLoRA's fixed capacity.
        head: trainable parameters outside the adapter: classifier and pooler.
        total: all parameters, including frozen ones, without inactive directions.
    """

    adapter_active: int
    adapter_allocated: int
    head: int
    total: int

    @property
    def trainable(self) -> int:
        """The parameters of the active directions and of the head."""
        return self.adapter_active + self.head


def count_parameters(model: nn.Module, head_modules: Collection[str] | None = None) -> ParameterCount:
    """Count the trainable parameters of any model, adapted by PEFT or not (also on the meta device).

    Args:
        model: the model, adapted or not.
        head_modules: the last parts of the head modules' names. All other trainable parameters, biases included, then
            count as the adapter's. None: trainable parameters outside PEFT's tuner layers are the head.
    """
    inside: set[int] = set()
    spare = spare_trainable = 0
    for module in model.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        base = {id(parameter) for parameter in module.get_base_layer().parameters()}
        own = {id(parameter): parameter for parameter in module.parameters() if id(parameter) not in base}
        inside |= own.keys()
        if isinstance(module, DeltaLayer):
            for name in module.settings:
                inactive = module.inactive_parameters(name)
                spare += inactive
                spare_trainable += inactive if module.trains(name) else 0
    if head_modules is not None:
        head = {id(p) for name, p in model.named_parameters() if not set(head_modules).isdisjoint(name.split("."))}
        head |= {id(p) for m in model.modules() if isinstance(m, ModulesToSaveWrapper) for p in m.parameters()}
        inside |= {id(p) for p in model.parameters()} - head
    parameters = list(model.parameters())
    allocated = sum(p.numel() for p in parameters if p.requires_grad and id(p) in inside)
    return ParameterCount(
        adapter_active=allocated - spare_trainable,
        adapter_allocated=allocated,
        head=sum(p.numel() for p in parameters if p.requires_grad and id(p) not in inside),
        total=sum(p.numel() for p in parameters) - spare,
    )


def module_ranks(model: nn.Module, adapter_name: str | None = None) -> dict[str, int]:
    """The current rank of every module that FlexLoRA adapts, by its name in the base model, in module order."""
    counts: dict[str, torch.Tensor] = {}
    for name, module in adapted_root(model).named_modules():
        if isinstance(module, FlexLoraLayer):
            adapter = adapter_name or next(iter(module.flexlora_P), None)
            if adapter is not None and adapter in module.flexlora_P:
                active = module.flexlora_active[adapter]
                on_meta = active.device.type == "meta"
                counts[plain_name(name)] = torch.tensor(module.rank(adapter), device="cpu") if on_meta else active.sum()
    if not counts:
        return {}
    home = next(iter(counts.values())).device
    # All ranks take one device-to-host copy.
    return dict(zip(counts, torch.stack([count.to(home) for count in counts.values()]).tolist(), strict=True))
