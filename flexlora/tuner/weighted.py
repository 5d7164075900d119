"""Weighted sums of adapters. In SVD form a sum is a concatenation of directions, which is exact for all ranks."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

import torch
from peft.utils.other import ModulesToSaveWrapper

from .layer import FlexLoraLayer
from .names import plain_name, specific_first
from .packing import flexlora_layers

if TYPE_CHECKING:
    from .model import FlexLoraModel

Triplet = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def combine_adapters(
    tuner: FlexLoraModel,
    adapters: list[str],
    weights: list[float],
    adapter_name: str,
    combination_type: str,
    svd_rank: int | None,
) -> None:
    """Combine adapters; see [`FlexLoraModel.add_weighted_adapter`]."""
    if len(adapters) != len(weights) or not adapters:
        raise ValueError(f"there are {len(adapters)} adapters but {len(weights)} weights: give one weight per adapter.")
    for name in adapters:
        if name not in tuner.peft_config:
            raise ValueError(f"there is no adapter '{name}'. There are: {', '.join(tuner.peft_config)}.")
    if adapter_name in tuner.peft_config:
        raise ValueError(f"an adapter '{adapter_name}' already exists: choose another name.")
    if combination_type not in ("cat", "svd"):
        raise ValueError(f"combination_type is {combination_type!r}: choose cat (exact) or svd.")

    if svd_rank is not None and svd_rank < 1:
        raise ValueError(f"svd_rank must be at least 1, not {svd_rank}.")
    trained = [
        (wrapper, [name for name in dict.fromkeys(adapters) if name in wrapper.modules_to_save])
        for wrapper in tuner.model.modules()
        if isinstance(wrapper, ModulesToSaveWrapper)
    ]
    if any(len(owners) > 1 for _, owners in trained):
        raise ValueError(
            "several of these adapters have trained modules_to_save (such as a classifier), which cannot be summed: "
            "combine adapters of which at most one has them."
        )

    layers = {plain_name(name): layer for adapter in adapters for name, layer in flexlora_layers(tuner.model, adapter)}
    summed = {name: _concatenate(layer, adapters, weights) for name, layer in layers.items()}
    if combination_type == "svd":
        rank = svd_rank or max(
            layer.rank(adapter) for adapter in adapters for layer in layers.values() if adapter in layer.flexlora_P
        )
        summed = {name: truncate(triplet, rank) for name, triplet in summed.items()}

    ranks = {name: int(triplet[1].numel()) for name, triplet in summed.items()}
    config = copy.deepcopy(tuner.peft_config[adapters[0]])
    config.r = config.max_rank = max(ranks.values())
    config.lora_alpha = config.r  # s = 1, because λ already contains every scale
    config.rank_pattern, config.alpha_pattern = specific_first(ranks), {}
    config.target_modules = _exactly(set(ranks), [plain_name(name) for name, _ in tuner.model.named_modules()])
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    heads = [tuner.peft_config[name].modules_to_save for name in adapters if tuner.peft_config[name].modules_to_save]
    config.modules_to_save = list(dict.fromkeys(name for names in heads for name in names)) or None
    config.init_b = 0
    config.inference_mode = True
    tuner.peft_config[adapter_name] = config
    tuner.inject_adapter(tuner.model, adapter_name)
    for name, layer in flexlora_layers(tuner.model, adapter_name):
        fill(layer, adapter_name, summed[plain_name(name)])
    for wrapper, owners in trained:
        for owner in owners:
            wrapper.modules_to_save[adapter_name].load_state_dict(wrapper.modules_to_save[owner].state_dict())
    tuner.set_adapter(tuner.active_adapters)


def _exactly(targets: set[str], names: list[str]) -> set[str] | str:
    """Make target modules that match exactly `targets`: a regex if a target is the suffix of another module's name."""
    suffixes = tuple(f".{target}" for target in targets)
    if any(name.endswith(suffixes) and name not in targets for name in names):
        return "|".join(re.escape(target) for target in sorted(targets))
    return targets


def _concatenate(layer: FlexLoraLayer, adapters: list[str], weights: list[float]) -> Triplet:
    parts = []
    for adapter, weight in zip(adapters, weights, strict=True):
        if adapter in layer.flexlora_P:
            p, values, q = layer.packed_factors(adapter)
            parts.append((p, values * (weight * layer.scaling[adapter]), q))
    return (
        torch.cat([p for p, _, _ in parts], 1),
        torch.cat([v for _, v, _ in parts]),
        torch.cat([q for _, _, q in parts]),
    )


def truncate(triplet: Triplet, rank: int) -> Triplet:
    """Compute the best orthonormal approximation of P diag(λ) Q with rank ≤ `rank`, by two thin QRs and a small SVD."""
    p, values, q = (factor.double() for factor in triplet)
    left, left_core = torch.linalg.qr(p)
    right, right_core = torch.linalg.qr(q.T)
    u, s, vh = torch.linalg.svd(left_core * values @ right_core.T)
    kept = min(rank, s.numel())
    dtype = triplet[0].dtype
    return (left @ u[:, :kept]).to(dtype), s[:kept].to(dtype), (vh[:kept] @ right.T).to(dtype)


@torch.no_grad()
def fill(layer: FlexLoraLayer, adapter_name: str, triplet: Triplet) -> None:
    """Write packed directions into the first slots. The other active slots keep their vectors and get λ = 0."""
    p, values, q = layer.factors(adapter_name)
    rank = triplet[1].numel()
    values.zero_()
    p[:, :rank], values[:rank], q[:rank] = (factor.to(p.device, p.dtype) for factor in triplet)
    layer.flexlora_active[adapter_name][:rank] = True
